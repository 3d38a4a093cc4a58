// SPDX-License-Identifier: Apache-2.0
// bellman_ford for _cpu.
#include "cpu/bellman_ford.h"

#include <pybind11/pybind11.h>

#include "bind/rel_graph_checks.h"
#include "core/kernels.h"

namespace py = pybind11;
using il::TensorView;

namespace {

// Returns (steps, converged). Codes and values of the semiring are checked in ops/bellman_ford.py.
py::tuple bellman_ford(py::handle value, py::handle predecessor, py::handle csr, py::handle weight, py::handle source,
                       int plus, int times, double zero, double one, int64_t max_steps, bool fixpoint, double tolerance,
                       bool check_cycles, int threads) {
  const char* op = "bellman_ford";
  TensorView o = il::cpu_view(value, op, "value"), g = il::cpu_view(csr, op, "csr"),
             w = il::cpu_view(weight, op, "edge_weight"), s = il::cpu_view(source, op, "sources");
  Optional last(predecessor, op, "predecessor");
  il::BellmanFord p{};
  p.graph = csr_view(g, op);
  il::check_rank(s, 1, op, "sources");
  il::check_dtype(s, il::DType::kInt64, op, "sources", "int64");
  p.num_sources = s.shape[0];
  const int64_t bad = il::first_out_of_range(s.ptr<int64_t>(), p.num_sources, p.graph.num_nodes);
  if (bad >= 0) {
    throw py::index_error(std::string(op) + ": sources holds " + std::to_string(s.ptr<int64_t>()[bad]) +
                          " at position " + std::to_string(bad) + ", expected ids in [0, " +
                          std::to_string(p.graph.num_nodes) + ")");
  }
  IL_CHECK(w.dtype == il::DType::kFloat32 || w.dtype == il::DType::kFloat64, op, "edge_weight", "another dtype",
           "float32 or float64");
  check_shape(w, {p.graph.num_edges}, op, "edge_weight");
  il::check_dtype(o, w.dtype, op, "value", "the dtype of edge_weight");
  check_shape(o, {p.graph.num_nodes, p.num_sources}, op, "value");
  if (last.present) {
    il::check_dtype(last.view, il::DType::kInt64, op, "predecessor", "int64");
    check_shape(last.view, {p.graph.num_nodes, p.num_sources}, op, "predecessor");
    p.predecessor = last.view.ptr<int64_t>();
  }
  IL_CHECK(plus >= 0 && plus <= 3, op, "plus", std::to_string(plus), "0 to 3");
  IL_CHECK(times >= 0 && times <= 3, op, "times", std::to_string(times), "0 to 3");
  const bool is_semiring =
      (plus == 0 && times == 0) || (plus == 3 && times == 1) || (plus == 1 && times != 2) || (plus == 2 && times != 3);
  IL_CHECK(is_semiring, op, "times", std::to_string(times), "a product that goes with plus");
  IL_CHECK(max_steps >= 0, op, "steps", std::to_string(max_steps), "at least 0");
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  p.dtype = w.dtype;
  p.plus = static_cast<il::Plus>(plus);
  p.times = static_cast<il::Times>(times);
  p.zero = zero;
  p.one = one;
  p.weight = w.data;
  p.source = s.ptr<int64_t>();
  p.max_steps = max_steps;
  p.fixpoint = fixpoint;
  p.tolerance = tolerance;
  p.check_cycles = check_cycles;
  p.value = o.data;
  {
    py::gil_scoped_release release;
    il::kernels().bellman_ford(p, threads);
  }
  return py::make_tuple(p.steps, p.converged);
}

}  // namespace

void bind_bellman_ford(py::module_& m) { m.def("bellman_ford", &bellman_ford); }
