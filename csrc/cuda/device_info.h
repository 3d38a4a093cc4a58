// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace il {

// Number of usable devices; 0 with `error` set to the driver's words when there is no driver.
int cuda_device_count(const char** error);
int cuda_compute_capability(int device);  // 90 for sm_90; 0 if the device does not exist
int cuda_runtime_version();

}  // namespace il
