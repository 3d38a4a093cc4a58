// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"

namespace il {

struct Triangles {
  SimpleGraph graph;
  int64_t* node;  // [n] by node, or null
  int64_t* edge;  // [m] by edge, or null
  int threads;
  Poll poll;
  bool finished;  // false: `poll` asked to stop
};

}  // namespace il
