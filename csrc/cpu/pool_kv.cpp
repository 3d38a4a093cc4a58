// SPDX-License-Identifier: Apache-2.0
// Pooling of keys or values along the sequence: windows of `kernel` tokens, `stride` apart, mean, maximum or LDConv:
//   δ_m = softmax over valid u of W_u · x_{c(m)},  out_m = Σ_u δ_{m,u} x_{t_u},  c(m) the window's middle token that
//   counts
// Taps beyond the sequence or on padding take no part. A window without a tap gives 0.
//
// One pass: kernel / stride reads of x, one write of the result; LDConv 4 · kernel · D FLOPs an entry. The backward
// pass forms δ again and adds into grad_x, a (batch, head) per task; gradients of W are kept by (batch, head) and added
// up outside.
#include "cpu/pool_kv.h"

#include "core/simd.h"

namespace il {
namespace IL_ISA {
namespace {

template <class T>
struct Window {
  using A = typename AccOf<T>::type;
  const PoolKv& p;
  const T* x;
  const uint8_t* valid;  // of this batch element, or null
  const T* weight;       // of this head, or null

  Window(const PoolKv& args, int64_t b, int64_t h)
      : p(args),
        x(static_cast<const T*>(args.x.data) + b * args.x.batch_stride + h * args.x.head_stride),
        valid(args.valid != nullptr ? args.valid + b * args.num_tokens : nullptr),
        weight(args.weight == nullptr
                   ? nullptr
                   : static_cast<const T*>(args.weight) + (args.weight_per_head ? h * args.kernel * args.dim : 0)) {}

  int64_t first(int64_t m) const { return m * p.stride - max64(0, (p.kernel - p.stride) / 2); }
  // Token of the middle tap, or of the last before it that counts, or else of the first behind it; there is one.
  int64_t middle(int64_t m) const {
    int64_t u = p.kernel / 2;
    while (u >= 0 && !counts(first(m) + u)) --u;
    for (u = u < 0 ? p.kernel / 2 + 1 : u; u < p.kernel && !counts(first(m) + u);) ++u;
    return first(m) + u;
  }
  const T* row(int64_t t) const { return x + t * p.x.row_stride; }
  bool counts(int64_t t) const { return t >= 0 && t < p.num_tokens && (valid == nullptr || valid[t]); }

  int64_t taps(int64_t m) const {
    int64_t n = 0;
    for (int64_t u = 0; u < p.kernel; ++u) n += counts(first(m) + u);
    return n;
  }

