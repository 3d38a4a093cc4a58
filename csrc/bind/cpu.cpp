// SPDX-License-Identifier: Apache-2.0
// Python module innerloop._cpu: argument checks, then the kernel of the chosen instruction set. Outputs are
// allocated by the caller and come first; the number of threads is always explicit.
#include <pybind11/pybind11.h>

#include <utility>

#include "bind/checks.h"
#include "core/graph.h"
#include "core/kernels.h"
#include "core/paths.h"
#include "core/tensor_view.h"

namespace py = pybind11;
using il::TensorView;

void bind_infonce(py::module_& m);
void bind_match(py::module_& m);
void bind_subgraph_attention(py::module_& m);
void bind_motif_grid(py::module_& m);
void bind_motif_sums(py::module_& m);
void bind_motifs(py::module_& m);

namespace {

il::CsrView csr_view(const TensorView& csr, const char* op) {
  il::check_rank(csr, 1, op, "csr");
  il::check_dtype(csr, il::DType::kInt32, op, "csr", "int32");
  il::CsrView view{};
  IL_CHECK(il::unpack_csr(csr.ptr<int32_t>(), csr.shape[0], &view), op, "csr",
           "length " + std::to_string(csr.shape[0]) + " that does not fit its header", "RelGraph.csr");
  return view;
}

// Fills what forward and backward share. Ids inside `csr` were checked when RelGraph built it.
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

struct Optional {
  TensorView view;
  bool present = false;
  Optional(py::handle obj, const char* op, const char* arg) {
    if (obj.is_none()) return;
    view = il::cpu_view(obj, op, arg);
    present = true;
  }
  const TensorView* get() const { return present ? &view : nullptr; }
};

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

// Returns (steps, converged). Codes and values of the semiring are checked in ops/bellman_ford.py.
py::tuple bellman_ford(py::handle value, py::handle predecessor, py::handle csr, py::handle weight, py::handle source,
                       int plus, int times, double zero, double one, int64_t max_steps, bool fixpoint, double tolerance,
                       bool check_cycles, int threads) {
  const char* op = "bellman_ford";
  TensorView o = il::cpu_view(value, op, "value"), g = il::cpu_view(csr, op, "csr"),
             w = il::cpu_view(weight, op, "edge_weight"), s = il::cpu_view(source, op, "sources");
  Optional last(predecessor, op, "predecessor");
  il::BellmanFord p{};
  p.graph = csr_view(g, op);
  il::check_rank(s, 1, op, "sources");
  il::check_dtype(s, il::DType::kInt64, op, "sources", "int64");
  p.num_sources = s.shape[0];
  const int64_t bad = il::first_out_of_range(s.ptr<int64_t>(), p.num_sources, p.graph.num_nodes);
  if (bad >= 0) {
    throw py::index_error(std::string(op) + ": sources holds " + std::to_string(s.ptr<int64_t>()[bad]) +
                          " at position " + std::to_string(bad) + ", expected ids in [0, " +
                          std::to_string(p.graph.num_nodes) + ")");
  }
  IL_CHECK(w.dtype == il::DType::kFloat32 || w.dtype == il::DType::kFloat64, op, "edge_weight", "another dtype",
           "float32 or float64");
  check_shape(w, {p.graph.num_edges}, op, "edge_weight");
  il::check_dtype(o, w.dtype, op, "value", "the dtype of edge_weight");
  check_shape(o, {p.graph.num_nodes, p.num_sources}, op, "value");
  if (last.present) {
    il::check_dtype(last.view, il::DType::kInt64, op, "predecessor", "int64");
    check_shape(last.view, {p.graph.num_nodes, p.num_sources}, op, "predecessor");
    p.predecessor = last.view.ptr<int64_t>();
  }
  IL_CHECK(plus >= 0 && plus <= 3, op, "plus", std::to_string(plus), "0 to 3");
  IL_CHECK(times >= 0 && times <= 3, op, "times", std::to_string(times), "0 to 3");
  const bool is_semiring =
      (plus == 0 && times == 0) || (plus == 3 && times == 1) || (plus == 1 && times != 2) || (plus == 2 && times != 3);
  IL_CHECK(is_semiring, op, "times", std::to_string(times), "a product that goes with plus");
  IL_CHECK(max_steps >= 0, op, "steps", std::to_string(max_steps), "at least 0");
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  p.dtype = w.dtype;
  p.plus = static_cast<il::Plus>(plus);
  p.times = static_cast<il::Times>(times);
  p.zero = zero;
  p.one = one;
  p.weight = w.data;
  p.source = s.ptr<int64_t>();
  p.max_steps = max_steps;
  p.fixpoint = fixpoint;
  p.tolerance = tolerance;
  p.check_cycles = check_cycles;
  p.value = o.data;
  {
    py::gil_scoped_release release;
    il::kernels().bellman_ford(p, threads);
  }
  return py::make_tuple(p.steps, p.converged);
}

// Checks ids and fills `csr`; a bad id is an IndexError that names its position.
void build_csr(py::handle csr, py::handle src, py::handle dst, py::handle rel, int64_t num_nodes,
               int64_t num_relations) {
  const char* op = "RelGraph";
  TensorView out = il::cpu_view(csr, op, "csr"), s = il::cpu_view(src, op, "edge_index[0]"),
             d = il::cpu_view(dst, op, "edge_index[1]"), r = il::cpu_view(rel, op, "edge_type");
  il::check_dtype(out, il::DType::kInt32, op, "csr", "int32");
  const struct {
    const TensorView& t;
    const char* name;
    int64_t limit;
    const char* of;
  } checks[] = {{s, "edge_index[0]", num_nodes, "num_nodes"},
                {d, "edge_index[1]", num_nodes, "num_nodes"},
                {r, "edge_type", num_relations, "num_relations"}};
  const int64_t edges = r.numel();
  for (const auto& c : checks) {
    il::check_rank(c.t, 1, op, c.name);
    il::check_dtype(c.t, il::DType::kInt64, op, c.name, "int64");
    check_shape(c.t, {edges}, op, c.name);
    const int64_t bad = il::first_out_of_range(c.t.ptr<int64_t>(), edges, c.limit);
    if (bad >= 0) {
      throw py::index_error(std::string(op) + ": " + c.name + " holds " + std::to_string(c.t.ptr<int64_t>()[bad]) +
                            " at edge " + std::to_string(bad) + ", expected ids in [0, " + std::to_string(c.limit) +
                            ") (" + c.of + ")");
    }
  }
  check_shape(out, {il::packed_csr_length(num_nodes, edges)}, op, "csr");
  py::gil_scoped_release release;
  il::build_csr(out.ptr<int32_t>(), s.ptr<int64_t>(), d.ptr<int64_t>(), r.ptr<int64_t>(), edges, num_nodes,
                num_relations);
}

void drop_edges(py::handle out, py::handle csr, py::handle mask, int64_t kept) {
  const char* op = "RelGraph.drop";
  TensorView o = il::cpu_view(out, op, "out"), c = il::cpu_view(csr, op, "csr"), m = il::cpu_view(mask, op, "edges");
  il::CsrView view = csr_view(c, op);
  il::check_dtype(m, il::DType::kBool, op, "edges", "bool");
  il::check_dtype(o, il::DType::kInt32, op, "out", "int32");
  check_shape(m, {view.num_edges}, op, "edges");
  check_shape(o, {il::packed_csr_length(view.num_nodes, kept)}, op, "out");
  int64_t remaining = 0;
  for (int64_t e = 0; e < view.num_edges; ++e) remaining += m.ptr<uint8_t>()[e] == 0;
  IL_CHECK(remaining == kept, op, "kept", std::to_string(kept), std::to_string(remaining));
  py::gil_scoped_release release;
  il::drop_edges(o.ptr<int32_t>(), view, m.ptr<uint8_t>(), kept);
}

// [(mean weight, [edges])], best first. weight: float64 (steps, E).
py::list best_paths(py::handle csr, py::handle weight, int64_t steps, int64_t source, int64_t target, int64_t count,
                    int64_t beam) {
  const char* op = "best_paths";
  TensorView g = il::cpu_view(csr, op, "csr"), w = il::cpu_view(weight, op, "weight");
  const il::CsrView graph = csr_view(g, op);
  il::check_rank(w, 2, op, "weight");
  il::check_dtype(w, il::DType::kFloat64, op, "weight", "float64");
  check_shape(w, {steps, graph.num_edges}, op, "weight");
  IL_CHECK(source >= 0 && source < graph.num_nodes, op, "source", std::to_string(source), "a node of the graph");
  IL_CHECK(target >= 0 && target < graph.num_nodes, op, "target", std::to_string(target), "a node of the graph");
  IL_CHECK(count >= 1 && beam >= 1, op, "count", std::to_string(count), "count and beam of at least 1");
  std::vector<il::RankedPath> paths;
  {
    py::gil_scoped_release release;
    paths = il::best_paths(graph, w.ptr<double>(), steps, source, target, count, beam);
  }
  py::list result;
  for (const il::RankedPath& path : paths) {
    py::list edges;
    for (int32_t e : path.edges) edges.append(e);
    result.append(py::make_tuple(path.weight, edges));
  }
  return result;
}

// ---- band_attention ----

il::HeadsView heads_view(py::handle obj, const char* op, const char* arg, il::DType dtype,
                         std::initializer_list<int64_t> shape) {
  if (obj.is_none()) return {};
  const TensorView t = il::strided_view(obj, op, arg);
  il::check_dtype(t, dtype, op, arg, "the dtype of q");
  check_shape(t, shape, op, arg);
  if (t.strides == nullptr) return {t.data, t.shape[1] * t.shape[2] * t.shape[3], t.shape[2] * t.shape[3], t.shape[3]};
  IL_CHECK(t.shape[3] <= 1 || t.strides[3] == 1 || t.numel() == 0, op, arg, "a strided last dimension",
           "neighbouring channels");
  return {t.data, t.strides[0], t.strides[1], t.strides[2]};
}

// What forward and backward share: the operands.
il::BandAttention band_args(const char* op, py::handle q, py::handle k, py::handle v, py::handle low, py::handle high,
                            py::handle key_valid, py::handle global_k, py::handle global_v, py::handle global_valid,
                            py::handle residual, double scale, double dropout, uint64_t seed, py::handle bias,
                            int64_t bias_stride, int64_t bias_shift, int threads) {
  const TensorView first = il::strided_view(q, op, "q"), keys = il::strided_view(k, op, "k");
  il::check_rank(first, 4, op, "q");
  il::check_rank(keys, 4, op, "k");
  IL_CHECK(is_float(first.dtype), op, "q", "an integer dtype", "float32, float64, bfloat16 or float16");
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  il::BandAttention p{};
  p.batch = first.shape[0], p.heads = first.shape[1], p.num_queries = first.shape[2], p.dim = first.shape[3];
  p.kv_heads = keys.shape[1], p.num_keys = keys.shape[2];
  IL_CHECK(p.kv_heads > 0 && p.heads % p.kv_heads == 0, op, "k", "shape " + il::shape_str(keys),
           "a number of heads that divides " + std::to_string(p.heads));
  p.dtype = first.dtype;
  p.scale = scale;
  p.q = heads_view(q, op, "q", p.dtype, {p.batch, p.heads, p.num_queries, p.dim});
  p.k = heads_view(k, op, "k", p.dtype, {p.batch, p.kv_heads, p.num_keys, p.dim});
  p.v = heads_view(v, op, "v", p.dtype, {p.batch, p.kv_heads, p.num_keys, p.dim});
  p.residual = heads_view(residual, op, "residual", p.dtype, {p.batch, p.heads, p.num_queries, p.dim});
  const TensorView lo = il::cpu_view(low, op, "low"), hi = il::cpu_view(high, op, "high");
  for (const TensorView* t : {&lo, &hi}) {
    il::check_dtype(*t, il::DType::kInt32, op, "low and high", "int32");
    check_shape(*t, {p.num_queries}, op, "low and high");
    const int32_t* at = t->ptr<int32_t>();
    for (int64_t i = 0; i < p.num_queries; ++i) {
      IL_CHECK(at[i] >= 0 && at[i] <= p.num_keys && (i == 0 || at[i - 1] <= at[i]), op, "low and high",
               std::to_string(at[i]) + " at query " + std::to_string(i),
               "key positions in [0, " + std::to_string(p.num_keys) + "] that never fall");
    }
  }
  p.low = lo.ptr<int32_t>(), p.high = hi.ptr<int32_t>();
  if (!bias.is_none()) {
    const TensorView t = il::cpu_view(bias, op, "bias");
    il::check_rank(t, 2, op, "bias");
    il::check_dtype(t, accumulator(p.dtype), op, "bias", "float64 for float64 input, else float32");
    check_shape(t, {p.heads, t.shape[1]}, op, "bias");
    IL_CHECK(bias_stride >= 1, op, "bias_stride", std::to_string(bias_stride), "at least 1");
    p.bias = t.data, p.bias_width = t.shape[1], p.bias_stride = bias_stride, p.bias_shift = bias_shift;
    for (int64_t i = 0; i < p.num_queries; ++i) {
      if (p.low[i] >= p.high[i]) continue;
      const int64_t at = bias_shift - i / bias_stride;
      IL_CHECK(p.low[i] + at >= 0 && p.high[i] + at <= p.bias_width, op, "bias", "shape " + il::shape_str(t),
               "a column for every key that query " + std::to_string(i) + " sees");
    }
  }
  auto mask = [&](py::handle obj, const char* arg, int64_t count) -> const uint8_t* {
    if (obj.is_none()) return nullptr;
    const TensorView t = il::cpu_view(obj, op, arg);
    il::check_dtype(t, il::DType::kBool, op, arg, "bool");
    check_shape(t, {p.batch, count}, op, arg);
    return t.ptr<uint8_t>();
  };
  p.key_valid = mask(key_valid, "key_valid", p.num_keys);
  if (!global_k.is_none()) {
    const TensorView t = il::strided_view(global_k, op, "global_k");
    il::check_rank(t, 4, op, "global_k");
    p.num_global = t.shape[2];
    p.global_k = heads_view(global_k, op, "global_k", p.dtype, {p.batch, p.kv_heads, p.num_global, p.dim});
    p.global_v = heads_view(global_v, op, "global_v", p.dtype, {p.batch, p.kv_heads, p.num_global, p.dim});
    p.global_valid = mask(global_valid, "global_valid", p.num_global);
  }
  IL_CHECK(dropout >= 0 && dropout < 1, op, "dropout", std::to_string(dropout), "a number in [0, 1)");
  p.seed = seed;
  p.drop_below = static_cast<uint32_t>(dropout * 4294967296.0);
  p.keep_factor = 1 / (1 - dropout);
  p.threads = threads;
  return p;
}

void* sums(py::handle obj, const char* op, const char* arg, const il::BandAttention& p,
           std::initializer_list<int64_t> shape) {
  const TensorView t = il::cpu_view(obj, op, arg);
  il::check_dtype(t, accumulator(p.dtype), op, arg, "float64 for float64 input, else float32");
  check_shape(t, shape, op, arg);
  return t.data;
}

void band_attention(py::handle out, py::handle lse, py::handle q, py::handle k, py::handle v, py::handle low,
                    py::handle high, py::handle key_valid, py::handle global_k, py::handle global_v,
                    py::handle global_valid, py::handle residual, double scale, double dropout, uint64_t seed,
                    py::handle bias, int64_t bias_stride, int64_t bias_shift, int threads) {
  const char* op = "band_attention";
  il::BandAttention p = band_args(op, q, k, v, low, high, key_valid, global_k, global_v, global_valid, residual, scale,
                                  dropout, seed, bias, bias_stride, bias_shift, threads);
  p.out = heads_view(out, op, "out", p.dtype, {p.batch, p.heads, p.num_queries, p.dim});
  p.lse = sums(lse, op, "lse", p, {p.batch, p.heads, p.num_queries});
  py::gil_scoped_release release;
  if (p.batch * p.heads * p.num_queries > 0) il::kernels().band_attention(p);
}

void band_attention_backward(py::handle grad_q, py::handle grad_k, py::handle grad_v, py::handle grad_global_k,
                             py::handle grad_global_v, py::handle grad_bias, py::handle grad_out, py::handle grad_lse,
                             py::handle out, py::handle lse, py::handle q, py::handle k, py::handle v, py::handle low,
                             py::handle high, py::handle key_valid, py::handle global_k, py::handle global_v,
                             py::handle global_valid, py::handle residual, double scale, double dropout, uint64_t seed,
                             py::handle bias, int64_t bias_stride, int64_t bias_shift, int threads) {
  const char* op = "band_attention_backward";
  il::BandAttentionBackward b{};
  b.forward = band_args(op, q, k, v, low, high, key_valid, global_k, global_v, global_valid, residual, scale, dropout,
                        seed, bias, bias_stride, bias_shift, threads);
  il::BandAttention& p = b.forward;
  p.out = heads_view(out, op, "out", p.dtype, {p.batch, p.heads, p.num_queries, p.dim});
  p.lse = sums(lse, op, "lse", p, {p.batch, p.heads, p.num_queries});
  b.grad_out = heads_view(grad_out, op, "grad_out", p.dtype, {p.batch, p.heads, p.num_queries, p.dim});
  if (!grad_lse.is_none()) b.grad_lse = sums(grad_lse, op, "grad_lse", p, {p.batch, p.heads, p.num_queries});
  b.grad_q = sums(grad_q, op, "grad_q", p, {p.batch, p.heads, p.num_queries, p.dim});
  b.grad_k = sums(grad_k, op, "grad_k", p, {p.batch, p.kv_heads, p.num_keys, p.dim});
  b.grad_v = sums(grad_v, op, "grad_v", p, {p.batch, p.kv_heads, p.num_keys, p.dim});
  if (p.num_global > 0) {
    b.grad_global_k = sums(grad_global_k, op, "grad_global_k", p, {p.batch, p.kv_heads, p.num_global, p.dim});
    b.grad_global_v = sums(grad_global_v, op, "grad_global_v", p, {p.batch, p.kv_heads, p.num_global, p.dim});
  }
  if (!grad_bias.is_none()) b.grad_bias = sums(grad_bias, op, "grad_bias", p, {p.heads, p.bias_width});
  py::gil_scoped_release release;
  if (p.batch * p.heads * p.num_queries > 0) il::kernels().band_attention_backward(b);
}

// ---- pool_kv ----

il::PoolKv pool_args(const char* op, py::handle x, py::handle weight, py::handle valid, int64_t kernel, int64_t stride,
                     int mode, int threads) {
  const TensorView t = il::strided_view(x, op, "x");
  il::check_rank(t, 4, op, "x");
  IL_CHECK(is_float(t.dtype), op, "x", "an integer dtype", "float32, float64, bfloat16 or float16");
  IL_CHECK(kernel >= 1, op, "kernel", std::to_string(kernel), "at least 1");
  IL_CHECK(stride >= 1, op, "stride", std::to_string(stride), "at least 1");
  IL_CHECK(mode >= 0 && mode <= 2, op, "mode", std::to_string(mode), "0 to 2");
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  il::PoolKv p{};
  p.batch = t.shape[0], p.heads = t.shape[1], p.num_tokens = t.shape[2], p.dim = t.shape[3];
  p.num_pooled = (p.num_tokens + stride - 1) / stride;
  p.kernel = kernel, p.stride = stride, p.mode = static_cast<il::Pooling>(mode), p.dtype = t.dtype, p.threads = threads;
  p.x = heads_view(x, op, "x", p.dtype, {p.batch, p.heads, p.num_tokens, p.dim});
  IL_CHECK(weight.is_none() == (p.mode != il::Pooling::kLdconv), op, "weight", "a tensor or none",
           "one for ldconv alone");
  if (!weight.is_none()) {
    const TensorView w = il::cpu_view(weight, op, "weight");
    il::check_dtype(w, p.dtype, op, "weight", "the dtype of x");
    p.weight_per_head = w.ndim == 3;
    if (p.weight_per_head) {
      check_shape(w, {p.heads, kernel, p.dim}, op, "weight");
    } else {
      check_shape(w, {kernel, p.dim}, op, "weight");
    }
    p.weight = w.data;
  }
  if (!valid.is_none()) {
    const TensorView m = il::cpu_view(valid, op, "valid");
    il::check_dtype(m, il::DType::kBool, op, "valid", "bool");
    check_shape(m, {p.batch, p.num_tokens}, op, "valid");
    p.valid = m.ptr<uint8_t>();
  }
  return p;
}

void pool_kv(py::handle out, py::handle x, py::handle weight, py::handle valid, int64_t kernel, int64_t stride,
             int mode, int threads) {
  const char* op = "pool_kv";
  il::PoolKv p = pool_args(op, x, weight, valid, kernel, stride, mode, threads);
  const TensorView o = il::cpu_view(out, op, "out");
  il::check_dtype(o, p.dtype, op, "out", "the dtype of x");
  check_shape(o, {p.batch, p.heads, p.num_pooled, p.dim}, op, "out");
  p.out = o.data;
  py::gil_scoped_release release;
  if (o.numel() > 0) il::kernels().pool_kv(p);
}

void pool_kv_backward(py::handle grad_x, py::handle grad_weight, py::handle grad_out, py::handle x, py::handle weight,
                      py::handle valid, int64_t kernel, int64_t stride, int mode, int threads) {
  const char* op = "pool_kv_backward";
  il::PoolKvBackward b{};
  b.forward = pool_args(op, x, weight, valid, kernel, stride, mode, threads);
  const il::PoolKv& p = b.forward;
  const TensorView g = il::cpu_view(grad_out, op, "grad_out"), gx = il::cpu_view(grad_x, op, "grad_x");
  il::check_dtype(g, p.dtype, op, "grad_out", "the dtype of x");
  check_shape(g, {p.batch, p.heads, p.num_pooled, p.dim}, op, "grad_out");
  il::check_dtype(gx, accumulator(p.dtype), op, "grad_x", "float64 for float64 input, else float32");
  check_shape(gx, {p.batch, p.heads, p.num_tokens, p.dim}, op, "grad_x");
  b.grad_out = g.data;
  b.grad_x = gx.data;
  if (!grad_weight.is_none()) {
    const TensorView gw = il::cpu_view(grad_weight, op, "grad_weight");
    il::check_dtype(gw, accumulator(p.dtype), op, "grad_weight", "float64 for float64 input, else float32");
    check_shape(gw, {p.batch, p.heads, kernel, p.dim}, op, "grad_weight");
    b.grad_weight = gw.data;
  }
  IL_CHECK(weight.is_none() == grad_weight.is_none(), op, "grad_weight", "a tensor or none", "one where weight is");
  py::gil_scoped_release release;
  if (gx.numel() > 0) il::kernels().pool_kv_backward(b);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "innerloop CPU kernels";
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const il::OutOfMemory& missing) {
      const std::string text = "innerloop: no memory for " + std::to_string(missing.bytes) + " bytes of scratch";
      PyErr_SetString(PyExc_MemoryError, text.c_str());
    }
  });
  bind_infonce(m);
  bind_match(m);
  bind_subgraph_attention(m);
  bind_motif_grid(m);
  bind_motif_sums(m);
  bind_motifs(m);
  m.def("pool_kv", &pool_kv);
  m.def("pool_kv_backward", &pool_kv_backward);
  m.def("band_attention", &band_attention);
  m.def("band_attention_backward", &band_attention_backward);
  m.def("isa", [] { return il::kernels().isa; });
  m.def("isas", [] { return il::available_isas(); });
  m.def("bellman_ford", &bellman_ford);
  m.def("nbfnet_layer", &nbfnet_layer);
  m.def("nbfnet_layer_backward", &nbfnet_layer_backward);
  m.def("relational_spmm", &relational_spmm);
  m.def("relational_spmm_backward", &relational_spmm_backward);
  m.def("best_paths", &best_paths);
  m.def("build_csr", &build_csr);
  m.def("drop_edges", &drop_edges);
}
