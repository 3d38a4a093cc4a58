// SPDX-License-Identifier: Apache-2.0
// The orbits of up to 4 nodes in steps, for processes that share out the roots: sums of a range of them, which the
// caller adds up, and the counts that follow.
#include <pybind11/pybind11.h>

#include "bind/graph_checks.h"
#include "core/kernels.h"

namespace py = pybind11;
using il::TensorView;

namespace {

int32_t* triangles_of_edges(py::handle obj, const char* op, int64_t m) {
  const TensorView t = il::cpu_view(obj, op, "t");
  il::check_dtype(t, il::DType::kInt32, op, "t", "int32");
  check_shape(t, {m}, op, "t");
  return t.ptr<int32_t>();
}

il::MotifSums range_of_roots(py::handle index, py::handle adjacency, int64_t first, int64_t last, int threads,
                             const char* op) {
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  il::MotifSums args{};
  args.graph = simple_graph(index, adjacency, op);
  IL_CHECK(0 <= first && first <= last && last <= args.graph.num_nodes, op, "roots",
           "[" + std::to_string(first) + ", " + std::to_string(last) + ")",
           "a range of [0, " + std::to_string(args.graph.num_nodes) + ")");
  args.first = first, args.last = last, args.threads = threads;
  return args;
}

template <class Kernel>
void run(Kernel kernel, il::MotifSums& args) {
  Interrupt interrupt;
  args.poll = interrupt.poll();
  {
    py::gil_scoped_release release;
    kernel(args);
  }
  if (!args.finished) interrupt.raise();
}

// Adds to t int32 (m), node int64 (2, n) or None for t alone: k4 and c4, edge int64 (2, m) or None: the same.
void motif_sums(py::handle t, py::handle node, py::handle edge, py::handle index, py::handle adjacency, int64_t first,
                int64_t last, int threads) {
  const char* op = "motif_sums";
  il::MotifSums args = range_of_roots(index, adjacency, first, last, threads, op);
  const int64_t n = args.graph.num_nodes, m = args.graph.num_edges;
  args.t = triangles_of_edges(t, op, m);
  if ((args.k4 = counts_or_null(node, op, "node", {2, n})) != nullptr) args.c4 = args.k4 + n;
  if ((args.k4_edge = counts_or_null(edge, op, "edge", {2, m})) != nullptr) args.c4_edge = args.k4_edge + m;
  run(il::kernels().motif_sums, args);
}

// Adds to node int64 (n): fan, and to edge int64 (2, m) or None: fan and far; t int32 (m) is that of all roots.
void fan_sums(py::handle node, py::handle edge, py::handle t, py::handle index, py::handle adjacency, int64_t first,
              int64_t last, int threads) {
  const char* op = "fan_sums";
  il::MotifSums args = range_of_roots(index, adjacency, first, last, threads, op);
  const int64_t n = args.graph.num_nodes, m = args.graph.num_edges;
  args.t = triangles_of_edges(t, op, m);
  args.fan = counts_or_null(node, op, "node", {n});
  IL_CHECK(!node.is_none(), op, "node", "None", "an int64 tensor");
  if ((args.fan_edge = counts_or_null(edge, op, "edge", {2, m})) != nullptr) args.far_edge = args.fan_edge + m;
  run(il::kernels().fan_sums, args);
}

// Writes node or edge, as node_orbits does, for k = 3 from t, for k = 4 also from node_sums int64 (3, n): k4, c4, fan,
// or edge_sums int64 (4, m): k4, c4, fan, far.
void orbits_from_sums(py::handle node, py::handle edge, py::handle t, py::handle node_sums, py::handle edge_sums,
                      py::handle index, py::handle adjacency, int k, bool induced, int threads) {
  const char* op = "orbits_from_sums";
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  IL_CHECK(k == 3 || k == 4, op, "k", std::to_string(k), "3 or 4");
  il::NodeOrbits args{};
  args.graph = simple_graph(index, adjacency, op);
  args.k = k, args.induced = induced, args.threads = threads;
  check_degrees(args.graph, k, op);
  const int64_t n = args.graph.num_nodes, m = args.graph.num_edges;
  args.node = counts_or_null(node, op, "node", {n, k == 3 ? 4 : 15});
  args.edge = counts_or_null(edge, op, "edge", {m, k == 3 ? 2 : 12});
  il::MotifSums sums{};
  sums.t = triangles_of_edges(t, op, m);
  sums.k4 = counts_or_null(node_sums, op, "node_sums", {3, n});
  sums.k4_edge = counts_or_null(edge_sums, op, "edge_sums", {4, m});
  IL_CHECK(k == 3 || node.is_none() || !node_sums.is_none(), op, "node_sums", "None", "an int64 tensor");
  IL_CHECK(k == 3 || edge.is_none() || !edge_sums.is_none(), op, "edge_sums", "None", "an int64 tensor");
  if (sums.k4 != nullptr) sums.c4 = sums.k4 + n, sums.fan = sums.k4 + 2 * n;
  if (sums.k4_edge != nullptr) {
    sums.c4_edge = sums.k4_edge + m, sums.fan_edge = sums.k4_edge + 2 * m, sums.far_edge = sums.k4_edge + 3 * m;
  }
  py::gil_scoped_release release;
  il::kernels().orbits_from_sums(args, sums);
}

}  // namespace

void bind_motif_sums(py::module_& m) {
  m.def("motif_sums", &motif_sums);
  m.def("fan_sums", &fan_sums);
  m.def("orbits_from_sums", &orbits_from_sums);
}
