// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"
#include "cpu/band_attention.h"

namespace il {

// out_i = act(Σ_j softmax_j(ReLU(e_i + g_j)) V_j + bias) for every batch element and head. A is float, or double for
// double inputs.
struct SubgraphAttention {
  int64_t batch, heads, num_nodes, dim;
  DType dtype;
  bool elu;              // act is ELU, else the identity
  HeadsView v;           // [B, H, N, D]
  const void* e;         // [B, H, N]
  const void* g;         // [B, H, N]
  const void* bias;      // [H, D], or null
  const uint8_t* valid;  // [B, N], or null: nodes without take no part, and their rows of the result are 0
  HeadsView out;         // [B, H, N, D]
  int threads;
};

struct SubgraphAttentionBackward {
  SubgraphAttention forward;  // without out
  HeadsView grad_out;         // [B, H, N, D]
  HeadsView grad_v;           // A [B, H, N, D]
  void* grad_e;               // A [B, H, N]
  void* grad_g;               // A [B, H, N]
  void* grad_bias;            // A [B, H, D]; null without bias
};

}  // namespace il
