// SPDX-License-Identifier: Apache-2.0
// The kernels of csrc/cuda/node_orbits.cuh as a shared library for the CPU, launched like the CUDA module.
#include "fibers.h"
//
#include "cuda/node_orbits.cuh"

extern "C" int launch(int kernel, unsigned blocks, const void* args, std::size_t size) {
  return il::launch_on_host(il::kOrbitKernels, il::THREADS, kernel, blocks, args, size);
}
