// SPDX-License-Identifier: Apache-2.0
// SIMD on compiler vector extensions, for files compiled once per instruction set.
//
// Everything is in il::IL_ISA: a shared inline function would be one weak symbol for all sets, and the linker
// could hand AVX-512 code to the baseline. For the same reason no std container or algorithm is included.
// Kernels are written once for a lane type V that is either a vector or the scalar (for the tail):
//   columns<float>(n, [&](auto lane, int64_t j) { using V = decltype(lane); store(y + j, load<V>(x + j)); });
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__FMA__)
#include <immintrin.h>
#endif

#include "core/types.h"

#define IL_INLINE inline __attribute__((always_inline))

namespace il {
namespace IL_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A>
struct Lanes {
  typedef A type __attribute__((vector_size(kVectorBytes)));
  static constexpr int64_t count = kVectorBytes / sizeof(A);
};

// Asks for n elements that will be read soon: rows far apart, which the hardware does not foresee.
template <class A>
IL_INLINE void prefetch(const A* p, int64_t n) {
  for (int64_t j = 0; j < n; j += 64 / int64_t(sizeof(A))) __builtin_prefetch(p + j);
}

// A number as a type, to pick a template by an argument.
template <int N>
struct Constant {
  static constexpr int value = N;
};

IL_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
IL_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

template <class A>
IL_INLINE void fill(A* p, int64_t n, A value) {
  for (int64_t j = 0; j < n; ++j) p[j] = value;
}

template <class V, class A>
IL_INLINE V load(const A* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class A>
IL_INLINE void store(A* p, const V& v) {
  std::memcpy(p, &v, sizeof(V));
}

template <class A, class F>
IL_INLINE void columns(int64_t n, F&& body) {
  using V = typename Lanes<A>::type;
  int64_t j = 0;
  for (; j + Lanes<A>::count <= n; j += Lanes<A>::count) body(V{}, j);
  for (; j < n; ++j) body(A{}, j);
}

// a * b + c, fused where the set has it. Contraction is off in these files, so it is always asked for by name.
template <class V>
IL_INLINE V fma_of(V a, V b, V c) {
  return a * b + c;
}
#if defined(__AVX512F__)
IL_INLINE Lanes<float>::type fma_of(Lanes<float>::type a, Lanes<float>::type b, Lanes<float>::type c) {
  return (Lanes<float>::type)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
IL_INLINE Lanes<double>::type fma_of(Lanes<double>::type a, Lanes<double>::type b, Lanes<double>::type c) {
  return (Lanes<double>::type)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__FMA__)
IL_INLINE Lanes<float>::type fma_of(Lanes<float>::type a, Lanes<float>::type b, Lanes<float>::type c) {
  return (Lanes<float>::type)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
IL_INLINE Lanes<double>::type fma_of(Lanes<double>::type a, Lanes<double>::type b, Lanes<double>::type c) {
  return (Lanes<double>::type)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#endif

// Sum of a vector's lanes by halves: log2(lanes) steps.
template <class A, class V>
IL_INLINE A sum_lanes(const V& v) {
  constexpr size_t N = sizeof(V) / sizeof(A);
  if constexpr (N == 2) {
    return v[0] + v[1];
  } else {
    typedef A Half __attribute__((vector_size(sizeof(V) / 2)));
    Half halves[2];
    std::memcpy(halves, &v, sizeof(V));
    return sum_lanes<A>(Half(halves[0] + halves[1]));
  }
}

// sum over j of term(lane, j), in a fixed order for each set.
template <class A, class F>
IL_INLINE A sum_of(int64_t n, F&& term) {
  using V = typename Lanes<A>::type;
  V wide = V{};
  A total = A(0);
  int64_t j = 0;
  for (; j + Lanes<A>::count <= n; j += Lanes<A>::count) wide += term(V{}, j);
  total += sum_lanes<A>(wide);
  for (; j < n; ++j) total += term(A{}, j);
  return total;
}

// max/min that keep a NaN from either side.
template <class V>
IL_INLINE V nan_max(V a, V b) {
  V m = a > b ? a : b;  // b when unordered
  return a != a ? a : m;
}
template <class V>
IL_INLINE V nan_min(V a, V b) {
  V m = a < b ? a : b;
  return a != a ? a : m;
}

// Half types are bits here: widened to float on load, rounded to nearest even once on store. Branch-free, so the
// loops around them vectorise on every set.
struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

IL_INLINE float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
IL_INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

IL_INLINE float widen(float x) { return x; }
IL_INLINE double widen(double x) { return x; }
IL_INLINE float widen(bf16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
IL_INLINE float widen(fp16 x) {
  uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  uint32_t body = uint32_t(x.bits & 0x7fffu) << 13;
  // Multiplying by 2^112 rebiases the exponent and normalises subnormals; inf and NaN need the exponent set.
  uint32_t scaled = float_to_bits(bits_to_float(body) * 0x1p112f);
  uint32_t special = body >= (0x7c00u << 13) ? 0x7f800000u : 0u;
  return bits_to_float(sign | scaled | special);
}

template <class T>
IL_INLINE T narrow(float x);
template <class T>
IL_INLINE T narrow(double x);
template <>
IL_INLINE float narrow<float>(float x) {
  return x;
}
template <>
IL_INLINE double narrow<double>(double x) {
  return x;
}
template <>
IL_INLINE bf16 narrow<bf16>(float x) {
  uint32_t u = float_to_bits(x);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  uint32_t nan = (u >> 16) | 0x40u;
  return {uint16_t(x != x ? nan : rounded)};
}
template <>
IL_INLINE fp16 narrow<fp16>(float x) {
  uint32_t u = float_to_bits(x);
  uint32_t sign = (u >> 16) & 0x8000u;
  uint32_t a = u & 0x7fffffffu;
  uint32_t normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
  // Adding 0.5 puts the 10 subnormal bits at the bottom of the float, rounded by the adder.
  uint32_t subnormal = float_to_bits(bits_to_float(a) + 0.5f) - 0x3f000000u;
  uint32_t h = a < (113u << 23) ? subnormal : normal;
  h = a >= 0x477ff000u ? 0x7c00u : h;  // rounds to 65536 or more
  h = a > 0x7f800000u ? 0x7e00u : h;
  return {uint16_t(sign | h)};
}

// The type sums are kept in.
template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};

// exp to about 2 ulp in float; exact at 0 and for ±inf, NaN stays NaN. Branch-free for vectorisation.
IL_INLINE float exp_of(float x) {
  float c = x > 88.72283f ? 88.72283f : x;
  c = c < -103.9f ? -103.9f : c;
  float n = c * 1.44269504f + 12582912.0f;  // round to nearest by the 1.5 * 2^23 trick
  int32_t k = int32_t(float_to_bits(n)) - 0x4b400000;
  n -= 12582912.0f;
  float r = c - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // Two factors keep the scale finite at both ends.
  int32_t k1 = k >> 1;
  float y = p * bits_to_float(uint32_t(k1 + 127) << 23) * bits_to_float(uint32_t(k - k1 + 127) << 23);
  y = x > 88.72283f ? INFINITY : y;
  y = x < -103.9f ? 0.0f : y;
  return x != x ? x : y;
}
IL_INLINE double exp_of(double x) { return std::exp(x); }

// Uninitialised memory for one task, freed at scope exit. Large tables come from the kernel and go straight back to
// it: malloc would keep them, in an arena for each thread.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count) : bytes_((size_t(count > 0 ? count : 1) * sizeof(A) + 63) / 64 * 64) {
#if defined(__linux__)
    if (bytes_ >= kLarge) {
      void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (p == MAP_FAILED) throw OutOfMemory{bytes_};
      data_ = static_cast<A*>(p);
      return;
    }
#endif
    data_ = static_cast<A*>(std::aligned_alloc(64, bytes_));
    if (data_ == nullptr) throw OutOfMemory{bytes_};
  }
  ~Scratch() {
#if defined(__linux__)
    if (bytes_ >= kLarge) {
      munmap(data_, bytes_);
      return;
    }
#endif
    std::free(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* get() { return data_; }
  const A* data() const { return data_; }

 private:
  static constexpr size_t kLarge = size_t(1) << 20;
  size_t bytes_;
  A* data_;
};

// task(i) for i in [0, count) on up to `threads` threads. No exception may leave a parallel region, so the first one is
// kept and thrown behind it.
template <class F>
IL_INLINE void parallel_tasks(int64_t count, int threads, F&& task) {
  size_t missing = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && count > 1)
  for (int64_t i = 0; i < count; ++i) {
    try {
      task(i);
    } catch (const OutOfMemory& error) {
#pragma omp atomic write
      missing = error.bytes;
    }
  }
  if (missing > 0) throw OutOfMemory{missing};
}

}  // namespace IL_ISA
}  // namespace il
