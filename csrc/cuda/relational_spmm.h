// SPDX-License-Identifier: Apache-2.0
// Launches the kernels of relational_spmm.cuh; what they take is packed by
// python/innerloop/ops/_relational_spmm_cuda.py.
#pragma once
#include <cstddef>

namespace il {

struct SpmmLaunch {
  int kernel;  // 0 forward, 1 merge, 2 first_attaining, 3 gather_grad, 4 merge_grad, 5 weight_grad
  int dtype;   // 0 float32, 1 float64, 2 float16, 3 bfloat16
  int kind;    // KIND_* of relational_spmm.cuh
  bool fast;   // mul is MUL, and every tensor allows loads of neighbouring columns
  unsigned grid[2], block[2];
  int device;
  void* stream;
};

// `args` is a SpmmArgs of `size` bytes. Returns null, or what went wrong.
const char* launch_relational_spmm(const SpmmLaunch& launch, const void* args, std::size_t size);

}  // namespace il
