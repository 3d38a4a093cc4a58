// SPDX-License-Identifier: Apache-2.0
// The graph of the pattern kernels, and the kernels that count fixed patterns, for _cpu.
#include <pybind11/pybind11.h>

#include "bind/graph_checks.h"
#include "core/kernels.h"

namespace py = pybind11;
using il::TensorView;

namespace {

constexpr std::chrono::milliseconds kLook(50);
constexpr std::chrono::microseconds kWait(500);

}  // namespace

Interrupt::Interrupt() : caller_(std::this_thread::get_id()), next_look_(std::chrono::steady_clock::now() + kLook) {}

bool Interrupt::ask(void* state) {
  Interrupt& self = *static_cast<Interrupt*>(state);
  if (self.stop_.load(std::memory_order_relaxed)) return true;
  if (std::this_thread::get_id() != self.caller_) return false;
  const auto now = std::chrono::steady_clock::now();
  if (now < self.next_look_) return false;
  self.next_look_ = now + kLook;
  py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() == 0) return false;
  self.stop_.store(true, std::memory_order_relaxed);
  return true;
}

bool Interrupt::is_caller(void* state) { return std::this_thread::get_id() == static_cast<Interrupt*>(state)->caller_; }

// The others are mostly done within microseconds: a sleep at once would be the longer wait.
void Interrupt::nap(void* state) {
  Interrupt& self = *static_cast<Interrupt*>(state);
  const auto now = std::chrono::steady_clock::now();
  if (now - self.last_nap_ > kWait) self.first_nap_ = now;
  self.last_nap_ = now;
  if (now - self.first_nap_ < kWait) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

void Interrupt::raise() const { throw py::error_already_set(); }

namespace {

int64_t find_simple_edges(py::handle ends, py::handle source, py::handle destination, int64_t num_nodes) {
  const char* op = "Graph";
  const TensorView k = il::cpu_view(ends, op, "ends"), s = il::cpu_view(source, op, "source"),
                   d = il::cpu_view(destination, op, "destination");
  il::check_dtype(k, il::DType::kInt32, op, "ends", "int32");
  il::check_dtype(s, il::DType::kInt64, op, "source", "int64");
  il::check_dtype(d, il::DType::kInt64, op, "destination", "int64");
  il::check_rank(s, 1, op, "source");
  const int64_t pairs = s.shape[0];
  check_shape(d, {pairs}, op, "destination");
  check_shape(k, {pairs, 2}, op, "ends");
  IL_CHECK(num_nodes >= 0, op, "num_nodes", std::to_string(num_nodes), "at least 0");
  const il::SimpleEdges args{s.ptr<int64_t>(), d.ptr<int64_t>(), pairs, num_nodes, k.ptr<int32_t>()};
  py::gil_scoped_release release;
  return il::find_simple_edges(args);
}

int64_t build_simple_graph(py::handle index, py::handle adjacency, py::handle ends, py::handle ptr, int64_t num_nodes) {
  const char* op = "Graph";
  const TensorView i = il::cpu_view(index, op, "index"), a = il::cpu_view(adjacency, op, "adjacency"),
                   k = il::cpu_view(ends, op, "ends"), b = il::cpu_view(ptr, op, "ptr");
  il::check_dtype(i, il::DType::kInt64, op, "index", "int64");
  il::check_dtype(b, il::DType::kInt64, op, "ptr", "int64");
  il::check_dtype(a, il::DType::kInt32, op, "adjacency", "int32");
  il::check_dtype(k, il::DType::kInt32, op, "ends", "int32");
  il::check_rank(k, 2, op, "ends");
  const int64_t edges = k.shape[0];
  check_shape(k, {edges, 2}, op, "ends");
  check_shape(i, {il::kSimpleHeader + 2 * num_nodes + 1}, op, "index");
  check_shape(a, {4 * edges + num_nodes}, op, "adjacency");
  il::check_rank(b, 1, op, "ptr");
  const int64_t graphs = b.shape[0] - 1;
  const int64_t* starts = b.ptr<int64_t>();
  bool ascending = graphs >= 0 && starts[0] == 0 && starts[graphs] == num_nodes;
  for (int64_t g = 0; ascending && g < graphs; ++g) ascending = starts[g] <= starts[g + 1];
  IL_CHECK(ascending, op, "ptr", "other offsets", "ascending ones from 0 to " + std::to_string(num_nodes));
  const int32_t* id = k.ptr<int32_t>();
  bool in_range = true;
  for (int64_t e = 0; e < 2 * edges; ++e) in_range &= id[e] >= 0 && id[e] < num_nodes;
  IL_CHECK(in_range, op, "ends", "other nodes", "nodes in [0, " + std::to_string(num_nodes) + ")");
  const il::SimpleGraphBuild args{id, edges, num_nodes, starts, graphs, i.ptr<int64_t>(), a.ptr<int32_t>()};
  py::gil_scoped_release release;
  return il::build_simple_graph(args);
}

void triangles(py::handle node, py::handle edge, py::handle index, py::handle adjacency, int threads) {
  const char* op = "triangles";
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  il::Triangles args{};
  args.graph = simple_graph(index, adjacency, op);
  args.node = counts_or_null(node, op, "node", {args.graph.num_nodes});
  args.edge = counts_or_null(edge, op, "edge", {args.graph.num_edges});
  args.threads = threads;
  Interrupt interrupt;
  args.poll = interrupt.poll();
  {
    py::gil_scoped_release release;
    il::kernels().triangles(args);
  }
  if (!args.finished) interrupt.raise();
}

void node_orbits(py::handle node, py::handle edge, py::handle index, py::handle adjacency, int k, bool induced,
                 int threads) {
  const char* op = "node_orbits";
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  IL_CHECK(k >= 3 && k <= 5, op, "k", std::to_string(k), "3, 4 or 5");
  const int64_t node_columns[] = {4, 15, 73}, edge_columns[] = {2, 12, 68};
  il::NodeOrbits args{};
  args.graph = simple_graph(index, adjacency, op);
  args.k = k, args.induced = induced, args.threads = threads;
  check_degrees(args.graph, k, op);
  args.node = counts_or_null(node, op, "node", {args.graph.num_nodes, node_columns[k - 3]});
  args.edge = counts_or_null(edge, op, "edge", {args.graph.num_edges, edge_columns[k - 3]});
  Interrupt interrupt;
  args.poll = interrupt.poll();
  {
    py::gil_scoped_release release;
    il::kernels().node_orbits(args);
  }
  if (!args.finished) interrupt.raise();
}

}  // namespace

void bind_motifs(py::module_& m) {
  m.def("find_simple_edges", &find_simple_edges);
  m.def("build_simple_graph", &build_simple_graph);
  m.def("triangles", &triangles);
  m.def("node_orbits", &node_orbits);
}
