// SPDX-License-Identifier: Apache-2.0
// What the bindings of the pattern kernels share: the packed graph, outputs, and Ctrl-C.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "bind/checks.h"
#include "core/simple_graph.h"

inline il::SimpleGraph simple_graph(pybind11::handle index, pybind11::handle adjacency, const char* op) {
  const il::TensorView i = il::cpu_view(index, op, "index"), a = il::cpu_view(adjacency, op, "adjacency");
  il::check_rank(i, 1, op, "index");
  il::check_rank(a, 1, op, "adjacency");
  il::check_dtype(i, il::DType::kInt64, op, "index", "int64");
  il::check_dtype(a, il::DType::kInt32, op, "adjacency", "int32");
  il::SimpleGraph graph{};
  IL_CHECK(il::unpack_simple_graph(i.ptr<int64_t>(), i.shape[0], a.ptr<int32_t>(), a.shape[0], &graph), op, "adjacency",
           "length " + std::to_string(a.shape[0]) + " that does not fit index", "Graph.index and Graph.adjacency");
  return graph;
}

// C(degree, k - 1) has to fit int64.
inline void check_degrees(const il::SimpleGraph& graph, int k, const char* op) {
  constexpr int64_t kLimits[] = {int64_t(1) << 31, 3810000, 121900};
  const int64_t limit = kLimits[k - 3];
  for (int64_t v = 0; v < graph.num_nodes; ++v) {
    const int64_t degree = graph.rowptr[v + 1] - graph.rowptr[v];
    IL_CHECK(degree < limit, op, "graph", "a node of degree " + std::to_string(degree),
             "degrees below " + std::to_string(limit) + " for k = " + std::to_string(k) + ": C(degree, " +
                 std::to_string(k - 1) + ") has to fit int64");
  }
}

// A contiguous int64 output of the given shape, or null.
inline int64_t* counts_or_null(pybind11::handle obj, const char* op, const char* arg,
                               std::initializer_list<int64_t> shape) {
  if (obj.is_none()) return nullptr;
  const il::TensorView t = il::cpu_view(obj, op, arg);
  il::check_dtype(t, il::DType::kInt64, op, arg, "int64");
  check_shape(t, shape, op, arg);
  return t.ptr<int64_t>();
}

// Ctrl-C during a kernel: `poll` may be asked by any of its threads. Only the one that called the kernel looks, every
// 50 ms; the exception that a signal handler raised waits in Python until the kernel has returned.
class Interrupt {
 public:
  Interrupt();
  il::Poll poll() { return {&ask, &is_caller, &nap, this}; }
  // Throws what the handler raised.
  [[noreturn]] void raise() const;

 private:
  static bool ask(void* state);
  static bool is_caller(void* state);
  static void nap(void* state);
  const std::thread::id caller_;
  std::chrono::steady_clock::time_point next_look_, first_nap_, last_nap_;  // naps of one wait follow each other
  std::atomic<bool> stop_{false};
};
