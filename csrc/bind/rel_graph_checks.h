// SPDX-License-Identifier: Apache-2.0
// What the bindings of the ops on a RelGraph share: the packed graph, optional tensors, and the operands of a
// relational product.
#pragma once

#include <pybind11/pybind11.h>

#include "bind/checks.h"
#include "core/graph.h"
#include "cpu/relational_spmm.h"

inline il::CsrView csr_view(const il::TensorView& csr, const char* op) {
  il::check_rank(csr, 1, op, "csr");
  il::check_dtype(csr, il::DType::kInt32, op, "csr", "int32");
  il::CsrView view{};
  IL_CHECK(il::unpack_csr(csr.ptr<int32_t>(), csr.shape[0], &view), op, "csr",
           "length " + std::to_string(csr.shape[0]) + " that does not fit its header", "RelGraph.csr");
  return view;
}

// A contiguous tensor or None.
struct Optional {
  il::TensorView view;
  bool present = false;
  Optional(pybind11::handle obj, const char* op, const char* arg) {
    if (obj.is_none()) return;
    view = il::cpu_view(obj, op, arg);
    present = true;
  }
  const il::TensorView* get() const { return present ? &view : nullptr; }
};

// Fills what relational_spmm, its backward pass and nbfnet_layer share. Ids inside `csr` were checked when RelGraph
// built it.
il::RelationalSpmm spmm_args(const char* op, const il::TensorView& csr, const il::TensorView& relation,
                             const il::TensorView& input, const il::TensorView* boundary, const il::TensorView* weight,
                             int sum, int mul, int threads);
