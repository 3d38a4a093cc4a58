// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"

namespace il {

struct NodeOrbits {
  SimpleGraph graph;
  int k;  // 3, 4 or 5 nodes
  bool induced;
  int64_t* node;  // [n, 4 | 15 | 73] by node, or null
  int64_t* edge;  // [m, 2 | 12 | 68] by edge, or null
  int threads;
  Poll poll;
  bool finished;  // false: `poll` asked to stop
};

// What the orbits for k = 3 and 4 follow from: sums over the roots of triangles, 4-cliques and 4-cycles, a root being
// the lowest or highest of their ranks. Those of disjoint ranges of roots add up to those of all. Null: not wanted.
struct MotifSums {
  SimpleGraph graph;
  int64_t first, last;  // the roots: ranks [first, last)
  int32_t* t;           // [m] triangles, by number of the directed edge
  int64_t* k4;          // [n] 4-cliques, by rank
  int64_t* c4;          // [n] 4-cycles
  int64_t* fan;         // [n]
  int64_t* k4_edge;     // [m] by number
  int64_t* c4_edge;     // [m] by eid
  int64_t* fan_edge;    // [m] by number
  int64_t* far_edge;    // [m] by number
  int threads;
  Poll poll;
  bool finished;
};

}  // namespace il
