// SPDX-License-Identifier: Apache-2.0
// Linear-time construction of the graph that the pattern kernels walk: undirected, without loops or parallel edges, and
// relabelled by rank, the position of a node in ascending order of (graph of the batch, degree, id). Every edge then
// has a direction, from the lower rank to the higher, and no node of a graph of m edges has more than sqrt(2m) edges
// out: the bound behind every triangle and clique kernel (Chiba and Nishizeki, 1985).
//
// Two buffers hold it: int64 [n, m | rowptr (n + 1) | split (n)] and int32 [col (2m) | eid (2m) | order (n)].
#pragma once

#include <cstdint>

#include "core/types.h"

namespace il {

constexpr int64_t kSimpleHeader = 2;

// False when the two buffers are no graph.
bool unpack_simple_graph(const int64_t* index, int64_t index_length, const int32_t* adjacency, int64_t adjacency_length,
                         SimpleGraph* out);

struct SimpleGraphBuild {
  const int64_t* src;
  const int64_t* dst;
  int64_t num_pairs;  // E
  int64_t num_nodes;
  const int64_t* ptr;  // [num_graphs + 1], first node of each graph of the batch
  int64_t num_graphs;
  int64_t* index;      // 2n + 3
  int32_t* adjacency;  // room for 4E + n; filled for the m edges that are left
  int32_t* ends;       // room for 2E: both ends of each edge as first given
};

// Returns m. Ids must be in range. Counting sorts and two transpositions, O(E + n).
int64_t build_simple_graph(const SimpleGraphBuild& args);

}  // namespace il
