// SPDX-License-Identifier: Apache-2.0
// nbfnet_layer and its backward pass for _cpu.
#include "cpu/nbfnet_layer.h"

#include <pybind11/pybind11.h>

#include <utility>

#include "bind/rel_graph_checks.h"
#include "core/kernels.h"

namespace py = pybind11;
using il::TensorView;

namespace {

// The input of nbfnet_layer: for None (the first layer) a view without data, of the shape that the others imply.
struct LayerInput {
  int64_t shape[3];
  TensorView view;
  LayerInput(py::handle obj, const TensorView& csr, const TensorView& query, const char* op) {
    if (!obj.is_none()) {
      view = il::cpu_view(obj, op, "input");
      return;
    }
    il::check_rank(query, 2, op, "query");
    IL_CHECK(query.dtype == il::DType::kFloat32 || query.dtype == il::DType::kFloat64, op, "query", "another dtype",
             "float32 or float64");
    shape[0] = csr_view(csr, op).num_nodes;
    shape[1] = query.shape[0];
    shape[2] = query.shape[1];
    view.ndim = 3;
    view.shape = shape;
    view.dtype = query.dtype;
  }
  LayerInput(const LayerInput&) = delete;
};

// Fills what forward and backward share of nbfnet_layer.
il::NbfnetLayer layer_args(const char* op, const TensorView& csr, const TensorView& relation, const TensorView& input,
                           const TensorView& source, const TensorView& query, const TensorView& weight,
                           const TensorView& bias, const TensorView* norm_weight, const TensorView* norm_bias,
                           const TensorView& scalers, double eps, int mul, bool relu, bool residual, int threads) {
  const il::RelationalSpmm s =
      spmm_args(op, csr, relation, input, nullptr, nullptr, static_cast<int>(il::Sum::kPna), mul, threads);
  IL_CHECK(s.dtype == il::DType::kFloat32 || s.dtype == il::DType::kFloat64, op, "input", "a half dtype",
           "float32 or float64");
  il::NbfnetLayer p{};
  p.graph = s.graph;
  p.num_relations = s.num_relations;
  p.batch = s.batch;
  p.dim = s.dim;
  p.dtype = s.dtype;
  p.mul = s.mul;
  p.shared = s.shared;
  p.input = s.input;
  p.relation = s.relation;
  p.threads = threads;
  p.eps = eps;
  p.relu = relu;
  p.residual = residual;
  il::check_rank(weight, 2, op, "weight");
  p.out_dim = weight.shape[0];
  IL_CHECK(p.dim >= 1 && p.out_dim >= 1, op, "weight", "shape " + il::shape_str(weight),
           "at least one input and one output channel");
  check_shape(weight, {p.out_dim, 13 * p.dim}, op, "weight");
  IL_CHECK(!residual || p.out_dim == p.dim, op, "weight", "shape " + il::shape_str(weight),
           "as many output as input channels for the residual");
  check_shape(bias, {p.out_dim}, op, "bias");
  check_shape(query, {p.batch, p.dim}, op, "query");
  check_shape(scalers, {s.graph.num_nodes, 3}, op, "scalers");
  check_shape(source, {p.batch}, op, "source");
  il::check_dtype(source, il::DType::kInt64, op, "source", "int64");
  const int64_t bad = il::first_out_of_range(source.ptr<int64_t>(), p.batch, s.graph.num_nodes);
  if (bad >= 0) {
    throw py::index_error(std::string(op) + ": source holds " + std::to_string(source.ptr<int64_t>()[bad]) +
                          " at query " + std::to_string(bad) + ", expected ids in [0, " +
                          std::to_string(s.graph.num_nodes) + ")");
  }
  IL_CHECK((norm_weight == nullptr) == (norm_bias == nullptr), op, "norm_bias", "no partner",
           "norm_weight and norm_bias together");
  const std::pair<const TensorView*, const char*> floats[] = {
      {&query, "query"},     {&weight, "weight"},          {&bias, "bias"},
      {&scalers, "scalers"}, {norm_weight, "norm_weight"}, {norm_bias, "norm_bias"}};
  for (const auto& [t, name] : floats) {
    if (t != nullptr) il::check_dtype(*t, input.dtype, op, name, "the dtype of input");
  }
  if (norm_weight != nullptr) {
    check_shape(*norm_weight, {p.out_dim}, op, "norm_weight");
    check_shape(*norm_bias, {p.out_dim}, op, "norm_bias");
    p.norm_weight = norm_weight->data;
    p.norm_bias = norm_bias->data;
  }
  IL_CHECK(il::same_by_degree(p.graph, scalers.data, scalers.dtype == il::DType::kFloat64), op, "scalers",
           "different rows for nodes of one in-degree", "a function of the degree, such as innerloop.nn.pna_scalers");
  p.source = source.ptr<int64_t>();
  p.query = query.data;
  p.weight = weight.data;
  p.bias = bias.data;
  p.scalers = scalers.data;
  return p;
}

void nbfnet_layer(py::handle out, py::handle pre, py::handle csr, py::handle relation, py::handle input,
                  py::handle source, py::handle query, py::handle weight, py::handle bias, py::handle norm_weight,
                  py::handle norm_bias, py::handle scalers, double eps, int mul, bool relu, bool residual,
                  int threads) {
  const char* op = "nbfnet_layer";
  TensorView o = il::cpu_view(out, op, "out"), g = il::cpu_view(csr, op, "csr"),
             r = il::cpu_view(relation, op, "relation"), s = il::cpu_view(source, op, "source"),
             q = il::cpu_view(query, op, "query"), w = il::cpu_view(weight, op, "weight"),
             b = il::cpu_view(bias, op, "bias"), sc = il::cpu_view(scalers, op, "scalers");
  const LayerInput layer_input(input, g, q, op);
  const TensorView& x = layer_input.view;
  Optional nw(norm_weight, op, "norm_weight"), nb(norm_bias, op, "norm_bias"), y(pre, op, "pre");
  il::NbfnetLayer p = layer_args(op, g, r, x, s, q, w, b, nw.get(), nb.get(), sc, eps, mul, relu, residual, threads);
  for (const auto& [t, name] : {std::pair<const TensorView*, const char*>{&o, "out"}, {y.get(), "pre"}}) {
    if (t == nullptr) continue;
    check_shape(*t, {x.shape[0], p.batch, p.out_dim}, op, name);
    il::check_dtype(*t, x.dtype, op, name, "the dtype of input");
  }
  p.out = o.data;
  p.pre = y.present ? y.view.data : nullptr;
  py::gil_scoped_release release;
  if (o.numel() > 0) il::kernels().nbfnet_layer(p);
}

void nbfnet_layer_backward(py::handle grad_input, py::handle grad_relation, py::handle grad_query,
                           py::handle grad_weight, py::handle grad_bias, py::handle grad_norm_weight,
                           py::handle grad_norm_bias, py::handle grad_out, py::handle pre, py::handle csr,
                           py::handle relation, py::handle input, py::handle source, py::handle query,
                           py::handle weight, py::handle bias, py::handle norm_weight, py::handle norm_bias,
                           py::handle scalers, double eps, int mul, bool relu, bool residual, int threads) {
  const char* op = "nbfnet_layer_backward";
  TensorView g = il::cpu_view(csr, op, "csr"), r = il::cpu_view(relation, op, "relation"),
             s = il::cpu_view(source, op, "source"), q = il::cpu_view(query, op, "query"),
             w = il::cpu_view(weight, op, "weight"), b = il::cpu_view(bias, op, "bias"),
             sc = il::cpu_view(scalers, op, "scalers"), y = il::cpu_view(pre, op, "pre"),
             go = il::cpu_view(grad_out, op, "grad_out");
  const LayerInput layer_input(input, g, q, op);
  const TensorView& x = layer_input.view;
  Optional nw(norm_weight, op, "norm_weight"), nb(norm_bias, op, "norm_bias");
  il::NbfnetLayerBackward p{};
  p.forward = layer_args(op, g, r, x, s, q, w, b, nw.get(), nb.get(), sc, eps, mul, relu, residual, threads);
  // Gradients mirror their tensors.
  auto like = [&](py::handle obj, const TensorView& of, const char* name) {
    TensorView t = il::cpu_view(obj, op, name);
    il::check_dtype(t, x.dtype, op, name, "the dtype of input");
    bool same = t.ndim == of.ndim;
    for (int i = 0; same && i < t.ndim; ++i) same = t.shape[i] == of.shape[i];
    IL_CHECK(same, op, name, "shape " + il::shape_str(t), "shape " + il::shape_str(of));
    return t.data;
  };
  if (!input.is_none()) p.grad_input = like(grad_input, x, "grad_input");
  p.grad_relation = like(grad_relation, r, "grad_relation");
  p.grad_query = like(grad_query, q, "grad_query");
  p.grad_weight = like(grad_weight, w, "grad_weight");
  p.grad_bias = like(grad_bias, b, "grad_bias");
  if (nw.present) {
    p.grad_norm_weight = like(grad_norm_weight, nw.view, "grad_norm_weight");
    p.grad_norm_bias = like(grad_norm_bias, nb.view, "grad_norm_bias");
  }
  for (const auto& [t, name] : {std::pair<const TensorView*, const char*>{&go, "grad_out"}, {&y, "pre"}}) {
    check_shape(*t, {x.shape[0], p.forward.batch, p.forward.out_dim}, op, name);
    il::check_dtype(*t, x.dtype, op, name, "the dtype of input");
  }
  p.grad_out = go.data;
  p.forward.pre = y.data;
  py::gil_scoped_release release;
  il::kernels().nbfnet_layer_backward(p);
}

}  // namespace

void bind_nbfnet_layer(py::module_& m) {
  m.def("nbfnet_layer", &nbfnet_layer);
  m.def("nbfnet_layer_backward", &nbfnet_layer_backward);
}
