// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"
#include "cpu/relational_spmm.h"

namespace il {

// V nodes, B queries, d input and D output channels. Contiguous; float or double throughout.
struct NbfnetLayer {
  CsrView graph;
  int64_t num_relations;
  int64_t batch;
  int64_t dim;
  int64_t out_dim;
  DType dtype;
  Mul mul;
  bool shared;  // relation is [R, d], else [R, B, d]
  bool relu;
  bool residual;  // needs D == d
  double eps;
  const void* input;  // [V, B, d], or null for the first layer: the boundary itself
  const void* relation;
  const int64_t* source;    // [B]
  const void* query;        // [B, d], the boundary at each query's source
  const void* weight;       // [D, 13 d], official layout
  const void* bias;         // [D]
  const void* norm_weight;  // [D], or null: no LayerNorm
  const void* norm_bias;    // [D]
  const void* scalers;      // [V, 3]
  void* pre;                // [V, B, D], before LayerNorm, for the backward pass; or null
  void* out;                // [V, B, D]
  int threads;
};

struct NbfnetLayerBackward {
  NbfnetLayer forward;     // pre is read
  const void* grad_out;    // [V, B, D]
  void* grad_input;        // [V, B, d], or null as input is
  void* grad_relation;     // like relation
  void* grad_query;        // [B, d]
  void* grad_weight;       // [D, 13 d]
  void* grad_bias;         // [D]
  void* grad_norm_weight;  // [D] or null
  void* grad_norm_bias;    // [D] or null
};

}  // namespace il
