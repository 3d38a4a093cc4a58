// SPDX-License-Identifier: Apache-2.0
// relational_spmm and its backward pass for _cpu.
#include "cpu/relational_spmm.h"

#include <pybind11/pybind11.h>

#include "bind/rel_graph_checks.h"
#include "core/kernels.h"

namespace py = pybind11;
using il::TensorView;

il::RelationalSpmm spmm_args(const char* op, const TensorView& csr, const TensorView& relation, const TensorView& input,
                             const TensorView* boundary, const TensorView* weight, int sum, int mul, int threads) {
  il::RelationalSpmm p{};
  il::check_rank(input, 3, op, "input");
  IL_CHECK(is_float(input.dtype), op, "input", "an integer dtype", "float32, float64, bfloat16 or float16");
  IL_CHECK(sum >= 0 && sum <= 6, op, "sum", std::to_string(sum), "0 to 6");
  IL_CHECK(mul >= 0 && mul <= 4, op, "mul", std::to_string(mul), "0 to 4");
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  p.batch = input.shape[1];
  p.dim = input.shape[2];
  p.graph = csr_view(csr, op);
  IL_CHECK(input.shape[0] == p.graph.num_nodes, op, "input", "shape " + il::shape_str(input),
           std::to_string(p.graph.num_nodes) + " rows, one for each node of the graph");
  p.dtype = input.dtype;
  p.sum = static_cast<il::Sum>(sum);
  p.mul = static_cast<il::Mul>(mul);
  p.threads = threads;
  p.input = input.data;
  il::check_dtype(relation, input.dtype, op, "relation", "the dtype of input");
  IL_CHECK(relation.ndim == 2 || relation.ndim == 3, op, "relation", "shape " + il::shape_str(relation),
           "(R, d) or (R, B, d)");
  p.shared = relation.ndim == 2;
  p.num_relations = relation.shape[0];
  IL_CHECK(p.num_relations == p.graph.num_relations, op, "relation", "shape " + il::shape_str(relation),
           std::to_string(p.graph.num_relations) + " rows, one for each relation of the graph");
  IL_CHECK(p.mul != il::Mul::kRotate || p.dim % 2 == 0, op, "input", "shape " + il::shape_str(input),
           "an even number of channels for mul='rotate' (real half, imaginary half)");
  p.relation = relation.data;
  if (p.shared) {
    check_shape(relation, {p.num_relations, p.dim}, op, "relation");
  } else {
    check_shape(relation, {p.num_relations, p.batch, p.dim}, op, "relation");
  }
  if (boundary != nullptr) {
    il::check_dtype(*boundary, input.dtype, op, "boundary", "the dtype of input");
    check_shape(*boundary, {input.shape[0], p.batch, p.dim}, op, "boundary");
    p.boundary = boundary->data;
  }
  if (weight != nullptr) {
    il::check_dtype(*weight, input.dtype, op, "edge_weight", "the dtype of input");
    check_shape(*weight, {p.graph.num_edges}, op, "edge_weight");
    p.weight = weight->data;
  }
  return p;
}

