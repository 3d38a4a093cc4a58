// SPDX-License-Identifier: Apache-2.0
// Pieces of sums of exponentials that run along with a maximum: 2^x, and the largest lane.
#pragma once

#include "core/simd.h"

namespace il {
namespace IL_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// 2^r for r in [-1/2, 1/2], relative error 1.2e-7: minimax of degree 5.
template <class V>
IL_INLINE V exp2_part(V r) {
  V p = V{} + 1.327646863e-03f;
  p = fma_of(p, r, V{} + 9.675541354e-03f);
  p = fma_of(p, r, V{} + 5.550713289e-02f);
  p = fma_of(p, r, V{} + 2.402211973e-01f);
  p = fma_of(p, r, V{} + 6.931469670e-01f);
  return fma_of(p, r, V{} + 1.000000072e+00f);
}

// 2^x for x <= 0; below the smallest normal number 0. NaN stays NaN. About 1e-7 relative.
template <class V, class A>
IL_INLINE V exp2_of(V x) {
  if constexpr (sizeof(A) == 8) {
    A lane[sizeof(V) / sizeof(A)];
    std::memcpy(lane, &x, sizeof(V));
    for (size_t i = 0; i < sizeof(V) / sizeof(A); ++i) lane[i] = std::exp2(lane[i]);
    std::memcpy(&x, lane, sizeof(V));
    return x;
  } else {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
      // At -200 the scale underflows to 0; as the second operand x keeps its NaN.
      const __m512 c = _mm512_max_ps(_mm512_set1_ps(-200.0f), (__m512)x);
      const __m512 n = _mm512_roundscale_ps(c, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      return (V)_mm512_scalef_ps((__m512)exp2_part((V)_mm512_sub_ps(c, n)), n);
    }
#endif
    typedef int32_t I __attribute__((vector_size(sizeof(V))));
    const V low = V{} - 126.0f;
    V c = x < low ? low : x;
    const V magic = V{} + 12582912.0f;  // 1.5 · 2^23: adding it rounds to the nearest integer
    V n = c + magic;
    I k;
    std::memcpy(&k, &n, sizeof(V));
    n -= magic;
    const V p = exp2_part(V(c - n));
    I bits = ((k - 0x4b400000) + 127) << 23;
    V power;
    std::memcpy(&power, &bits, sizeof(V));
    V y = p * power;
    y = x < low ? V{} : y;
    return x != x ? x : y;
  }
}

// Largest lane, NaN if there is one; by halves.
template <class A, class V>
IL_INLINE A max_lanes(const V& v) {
  if constexpr (sizeof(V) == 2 * sizeof(A)) {
    return nan_max(v[0], v[1]);
  } else {
    typedef A Half __attribute__((vector_size(sizeof(V) / 2)));
    Half halves[2];
    std::memcpy(halves, &v, sizeof(V));
    return max_lanes<A>(Half(nan_max(halves[0], halves[1])));
  }
}

// Whether no lane is greater than the bound; false where one is NaN.
template <class A, class V>
IL_INLINE bool none_above(const V& v, const V& bound) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_cmp_ps_mask((__m512)v, (__m512)bound, _CMP_NLE_UQ) == 0;
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)bound, _CMP_NLE_UQ)) == 0;
#endif
  return max_lanes<A>(v) <= bound[0];
}

}  // namespace
}  // namespace IL_ISA
}  // namespace il
