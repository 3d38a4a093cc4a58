// SPDX-License-Identifier: Apache-2.0
// Sorted lists of int32: intersection, difference, bounds. The shorter list drives; it looks at blocks of the longer
// one, or jumps through it where it is much longer.
#pragma once

#include "cpu/workers.h"

namespace il {
namespace IL_ISA {
namespace {

struct Sorted {
  const int32_t* first;
  const int32_t* last;
  int64_t size() const { return last - first; }
};

// First element of at least `value`, by halves without branches.
IL_INLINE const int32_t* lower_bound(const int32_t* first, const int32_t* last, int32_t value) {
  int64_t n = last - first;
  while (n > 0) {
    const int64_t half = n / 2;
    first += first[half] < value ? n - half : 0;
    n = half;
  }
  return first;
}

IL_INLINE bool contains(Sorted set, int32_t value) {
  const int32_t* at = lower_bound(set.first, set.last, value);
  return at < set.last && *at == value;
}

// First element of at least `value`, near the front: steps of doubling length, then halves.
IL_INLINE const int32_t* gallop(const int32_t* first, const int32_t* last, int32_t value) {
  int64_t step = 1;
  while (step < last - first && first[step] < value) step *= 2;
  return lower_bound(first + step / 2, first + min64(step + 1, last - first), value);
}

constexpr int64_t kGallop = 64;  // from this ratio of lengths on
constexpr int64_t kBlock = kVectorBytes / 4;

// visit(x) for each x of the short list with found(x) in the long one equal to `wanted`, in ascending order.
template <class F>
IL_INLINE void filter_sorted(Sorted shorter, Sorted longer, bool wanted, F&& visit) {
  const int32_t* b = longer.first;
  const int32_t* last = longer.last;
  const int32_t* a = shorter.first;
  if (longer.size() > kGallop * shorter.size()) {
    for (; a < shorter.last; ++a) {
      b = gallop(b, last, *a);
      visit(*a, (b < last && *b == *a) == wanted);
    }
    return;
  }
  using V = typename Lanes<int32_t>::type;
  for (; a < shorter.last && last - b >= kBlock; ++a) {
    while (b[kBlock - 1] < *a) {
      b += kBlock;
      if (last - b < kBlock) goto rest;
    }
    {
      const V equal = load<V>(b) == *a;
#if defined(__AVX512F__)
      const bool found = _mm512_test_epi32_mask((__m512i)equal, (__m512i)equal) != 0;
#elif defined(__AVX2__)
      const bool found = !_mm256_testz_si256((__m256i)equal, (__m256i)equal);
#else
      int32_t any = 0;
      for (int64_t i = 0; i < kBlock; ++i) any |= equal[i];
      const bool found = any != 0;
#endif
      visit(*a, found == wanted);
    }
  }
rest:
  for (; a < shorter.last; ++a) {
    while (b < last && *b < *a) ++b;
    visit(*a, (b < last && *b == *a) == wanted);
  }
}

IL_NOINLINE int64_t count_both(Sorted a, Sorted b) {
  int64_t count = 0;
  if (a.size() > b.size()) {
    const Sorted swap = a;
    a = b, b = swap;
  }
  filter_sorted(a, b, true, [&](int32_t, bool take) { count += take; });
  return count;
}

IL_NOINLINE int64_t intersect(Sorted a, Sorted b, int32_t* out) {
  int32_t* to = out;
  if (a.size() > b.size()) {
    const Sorted swap = a;
    a = b, b = swap;
  }
  filter_sorted(a, b, true, [&](int32_t x, bool take) {
    *to = x;
    to += take;
  });
  return to - out;
}

// a without b.
IL_NOINLINE int64_t subtract(Sorted a, Sorted b, int32_t* out) {
  int32_t* to = out;
  filter_sorted(a, b, false, [&](int32_t x, bool take) {
    *to = x;
    to += take;
  });
  return to - out;
}

}  // namespace
}  // namespace IL_ISA
}  // namespace il
