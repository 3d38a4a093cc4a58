// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"

namespace il {

// A (B, H, L, D) tensor: strides in elements, the last one is 1.
struct HeadsView {
  void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t row_stride;
};

struct BandAttention {
  int64_t batch;
  int64_t heads;     // of queries, a multiple of kv_heads
  int64_t kv_heads;  // head h reads key head h / (heads / kv_heads)
  int64_t num_queries;
  int64_t num_keys;
  int64_t dim;
  int64_t num_global;  // keys that every query sees besides its band
  DType dtype;
  double scale;
  // Query i sees keys [low[i], high[i]); neither ever falls. [num_queries] each.
  const int32_t* low;
  const int32_t* high;
  const uint8_t* key_valid;     // [B, num_keys], or null: all are
  const uint8_t* global_valid;  // [B, num_global], or null
  HeadsView q, k, v;
  HeadsView global_k, global_v;
  HeadsView residual;  // added to the result; data null for none
  // Added to the score of key j for query i: bias[h][j - i / bias_stride + bias_shift]; global keys have none.
  // Accumulator type, [heads, bias_width]; null for none.
  const void* bias;
  int64_t bias_width;
  int64_t bias_stride;
  int64_t bias_shift;
  HeadsView out;
  void* lse;  // accumulator type, [B, H, num_queries]
  // Dropout: weights are kept where hash(seed, b, h, i, j) >= drop_below, and multiplied by keep_factor.
  uint64_t seed;
  uint32_t drop_below;
  double keep_factor;
  int threads;
};

// Gradients are in the accumulator type: float, double for double.
struct BandAttentionBackward {
  BandAttention forward;  // out and lse are read
  HeadsView grad_out;
  const void* grad_lse;  // [B, H, Lq], or null
  void* grad_q;          // [B, H, Lq, D]
  void* grad_k;          // [B, Hkv, Lk, D], zeros before
  void* grad_v;          // the same
  void* grad_global_k;   // [B, Hkv, num_global, D], zeros before
  void* grad_global_v;
  void* grad_bias;  // [heads, bias_width], or null
};

}  // namespace il
