// SPDX-License-Identifier: Apache-2.0
// band_attention, pool_kv and their backward passes for _cpu.
#include <pybind11/pybind11.h>

#include "bind/checks.h"
#include "core/kernels.h"

namespace py = pybind11;
using il::TensorView;

namespace {

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

void bind_attention(py::module_& m) {
  m.def("band_attention", &band_attention);
  m.def("band_attention_backward", &band_attention_backward);
  m.def("pool_kv", &pool_kv);
  m.def("pool_kv_backward", &pool_kv_backward);
}
