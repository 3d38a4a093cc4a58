// SPDX-License-Identifier: Apache-2.0
// What the driver says of the machine's GPUs. Used by `innerloop doctor`, and the smallest proof that the module
// loads and answers where no driver is installed.
#include "cuda/device_info.h"

#include <cuda_runtime.h>

namespace il {

int cuda_device_count(const char** error) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) {
    *error = nullptr;
    return count;
  }
  cudaGetLastError();  // the error is reported here and must not surface in a later launch
  *error = cudaGetErrorString(status);
  return 0;
}

int cuda_compute_capability(int device) {
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) return 0;
  return major * 10 + minor;
}

int cuda_runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

}  // namespace il
