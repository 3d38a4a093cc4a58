// SPDX-License-Identifier: Apache-2.0
// Launcher of node_orbits.cuh.
#include "cuda/node_orbits.cuh"

#include "cuda/launch.h"
#include "cuda/node_orbits.h"

namespace il {

const char* launch_node_orbits(const MotifLaunch& launch, const void* args, std::size_t size) {
  return launch_kernel(kOrbitKernels, THREADS, launch, args, size);
}

}  // namespace il
