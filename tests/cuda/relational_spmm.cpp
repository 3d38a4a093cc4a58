// SPDX-License-Identifier: Apache-2.0
// The kernels of csrc/cuda/relational_spmm.cuh as a shared library for the CPU, launched like the CUDA module.
#include "host.h"
//
#include "cuda/relational_spmm_select.h"

extern "C" int launch(int kernel, int dtype, int kind, int fast, unsigned gx, unsigned gy, unsigned bx, unsigned by,
                      const void* args, std::size_t size) {
  il::SpmmLaunch options{kernel, dtype, kind, fast != 0, {gx, gy}, {bx, by}, 0, nullptr};
  il::SpmmArgs packed;
  const il::SpmmKernel chosen = il::select_spmm_kernel(options);
  if (size != sizeof packed || chosen == nullptr) return 1;
  std::memcpy(&packed, args, size);
  il::run_grid(chosen, packed, gx, gy, bx, by);
  return 0;
}
