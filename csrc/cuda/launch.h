// SPDX-License-Identifier: Apache-2.0
// How the launchers of kernels that take one struct start them. Nothing here waits for the device or allocates.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/launch_options.h"

namespace il {

// `args` is the struct that the kernel takes. Returns null, or what went wrong.
inline const char* launch_kernel(const void* kernel, dim3 grid, dim3 block, const void* args, int device,
                                 void* stream) {
  int before = 0;
  cudaError_t status = cudaGetDevice(&before);
  const bool elsewhere = before != device;
  if (status == cudaSuccess && elsewhere) status = cudaSetDevice(device);
  if (status == cudaSuccess) {
    void* parameters[] = {const_cast<void*>(args)};
    status = cudaLaunchKernel(kernel, grid, block, parameters, 0, static_cast<cudaStream_t>(stream));
    if (elsewhere) cudaSetDevice(before);
  }
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();  // reported here, must not surface in a later launch
  return cudaGetErrorString(status);
}

// One of a table of kernels that take an Args.
template <class Args, std::size_t N>
const char* launch_kernel(void (*const (&kernels)[N])(Args), unsigned threads, const MotifLaunch& launch,
                          const void* args, std::size_t size) {
  if (size != sizeof(Args)) return "the arguments have the wrong size";
  if (launch.kernel < 0 || launch.kernel >= static_cast<int>(N)) return "no such kernel";
  return launch_kernel(reinterpret_cast<const void*>(kernels[launch.kernel]), dim3(launch.blocks), dim3(threads), args,
                       launch.device, launch.stream);
}

}  // namespace il
