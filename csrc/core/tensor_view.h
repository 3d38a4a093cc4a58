// SPDX-License-Identifier: Apache-2.0
// TensorView: what a kernel needs to know of a tensor, borrowed from any DLPack producer.
//
// torch tensors come through the C exchange table on their type (about 0.1 us each, no capsule, works for
// tensors that require grad); everything else through a `__dlpack__` capsule. The view borrows memory: convert
// every argument first, then release the GIL, and never keep a view after the call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "core/dlpack.h"
#include "core/types.h"

namespace il {

namespace py = pybind11;

struct TensorView {
  void* data = nullptr;
  int ndim = 0;
  const int64_t* shape = nullptr;
  const int64_t* strides = nullptr;  // in elements; null means contiguous
  DType dtype = DType::kFloat32;
  DLDevice device{kDLCPU, 0};
  py::object owner;  // keeps a capsule's memory alive; empty on the exchange-table path

  int64_t size(int i) const { return shape[i < 0 ? i + ndim : i]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
  bool contiguous() const;
  template <class T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
};

// Raises TypeError/ValueError that names `op` and `arg`: not a tensor, unsupported dtype (complex, quantised),
// null data with elements (fake tensors), wrong device, not contiguous.
TensorView cpu_view(py::handle obj, const char* op, const char* arg);
// The same, with any strides.
TensorView strided_view(py::handle obj, const char* op, const char* arg);

std::string shape_str(const TensorView& t);

[[noreturn]] void fail(const char* op, const char* arg, const std::string& got, const std::string& want);

// Argument checks used by bind/*.cpp only; kernels assume.
#define IL_CHECK(cond, op, arg, got, want)       \
  do {                                           \
    if (!(cond)) ::il::fail(op, arg, got, want); \
  } while (0)

inline void check_rank(const TensorView& t, int rank, const char* op, const char* arg) {
  IL_CHECK(t.ndim == rank, op, arg, "shape " + shape_str(t), std::to_string(rank) + " dimensions");
}

inline void check_dtype(const TensorView& t, DType want, const char* op, const char* arg, const char* name) {
  IL_CHECK(t.dtype == want, op, arg, "another dtype", name);
}

}  // namespace il