namespace {

void relational_spmm(py::handle out, py::handle csr, py::handle relation, py::handle input, py::handle boundary,
                     py::handle edge_weight, int sum, int mul, int threads) {
  const char* op = "relational_spmm";
  TensorView o = il::cpu_view(out, op, "out"), g = il::cpu_view(csr, op, "csr"),
             r = il::cpu_view(relation, op, "relation"), x = il::cpu_view(input, op, "input");
  Optional b(boundary, op, "boundary"), w(edge_weight, op, "edge_weight");
  il::RelationalSpmm p = spmm_args(op, g, r, x, b.get(), w.get(), sum, mul, threads);
  il::check_dtype(o, x.dtype, op, "out", "the dtype of input");
  if (p.sum == il::Sum::kPna) {
    check_shape(o, {x.shape[0], p.batch, 4, p.dim}, op, "out");
  } else {
    check_shape(o, {x.shape[0], p.batch, p.dim}, op, "out");
  }
  p.out = o.data;
  py::gil_scoped_release release;
  if (o.numel() > 0) il::kernels().relational_spmm(p);
}

void relational_spmm_backward(py::handle grad_input, py::handle grad_relation, py::handle grad_boundary,
                              py::handle grad_weight, py::handle grad_out, py::handle out, py::handle csr,
                              py::handle relation, py::handle input, py::handle boundary, py::handle edge_weight,
                              int sum, int mul, int threads) {
  const char* op = "relational_spmm_backward";
  TensorView g = il::cpu_view(csr, op, "csr"), r = il::cpu_view(relation, op, "relation"),
             x = il::cpu_view(input, op, "input"), go = il::cpu_view(grad_out, op, "grad_out"),
             o = il::cpu_view(out, op, "out"), gx = il::cpu_view(grad_input, op, "grad_input"),
             gr = il::cpu_view(grad_relation, op, "grad_relation");
  Optional b(boundary, op, "boundary"), w(edge_weight, op, "edge_weight"), gb(grad_boundary, op, "grad_boundary"),
      gw(grad_weight, op, "grad_weight");
  il::RelationalSpmmBackward p{};
  p.forward = spmm_args(op, g, r, x, b.get(), w.get(), sum, mul, threads);
  const il::RelationalSpmm& f = p.forward;
  const il::DType acc = x.dtype == il::DType::kFloat64 ? il::DType::kFloat64 : il::DType::kFloat32;
  auto check_grad = [&](const TensorView& t, const char* name) {
    il::check_dtype(t, acc, op, name, "float64 for float64 input, else float32");
  };
  check_grad(gx, "grad_input");
  check_shape(gx, {x.shape[0], f.batch, f.dim}, op, "grad_input");
  check_grad(gr, "grad_relation");
  if (f.shared) {
    check_shape(gr, {f.num_relations, f.dim}, op, "grad_relation");
  } else {
    check_shape(gr, {f.num_relations, f.batch, f.dim}, op, "grad_relation");
  }
  il::check_dtype(go, x.dtype, op, "grad_out", "the dtype of input");
  const bool needs_out =
      f.sum == il::Sum::kMax || f.sum == il::Sum::kMin || f.sum == il::Sum::kLogSumExp || f.sum == il::Sum::kPna;
  if (f.sum == il::Sum::kPna) {
    check_shape(go, {x.shape[0], f.batch, 4, f.dim}, op, "grad_out");
    check_shape(o, {x.shape[0], f.batch, 4, f.dim}, op, "out");
  } else {
    check_shape(go, {x.shape[0], f.batch, f.dim}, op, "grad_out");
    if (needs_out) check_shape(o, {x.shape[0], f.batch, f.dim}, op, "out");
  }
  if (needs_out) il::check_dtype(o, x.dtype, op, "out", "the dtype of input");
  p.forward.out = o.data;
  p.grad_out = go.data;
  p.grad_input = gx.data;
  p.grad_relation = gr.data;
  if (gb.present) {
    IL_CHECK(b.present, op, "grad_boundary", "a tensor", "None without boundary");
    check_grad(gb.view, "grad_boundary");
    check_shape(gb.view, {x.shape[0], f.batch, f.dim}, op, "grad_boundary");
    p.grad_boundary = gb.view.data;
  }
  if (gw.present) {
    check_grad(gw.view, "grad_weight");
    check_shape(gw.view, {f.graph.num_edges}, op, "grad_weight");
    p.grad_weight = gw.view.data;
  }
  py::gil_scoped_release release;
  il::kernels().relational_spmm_backward(p);
}

}  // namespace

void bind_relational_spmm(py::module_& m) {
  m.def("relational_spmm", &relational_spmm);
  m.def("relational_spmm_backward", &relational_spmm_backward);
}