  // δ of the window's taps, 0 where one does not count. Not to be called for a window without any.
  void shares(int64_t m, A* share) const {
    const T* center = row(middle(m));
    A top = -A(INFINITY), total = A(0);
    for (int64_t u = 0; u < p.kernel; ++u) {
      share[u] = -A(INFINITY);
      if (!counts(first(m) + u)) continue;
      const T* w = weight + u * p.dim;
      A dot = A(0);
      for (int64_t c = 0; c < p.dim; ++c) dot += A(widen(w[c])) * A(widen(center[c]));
      share[u] = dot;
      top = nan_max(top, dot);
    }
    for (int64_t u = 0; u < p.kernel; ++u) {
      share[u] = counts(first(m) + u) ? A(std::exp(share[u] - top)) : A(0);
      total += share[u];
    }
    for (int64_t u = 0; u < p.kernel; ++u) share[u] /= total;
  }
};

template <class T>
void forward(const PoolKv& p) {
  using A = typename AccOf<T>::type;
  parallel_tasks(p.batch * p.heads, p.threads, [&](int64_t task) {
    const Window<T> window(p, task / p.heads, task % p.heads);
    Scratch<A> sum(p.dim), share(p.kernel);
    T* out = static_cast<T*>(p.out) + task * p.num_pooled * p.dim;
    for (int64_t m = 0; m < p.num_pooled; ++m, out += p.dim) {
      const int64_t taps = window.taps(m), first = window.first(m);
      fill(sum.get(), p.dim, p.mode == Pooling::kMax && taps > 0 ? -A(INFINITY) : A(0));
      if (p.mode == Pooling::kLdconv && taps > 0) window.shares(m, share.get());
      for (int64_t u = 0; u < p.kernel; ++u) {
        if (!window.counts(first + u)) continue;
        const T* x = window.row(first + u);
        A* s = sum.get();
        if (p.mode == Pooling::kMax) {
          for (int64_t c = 0; c < p.dim; ++c) s[c] = nan_max(s[c], A(widen(x[c])));
        } else {
          const A factor = p.mode == Pooling::kMean ? A(1) / A(taps) : share.data()[u];
          for (int64_t c = 0; c < p.dim; ++c) s[c] += factor * A(widen(x[c]));
        }
      }
      for (int64_t c = 0; c < p.dim; ++c) out[c] = narrow<T>(sum.data()[c]);
    }
  });
}

template <class T>
void backward(const PoolKvBackward& args) {
  using A = typename AccOf<T>::type;
  const PoolKv& p = args.forward;
  const int64_t D = p.dim;
  parallel_tasks(p.batch * p.heads, p.threads, [&](int64_t task) {
    const Window<T> window(p, task / p.heads, task % p.heads);
    Scratch<A> share(p.kernel), grad_share(p.kernel), top(D);
    Scratch<int64_t> winner(D);
    const T* grad = static_cast<const T*>(args.grad_out) + task * p.num_pooled * D;
    A* grad_x = static_cast<A*>(args.grad_x) + task * p.num_tokens * D;
    A* grad_weight = args.grad_weight == nullptr ? nullptr : static_cast<A*>(args.grad_weight) + task * p.kernel * D;
    fill(grad_x, p.num_tokens * D, A(0));
    if (grad_weight != nullptr) fill(grad_weight, p.kernel * D, A(0));
    for (int64_t m = 0; m < p.num_pooled; ++m, grad += D) {
      const int64_t taps = window.taps(m), first = window.first(m);
      if (taps == 0) continue;
      if (p.mode == Pooling::kMax) {  // to the first tap that attains it
        fill(winner.get(), D, int64_t(-1));
        for (int64_t u = 0; u < p.kernel; ++u) {
          if (!window.counts(first + u)) continue;
          const T* x = window.row(first + u);
          for (int64_t c = 0; c < D; ++c) {
            const A value = widen(x[c]);
            const bool take =
                winner.data()[c] < 0 || value > top.data()[c] || (value != value && top.data()[c] == top.data()[c]);
            top.get()[c] = take ? value : top.data()[c];
            winner.get()[c] = take ? first + u : winner.data()[c];
          }
        }
        for (int64_t c = 0; c < D; ++c) grad_x[winner.data()[c] * D + c] += A(widen(grad[c]));
        continue;
      }
      if (p.mode == Pooling::kLdconv) window.shares(m, share.get());
      A mean = A(0);  // Σ δ_u dδ_u
      for (int64_t u = 0; u < p.kernel; ++u) {
        grad_share.get()[u] = A(0);
        if (!window.counts(first + u)) continue;
        const A factor = p.mode == Pooling::kMean ? A(1) / A(taps) : share.data()[u];
        A* to = grad_x + (first + u) * D;
        for (int64_t c = 0; c < D; ++c) to[c] += factor * A(widen(grad[c]));
        if (p.mode != Pooling::kLdconv) continue;
        const T* x = window.row(first + u);
        A dot = A(0);
        for (int64_t c = 0; c < D; ++c) dot += A(widen(grad[c])) * A(widen(x[c]));
        grad_share.get()[u] = dot;
        mean += factor * dot;
      }
      if (p.mode != Pooling::kLdconv) continue;
      const int64_t middle = window.middle(m);
      const T* center = window.row(middle);
      for (int64_t u = 0; u < p.kernel; ++u) {
        const A g = share.data()[u] * (grad_share.data()[u] - mean);
        if (g == A(0)) continue;
        const T* w = window.weight + u * D;
        for (int64_t c = 0; c < D; ++c) {
          grad_weight[u * D + c] += g * A(widen(center[c]));
          grad_x[middle * D + c] += g * A(widen(w[c]));
        }
      }
    }
  });
}

}  // namespace

void pool_kv(const PoolKv& args) {
  switch (args.dtype) {
    case DType::kFloat64: return forward<double>(args);
    case DType::kBFloat16: return forward<bf16>(args);
    case DType::kFloat16: return forward<fp16>(args);
    default: return forward<float>(args);
  }
}

void pool_kv_backward(const PoolKvBackward& args) {
  switch (args.forward.dtype) {
    case DType::kFloat64: return backward<double>(args);
    case DType::kBFloat16: return backward<bf16>(args);
    case DType::kFloat16: return backward<fp16>(args);
    default: return backward<float>(args);
  }
}

}  // namespace IL_ISA
}  // namespace il
