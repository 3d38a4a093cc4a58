// SPDX-License-Identifier: Apache-2.0
// Plain data shared by the bindings and the kernels. No functions: kernel files include this once per instruction
// set, and an inline function here would be one symbol for all of them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace il {

enum class DType : int {
  kFloat32 = 0,
  kFloat64 = 1,
  kBFloat16 = 2,
  kFloat16 = 3,
  kInt32 = 4,
  kInt64 = 5,
  kBool = 6,
  kUInt8 = 7,
};

// Views of the packed CSR buffer [V, R | indptr (V+1) | src (E) | rel (E) | eid (E)], see core/graph.h.
struct CsrView {
  const int32_t* indptr;  // [V + 1]
  const int32_t* src;     // [E]
  const int32_t* rel;     // [E]
  const int32_t* eid;     // [E]
  int64_t num_nodes;
  int64_t num_relations;
  int64_t num_edges;
};

// An undirected simple graph in rank space, see core/simple_graph.h. Row r holds the ranks of the neighbours of rank r
// in ascending order: lower ones in [rowptr[r], split[r]), higher ones in [split[r], rowptr[r + 1]).
struct SimpleGraph {
  int64_t num_nodes;
  int64_t num_edges;
  const int64_t* rowptr;  // [n + 1]
  const int64_t* split;   // [n]
  const int32_t* col;     // [2m]
  const int32_t* eid;     // [2m], position in the list of undirected edges
  const int32_t* order;   // [n], node of each rank
};

// Asked now and then by the threads of a long kernel: true once the caller wants it to return early. Only the calling
// thread hears of it at first, so when that has no work left it waits for the others by asking on.
struct Poll {
  bool (*ask)(void* state);  // null: never
  bool (*is_caller)(void* state);
  void (*nap)(void* state);  // some microseconds
  void* state;
};

// Thrown by a kernel that gets no scratch memory; MemoryError in Python.
struct OutOfMemory {
  size_t bytes;
};

}  // namespace il
