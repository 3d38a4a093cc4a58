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

}  // namespace il
