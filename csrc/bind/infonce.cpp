// SPDX-License-Identifier: Apache-2.0
// infonce and its backward pass for _cpu.
#include "cpu/infonce.h"

#include <pybind11/pybind11.h>

#include "bind/checks.h"
#include "core/kernels.h"

namespace py = pybind11;
using il::TensorView;

namespace {

// A matrix whose rows may lie apart.
const void* rows_view(py::handle obj, const char* op, const char* arg, il::DType dtype, int64_t rows, int64_t dim,
                      int64_t* stride) {
  const TensorView t = il::strided_view(obj, op, arg);
  il::check_dtype(t, dtype, op, arg, "the dtype of q");
  check_shape(t, {rows, dim}, op, arg);
  *stride = t.strides == nullptr ? dim : t.strides[0];
  IL_CHECK(t.strides == nullptr || dim <= 1 || t.strides[1] == 1 || t.numel() == 0, op, arg, "a strided last dimension",
           "neighbouring channels");
  return t.data;
}

// A contiguous tensor of the given type, or null.
void* optional(py::handle obj, const char* op, const char* arg, il::DType dtype, std::initializer_list<int64_t> shape) {
  if (obj.is_none()) return nullptr;
  const TensorView t = il::cpu_view(obj, op, arg);
  il::check_dtype(t, dtype, op, arg, "that of sums, or int64");
  check_shape(t, shape, op, arg);
  return t.data;
}

il::InfoNce arguments(const char* op, py::handle q, py::handle k, py::handle inv_q, py::handle inv_k,
                      py::handle targets, py::handle labels_q, py::handle labels_k, py::handle limit_q,
                      py::handle limit_k, double scale, double bias, int kind, bool skip_diagonal, bool upper,
                      bool want_columns, int threads) {
  const TensorView rows = il::strided_view(q, op, "q"), columns = il::strided_view(k, op, "k");
  il::check_rank(rows, 2, op, "q");
  il::check_rank(columns, 2, op, "k");
  IL_CHECK(is_float(rows.dtype), op, "q", "an integer dtype", "float32, float64, bfloat16 or float16");
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  IL_CHECK(kind == 0 || kind == 1, op, "kind", std::to_string(kind), "0 or 1");
  il::InfoNce p{};
  p.rows = rows.shape[0], p.columns = columns.shape[0], p.dim = rows.shape[1];
  p.dtype = rows.dtype, p.kind = static_cast<il::ScoreSum>(kind), p.threads = threads;
  p.scale = scale, p.bias = bias, p.own_target = -1, p.skip_diagonal = skip_diagonal, p.upper = upper,
  p.want_columns = want_columns;
  p.q = rows_view(q, op, "q", p.dtype, p.rows, p.dim, &p.q_stride);
  p.k = rows_view(k, op, "k", p.dtype, p.columns, p.dim, &p.k_stride);
  const il::DType acc = accumulator(p.dtype), i64 = il::DType::kInt64;
  p.inv_q = optional(inv_q, op, "inv_q", acc, {p.rows});
  p.inv_k = optional(inv_k, op, "inv_k", acc, {p.columns});
  p.targets = static_cast<const int64_t*>(optional(targets, op, "targets", i64, {p.rows}));
  p.labels_q = static_cast<const int64_t*>(optional(labels_q, op, "labels_q", i64, {p.rows}));
  p.labels_k = static_cast<const int64_t*>(optional(labels_k, op, "labels_k", i64, {p.columns}));
  p.limit_q = optional(limit_q, op, "limit_q", acc, {p.rows});
  p.limit_k = optional(limit_k, op, "limit_k", acc, {p.columns});
  IL_CHECK(labels_q.is_none() == labels_k.is_none(), op, "labels_k", "one of two", "both or neither");
  IL_CHECK(limit_q.is_none() == limit_k.is_none(), op, "limit_k", "one of two", "both or neither");
  for (int64_t i = 0; p.targets != nullptr && i < p.rows; ++i) {
    IL_CHECK(p.targets[i] >= -1 && p.targets[i] < p.columns, op, "targets", std::to_string(p.targets[i]),
             "columns in [0, " + std::to_string(p.columns) + "), or -1");
  }
  return p;
}

// What forward leaves for backward.
void results(il::InfoNce& p, const char* op, py::handle positive, py::handle row_sum, py::handle column_sum,
             py::handle scores) {
  const il::DType acc = accumulator(p.dtype);
  p.positive = optional(positive, op, "positive", acc, {p.rows});
  p.row_sum = optional(row_sum, op, "row_sum", acc, {p.rows});
  p.column_sum = optional(column_sum, op, "column_sum", acc, {p.columns});
  p.scores = optional(scores, op, "scores", acc, {p.rows, p.columns});
  IL_CHECK(!positive.is_none() && !row_sum.is_none(), op, "row_sum", "none", "a tensor for each row");
  IL_CHECK(!column_sum.is_none() || !p.want_columns, op, "column_sum", "none", "a tensor for each column");
}

void infonce(py::handle positive, py::handle row_sum, py::handle column_sum, py::handle row_count,
             py::handle column_count, py::handle scores, py::handle q, py::handle k, py::handle inv_q, py::handle inv_k,
             py::handle targets, py::handle labels_q, py::handle labels_k, py::handle limit_q, py::handle limit_k,
             double scale, double bias, int kind, bool skip_diagonal, bool upper, bool want_columns, int threads) {
  const char* op = "infonce";
  il::InfoNce p = arguments(op, q, k, inv_q, inv_k, targets, labels_q, labels_k, limit_q, limit_k, scale, bias, kind,
                            skip_diagonal, upper, want_columns, threads);
  results(p, op, positive, row_sum, column_sum, scores);
  p.row_count = optional(row_count, op, "row_count", il::DType::kInt64, {p.rows});
  p.column_count = optional(column_count, op, "column_count", il::DType::kInt64, {p.columns});
  py::gil_scoped_release release;
  il::kernels().infonce(p);
}

void infonce_backward(py::handle grad_q, py::handle grad_k, py::handle row_dot, py::handle row_total,
                      py::handle grad_positive, py::handle grad_row, py::handle grad_column, py::handle positive,
                      py::handle row_sum, py::handle column_sum, py::handle scores, py::handle q, py::handle k,
                      py::handle inv_q, py::handle inv_k, py::handle targets, py::handle labels_q, py::handle labels_k,
                      py::handle limit_q, py::handle limit_k, double scale, double bias, int kind, bool skip_diagonal,
                      bool upper, bool want_columns, int threads) {
  const char* op = "infonce_backward";
  il::InfoNceBackward b{};
  b.forward = arguments(op, q, k, inv_q, inv_k, targets, labels_q, labels_k, limit_q, limit_k, scale, bias, kind,
                        skip_diagonal, upper, want_columns, threads);
  il::InfoNce& p = b.forward;
  results(p, op, positive, row_sum, column_sum, scores);
  const il::DType acc = accumulator(p.dtype);
  b.grad_q = optional(grad_q, op, "grad_q", acc, {p.rows, p.dim});
  b.grad_k = optional(grad_k, op, "grad_k", acc, {p.columns, p.dim});
  b.row_dot = optional(row_dot, op, "row_dot", acc, {p.rows});
  b.row_total = optional(row_total, op, "row_total", acc, {p.rows});
  b.grad_positive = optional(grad_positive, op, "grad_positive", acc, {p.rows});
  b.grad_row = optional(grad_row, op, "grad_row", acc, {p.rows});
  b.grad_column = optional(grad_column, op, "grad_column", acc, {p.columns});
  IL_CHECK(!row_total.is_none() && !grad_positive.is_none() && !grad_row.is_none(), op, "grad_row", "none",
           "a tensor for each row");
  py::gil_scoped_release release;
  if (p.rows > 0) il::kernels().infonce_backward(b);
}

void infonce_mean(py::handle sums, py::handle grad_q, py::handle grad_k, py::handle q, py::handle k, py::handle targets,
                  py::handle labels_q, py::handle labels_k, double scale, bool normalize, bool skip_diagonal,
                  double row_weight, double column_weight, bool want_gradients, int threads) {
  const char* op = "infonce_mean";
  const py::none none;
  il::InfoNceMean m{};
  m.scores = arguments(op, q, k, none, none, targets, labels_q, labels_k, none, none, scale, 0, 0, skip_diagonal, false,
                       false, threads);
  const il::InfoNce& p = m.scores;
  const il::DType acc = accumulator(p.dtype);
  if (p.targets == nullptr) {
    IL_CHECK(p.columns >= p.rows, op, "k", std::to_string(p.columns) + " rows",
             "a column for each row without targets");
    m.scores.own_target = 0;
  }
  for (int64_t i = 0; p.targets != nullptr && i < p.rows; ++i) {
    IL_CHECK(p.targets[i] >= 0, op, "targets", std::to_string(p.targets[i]), "a column for each row");
  }
  m.normalize = normalize, m.row_weight = row_weight, m.column_weight = column_weight;
  m.want_gradients = want_gradients;
  m.sums = optional(sums, op, "sums", acc, {2});
  m.grad_q = optional(grad_q, op, "grad_q", acc, {p.rows, p.dim});
  m.grad_k = optional(grad_k, op, "grad_k", acc, {p.columns, p.dim});
  IL_CHECK(m.sums != nullptr, op, "sums", "none", "two elements");
  py::gil_scoped_release release;
  il::kernels().infonce_mean(m);
}

}  // namespace

void bind_infonce(py::module_& m) {
  m.def("infonce", &infonce);
  m.def("infonce_backward", &infonce_backward);
  m.def("infonce_mean", &infonce_mean);
}
