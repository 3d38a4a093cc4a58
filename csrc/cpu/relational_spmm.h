// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"

namespace il {

enum class Sum : int { kSum = 0, kMean = 1, kMax = 2, kMin = 3, kLogSumExp = 4, kOr = 5, kPna = 6 };
enum class Mul : int { kMul = 0, kAdd = 1, kRotate = 2, kMin = 3, kAnd = 4 };

// V nodes, E edges, R relations, B queries, d channels. All tensors contiguous, one storage dtype.
struct RelationalSpmm {
  CsrView graph;
  int64_t num_relations;
  int64_t batch;
  int64_t dim;
  DType dtype;
  Sum sum;
  Mul mul;
  bool shared;           // relation is [R, d] for every query, else [R, B, d]
  const void* input;     // [V, B, d]
  const void* relation;  // [R, d] or [R, B, d]
  const void* boundary;  // [V, B, d] or null
  const void* weight;    // [E] in the user's edge order, or null
  void* out;             // [V, B, d], or [V, B, 4, d] for PNA: mean, max, min, std
  int threads;
};

// Gradients are in the accumulation type: float for float and half storage, double for double. Null = not wanted.
struct RelationalSpmmBackward {
  RelationalSpmm forward;  // forward.out is read (max, min, logsumexp, pna) and never written
  const void* grad_out;    // like out
  void* grad_input;        // [V, B, d]
  void* grad_relation;     // like relation
  void* grad_boundary;     // [V, B, d]
  void* grad_weight;       // [E]
};

}  // namespace il
