// SPDX-License-Identifier: Apache-2.0
// The graph of the relational kernels, and the paths in it, for _cpu.
#include <pybind11/pybind11.h>

#include <vector>

#include "bind/rel_graph_checks.h"
#include "core/paths.h"

namespace py = pybind11;
using il::TensorView;

namespace {

// Checks ids and fills `csr`; a bad id is an IndexError that names its position.
void build_csr(py::handle csr, py::handle src, py::handle dst, py::handle rel, int64_t num_nodes,
               int64_t num_relations) {
  const char* op = "RelGraph";
  TensorView out = il::cpu_view(csr, op, "csr"), s = il::cpu_view(src, op, "edge_index[0]"),
             d = il::cpu_view(dst, op, "edge_index[1]"), r = il::cpu_view(rel, op, "edge_type");
  il::check_dtype(out, il::DType::kInt32, op, "csr", "int32");
  const struct {
    const TensorView& t;
    const char* name;
    int64_t limit;
    const char* of;
  } checks[] = {{s, "edge_index[0]", num_nodes, "num_nodes"},
                {d, "edge_index[1]", num_nodes, "num_nodes"},
                {r, "edge_type", num_relations, "num_relations"}};
  const int64_t edges = r.numel();
  for (const auto& c : checks) {
    il::check_rank(c.t, 1, op, c.name);
    il::check_dtype(c.t, il::DType::kInt64, op, c.name, "int64");
    check_shape(c.t, {edges}, op, c.name);
    const int64_t bad = il::first_out_of_range(c.t.ptr<int64_t>(), edges, c.limit);
    if (bad >= 0) {
      throw py::index_error(std::string(op) + ": " + c.name + " holds " + std::to_string(c.t.ptr<int64_t>()[bad]) +
                            " at edge " + std::to_string(bad) + ", expected ids in [0, " + std::to_string(c.limit) +
                            ") (" + c.of + ")");
    }
  }
  check_shape(out, {il::packed_csr_length(num_nodes, edges)}, op, "csr");
  py::gil_scoped_release release;
  il::build_csr(out.ptr<int32_t>(), s.ptr<int64_t>(), d.ptr<int64_t>(), r.ptr<int64_t>(), edges, num_nodes,
                num_relations);
}

void drop_edges(py::handle out, py::handle csr, py::handle mask, int64_t kept) {
  const char* op = "RelGraph.drop";
  TensorView o = il::cpu_view(out, op, "out"), c = il::cpu_view(csr, op, "csr"), m = il::cpu_view(mask, op, "edges");
  il::CsrView view = csr_view(c, op);
  il::check_dtype(m, il::DType::kBool, op, "edges", "bool");
  il::check_dtype(o, il::DType::kInt32, op, "out", "int32");
  check_shape(m, {view.num_edges}, op, "edges");
  check_shape(o, {il::packed_csr_length(view.num_nodes, kept)}, op, "out");
  int64_t remaining = 0;
  for (int64_t e = 0; e < view.num_edges; ++e) remaining += m.ptr<uint8_t>()[e] == 0;
  IL_CHECK(remaining == kept, op, "kept", std::to_string(kept), std::to_string(remaining));
  py::gil_scoped_release release;
  il::drop_edges(o.ptr<int32_t>(), view, m.ptr<uint8_t>(), kept);
}

// [(mean weight, [edges])], best first. weight: float64 (steps, E).
py::list best_paths(py::handle csr, py::handle weight, int64_t steps, int64_t source, int64_t target, int64_t count,
                    int64_t beam) {
  const char* op = "best_paths";
  TensorView g = il::cpu_view(csr, op, "csr"), w = il::cpu_view(weight, op, "weight");
  const il::CsrView graph = csr_view(g, op);
  il::check_rank(w, 2, op, "weight");
  il::check_dtype(w, il::DType::kFloat64, op, "weight", "float64");
  check_shape(w, {steps, graph.num_edges}, op, "weight");
  IL_CHECK(source >= 0 && source < graph.num_nodes, op, "source", std::to_string(source), "a node of the graph");
  IL_CHECK(target >= 0 && target < graph.num_nodes, op, "target", std::to_string(target), "a node of the graph");
  IL_CHECK(count >= 1 && beam >= 1, op, "count", std::to_string(count), "count and beam of at least 1");
  std::vector<il::RankedPath> paths;
  {
    py::gil_scoped_release release;
    paths = il::best_paths(graph, w.ptr<double>(), steps, source, target, count, beam);
  }
  py::list result;
  for (const il::RankedPath& path : paths) {
    py::list edges;
    for (int32_t e : path.edges) edges.append(e);
    result.append(py::make_tuple(path.weight, edges));
  }
  return result;
}

}  // namespace

void bind_rel_graph(py::module_& m) {
  m.def("build_csr", &build_csr);
  m.def("drop_edges", &drop_edges);
  m.def("best_paths", &best_paths);
}
