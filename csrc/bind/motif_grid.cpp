// SPDX-License-Identifier: Apache-2.0
// closeness and motif_grid for _cpu.
#include "cpu/motif_grid.h"

#include <pybind11/pybind11.h>

#include <vector>

#include "bind/graph_checks.h"
#include "core/kernels.h"

namespace py = pybind11;
using il::DType;
using il::TensorView;

namespace {

TensorView typed(py::handle obj, const char* op, const char* arg, DType dtype, const char* name) {
  const TensorView t = il::cpu_view(obj, op, arg);
  il::check_dtype(t, dtype, op, arg, name);
  return t;
}

il::GraphBatch batch_of(const char* op, py::handle index, py::handle adjacency, py::handle ptr, int threads) {
  il::GraphBatch batch{};
  batch.graph = simple_graph(index, adjacency, op);
  const TensorView offsets = typed(ptr, op, "ptr", DType::kInt64, "int64");
  il::check_rank(offsets, 1, op, "ptr");
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  batch.num_graphs = offsets.numel() - 1;
  batch.ptr = offsets.ptr<int64_t>();
  batch.threads = threads;
  bool ascending = batch.num_graphs >= 0 && batch.ptr[0] == 0 && batch.ptr[batch.num_graphs] == batch.graph.num_nodes;
  for (int64_t b = 0; ascending && b < batch.num_graphs; ++b) ascending = batch.ptr[b] <= batch.ptr[b + 1];
  IL_CHECK(ascending, op, "ptr", "other offsets", "ascending ones from 0 to the number of nodes");
  return batch;
}

// Whether `order` has each node of each graph once, counted from the graph's first one.
bool orders_nodes(const int64_t* order, const il::GraphBatch& batch) {
  std::vector<bool> seen(batch.graph.num_nodes);
  for (int64_t b = 0; b < batch.num_graphs; ++b) {
    const int64_t first = batch.ptr[b], nodes = batch.ptr[b + 1] - first;
    for (int64_t i = first; i < first + nodes; ++i) {
      if (order[i] < 0 || order[i] >= nodes || seen[first + order[i]]) return false;
      seen[first + order[i]] = true;
    }
  }
  return true;
}

// Runs the kernel on arguments that hold a GraphBatch.
template <class Args>
void run(void (*kernel)(Args&), Args& args, const char* op) {
  Interrupt interrupt;
  args.batch.poll = interrupt.poll();
  {
    py::gil_scoped_release release;
    kernel(args);
  }
  if (!args.batch.finished) interrupt.raise();
  IL_CHECK(args.batch.closed, op, "ptr", "offsets that an edge crosses", "graphs without edges between them");
}

void closeness(py::handle out, py::handle index, py::handle adjacency, py::handle ptr, py::handle order,
               int64_t samples, int threads) {
  const char* op = "closeness";
  IL_CHECK(samples >= 0, op, "samples", std::to_string(samples), "at least 0");
  il::Closeness c{};
  c.batch = batch_of(op, index, adjacency, ptr, threads);
  c.samples = samples;
  if (!order.is_none()) {
    const TensorView nodes = typed(order, op, "order", DType::kInt64, "int64");
    check_shape(nodes, {c.batch.graph.num_nodes}, op, "order");
    c.order = nodes.ptr<int64_t>();
    IL_CHECK(orders_nodes(c.order, c.batch), op, "order", "other nodes", "each node of a graph once, counted from 0");
  }
  const TensorView o = typed(out, op, "out", DType::kFloat64, "float64");
  check_shape(o, {c.batch.graph.num_nodes}, op, "out");
  c.out = o.ptr<double>();
  run(il::kernels().closeness, c, op);
}

void motif_grid(py::handle x, py::handle nodes, py::handle mask, py::handle index, py::handle adjacency, py::handle ptr,
                py::handle value, py::handle edge_value, py::handle centrality, int64_t num_nodes, int64_t slots, int k,
                int64_t planes, int tie, bool per_type, int threads) {
  const char* op = "motif_grid";
  IL_CHECK(num_nodes >= 1, op, "num_nodes", std::to_string(num_nodes), "at least 1");
  IL_CHECK(slots >= 1, op, "slots", std::to_string(slots), "at least 1");
  IL_CHECK(k >= 2 && k <= il::kLargestMotif, op, "k", std::to_string(k), "2 to 5");
  IL_CHECK(planes >= 1, op, "planes", std::to_string(planes), "at least 1");
  IL_CHECK(tie >= 0 && tie <= 2, op, "tie", std::to_string(tie), "0 to 2");
  il::MotifGrid p{};
  p.batch = batch_of(op, index, adjacency, ptr, threads);
  p.num_nodes = num_nodes, p.slots = slots, p.planes = planes, p.k = k, p.tie = static_cast<il::Tie>(tie);
  p.per_type = per_type;
  const int64_t graphs = p.batch.num_graphs, n = p.batch.graph.num_nodes;
  const TensorView v = typed(value, op, "value", DType::kInt64, "int64");
  check_shape(v, {n}, op, "value");
  p.value = v.ptr<int64_t>();
  for (int64_t i = 0; planes > 1 && i < n; ++i) {
    IL_CHECK(p.value[i] >= 1 && p.value[i] < planes, op, "value", std::to_string(p.value[i]),
             "values in [1, " + std::to_string(planes) + ")");
  }
  if (!edge_value.is_none()) {
    const TensorView e = typed(edge_value, op, "edge_value", DType::kFloat32, "float32");
    check_shape(e, {p.batch.graph.num_edges}, op, "edge_value");
    p.edge_value = e.ptr<float>();
  }
  if (!centrality.is_none()) {
    const TensorView c = typed(centrality, op, "centrality", DType::kFloat64, "float64");
    check_shape(c, {n}, op, "centrality");
    p.centrality = c.ptr<double>();
    for (int64_t i = 0; i < n; ++i) IL_CHECK(p.centrality[i] == p.centrality[i], op, "centrality", "nan", "numbers");
  }
  const TensorView grid = typed(x, op, "x", DType::kFloat32, "float32");
  check_shape(grid, {graphs, planes, k * slots, k * num_nodes}, op, "x");
  const TensorView i = typed(nodes, op, "index", DType::kInt32, "int32");
  check_shape(i, {graphs, num_nodes, slots, k}, op, "index");
  const TensorView m = typed(mask, op, "mask", DType::kBool, "bool");
  check_shape(m, {graphs, num_nodes, slots}, op, "mask");
  p.x = grid.ptr<float>(), p.index = i.ptr<int32_t>(), p.mask = m.ptr<uint8_t>();
  run(il::kernels().motif_grid, p, op);
}

}  // namespace

void bind_motif_grid(py::module_& m) {
  m.def("closeness", &closeness);
  m.def("motif_grid", &motif_grid);
}
