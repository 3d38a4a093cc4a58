// SPDX-License-Identifier: Apache-2.0
// Python module innerloop._cpu: argument checks, then the kernel of the chosen instruction set. Outputs are
// allocated by the caller and come first; the number of threads is always explicit.
#include <pybind11/pybind11.h>

#include "core/graph.h"
#include "core/kernels.h"
#include "core/tensor_view.h"

namespace py = pybind11;
using il::TensorView;

namespace {

bool is_float(il::DType t) { return static_cast<int>(t) <= static_cast<int>(il::DType::kFloat16); }

void check_shape(const TensorView& t, std::initializer_list<int64_t> want, const char* op, const char* arg) {
  bool ok = t.ndim == static_cast<int>(want.size());
  std::string text = "(";
  int i = 0;
  for (int64_t n : want) {
    ok = ok && t.shape[i] == n;
    text += (i++ ? ", " : "") + std::to_string(n);
  }
  IL_CHECK(ok, op, arg, "shape " + il::shape_str(t), "shape " + text + ")");
}

il::CsrView csr_view(const TensorView& csr, const char* op) {
  il::check_rank(csr, 1, op, "csr");
  il::check_dtype(csr, il::DType::kInt32, op, "csr", "int32");
  il::CsrView view{};
  IL_CHECK(il::unpack_csr(csr.ptr<int32_t>(), csr.shape[0], &view), op, "csr",
           "length " + std::to_string(csr.shape[0]) + " that does not fit its header", "RelGraph.csr");
  return view;
}

// Fills what forward and backward share. Ids inside `csr` were checked when RelGraph built it.
il::RelationalSpmm spmm_args(const char* op, const TensorView& csr, const TensorView& relation,
                             const TensorView& input, const TensorView* boundary, const TensorView* weight, int sum,
                             int mul, int threads) {
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
  Optional b(boundary, op, "boundary"), w(edge_weight, op, "edge_weight"),
      gb(grad_boundary, op, "grad_boundary"), gw(grad_weight, op, "grad_weight");
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
  const bool needs_out = f.sum == il::Sum::kMax || f.sum == il::Sum::kMin || f.sum == il::Sum::kLogSumExp ||
                         f.sum == il::Sum::kPna;
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
      throw py::index_error(std::string(op) + ": " + c.name + " holds " +
                            std::to_string(c.t.ptr<int64_t>()[bad]) + " at edge " + std::to_string(bad) +
                            ", expected ids in [0, " + std::to_string(c.limit) + ") (" + c.of + ")");
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

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "innerloop CPU kernels";
  m.def("isa", [] { return il::kernels().isa; });
  m.def("isas", [] { return il::available_isas(); });
  m.def("relational_spmm", &relational_spmm);
  m.def("relational_spmm_backward", &relational_spmm_backward);
  m.def("build_csr", &build_csr);
  m.def("drop_edges", &drop_edges);
}
