// SPDX-License-Identifier: Apache-2.0
// Attention whose scores are a ReLU of a rank-1 sum:  out_i = act(Σ_j a_ij V_j + bias),
//   a_ij = softmax_j(s_ij),  s_ij = ReLU(e_i + g_j)
// Sorted by g, the keys that node i's ReLU cuts off are the first k_i, and for the others exp(s_ij) factors. With ĝ the
// largest g, c_i = e_i + ĝ the largest score, P_k = Σ V over the first k keys, S_k and T_k the sums of x_j V_j and of
// x_j = exp(g_j - ĝ) over the others:
//   out_i = act(w_i P_k + u_i S_k + bias),  u_i = 1 / (exp(-max(c_i, 0)) k + T_k),  w_i = exp(-max(c_i, 0)) u_i
// No exponent is positive, and T_k >= 1 wherever a key is left, so no weight overflows. Backward, with d_i the gradient
// of the argument of act and p_j the place of key j in the order:
//   dV_j = Σ_{i: k_i > p_j} w_i d_i + x_j Σ_{i: k_i <= p_j} u_i d_i
//   dg_j = x_j Σ_{i: k_i <= p_j} u_i (d_i · V_j - d_i · (w_i P + u_i S))
//   de_i = w_i u_i (k d_i · S_k - T_k d_i · P_k)
// where the sums over nodes are running sums over k. A score of exactly 0 counts as cut off: ReLU'(0) = 0.
// V is centred first, which changes only what is added to the row: what all V_j share cancels in dg and de.
// A score that is NaN or +inf makes its row NaN, as the softmax of all scores does.
//
// A (batch, head) per task: O(N log N + N D) operations and two tables of (N + 1) D elements, four backward, in place
// of N². Rows of v are read three times, four times backward.
#include "cpu/subgraph_attention.h"

#include "cpu/arena.h"
#include "cpu/subgraph_attention_direct.h"

namespace il {
namespace IL_ISA {
namespace {

template <class A>
struct Key {
  A score;
  int64_t node;
};

// Stable and ascending. Result in either buffer, of n keys each.
template <class A>
const Key<A>* merge_sort(Key<A>* from, Key<A>* to, int64_t n) {
  for (int64_t run = 1; run < n; run *= 2) {
    for (int64_t first = 0, at = 0; first < n; first += 2 * run) {
      const int64_t middle = min64(first + run, n), end = min64(first + 2 * run, n);
      int64_t left = first, right = middle;
      while (left < middle && right < end) {
        const bool take_right = from[right].score < from[left].score;
        to[at++] = from[take_right ? right : left];
        right += take_right;
        left += !take_right;
      }
      while (left < middle) to[at++] = from[left++];
      while (right < end) to[at++] = from[right++];
    }
    Key<A>* merged = to;
    to = from;
    from = merged;
  }
  return from;
}

// The keys of one batch element and head in order, and the sums of a prefix and of the rest of them.
template <class T>
class Head {
 public:
  using A = typename AccOf<T>::type;

  struct Node {
    int64_t cut;  // k
    A w, u;
  };

  Head(const SubgraphAttention& args, int64_t task, Arena& arena)
      : p(args),
        D(args.dim),
        v_(static_cast<const T*>(args.v.data) + task / args.heads * args.v.batch_stride +
           task % args.heads * args.v.head_stride),
        e_(static_cast<const T*>(args.e) + task * args.num_nodes),
        bias_(args.bias == nullptr ? nullptr : static_cast<const T*>(args.bias) + task % args.heads * D),
        valid_(args.valid == nullptr ? nullptr : args.valid + task / args.heads * args.num_nodes),
        prefix_(arena.take<A>((2 * D + 2) * (args.num_nodes + 1) + D)) {
    const T* g = static_cast<const T*>(args.g) + task * args.num_nodes;
    Key<A>* keys = arena.take<Key<A>>(2 * args.num_nodes);
    for (int64_t i = 0; i < p.num_nodes; ++i) {
      if (!counts(i)) continue;
      keys[n] = {A(widen(g[i])), i};
      top_ = nan_max(top_, keys[n++].score);
    }
    keys_ = merge_sort(keys, keys + p.num_nodes, n);
    sum_up();
  }

