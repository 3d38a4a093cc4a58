// SPDX-License-Identifier: Apache-2.0
// subgraph_attention and its backward pass for _cpu.
#include "cpu/subgraph_attention.h"

#include <pybind11/pybind11.h>

#include "bind/checks.h"
#include "core/kernels.h"

namespace py = pybind11;
using il::TensorView;

namespace {

// [B, H, N, D] with neighbouring channels, as v has it.
il::HeadsView heads_view(py::handle obj, const char* op, const char* arg, il::DType dtype,
                         const il::SubgraphAttention& p) {
  const TensorView t = il::strided_view(obj, op, arg);
  il::check_dtype(t, dtype, op, arg, dtype == p.dtype ? "the dtype of v" : "float32 for half inputs");
  check_shape(t, {p.batch, p.heads, p.num_nodes, p.dim}, op, arg);
  if (t.strides == nullptr) return {t.data, p.heads * p.num_nodes * p.dim, p.num_nodes * p.dim, p.dim};
  IL_CHECK(p.dim <= 1 || t.strides[3] == 1 || t.numel() == 0, op, arg, "a strided last dimension",
           "neighbouring channels");
  return {t.data, t.strides[0], t.strides[1], t.strides[2]};
}

// A contiguous tensor of the given type, or null where that may be.
void* contiguous(py::handle obj, const char* op, const char* arg, il::DType dtype, const char* dtype_name,
                 std::initializer_list<int64_t> shape, bool optional = false) {
  if (optional && obj.is_none()) return nullptr;
  const TensorView t = il::cpu_view(obj, op, arg);
  il::check_dtype(t, dtype, op, arg, dtype_name);
  check_shape(t, shape, op, arg);
  return t.data;
}

il::SubgraphAttention arguments(const char* op, py::handle v, py::handle e, py::handle g, py::handle bias,
                                py::handle valid, bool elu, int threads) {
  const TensorView t = il::strided_view(v, op, "v");
  il::check_rank(t, 4, op, "v");
  IL_CHECK(is_float(t.dtype), op, "v", "an integer dtype", "float32, float64, bfloat16 or float16");
  IL_CHECK(threads >= 1, op, "threads", std::to_string(threads), "at least 1");
  il::SubgraphAttention p{};
  p.batch = t.shape[0], p.heads = t.shape[1], p.num_nodes = t.shape[2], p.dim = t.shape[3];
  p.dtype = t.dtype, p.elu = elu, p.threads = threads;
  p.v = heads_view(v, op, "v", p.dtype, p);
  const char* same = "the dtype of v";
  p.e = contiguous(e, op, "e", p.dtype, same, {p.batch, p.heads, p.num_nodes});
  p.g = contiguous(g, op, "g", p.dtype, same, {p.batch, p.heads, p.num_nodes});
  p.bias = contiguous(bias, op, "bias", p.dtype, same, {p.heads, p.dim}, true);
  p.valid = static_cast<const uint8_t*>(
      contiguous(valid, op, "valid", il::DType::kBool, "bool", {p.batch, p.num_nodes}, true));
  return p;
}

void subgraph_attention(py::handle out, py::handle v, py::handle e, py::handle g, py::handle bias, py::handle valid,
                        bool elu, int threads) {
  const char* op = "subgraph_attention";
  il::SubgraphAttention p = arguments(op, v, e, g, bias, valid, elu, threads);
  p.out = heads_view(out, op, "out", p.dtype, p);
  py::gil_scoped_release release;
  il::kernels().subgraph_attention(p);
}

void subgraph_attention_backward(py::handle grad_v, py::handle grad_e, py::handle grad_g, py::handle grad_bias,
                                 py::handle grad_out, py::handle v, py::handle e, py::handle g, py::handle bias,
                                 py::handle valid, bool elu, int threads) {
  const char* op = "subgraph_attention_backward";
  il::SubgraphAttentionBackward b{};
  b.forward = arguments(op, v, e, g, bias, valid, elu, threads);
  const il::SubgraphAttention& p = b.forward;
  const il::DType acc = accumulator(p.dtype);
  const char* sums = "float64 for float64 input, else float32";
  b.grad_out = heads_view(grad_out, op, "grad_out", p.dtype, p);
  b.grad_v = heads_view(grad_v, op, "grad_v", acc, p);
  b.grad_e = contiguous(grad_e, op, "grad_e", acc, sums, {p.batch, p.heads, p.num_nodes});
  b.grad_g = contiguous(grad_g, op, "grad_g", acc, sums, {p.batch, p.heads, p.num_nodes});
  b.grad_bias = contiguous(grad_bias, op, "grad_bias", acc, sums, {p.batch, p.heads, p.dim}, true);
  IL_CHECK(bias.is_none() == grad_bias.is_none(), op, "grad_bias", "a tensor or none", "one where bias is");
  py::gil_scoped_release release;
  il::kernels().subgraph_attention_backward(b);
}

}  // namespace

void bind_subgraph_attention(py::module_& m) {
  m.def("subgraph_attention", &subgraph_attention);
  m.def("subgraph_attention_backward", &subgraph_attention_backward);
}
