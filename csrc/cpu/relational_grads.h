// SPDX-License-Identifier: Apache-2.0
// The way back through a row of generalized Bellman-Ford: from the gradient of one destination's aggregate to the
// gradient rows of its sources and relations. Messages are formed again, never stored.
#pragma once

#include "cpu/relational_rows.h"

namespace il {
namespace IL_ISA {
namespace {

// Per-row quantities from which the gradient of any message of the row follows.
template <class A>
struct RowGrads {
  A* g;                  // d out (for PNA: d mean / D); mean: divided by D
  A* out;                // max, min, logsumexp: the stored output. PNA: the mean
  A* spread;             // PNA: d std / (std * D), 0 where the variance was clamped
  A *hi, *lo;            // PNA: stored max and min
  A *hi_left, *lo_left;  // gradient of the extremum not yet given to an edge; for max/min in hi_left
};

// Gradient of a message at one column. Max and min give everything to the first edge that attains the stored value.
template <Sum S, class V>
struct ColumnGrads {
  V g, out, spread, hi, lo;
  template <class A>
  IL_INLINE ColumnGrads(const RowGrads<A>& r, int64_t c) : g(load<V>(r.g + c)), out{}, spread{}, hi{}, lo{} {
    if constexpr (S != Sum::kSum) out = load<V>(r.out + c);
    if constexpr (S == Sum::kPna) {
      spread = load<V>(r.spread + c);
      hi = load<V>(r.hi + c);
      lo = load<V>(r.lo + c);
    }
  }
  IL_INLINE V of(V m, V* hi_left, V* lo_left) const {
    if constexpr (S == Sum::kSum) {
      return g;
    } else if constexpr (S == Sum::kMax) {
      const V hit = m == out ? *hi_left : V{};
      *hi_left = m == out ? V{} : *hi_left;
      return hit;
    } else {
      static_assert(S == Sum::kPna);
      V grad = g + (m - out) * spread;
      grad += m == hi ? *hi_left : V{};
      *hi_left = m == hi ? V{} : *hi_left;
      grad += m == lo ? *lo_left : V{};
      *lo_left = m == lo ? V{} : *lo_left;
      return grad;
    }
  }
};

// Fused path: messages, their gradients and both scatter-adds in one sweep over up to four edges.
// Two edges of a group may share a source or a relation: loads and stores stay in edge order at every column.
template <Sum S, bool Multiply, bool OneRelation, int N, class A>
IL_INLINE void scatter(const EdgeGroup<A>& e, A* const* grad_x, A* const* grad_r, int64_t base, int64_t n, bool shared,
                       const RowGrads<A>& grads) {
  const RowGrads<A> row = grads;  // locals, as in accumulate
  const int64_t roff = shared ? 0 : base;
  const Pointers<const A, N> x(e.x, base), r(e.r, roff);
  const Pointers<A, N> dx(grad_x, base), dr(grad_r, roff);
  columns<A>(n, [=](auto lane, int64_t j) {
    using V = decltype(lane);
    const int64_t c = base + j;
    V hi_left = V{}, lo_left = V{};
    if constexpr (S != Sum::kSum) hi_left = load<V>(row.hi_left + c);
    if constexpr (S == Sum::kPna) lo_left = load<V>(row.lo_left + c);
    const ColumnGrads<S, V> column(row, c);
    V w = load<V>(r[0] + j), total = load<V>(dr[0] + j);
    for (int k = 0; k < N; ++k) {
      if (!OneRelation && k > 0) {
        w = load<V>(r[k] + j);
        total = load<V>(dr[k] + j);
      }
      const V m = load<V>(x[k] + j);
      const V g = column.of(Multiply ? m * w : m + w, &hi_left, &lo_left);
      store(dx[k] + j, load<V>(dx[k] + j) + (Multiply ? g * w : g));
      total += Multiply ? g * m : g;
      if (!OneRelation) store(dr[k] + j, total);
    }
    if (OneRelation) store(dr[0] + j, total);
    if constexpr (S != Sum::kSum) store(row.hi_left + c, hi_left);
    if constexpr (S == Sum::kPna) store(row.lo_left + c, lo_left);
  });
}

template <Sum S, bool Multiply, bool OneRelation, class A>
IL_INLINE void scatter_edges(const EdgeGroup<A>& e, A* const* dx, A* const* dr, int64_t base, int64_t n, bool shared,
                             const RowGrads<A>& row) {
  switch (e.count) {
    case 4: scatter<S, Multiply, OneRelation, 4>(e, dx, dr, base, n, shared, row); break;
    case 3: scatter<S, Multiply, OneRelation, 3>(e, dx, dr, base, n, shared, row); break;
    case 2: scatter<S, Multiply, OneRelation, 2>(e, dx, dr, base, n, shared, row); break;
    default: scatter<S, Multiply, OneRelation, 1>(e, dx, dr, base, n, shared, row); break;
  }
}

template <Sum S, bool Multiply, class A>
void scatter_group(const EdgeGroup<A>& e, A* const* dx, A* const* dr, int64_t width, int64_t chunk, bool shared,
                   const RowGrads<A>& row) {
  for (int64_t base = 0; base < width; base += chunk) {
    const int64_t n = min64(chunk, width - base);
    if (e.one_relation) {
      scatter_edges<S, Multiply, true>(e, dx, dr, base, n, shared, row);
    } else {
      scatter_edges<S, Multiply, false>(e, dx, dr, base, n, shared, row);
    }
  }
}

// General path, step 1: gm[j] = d loss / d (raw message), and the edge weight's gradient as the return value.
// The stored extremum was rounded to T, so the message is rounded before it is compared.
template <class T, class A>
A general_message_grad(Sum sum, const A* m, A a, int64_t w, const RowGrads<A>& r, A* gm) {
  A weight_grad = A(0);
  switch (sum) {
    case Sum::kSum:
    case Sum::kMean:
      for (int64_t j = 0; j < w; ++j) gm[j] = r.g[j];
      break;
    case Sum::kMax:
    case Sum::kMin:
      for (int64_t j = 0; j < w; ++j) {
        bool hit = A(widen(narrow<T>(a * m[j]))) == r.out[j];
        gm[j] = hit ? r.hi_left[j] : A(0);
        r.hi_left[j] = hit ? A(0) : r.hi_left[j];
      }
      break;
    case Sum::kLogSumExp:
      for (int64_t j = 0; j < w; ++j) {
        A am = a * m[j];
        gm[j] = am == -A(INFINITY) ? A(0) : r.g[j] * exp_of(am - r.out[j]);
      }
      break;
    case Sum::kOr: fill(gm, w, A(0)); break;
    case Sum::kPna:
      for (int64_t j = 0; j < w; ++j) {
        A am = widen(narrow<T>(a * m[j]));
        bool top = am == r.hi[j], bottom = am == r.lo[j];
        A extremes = (top ? r.hi_left[j] : A(0)) + (bottom ? r.lo_left[j] : A(0));
        r.hi_left[j] = top ? A(0) : r.hi_left[j];
        r.lo_left[j] = bottom ? A(0) : r.lo_left[j];
        // The weight enters Q once: d(a m^2) = 2 a m dm + m^2 da.
        weight_grad += m[j] * (r.g[j] + (m[j] * A(0.5) - r.out[j]) * r.spread[j] + extremes);
        gm[j] = a * (r.g[j] + (m[j] - r.out[j]) * r.spread[j] + extremes);
      }
      return weight_grad;
  }
  for (int64_t j = 0; j < w; ++j) {
    weight_grad += gm[j] * m[j];
    gm[j] *= a;
  }
  return weight_grad;
}

// General path, step 2: through the message function into the gradient rows of source and relation.
template <class T, class A>
void general_scatter(Mul mul, const A* gm, const T* x, const T* r, int64_t width, int64_t dim, bool shared, A* dx,
                     A* dr) {
  const int64_t half = dim / 2;
  if (mul != Mul::kRotate && !shared) dim = width;
  for (int64_t base = 0; base < width; base += dim) {
    const A* g = gm + base;
    const T* xb = x + base;
    const T* rb = shared ? r : r + base;
    A* dxb = dx + base;
    A* drb = shared ? dr : dr + base;
    switch (mul) {
      case Mul::kMul:
        for (int64_t j = 0; j < dim; ++j) {
          dxb[j] += g[j] * widen(rb[j]);
          drb[j] += g[j] * widen(xb[j]);
        }
        break;
      case Mul::kAdd:
        for (int64_t j = 0; j < dim; ++j) {
          dxb[j] += g[j];
          drb[j] += g[j];
        }
        break;
      case Mul::kRotate:
        for (int64_t j = 0; j < half; ++j) {
          A a = widen(xb[j]), b = widen(xb[half + j]), c = widen(rb[j]), s = widen(rb[half + j]);
          A re = g[j], im = g[half + j];
          dxb[j] += re * c + im * s;
          dxb[half + j] += im * c - re * s;
          drb[j] += re * a + im * b;
          drb[half + j] += im * a - re * b;
        }
        break;
      case Mul::kMin:
        for (int64_t j = 0; j < dim; ++j) {
          bool input_is_less = A(widen(xb[j])) <= A(widen(rb[j]));
          dxb[j] += input_is_less ? g[j] : A(0);
          drb[j] += input_is_less ? A(0) : g[j];
        }
        break;
      case Mul::kAnd: break;
    }
  }
}

// Every edge of row v: message gradients from `row`, then into the gradient rows of source and relation.
// `gm` is scratch of one row. Sums the scatter kernels know and plain products go fused, the rest in two steps.
template <class T, class A>
void scatter_row(const Walk<T>& walk, int64_t v, const RowGrads<A>& row, A* gm, A* grad_input, A* grad_relation,
                 A* weight_grad) {
  const RelationalSpmm& p = walk.p;
  const int64_t w = walk.width;
  walk.groups(p.graph.indptr[v], p.graph.indptr[v + 1], /*premultiply=*/false, [&](const EdgeGroup<A>& group) {
    A* dx[kUnroll];
    A* dr[kUnroll];
    const int32_t e = group.first;
    for (int k = 0; k < group.count; ++k) {
      dx[k] = grad_input + walk.row(p.graph.src[e + k]) * walk.grad_stride;
      dr[k] = grad_relation + p.graph.rel[e + k] * walk.rel_stride;
    }
    if (!walk.direct) {
      for (int k = 0; k < group.count; ++k) {
        A g = general_message_grad<T>(p.sum, group.x[k], group.weight[k], w, row, gm);
        if (weight_grad != nullptr) weight_grad[p.graph.eid[e + k]] = g;
        general_scatter(p.mul, gm, walk.source_row(e + k), walk.relation_row(e + k), w, p.dim, p.shared, dx[k], dr[k]);
      }
      return;
    }
    const int64_t chunk = walk.chunk();
    const bool multiply = p.mul == Mul::kMul;
    switch (p.sum) {
      case Sum::kSum:
      case Sum::kMean:
        multiply ? scatter_group<Sum::kSum, true>(group, dx, dr, w, chunk, p.shared, row)
                 : scatter_group<Sum::kSum, false>(group, dx, dr, w, chunk, p.shared, row);
        break;
      case Sum::kPna:
        multiply ? scatter_group<Sum::kPna, true>(group, dx, dr, w, chunk, p.shared, row)
                 : scatter_group<Sum::kPna, false>(group, dx, dr, w, chunk, p.shared, row);
        break;
      default:
        multiply ? scatter_group<Sum::kMax, true>(group, dx, dr, w, chunk, p.shared, row)
                 : scatter_group<Sum::kMax, false>(group, dx, dr, w, chunk, p.shared, row);
    }
  });
}

// out[i] = sum over parts in order, so that the result does not depend on which thread made which part.
template <class A>
void reduce_parts(const A* parts, int64_t count, int64_t n, A* out) {
  for (int64_t i = 0; i < n; ++i) {
    A total = A(0);
    for (int64_t k = 0; k < count; ++k) total += parts[k * n + i];
    out[i] = total;
  }
}

}  // namespace
}  // namespace IL_ISA
}  // namespace il
