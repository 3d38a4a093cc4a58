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

struct SimpleEdges {
  const int64_t* src;
  const int64_t* dst;
  int64_t num_pairs;  // E
  int64_t num_nodes;
  int32_t* ends;  // room for 2E: both ends of each edge as first given
};

// Returns the number m of edges without loops, repeated and reverse ones, or -1 where an id is out of range. Counting
// sorts, O(E + n); pairs in ascending order, in one direction or in both, are only looked through.
int64_t find_simple_edges(const SimpleEdges& args);

struct SimpleGraphBuild {
  const int32_t* ends;  // 2m
  int64_t num_edges;    // m
  int64_t num_nodes;
  const int64_t* ptr;  // [num_graphs + 1], first node of each graph of the batch
  int64_t num_graphs;
  int64_t* index;      // 2n + 3
  int32_t* adjacency;  // 4m + n
};

// A counting sort and two transpositions, O(m + n). Returns -1, or the first edge between two graphs, and then no
// graph.
int64_t build_simple_graph(const SimpleGraphBuild& args);

}  // namespace il
