// SPDX-License-Identifier: Apache-2.0
// From run-time codes to an instantiation of relational_spmm.cuh. Included by the launcher and by tests/cuda.
#pragma once
#include "cuda/relational_spmm.cuh"
#include "cuda/relational_spmm.h"

namespace il {

using SpmmKernel = void (*)(SpmmArgs);

template <class T, int KIND>
SpmmKernel spmm_kernel_of(int kernel, bool fast) {
  switch (kernel) {
    case 0: return fast ? spmm_forward<T, KIND, true> : spmm_forward<T, KIND, false>;
    case 1: return spmm_merge<T, KIND, false>;
    case 2: return fast ? spmm_first_attaining<T, true> : spmm_first_attaining<T, false>;
    case 3: return fast ? spmm_gather_grad<T, KIND, true> : spmm_gather_grad<T, KIND, false>;
    case 4: return spmm_merge_grad<typename Accumulator<T>::type>;
    case 5: return spmm_weight_grad<T, KIND>;
  }
  return nullptr;
}

template <class T>
SpmmKernel spmm_kernel_of(const SpmmLaunch& launch) {
  switch (launch.kind) {
    case KIND_SUM: return spmm_kernel_of<T, KIND_SUM>(launch.kernel, launch.fast);
    case KIND_EXTREME: return spmm_kernel_of<T, KIND_EXTREME>(launch.kernel, launch.fast);
    case KIND_LOGSUMEXP: return spmm_kernel_of<T, KIND_LOGSUMEXP>(launch.kernel, launch.fast);
    case KIND_PNA: return spmm_kernel_of<T, KIND_PNA>(launch.kernel, launch.fast);
  }
  return nullptr;
}

// Null where a code is none of ours.
inline SpmmKernel select_spmm_kernel(const SpmmLaunch& launch) {
  switch (launch.dtype) {
    case 0: return spmm_kernel_of<float>(launch);
    case 1: return spmm_kernel_of<double>(launch);
    case 2: return spmm_kernel_of<Half>(launch);
    case 3: return spmm_kernel_of<BFloat16>(launch);
  }
  return nullptr;
}

}  // namespace il
