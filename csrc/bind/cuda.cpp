// SPDX-License-Identifier: Apache-2.0
// Python module innerloop._cuda. Links the static CUDA runtime only, so it imports without a driver or a toolkit.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "cuda/device_info.h"
#include "cuda/match.h"
#include "cuda/node_orbits.h"
#include "cuda/relational_spmm.h"
#include "cuda/triangles.h"

namespace py = pybind11;

namespace {

// One of the kernels of <file>.cuh. Private: pointers are not checked here but by ops/_motif_gpu.py.
void motif(std::string_view file, int kernel, unsigned blocks, const py::bytes& args, int device,
           std::uintptr_t stream) {
  const auto launch = file == "triangles"     ? &il::launch_triangles
                      : file == "node_orbits" ? &il::launch_node_orbits
                      : file == "match"       ? &il::launch_match
                                              : nullptr;
  if (launch == nullptr) throw std::invalid_argument("no kernels of " + std::string(file));
  const std::string_view packed = args;
  const il::MotifLaunch options{kernel, blocks, device, reinterpret_cast<void*>(stream)};
  if (const char* error = launch(options, packed.data(), packed.size()))
    throw std::runtime_error(std::string(file) + ": " + error);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "innerloop CUDA kernels";
  m.def("device_count", [] {
    const char* error = nullptr;
    const int count = il::cuda_device_count(&error);
    return py::make_tuple(count, error == nullptr ? py::object(py::none()) : py::object(py::str(error)));
  });
  m.def("compute_capability", &il::cuda_compute_capability);
  m.def("runtime_version", &il::cuda_runtime_version);
  // Private: pointers are not checked here but by ops/relational_spmm.py.
  m.def("relational_spmm", [](int kernel, int dtype, int kind, bool fast, std::array<unsigned, 2> grid,
                              std::array<unsigned, 2> block, const py::bytes& args, int device, std::uintptr_t stream) {
    const il::SpmmLaunch launch{
        kernel, dtype, kind, fast, {grid[0], grid[1]}, {block[0], block[1]}, device, reinterpret_cast<void*>(stream)};
    const std::string_view packed = args;
    if (const char* error = il::launch_relational_spmm(launch, packed.data(), packed.size()))
      throw std::runtime_error(std::string("relational_spmm: ") + error);
  });
  m.def("motif", &motif);
  m.attr("architectures") = IL_CUDA_ARCHITECTURES;
}
