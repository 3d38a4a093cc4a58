// SPDX-License-Identifier: Apache-2.0
// subgraph_attention by all N² weights of a head, for few nodes: a weight is then a comparison and a product of factors
// that subgraph_attention.cpp explains, and takes less time than sorting and searching do. The same results but for
// rounding.
#pragma once

#include "cpu/arena.h"
#include "cpu/subgraph_attention.h"

namespace il {
namespace IL_ISA {
namespace {

constexpr int64_t kDirectNodes = 64;

// expm1 for y <= 0: exp(y) - 1 but near 0, where that cancels, seven terms of the series.
IL_INLINE float expm1_of(float y) {
  float series = 1 + y * (1.0f / 7);
  series = 1 + y * (1.0f / 6) * series;
  series = 1 + y * (1.0f / 5) * series;
  series = 1 + y * (1.0f / 4) * series;
  series = 1 + y * (1.0f / 3) * series;
  series = y * (1 + y * (1.0f / 2) * series);
  const float far = exp_of(y) - 1;
  return y > -0.35f ? series : far;
}
IL_INLINE double expm1_of(double y) { return std::expm1(y); }

template <class T>
IL_INLINE T* row_of(const HeadsView& view, int64_t heads, int64_t task, int64_t i) {
  return static_cast<T*>(view.data) + task / heads * view.batch_stride + task % heads * view.head_stride +
         i * view.row_stride;
}

// Both sides of ELU are computed, so that the loops have no branch.
template <class A>
IL_INLINE void elu(A* y, int64_t n) {
  for (int64_t c = 0; c < n; ++c) {
    const A low = expm1_of(y[c]);
    y[c] = y[c] > 0 ? y[c] : low;
  }
}
template <class A>
IL_INLINE void times_elu_slope(const A* y, int64_t n, A* d) {
  for (int64_t c = 0; c < n; ++c) {
    const A low = exp_of(y[c]);
    d[c] *= y[c] > 0 ? A(1) : low;
  }
}

// One batch element and head. Nodes that count are numbered from 0 to n; rows are padded with zeros to whole vectors.
template <class T>
class DirectHead {
 public:
  using A = typename AccOf<T>::type;
  using V = typename Lanes<A>::type;
  static constexpr int64_t kLanes = Lanes<A>::count;

  DirectHead(const SubgraphAttention& args, int64_t task, Arena& arena)
      : p(args),
        task_(task),
        N(args.num_nodes),
        D(args.dim),
        width_(whole(N)),
        dim_(whole(D)),
        node_(arena.take<int32_t>(N)),
        e_(arena.take<A>(width_)),
        g_(arena.take<A>(width_)),
        live_(arena.take<A>(width_)),
        factor_(arena.take<A>(width_)),
        zero_(arena.take<A>(width_)),
        weight_(arena.take<A>(N * width_)),
        v_(arena.take<A>(N * dim_)),
        y_(arena.take<A>(max64(N, 1) * dim_)),
        bias_(arena.take<A>(dim_)) {
    const T* e = static_cast<const T*>(p.e) + task * N;
    const T* g = static_cast<const T*>(p.g) + task * N;
    const uint8_t* valid = p.valid == nullptr ? nullptr : p.valid + task / p.heads * N;
    fill(e_, width_, A(0));
    fill(g_, width_, -A(INFINITY));
    fill(live_, width_, A(0));
    fill(v_, N * dim_, A(0));
    fill(bias_, dim_, A(0));
    for (int64_t i = 0; i < N; ++i) {
      if (valid != nullptr && !valid[i]) continue;
      node_[n] = int32_t(i), e_[n] = widen(e[i]), g_[n] = widen(g[i]), live_[n] = A(1);
      top_ = nan_max(top_, g_[n]);
      const T* row = row_of<const T>(p.v, p.heads, task, i);
      for (int64_t c = 0; c < D; ++c) v_[n * dim_ + c] = widen(row[c]);
      ++n;
    }
    const A top = top_ - top_ == A(0) ? top_ : A(0);
    for (int64_t j = 0; j < width_; ++j) factor_[j] = live_[j] * exp_of(g_[j] - top);
    for (int64_t i = 0; i < width_; ++i) zero_[i] = exp_of(-(e_[i] + top_ > 0 ? e_[i] + top_ : A(0)));
    center();
    const T* bias = p.bias == nullptr ? nullptr : static_cast<const T*>(p.bias) + task % p.heads * D;
    for (int64_t c = 0; bias != nullptr && c < D; ++c) bias_[c] += widen(bias[c]);
    for (int64_t i = 0; i < n; ++i) attend(i);
  }

  void forward() {
    if (n < N) clear<T>(p.out);
    if (p.elu) elu(y_, n * dim_);
    for (int64_t i = 0; i < n; ++i) {
      T* out = row_of<T>(p.out, p.heads, task_, node_[i]);
      for (int64_t c = 0; c < D; ++c) out[c] = narrow<T>(y_[i * dim_ + c]);
    }
  }