  bool counts(int64_t i) const { return valid_ == nullptr || valid_[i]; }
  const Key<A>& key(int64_t place) const { return keys_[place]; }
  const A* prefix(int64_t k) const { return prefix_ + k * D; }  // P_k
  const A* suffix(int64_t k) const { return suffix_ + k * D; }  // S_k
  A rest(int64_t k) const { return rest_[k]; }                  // T_k
  A factor(int64_t place) const { return factor_[place]; }      // x
  void centred(int64_t i, A* row) const {
    const T* x = v_ + i * p.v.row_stride;
    for (int64_t c = 0; c < D; ++c) row[c] = A(widen(x[c])) - center_[c];
  }

  Node node(int64_t i) const {
    const A e = widen(e_[i]), c = e + top_;
    int64_t low = 0, high = n;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      const bool passes = e + keys_[middle].score > 0;
      low = passes ? low : middle + 1;
      high = passes ? middle : high;
    }
    if (!(c < A(INFINITY))) return {low, A(NAN), A(NAN)};
    const A zero = exp_of(-(c > 0 ? c : A(0)));
    const A u = 1 / (zero * A(low) + rest_[low]);
    return {low, zero * u, u};
  }

  // The argument of act.
  void row(const Node& node, A* y) const {
    const A *P = prefix(node.cut), *S = suffix(node.cut);
    for (int64_t c = 0; c < D; ++c) y[c] = node.w * P[c] + node.u * S[c] + center_[c];
    if (bias_ == nullptr) return;
    for (int64_t c = 0; c < D; ++c) y[c] += A(widen(bias_[c]));
  }

  const SubgraphAttention& p;
  const int64_t D;
  int64_t n = 0;  // nodes that count

 private:
  void sum_up() {
    suffix_ = prefix_ + (n + 1) * D;
    rest_ = suffix_ + (n + 1) * D;
    factor_ = rest_ + n + 1;
    center_ = factor_ + n + 1;
    // Without a finite maximum there is no key that passes, or else all rows are NaN.
    const A top = top_ - top_ == A(0) ? top_ : A(0);
    for (int64_t k = 0; k < n; ++k) factor_[k] = exp_of(keys_[k].score - top);
    center();
    fill(prefix_, D, A(0));
    for (int64_t k = 0; k < n; ++k) {
      const A* before = prefix(k);
      A* sum = prefix_ + (k + 1) * D;
      centred(keys_[k].node, sum);
      for (int64_t c = 0; c < D; ++c) sum[c] += before[c];
    }
    fill(suffix_ + n * D, D, A(0));
    rest_[n] = A(0);
    for (int64_t k = n - 1; k >= 0; --k) {
      const A* behind = suffix(k + 1);
      A* sum = suffix_ + k * D;
      centred(keys_[k].node, sum);
      for (int64_t c = 0; c < D; ++c) sum[c] = behind[c] + factor_[k] * sum[c];
      rest_[k] = rest_[k + 1] + factor_[k];
    }
  }

  // The mean of V, or 0 where that is not finite.
  void center() {
    fill(center_, D, A(0));
    for (int64_t k = 0; k < n; ++k) {
      const T* x = v_ + keys_[k].node * p.v.row_stride;
      for (int64_t c = 0; c < D; ++c) center_[c] += A(widen(x[c]));
    }
    for (int64_t c = 0; c < D; ++c) center_[c] = center_[c] - center_[c] == A(0) ? center_[c] / A(n) : A(0);
  }

