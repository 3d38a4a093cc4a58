// SPDX-License-Identifier: Apache-2.0
// Beam search for the paths that contribute most to a prediction of NBFNet (Zhu et al. 2021, section 3.4).
#pragma once

#include <cstdint>
#include <vector>

#include "core/types.h"

namespace il {

struct RankedPath {
  double weight;               // mean over its steps
  std::vector<int32_t> edges;  // positions in the user's edge list, first step first
};

// The `count` paths of at most `steps` edges from `source` to `target` with the largest mean weight. Step t of a path
// along edge e weighs weight[t * E + e]. Each node keeps its `beam` best beginnings per step; a path ends when it meets
// the target. Equal weights: the shorter path, then the one found first.
std::vector<RankedPath> best_paths(const CsrView& graph, const double* weight, int64_t steps, int64_t source,
                                   int64_t target, int64_t count, int64_t beam);

}  // namespace il
