// SPDX-License-Identifier: Apache-2.0
// Launcher of relational_spmm.cuh. Nothing here waits for the device or allocates, so a call can be part of a CUDA
// graph.
#include "cuda/relational_spmm.h"

#include <cuda_runtime.h>

#include "cuda/relational_spmm_select.h"

namespace il {

const char* launch_relational_spmm(const SpmmLaunch& launch, const void* args, std::size_t size) {
  if (size != sizeof(SpmmArgs)) return "the arguments have the wrong size";
  const SpmmKernel kernel = select_spmm_kernel(launch);
  if (kernel == nullptr) return "no such kernel";
  int before = 0;
  cudaError_t status = cudaGetDevice(&before);
  const bool elsewhere = before != launch.device;
  if (status == cudaSuccess && elsewhere) status = cudaSetDevice(launch.device);
  if (status == cudaSuccess) {
    void* parameters[] = {const_cast<void*>(args)};
    status = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(launch.grid[0], launch.grid[1]),
                              dim3(launch.block[0], launch.block[1]), parameters, 0,
                              static_cast<cudaStream_t>(launch.stream));
    if (elsewhere) cudaSetDevice(before);
  }
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();  // reported here, must not surface in a later launch
  return cudaGetErrorString(status);
}

}  // namespace il
