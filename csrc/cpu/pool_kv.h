// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"
#include "cpu/band_attention.h"

namespace il {

enum class Pooling : int { kMean = 0, kMax = 1, kLdconv = 2 };

// Entry m of the result pools tokens m·stride - left + u, u in [0, kernel), left = max(0, (kernel - stride) / 2).
struct PoolKv {
  int64_t batch, heads, num_tokens, dim, num_pooled, kernel, stride;
  DType dtype;
  Pooling mode;
  bool weight_per_head;  // weight is [H, kernel, D], else [kernel, D]
  const void* weight;    // LDConv only
  const uint8_t* valid;  // [B, num_tokens], or null
  HeadsView x;
  void* out;  // [B, H, num_pooled, D]
  int threads;
};

struct PoolKvBackward {
  PoolKv forward;
  const void* grad_out;  // [B, H, num_pooled, D]
  void* grad_x;          // [B, H, num_tokens, D], accumulator type
  void* grad_weight;     // [B, H, kernel, D], accumulator type; null without weight
};

}  // namespace il
