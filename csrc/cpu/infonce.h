// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/types.h"

namespace il {

enum class ScoreSum : int { kLogSumExp = 0, kSoftplus = 1 };

// Similarities q_i · k_j · inv_q[i] · inv_k[j] of all rows and columns, and what their scores, scale · similarity, add
// up to: log Σ e^score (kLogSumExp), or Σ log(1 + e^(score + bias)) (kSoftplus). A is float, or double for double
// inputs.
struct InfoNce {
  int64_t rows;       // B
  int64_t columns;    // N
  int64_t dim;        // D
  int64_t first_row;  // number of the first row, where these are some of the rows
  DType dtype;        // of q and k
  ScoreSum kind;
  const void* q;  // [B, D], rows q_stride elements apart
  const void* k;  // [N, D]
  int64_t q_stride, k_stride;
  const void* inv_q;  // A [B], or null: 1
  const void* inv_k;  // A [N], or null
  double scale;
  double bias;              // kSoftplus only
  const int64_t* targets;   // [B], the positive column of each row; kLogSumExp leaves it out of the sums
  int64_t own_target;       // without targets: row i has column own_target + i, or none where this is -1
  const int64_t* labels_q;  // [B], or null
  const int64_t* labels_k;  // [N]: entries of equal labels are left out
  const void* limit_q;      // A [B], or null: similarities above are left out of a row's sum
  const void* limit_k;      // A [N], or null: of a column's
  bool skip_diagonal;       // entries (i, i) are left out
  bool upper;               // all but j > i are left out, and tiles of them not formed: of a symmetric matrix
  bool want_columns;        // kLogSumExp: sums over rows as well
  void* positive;           // A [B]: similarity of each row and its target
  void* row_sum;            // A [B]: lse without the bias (-inf for no entry), or Σ softplus
  void* column_sum;         // A [N], or null
  void* row_count;          // int64 [B]: entries of the sum, or null
  void* column_count;
  void* scores;  // A [B, N]: scores, or null: not kept
  int threads;
};

struct InfoNceBackward {
  InfoNce forward;            // positive, row_sum and column_sum are read; scores too, where kept
  const void* grad_positive;  // A [B]: against the similarity
  const void* grad_row;       // A [B]
  const void* grad_column;    // A [N], or null
  void* grad_q;               // A [B, D], or null
  void* grad_k;               // A [N, D], zeros before; or null
  // A [B]: Σ_j d loss / d similarity_ij · similarity_ij (positives included), and Σ_j d loss / d score_ij without them.
  void* row_dot;
  void* row_total;
  bool more_rows;  // grad_k is not complete yet: other rows follow
};

// The mean loss of plain InfoNCE and its gradients in one call: what costs least where matrices are small.
//   loss = 1/B Σ_i row_weight (log(e^r_i + e^s_i) - s_i) + column_weight (log(e^c_i + e^s_i) - s_i),  s_i the positive
struct InfoNceMean {
  InfoNce scores;  // kLogSumExp; inverse norms, limits and results are not read
  bool normalize;  // rows by their norms, or 1e-12
  double row_weight, column_weight;
  void* sums;    // A [2]: the loss, and its gradient against log scale (where grad_q is wanted)
  void* grad_q;  // A [B, D], or null
  void* grad_k;  // A [N, D], zeros before; or null
  bool want_gradients;
};

}  // namespace il
