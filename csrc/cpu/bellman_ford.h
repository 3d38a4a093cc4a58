// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"

namespace il {

// ⊕ and ⊗ of a semiring; the codes are those of python/innerloop/ops/bellman_ford.py.
enum class Plus : int { kSum = 0, kMin = 1, kMax = 2, kLogSumExp = 3 };
enum class Times : int { kMul = 0, kAdd = 1, kMin = 2, kMax = 3 };

// V nodes, E edges, S sources. float or double throughout.
struct BellmanFord {
  CsrView graph;
  int64_t num_sources;
  DType dtype;
  Plus plus;
  Times times;
  double zero, one;
  const void* weight;     // [E] in the user's edge order
  const int64_t* source;  // [S]
  int64_t max_steps;      // exactly this many (fewer once nothing changes), or at most as many to the fixpoint
  bool fixpoint;          // min and max may then relax in place
  double tolerance;       // sum and logsumexp: converged when no value moves by more, relative to max(1, |value|)
  bool check_cycles;      // min and max: a cycle may improve a value, look for one
  void* value;            // [V, S]
  int64_t* predecessor;   // [V, S] last edge of a best path, -1 without one; or null
  int64_t steps;          // out: steps done
  bool converged;         // out
};

}  // namespace il
