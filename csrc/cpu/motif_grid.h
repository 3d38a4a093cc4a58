// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"

namespace il {

// Graph b of a disjoint union has the nodes [ptr[b], ptr[b + 1]).
struct GraphBatch {
  SimpleGraph graph;
  int64_t num_graphs;
  const int64_t* ptr;  // [num_graphs + 1], ascending from 0 to the number of nodes
  int threads;
  Poll poll;
  bool closed;    // out: false where an edge joins two of the graphs; the results are then not to be used
  bool finished;  // out: false where `poll` asked to stop
};

struct Closeness {
  GraphBatch batch;
  double* out;  // [n]
};

// What orders nodes of equal closeness, before their index: the degree, nothing, or degree, value and colour
// refinement.
enum class Tie : int { kDegree = 0, kOfficial = 1, kCanonical = 2 };

constexpr int kLargestMotif = 5;

struct MotifGrid {
  GraphBatch batch;
  int64_t num_nodes, slots, planes;
  int k;  // 2 to kLargestMotif
  Tie tie;
  bool per_type;
  const int64_t* value;     // [n], from 1; below `planes` where there is more than one
  const float* edge_value;  // [m], or null for 1
  float* x;                 // [B, planes, k slots, k num_nodes]
  int32_t* index;           // [B, num_nodes, slots, k]
  uint8_t* mask;            // [B, num_nodes, slots]
};

}  // namespace il
