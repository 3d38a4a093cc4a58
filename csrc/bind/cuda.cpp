// SPDX-License-Identifier: Apache-2.0
// Python module innerloop._cuda. Links the static CUDA runtime only, so it imports without a driver or a toolkit.
#include <pybind11/pybind11.h>

#include "cuda/device_info.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "innerloop CUDA kernels";
  m.def("device_count", [] {
    const char* error = nullptr;
    const int count = il::cuda_device_count(&error);
    return py::make_tuple(count, error == nullptr ? py::object(py::none()) : py::object(py::str(error)));
  });
  m.def("compute_capability", &il::cuda_compute_capability);
  m.def("runtime_version", &il::cuda_runtime_version);
  m.attr("architectures") = IL_CUDA_ARCHITECTURES;
}
