// SPDX-License-Identifier: Apache-2.0
// Launcher of match.cuh.
#include "cuda/match.cuh"

#include "cuda/launch.h"
#include "cuda/match.h"

namespace il {

const char* launch_match(const MotifLaunch& launch, const void* args, std::size_t size) {
  return launch_kernel(kMatchKernels, THREADS, launch, args, size);
}

}  // namespace il