  const T *v_, *e_, *bias_;
  const uint8_t* valid_;
  A top_ = -A(INFINITY);  // ĝ
  const Key<A>* keys_;
  A *prefix_, *suffix_, *rest_, *factor_, *center_;
};

template <class A>
IL_INLINE A dot(const A* x, const A* y, int64_t n) {
  return sum_of<A>(n, [&](auto lane, int64_t j) {
    using V = decltype(lane);
    return load<V>(x + j) * load<V>(y + j);
  });
}

template <class T>
void forward(const SubgraphAttention& p) {
  using A = typename AccOf<T>::type;
  tasks_in_arenas(p.batch * p.heads, p.threads, [&](int64_t task, Arena& arena) {
    if (p.num_nodes <= kDirectNodes) return DirectHead<T>(p, task, arena).forward();
    const Head<T> head(p, task, arena);
    A* y = arena.take<A>(p.dim);
    for (int64_t i = 0; i < p.num_nodes; ++i) {
      T* out = row_of<T>(p.out, p.heads, task, i);
      if (!head.counts(i)) {
        fill(out, p.dim, narrow<T>(A(0)));
        continue;
      }
      head.row(head.node(i), y);
      if (p.elu) elu(y, p.dim);
      for (int64_t c = 0; c < p.dim; ++c) out[c] = narrow<T>(y[c]);
    }
  });
}

template <class T>
void backward(const SubgraphAttentionBackward& args) {
  using A = typename AccOf<T>::type;
  const SubgraphAttention& p = args.forward;
  const int64_t D = p.dim;
  tasks_in_arenas(p.batch * p.heads, p.threads, [&](int64_t task, Arena& arena) {
    if (p.num_nodes <= kDirectNodes) return DirectHead<T>(p, task, arena).backward(args, arena);
    const Head<T> head(p, task, arena);
    const int64_t n = head.n;
    A *d = arena.take<A>(2 * D), *value = d + D;
    // Row k holds what the nodes cut at k add: to the keys before it, to those from it on, and to Σ u d · (w P + u S).
    A *before = arena.take<A>((2 * D + 1) * (n + 1)), *from = before + (n + 1) * D, *mean = from + (n + 1) * D;
    fill(before, (2 * D + 1) * (n + 1), A(0));
    A* grad_e = static_cast<A*>(args.grad_e) + task * p.num_nodes;
    A* grad_g = static_cast<A*>(args.grad_g) + task * p.num_nodes;
    A* grad_bias = args.grad_bias == nullptr ? nullptr : static_cast<A*>(args.grad_bias) + task * D;
    if (grad_bias != nullptr) fill(grad_bias, D, A(0));

    for (int64_t i = 0; i < p.num_nodes; ++i) {
      if (!head.counts(i)) {
        grad_e[i] = grad_g[i] = A(0);
        fill(row_of<A>(args.grad_v, p.heads, task, i), D, A(0));
        continue;
      }
      const auto node = head.node(i);
      const int64_t k = node.cut;
      const T* grad = row_of<const T>(args.grad_out, p.heads, task, i);
      head.row(node, d);
      for (int64_t c = 0; c < D; ++c) value[c] = A(widen(grad[c]));
      if (p.elu) times_elu_slope(d, D, value);
      std::memcpy(d, value, D * sizeof(A));
      for (int64_t c = 0; c < D; ++c) {
        before[k * D + c] += node.w * d[c];
        from[k * D + c] += node.u * d[c];
      }
      const A of_prefix = dot(d, head.prefix(k), D), of_suffix = dot(d, head.suffix(k), D);
      mean[k] += node.u * (node.w * of_prefix + node.u * of_suffix);
      grad_e[i] = node.w * node.u * (A(k) * of_suffix - head.rest(k) * of_prefix);
      for (int64_t c = 0; grad_bias != nullptr && c < D; ++c) grad_bias[c] += d[c];
    }

    for (int64_t k = n - 1; k > 0; --k) {
      for (int64_t c = 0; c < D; ++c) before[k * D + c] += before[(k + 1) * D + c];
    }
    for (int64_t k = 0; k < n; ++k) {
      A *passed = from + k * D, *cut = before + (k + 1) * D;
      for (int64_t c = 0; k > 0 && c < D; ++c) passed[c] += passed[c - D];
      if (k > 0) mean[k] += mean[k - 1];
      const int64_t j = head.key(k).node;
      const A x = head.factor(k);
      head.centred(j, value);
      A* grad_v = row_of<A>(args.grad_v, p.heads, task, j);
      for (int64_t c = 0; c < D; ++c) grad_v[c] = cut[c] + x * passed[c];
      grad_g[j] = x * (dot(passed, value, D) - mean[k]);
    }
  });
}

}  // namespace

void subgraph_attention(const SubgraphAttention& args) {
  switch (args.dtype) {
    case DType::kFloat64: return forward<double>(args);
    case DType::kBFloat16: return forward<bf16>(args);
    case DType::kFloat16: return forward<fp16>(args);
    default: return forward<float>(args);
  }
}

void subgraph_attention_backward(const SubgraphAttentionBackward& args) {
  switch (args.forward.dtype) {
    case DType::kFloat64: return backward<double>(args);
    case DType::kBFloat16: return backward<bf16>(args);
    case DType::kFloat16: return backward<fp16>(args);
    default: return backward<float>(args);
  }
}

}  // namespace IL_ISA
}  // namespace il
