// SPDX-License-Identifier: Apache-2.0
// Small dense product for operands that are already in L1: C[m][n] (+)= sum_k A(m, k) B[k][n].
// A has any two strides (so a transposed operand needs no copy), B and C are row-major. Register tile: 6 rows by
// two vectors. 12 accumulators cover the latency of the fused multiply-add and leave it, not the loads, as the limit.
#pragma once

#include "core/simd.h"

namespace il {
namespace IL_ISA {
namespace {

template <class A>
struct Operand {
  const A* data;
  int64_t row_stride;
  int64_t k_stride;
};

template <class V, int Rows, int Vectors, class A>
IL_INLINE void gemm_tile(const Operand<A>& a, int64_t m, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t K,
                         bool accumulate) {
  constexpr int64_t lanes = sizeof(V) / sizeof(A);
  V acc[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Vectors; ++i) acc[r][i] = accumulate ? load<V>(c + r * ldc + i * lanes) : V{};
  }
  const A* pa = a.data + m * a.row_stride;
  for (int64_t k = 0; k < K; ++k, pa += a.k_stride, b += ldb) {
    V vb[Vectors];
    for (int i = 0; i < Vectors; ++i) vb[i] = load<V>(b + i * lanes);
    for (int r = 0; r < Rows; ++r) {
      const V va = pa[r * a.row_stride] - V{};  // broadcast; x - 0 is x for every x, x + 0 is not
      for (int i = 0; i < Vectors; ++i) acc[r][i] = fma_of(va, vb[i], acc[r][i]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Vectors; ++i) store(c + r * ldc + i * lanes, acc[r][i]);
  }
}

template <int Rows, class A>
IL_INLINE void gemm_rows(const Operand<A>& a, int64_t m, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t N,
                         int64_t K, bool accumulate) {
  using V = typename Lanes<A>::type;
  constexpr int64_t lanes = Lanes<A>::count;
  A* row = c + m * ldc;
  int64_t n = 0;
  for (; n + 2 * lanes <= N; n += 2 * lanes) {
    gemm_tile<V, Rows, 2>(a, m, b + n, ldb, row + n, ldc, K, accumulate);
  }
  for (; n + lanes <= N; n += lanes) gemm_tile<V, Rows, 1>(a, m, b + n, ldb, row + n, ldc, K, accumulate);
  for (; n < N; ++n) gemm_tile<A, Rows, 1>(a, m, b + n, ldb, row + n, ldc, K, accumulate);
}

template <class A>
void gemm(const Operand<A>& a, const A* b, int64_t ldb, A* c, int64_t ldc, int64_t M, int64_t N, int64_t K,
          bool accumulate) {
  int64_t m = 0;
  // Never less than 4 rows while there are 4: fewer accumulators would wait for each other.
  for (; M - m >= 6 && M - m != 8; m += 6) gemm_rows<6>(a, m, b, ldb, c, ldc, N, K, accumulate);
  for (; m + 4 <= M; m += 4) gemm_rows<4>(a, m, b, ldb, c, ldc, N, K, accumulate);
  for (; m + 2 <= M; m += 2) gemm_rows<2>(a, m, b, ldb, c, ldc, N, K, accumulate);
  for (; m < M; ++m) gemm_rows<1>(a, m, b, ldb, c, ldc, N, K, accumulate);
}

}  // namespace
}  // namespace IL_ISA
}  // namespace il
