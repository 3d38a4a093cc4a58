// SPDX-License-Identifier: Apache-2.0
// Launcher of triangles.cuh.
#include "cuda/triangles.cuh"

#include "cuda/launch.h"
#include "cuda/triangles.h"

namespace il {

const char* launch_triangles(const MotifLaunch& launch, const void* args, std::size_t size) {
  return launch_kernel(kTriangleKernels, THREADS, launch, args, size);
}

}  // namespace il
