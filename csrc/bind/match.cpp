// SPDX-License-Identifier: Apache-2.0
// Subgraph matching for _cpu.
#include "cpu/match.h"

#include <pybind11/pybind11.h>

#include "bind/graph_checks.h"
#include "core/kernels.h"

namespace py = pybind11;
using il::TensorView;

namespace {

const int32_t* int32_or_null(py::handle obj, const char* op, const char* arg, int64_t size) {
  if (obj.is_none()) return nullptr;
  const TensorView t = il::cpu_view(obj, op, arg);
  il::check_dtype(t, il::DType::kInt32, op, arg, "int32");
  check_shape(t, {size}, op, arg);
  static const int32_t none = 0;  // what is empty may have no address, but is there
  return size == 0 ? &none : t.ptr<int32_t>();
}

// Whether every index in the plan is one, so that the search cannot leave its arrays.
bool is_plan(const int32_t* code, int64_t length, const il::Match& args) {
  using namespace il;
  if (length < kPlanHeader) return false;
  const int64_t q = code[0], sets = code[1], tail = code[2];
  if (q < 2 || q > kMaxPattern || sets < 1 || sets > q * (q - 1) / 2 || tail < 1 || tail >= q) return false;
  if (length != kPlanHeader + q * kPlanLevel + sets * kPlanSet + 2 * q * q) return false;
  bool good = true;
  int32_t computed = 0;  // sets that the levels so far have computed
  const int32_t* level = code + kPlanHeader;
  const int32_t* depths = level + q * kPlanLevel;
  for (int64_t i = 0; i < q; ++i, level += kPlanLevel) {
    const int64_t below = (int64_t(1) << i) - 1;
    good &= i == 0 ? level[0] == -1 : level[0] >= 0 && level[0] < computed;
    for (int f : {1, 2, 3, 4, 10, 11, 12, 13}) good &= (level[f] & ~below) == 0;
    good &= level[5] == computed && level[5] <= level[6] && level[6] <= sets;
    if (!good) return false;
    for (; computed < level[6]; ++computed) good &= depths[computed * kPlanSet] == i;
    good &= level[7] < 0 || args.node_labels != nullptr;
    good &= level[8] >= 0 && level[8] < q && level[9] >= 0 && level[9] < q;
    good &= args.node == nullptr || level[9] < args.num_node_orbits;
  }
  const int32_t* set = code + kPlanHeader + q * kPlanLevel;
  for (int64_t s = 0; s < sets; ++s, set += kPlanSet) {
    if (set[0] < 0 || set[0] >= q - 1) return false;
    const int64_t known = (int64_t(2) << set[0]) - 1;
    good &= set[1] < s && set[2] >= 0 && set[2] <= set[0];
    good &= set[3] >= 0 && set[3] <= 2 && (set[3] == 0) == (set[1] < 0);
    good &= (set[4] & ~known) == 0 && (set[5] & ~known) == 0;
    good &= set[6] < 0 || args.edge_labels != nullptr;
    good &= set[7] < 0 || args.node_labels != nullptr;
  }
  for (int64_t i = 0; i < q * q; ++i) good &= args.edge == nullptr || set[i] < args.num_edge_orbits;
  return good;
}

void match(py::handle by_root, py::handle node, py::handle edge, py::handle list, py::handle offsets, py::handle index,
           py::handle adjacency, py::handle code, py::handle node_labels, py::handle edge_labels, py::handle roots,
           py::handle after, int64_t skip, int64_t most, int threads) {
  const char* op = "match";
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  IL_CHECK(most >= 1, op, "most", std::to_string(most), "at least 1");
  il::Match args{};
  args.graph = simple_graph(index, adjacency, op);
  const int64_t n = args.graph.num_nodes, m = args.graph.num_edges;
  args.threads = threads, args.most = most;
  args.node_labels = int32_or_null(node_labels, op, "node_labels", n);
  args.edge_labels = int32_or_null(edge_labels, op, "edge_labels", m);
  args.num_roots = n;
  if (!roots.is_none()) {
    args.num_roots = il::cpu_view(roots, op, "roots").numel();
    args.roots = int32_or_null(roots, op, "roots", args.num_roots);
    for (int64_t i = 0; i < args.num_roots; ++i) {
      IL_CHECK(args.roots[i] >= 0 && args.roots[i] < n, op, "roots", std::to_string(args.roots[i]), "ranks");
    }
  }
  args.by_root = counts_or_null(by_root, op, "by_root", {args.num_roots});
  if (!node.is_none()) {
    args.num_node_orbits = static_cast<int>(il::cpu_view(node, op, "node").size(-1));
    args.node = counts_or_null(node, op, "node", {n, args.num_node_orbits});
  }
  if (!edge.is_none()) {
    args.num_edge_orbits = static_cast<int>(il::cpu_view(edge, op, "edge").size(-1));
    args.edge = counts_or_null(edge, op, "edge", {m, args.num_edge_orbits});
  }
  const TensorView plan = il::cpu_view(code, op, "code");
  il::check_rank(plan, 1, op, "code");
  il::check_dtype(plan, il::DType::kInt32, op, "code", "int32");
  args.code = plan.ptr<int32_t>(), args.code_length = plan.shape[0];
  IL_CHECK(is_plan(args.code, args.code_length, args), op, "code", "no plan", "Plan.code of ops/_match_plan.py");
  if (!list.is_none()) {
    args.take = il::cpu_view(list, op, "list").size(0);
    args.skip = skip;
    args.list = counts_or_null(list, op, "list", {args.take, args.code[0]});
    args.offsets = counts_or_null(offsets, op, "offsets", {args.num_roots + 1});
    IL_CHECK(args.offsets != nullptr, op, "offsets", "none", "running sums of by_root");
    IL_CHECK(skip >= 0 && skip + args.take <= args.offsets[args.num_roots], op, "skip", std::to_string(skip),
             "a range of the matches");
    args.after = int32_or_null(after, op, "after", args.code[0]);
    IL_CHECK(args.after != nullptr || skip <= args.offsets[0], op, "after", "none", "the match before skip");
  }
  Interrupt interrupt;
  args.poll = interrupt.poll();
  {
    py::gil_scoped_release release;
    il::kernels().match(args);
  }
  if (!args.finished) interrupt.raise();
  if (args.overflow) {
    PyErr_SetString(PyExc_OverflowError, "match: more matches than int64 holds");
    throw py::error_already_set();
  }
}

}  // namespace

void bind_match(py::module_& m) { m.def("match", &match); }
