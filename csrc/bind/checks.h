// SPDX-License-Identifier: Apache-2.0
// Checks that the bindings of several ops share.
#pragma once

#include <initializer_list>
#include <string>

#include "core/tensor_view.h"

inline bool is_float(il::DType t) { return static_cast<int>(t) <= static_cast<int>(il::DType::kFloat16); }

// The type that sums are kept in.
inline il::DType accumulator(il::DType t) { return t == il::DType::kFloat64 ? t : il::DType::kFloat32; }

inline void check_shape(const il::TensorView& t, std::initializer_list<int64_t> want, const char* op, const char* arg) {
  bool ok = t.ndim == static_cast<int>(want.size());
  std::string text = "(";
  int i = 0;
  for (int64_t n : want) {
    ok = ok && t.shape[i] == n;
    text += (i++ ? ", " : "") + std::to_string(n);
  }
  IL_CHECK(ok, op, arg, "shape " + il::shape_str(t), "shape " + text + ")");
}
