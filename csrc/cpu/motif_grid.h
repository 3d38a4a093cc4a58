// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/closeness.h"

namespace il {

// What orders nodes of equal centrality, before their index: the degree, nothing, or degree, value and colour
// refinement.
enum class Tie : int { kDegree = 0, kOfficial = 1, kCanonical = 2 };

constexpr int kLargestMotif = 5;

struct MotifGrid {
  GraphBatch batch;
  int64_t num_nodes, slots, planes;
  int k;  // 2 to kLargestMotif
  Tie tie;
  bool per_type;
  const int64_t* value;      // [n], from 1; below `planes` where there is more than one
  const float* edge_value;   // [m], or null for 1
  const double* centrality;  // [n], no NaN, or null for closeness
  float* x;                  // [B, planes, k slots, k num_nodes]
  int32_t* index;            // [B, num_nodes, slots, k]
  uint8_t* mask;             // [B, num_nodes, slots]
};

}  // namespace il
