// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"

namespace il {

struct Match {
  SimpleGraph graph;
  const int32_t* code;  // Plan.code of ops/_match_plan.py, where it is described
  int64_t code_length;
  const int32_t* node_labels;  // [n] by rank, or null
  const int32_t* edge_labels;  // [m] by eid, or null
  const int32_t* roots;        // [num_roots] ranks for level 0, or null for all
  int64_t num_roots;
  int num_node_orbits;
  int num_edge_orbits;
  int64_t* by_root;  // [num_roots] matches found from each, or null
  int64_t* node;     // [n, node orbits] by rank, or null
  int64_t* edge;     // [m, edge orbits] by eid, or null
  int64_t most;      // where the count of a root stops; INT64_MAX: nowhere
  // Lists matches `skip` to `skip + take` of all; offsets [num_roots + 1] are running sums of by_root, right as far as
  // `skip + take`.
  int64_t* list;  // [take, nodes of the pattern], node ids, or null
  const int64_t* offsets;
  const int32_t* after;  // [nodes of the pattern] match `skip - 1`, ranks by level; null if `skip` is a root's first
  int64_t skip, take;
  int threads;
  Poll poll;
  bool finished;  // false: `poll` asked to stop
  bool overflow;  // true: a count that was asked for is beyond int64
};

constexpr int kMaxPattern = 8;
constexpr int kPlanHeader = 5, kPlanLevel = 14, kPlanSet = 9;  // ints of the parts of Plan.code

}  // namespace il
