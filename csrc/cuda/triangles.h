// SPDX-License-Identifier: Apache-2.0
// Launches the kernels of triangles.cuh; what they take is packed by python/innerloop/ops/_motif_gpu.py.
#pragma once
#include <cstddef>

#include "cuda/launch_options.h"

namespace il {

// `args` is a TriangleArgs of `size` bytes. Returns null, or what went wrong.
const char* launch_triangles(const MotifLaunch& launch, const void* args, std::size_t size);

}  // namespace il
