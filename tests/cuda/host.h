// SPDX-License-Identifier: Apache-2.0
// Just enough CUDA to compile the .cuh files as plain C++ and run a grid one thread after another. That is a faithful
// run of kernels whose threads do not wait for each other; `task_sum` is the one exchange between threads.
#pragma once
#include <cmath>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)

namespace il {
struct Dim {
  unsigned x, y, z;
};
inline thread_local Dim threadIdx, blockIdx, blockDim, gridDim;

inline int atomicMin(int* at, int value) {
  const int before = *at;
  if (value < before) *at = value;
  return before;
}

// Threads of a task run in order of threadIdx.x: the last one has seen them all.
template <class A>
inline A task_sum(A value) {
  static A total;
  total = threadIdx.x == 0 ? value : total + value;
  return total;
}

inline float half_to_float(unsigned short bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(float(mantissa), -24)
                                          : std::ldexp(float(mantissa + 1024), exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

inline unsigned short float_to_half(float value) {
  const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (value != value) return 0x7e00;
  if (magnitude >= 65520.f) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  if (magnitude == 0 || exponent < -13)
    return sign | static_cast<unsigned short>(std::nearbyint(std::ldexp(magnitude, 24)));
  const int mantissa = int(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));  // 1024..2048, ties to even
  return sign | static_cast<unsigned short>(((exponent + 14) << 10) + mantissa - 1024);
}

template <class Kernel, class Args>
void run_grid(Kernel kernel, const Args& args, unsigned gx, unsigned gy, unsigned bx, unsigned by) {
  gridDim = {gx, gy, 1};
  blockDim = {bx, by, 1};
  for (blockIdx.y = 0; blockIdx.y < gy; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < gx; ++blockIdx.x)
      for (threadIdx.y = 0; threadIdx.y < by; ++threadIdx.y)
        for (threadIdx.x = 0; threadIdx.x < bx; ++threadIdx.x) kernel(args);
}
}  // namespace il