  void backward(const SubgraphAttentionBackward& args, Arena& arena) {
    A* grad_e = static_cast<A*>(args.grad_e) + task_ * N;
    A* grad_g = static_cast<A*>(args.grad_g) + task_ * N;
    A* columns = arena.take<A>(D * width_);  // V transposed
    A *d = arena.take<A>(N * dim_), *of_weight = arena.take<A>(width_), *of_g = arena.take<A>(width_);
    fill(columns, D * width_, A(0));
    fill(of_g, width_, A(0));
    fill(d, n * dim_, A(0));
    for (int64_t j = 0; j < n; ++j) {
      const T* grad = row_of<const T>(args.grad_out, p.heads, task_, node_[j]);
      for (int64_t c = 0; c < D; ++c) {
        columns[c * width_ + j] = v_[j * dim_ + c];
        d[j * dim_ + c] = A(widen(grad[c]));
      }
    }
    if (p.elu) times_elu_slope(y_, n * dim_, d);
    if (n < N) {
      clear<A>(args.grad_v);
      fill(grad_e, N, A(0));
      fill(grad_g, N, A(0));
    }
    for (int64_t i = 0; i < n; ++i) {
      // Σ of weights, and of weights times their gradients, over the keys that pass, and over those that are cut off.
      V passed = V{}, cut = V{}, passed_mean = V{}, cut_mean = V{};
      for (int64_t j = 0; j < width_; j += kLanes) {
        V sum = V{};
        for (int64_t c = 0; c < D; ++c) sum = fma_of(V{} + d[i * dim_ + c], load<V>(columns + c * width_ + j), sum);
        const V on = passing(i, j), off = load<V>(weight_ + i * width_ + j) - on;
        passed += on, cut += off;
        passed_mean = fma_of(on, sum, passed_mean), cut_mean = fma_of(off, sum, cut_mean);
        store(of_weight + j, sum);
      }
      const A on = sum_lanes<A>(passed_mean), off = sum_lanes<A>(cut_mean);
      grad_e[node_[i]] = on * sum_lanes<A>(cut) - off * sum_lanes<A>(passed);
      for (int64_t j = 0; j < width_; j += kLanes) {
        const V difference = load<V>(of_weight + j) - (on + off);
        store(of_g + j, fma_of(passing(i, j), difference, load<V>(of_g + j)));
      }
    }
    A* row = y_;  // no longer needed
    for (int64_t j = 0; j < n; ++j) {
      grad_g[node_[j]] = of_g[j];
      for (int64_t c = 0; c < dim_; c += kLanes) store(row + c, product(weight_ + j, width_, d + c, V{}));
      std::memcpy(row_of<A>(args.grad_v, p.heads, task_, node_[j]), row, D * sizeof(A));
    }
    if (args.grad_bias == nullptr) return;
    for (int64_t c = 0; c < dim_; c += kLanes) {
      V sum = V{};
      for (int64_t i = 0; i < n; ++i) sum += load<V>(d + i * dim_ + c);
      store(row + c, sum);
    }
    std::memcpy(static_cast<A*>(args.grad_bias) + task_ * D, row, D * sizeof(A));
  }

 private:
  static int64_t whole(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

  template <class Out>
  void clear(const HeadsView& view) const {
    for (int64_t i = 0; i < N; ++i) fill(row_of<Out>(view, p.heads, task_, i), D, narrow<Out>(A(0)));
  }

  // Takes the mean of V, where it is finite, from V to the bias.
  void center() {
    for (int64_t c = 0; c < dim_; c += kLanes) {
      V sum = V{};
      for (int64_t j = 0; j < n; ++j) sum += load<V>(v_ + j * dim_ + c);
      const V mean = sum - sum == 0 ? sum / A(n) : V{};
      for (int64_t j = 0; j < n; ++j) store(v_ + j * dim_ + c, V(load<V>(v_ + j * dim_ + c) - mean));
      store(bias_ + c, mean);
    }
  }

  // start + Σ_i x[i step] rows[i], in two sums, as one would wait for itself.
  V product(const A* x, int64_t step, const A* rows, V start) const {
    V even = start, odd = V{};
    int64_t i = 0;
    for (; i + 2 <= n; i += 2) {
      even = fma_of(V{} + x[i * step], load<V>(rows + i * dim_), even);
      odd = fma_of(V{} + x[(i + 1) * step], load<V>(rows + (i + 1) * dim_), odd);
    }
    if (i < n) even = fma_of(V{} + x[i * step], load<V>(rows + i * dim_), even);
    return even + odd;
  }

  // The weights of node i, and what the activation is applied to.
  void attend(int64_t i) {
    const A e = e_[i];
    A* weights = weight_ + i * width_;
    V total = V{};
    for (int64_t j = 0; j < width_; j += kLanes) {
      const V weight = e + load<V>(g_ + j) > 0 ? load<V>(factor_ + j) : load<V>(live_ + j) * zero_[i];
      store(weights + j, weight);
      total += weight;
    }
    const A share = e + top_ < A(INFINITY) ? 1 / sum_lanes<A>(total) : A(NAN);
    for (int64_t j = 0; j < width_; j += kLanes) store(weights + j, V(load<V>(weights + j) * share));
    for (int64_t c = 0; c < dim_; c += kLanes) {
      store(y_ + i * dim_ + c, product(weights, 1, v_ + c, load<V>(bias_ + c)));
    }
  }

  // The weights of node i for the keys from j on that are not cut off.
  V passing(int64_t i, int64_t j) const {
    return e_[i] + load<V>(g_ + j) > 0 ? load<V>(weight_ + i * width_ + j) : V{};
  }

  const SubgraphAttention& p;
  const int64_t task_, N, D, width_, dim_;
  int64_t n = 0;
  int32_t* node_;
  A *e_, *g_, *live_, *factor_, *zero_, *weight_, *v_, *y_, *bias_;
  A top_ = -A(INFINITY);
};

}  // namespace
}  // namespace IL_ISA
}  // namespace il
