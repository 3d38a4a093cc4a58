// SPDX-License-Identifier: Apache-2.0
// Rows to columns: to[c][j] = row j, channel c, widened. Four rows by four channels at a time in registers: written
// element by element, compilers turn the strided side into gathers, ten times slower.
#pragma once

#include "core/simd.h"

namespace il {
namespace IL_ISA {
namespace {

typedef float Quad __attribute__((vector_size(16)));

#if defined(__clang__)
#define IL_QUAD(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t QuadIndex __attribute__((vector_size(16)));
#define IL_QUAD(a, b, i, j, k, l) __builtin_shuffle(a, b, QuadIndex{i, j, k, l})
#endif

template <class T>
IL_INLINE Quad load_quad(const T* p) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return load<Quad>(p);
  } else {
    return Quad{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
  }
}

// `rows` is a multiple of 4; row j begins at from + j · row_stride, column c of the result at to + c · column_stride.
template <class T, class A>
IL_INLINE void transpose(const T* from, int64_t row_stride, int64_t rows, int64_t channels, A* to,
                         int64_t column_stride) {
  for (int64_t j = 0; j < rows; j += 4) {
    const T* r0 = from + j * row_stride;
    const T *r1 = r0 + row_stride, *r2 = r1 + row_stride, *r3 = r2 + row_stride;
    A* out = to + j;
    int64_t c = 0;
    if constexpr (sizeof(A) == sizeof(float)) {
      for (; c + 4 <= channels; c += 4) {
        const Quad a = load_quad(r0 + c), b = load_quad(r1 + c), d = load_quad(r2 + c), e = load_quad(r3 + c);
        const Quad ab0 = IL_QUAD(a, b, 0, 4, 1, 5), ab1 = IL_QUAD(a, b, 2, 6, 3, 7);
        const Quad de0 = IL_QUAD(d, e, 0, 4, 1, 5), de1 = IL_QUAD(d, e, 2, 6, 3, 7);
        store(out + c * column_stride, Quad(IL_QUAD(ab0, de0, 0, 1, 4, 5)));
        store(out + (c + 1) * column_stride, Quad(IL_QUAD(ab0, de0, 2, 3, 6, 7)));
        store(out + (c + 2) * column_stride, Quad(IL_QUAD(ab1, de1, 0, 1, 4, 5)));
        store(out + (c + 3) * column_stride, Quad(IL_QUAD(ab1, de1, 2, 3, 6, 7)));
      }
    }
    for (; c < channels; ++c) {
      A* column = out + c * column_stride;
      column[0] = widen(r0[c]), column[1] = widen(r1[c]), column[2] = widen(r2[c]), column[3] = widen(r3[c]);
    }
  }
}

}  // namespace
}  // namespace IL_ISA
}  // namespace il
