// SPDX-License-Identifier: Apache-2.0
// Launcher of relational_spmm.cuh. A call can be part of a CUDA graph.
#include "cuda/relational_spmm.h"

#include "cuda/launch.h"
#include "cuda/relational_spmm_select.h"

namespace il {

const char* launch_relational_spmm(const SpmmLaunch& launch, const void* args, std::size_t size) {
  if (size != sizeof(SpmmArgs)) return "the arguments have the wrong size";
  const SpmmKernel kernel = select_spmm_kernel(launch);
  if (kernel == nullptr) return "no such kernel";
  return launch_kernel(reinterpret_cast<const void*>(kernel), dim3(launch.grid[0], launch.grid[1]),
                       dim3(launch.block[0], launch.block[1]), args, launch.device, launch.stream);
}

}  // namespace il
