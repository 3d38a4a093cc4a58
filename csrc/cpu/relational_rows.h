// SPDX-License-Identifier: Apache-2.0
// Row routines of generalized Bellman-Ford: the messages of one destination's in-edges and their reduction; the way
// back is in relational_grads.h. Included once per instruction set by the kernels built on them (relational_spmm,
// nbfnet_layer).
//
// A row of `input` is B*d contiguous columns, and work is cut into column blocks of whole queries. Edges of a row
// go four at a time: the accumulators, which live in L1, are then loaded and stored once per four messages.
#pragma once

#include "core/simd.h"
#include "cpu/relational_spmm.h"

namespace il {
namespace IL_ISA {
namespace {

constexpr int kUnroll = 4;

struct Block {
  int64_t query;  // first query
  int64_t width;  // columns
};

struct Blocks {
  int64_t queries;  // per block
  int64_t count;
  int64_t batch, dim;
  Blocks(int64_t batch, int64_t dim, int64_t columns) : batch(batch), dim(dim) {
    queries = min64(max64(columns / max64(dim, 1), 1), max64(batch, 1));
    count = (batch + queries - 1) / queries;
  }
  Block operator[](int64_t i) const {
    int64_t q = i * queries;
    return {q, min64(queries, batch - q) * dim};
  }
};

// Columns of a block whose rows are gathered at random, `tables` of them at a time (input, its gradient). Random rows
// run at the speed of the cache level that holds the whole table: measured on a 32 MB L3 shared with neighbours,
// 24 GB/s up to 4 MB, 12 at 8 MB, 5.5 from 16 MB. Depends on the shape only, so that the bits do not depend on
// the machine.
inline int64_t gather_columns(int64_t num_nodes, int64_t bytes_per_column, int64_t dim) {
  const int64_t fit = (int64_t(4) << 20) / max64(num_nodes * bytes_per_column, 1);
  return max64(min64(fit, 256), max64(dim, 32));
}

// Whether blocks may gather from compact copies (`tables` of them each): only where all threads together stay below
// half a node state. The values are the same either way.
inline bool worth_compacting(const Blocks& blocks, int64_t width, int64_t tables, int threads) {
  return blocks.count > 1 && 2 * tables * width * min64(threads, blocks.count) <= blocks.batch * blocks.dim;
}

// Row ranges with about equal work, independent of the thread count.
struct RowRanges {
  const CsrView& g;
  int64_t count;
  RowRanges(const CsrView& g, int64_t most) : g(g) {
    count = min64(max64((g.num_nodes + g.num_edges) / 1024, 1), most);
  }
  int64_t first(int64_t i) const {
    int64_t target = (g.num_nodes + g.num_edges) * i / count;
    int64_t lo = 0, hi = g.num_nodes;
    while (lo < hi) {
      int64_t mid = (lo + hi) / 2;
      if (mid + g.indptr[mid] < target) {
        lo = mid + 1;
      } else {
        hi = mid;
      }
    }
    return lo;
  }
};

// ---- messages -------------------------------------------------------------------------------------------------

// Raw message x (x) r into the accumulation type. Columns come in chunks that share one relation row: the whole
// block when the table is per query (step = 1 chunk), d columns when it is shared.
template <class T, class A>
void message_row(Mul mul, const T* x, const T* r, int64_t width, int64_t dim, bool shared, A* out) {
  int64_t half = dim / 2;
  if (mul != Mul::kRotate && !shared) dim = width;
  for (int64_t base = 0; base < width; base += dim) {
    const T* xb = x + base;
    const T* rb = shared ? r : r + base;
    A* m = out + base;
    switch (mul) {
      case Mul::kMul:
        if (dim == 1) {  // scalar edges: vectorise over queries instead
          A w = widen(r[0]);
          for (int64_t j = 0; j < width; ++j) out[j] = widen(x[j]) * w;
          return;
        }
        for (int64_t j = 0; j < dim; ++j) m[j] = widen(xb[j]) * widen(rb[j]);
        break;
      case Mul::kAdd:
        if (dim == 1) {
          A w = widen(r[0]);
          for (int64_t j = 0; j < width; ++j) out[j] = widen(x[j]) + w;
          return;
        }
        for (int64_t j = 0; j < dim; ++j) m[j] = widen(xb[j]) + widen(rb[j]);
        break;
      case Mul::kRotate:
        for (int64_t j = 0; j < half; ++j) {
          A a = widen(xb[j]), b = widen(xb[half + j]), c = widen(rb[j]), s = widen(rb[half + j]);
          m[j] = a * c - b * s;
          m[half + j] = a * s + b * c;
        }
        break;
      case Mul::kMin:
        for (int64_t j = 0; j < dim; ++j) m[j] = nan_min(A(widen(xb[j])), A(widen(rb[j])));
        break;
      case Mul::kAnd:
        for (int64_t j = 0; j < dim; ++j) {
          A a = widen(xb[j]), b = widen(rb[j]);
          A both = (a != A(0)) & (b != A(0)) ? A(1) : A(0);
          m[j] = (a != a) | (b != b) ? A(NAN) : both;
        }
        break;
    }
  }
}

// Where the messages of up to four edges of a row come from. Buffered: already computed into L1 rows.
// Product/Sum: formed on the fly from the tensors (float or double storage only).
struct Buffered {
  template <class V, class A>
  static IL_INLINE V at(const A* m, const A*, int64_t j) {
    return load<V>(m + j);
  }
};
struct Product {
  template <class V, class A>
  static IL_INLINE V at(const A* x, const A* r, int64_t j) {
    return load<V>(x + j) * load<V>(r + j);
  }
};
struct Translation {
  template <class V, class A>
  static IL_INLINE V at(const A* x, const A* r, int64_t j) {
    return load<V>(x + j) + load<V>(r + j);
  }
};

template <class A>
struct EdgeGroup {
  const A* x[kUnroll];
  const A* r[kUnroll];
  A weight[kUnroll];
  int count;
  int32_t first;      // position of the group's first edge in the CSR
  bool one_relation;  // all edges of the group share a relation row
};

template <class P, int N>
struct Pointers {
  P* p[N];
  IL_INLINE Pointers(P* const* from, int64_t offset) {
    for (int k = 0; k < N; ++k) p[k] = from[k] + offset;
  }
  IL_INLINE P* operator[](int k) const { return p[k]; }
};

template <class A, int N>
struct Values {
  A a[N];
  IL_INLINE explicit Values(const A* from) {
    for (int k = 0; k < N; ++k) a[k] = from[k];
  }
  IL_INLINE A operator[](int k) const { return a[k]; }
};

template <class A>
struct RowBuffers {  // one row of `width` each
  A *s, *q, *hi, *lo, *shift;
};

// ---- forward --------------------------------------------------------------------------------------------------

template <Sum S, bool Weighted, class M, int N, class A>
IL_INLINE void accumulate(const EdgeGroup<A>& e, int64_t base, int64_t n, bool shared, const RowBuffers<A>& buffers) {
  // Locals: a store may alias the pointers in `e` and `buffers`, which would then be loaded again for each vector.
  const RowBuffers<A> b = buffers;
  const Pointers<const A, N> x(e.x, base), r(e.r, shared ? 0 : base);
  const Values<A, N> weight(e.weight);
  columns<A>(n, [=](auto lane, int64_t j) {
    using V = decltype(lane);
    const int64_t c = base + j;
    V m[N];
    for (int k = 0; k < N; ++k) m[k] = M::template at<V>(x[k], r[k], j);
    if constexpr (S == Sum::kSum) {
      V s = load<V>(b.s + c);
      for (int k = 0; k < N; ++k) s += m[k];
      store(b.s + c, s);
    } else if constexpr (S == Sum::kMax) {
      V s = load<V>(b.s + c);
      for (int k = 0; k < N; ++k) s = nan_max(s, m[k]);
      store(b.s + c, s);
    } else if constexpr (S == Sum::kMin) {
      V s = load<V>(b.s + c);
      for (int k = 0; k < N; ++k) s = nan_min(s, m[k]);
      store(b.s + c, s);
    } else if constexpr (S == Sum::kOr) {
      V s = load<V>(b.s + c), zero = s - s, one = zero + A(1);
      for (int k = 0; k < N; ++k) {
        V t = m[k] != m[k] ? m[k] : (m[k] != zero ? one : s);
        s = s != s ? s : t;
      }
      store(b.s + c, s);
    } else {
      static_assert(S == Sum::kPna);
      V s = load<V>(b.s + c), q = load<V>(b.q + c), hi = load<V>(b.hi + c), lo = load<V>(b.lo + c);
      if constexpr (Weighted) {
        for (int k = 0; k < N; ++k) {
          V am = m[k] * weight[k];
          s += am;
          q += am * m[k];
          hi = nan_max(hi, am);
          lo = nan_min(lo, am);
        }
      } else {
        V shift = load<V>(b.shift + c);
        for (int k = 0; k < N; ++k) {
          V t = m[k] - shift;
          s += t;
          q += t * t;
          hi = m[k] > hi ? m[k] : hi;  // a NaN reaches q and is put back at the end of the row
          lo = m[k] < lo ? m[k] : lo;
        }
      }
      store(b.s + c, s);
      store(b.q + c, q);
      store(b.hi + c, hi);
      store(b.lo + c, lo);
    }
  });
}

template <Sum S, bool Weighted, class M, class A>
void accumulate_group(const EdgeGroup<A>& e, int64_t width, int64_t chunk, bool shared, const RowBuffers<A>& b) {
  for (int64_t base = 0; base < width; base += chunk) {
    int64_t n = min64(chunk, width - base);
    switch (e.count) {
      case 4: accumulate<S, Weighted, M, 4>(e, base, n, shared, b); break;
      case 3: accumulate<S, Weighted, M, 3>(e, base, n, shared, b); break;
      case 2: accumulate<S, Weighted, M, 2>(e, base, n, shared, b); break;
      default: accumulate<S, Weighted, M, 1>(e, base, n, shared, b); break;
    }
  }
}

// sum of exp(m - shift) for one edge.
template <class A>
void accumulate_exp(const A* m, int64_t width, const RowBuffers<A>& b) {
  for (int64_t j = 0; j < width; ++j) b.q[j] += exp_of(m[j] - b.shift[j]);
}

// What a row walk needs to know; built once per task.
template <class T>
struct Walk {
  using A = typename AccOf<T>::type;
  const RelationalSpmm& p;
  Block block;
  int64_t width, columns_total, first_column;
  int64_t x_stride, grad_stride;    // of a row of x, of a row of the input's gradient
  const T* x = nullptr;             // input, at the block's first column
  const int32_t* row_of = nullptr;  // row of x that holds each node's input; null: a row for each node
  const T* relation;                // relation table, likewise (or its start when shared)
  int64_t rel_stride;
  const T* weight;
  bool direct;  // messages formed inside the accumulation loop
  A* messages;  // kUnroll rows of `width`

  Walk(const RelationalSpmm& p, Block block, A* messages) : p(p), block(block), messages(messages) {
    width = block.width;
    columns_total = p.batch * p.dim;
    first_column = block.query * p.dim;
    if (p.input != nullptr) x = static_cast<const T*>(p.input) + first_column;
    relation = static_cast<const T*>(p.relation) + (p.shared ? 0 : first_column);
    rel_stride = p.shared ? p.dim : columns_total;
    x_stride = grad_stride = columns_total;
    weight = static_cast<const T*>(p.weight);
    constexpr bool same = sizeof(T) == sizeof(A);
    bool long_chunks = !p.shared || p.dim >= Lanes<A>::count;
    direct = same && (p.mul == Mul::kMul || p.mul == Mul::kAdd) && long_chunks &&
             (p.weight == nullptr || (p.sum == Sum::kPna));
  }

  // Gathers from a copy of the block's columns instead: rows next to each other, not B*d apart.
  void use_compact(T* copy) {
    for (int64_t v = 0; v < p.graph.num_nodes; ++v) {
      std::memcpy(copy + v * width, x + v * columns_total, width * sizeof(T));
    }
    x = copy;
    x_stride = width;
  }

  int64_t row(int64_t node) const { return row_of == nullptr ? node : row_of[node]; }
  const T* source_row(int32_t e) const { return x + row(p.graph.src[e]) * x_stride; }
  const T* relation_row(int32_t e) const { return relation + p.graph.rel[e] * rel_stride; }
  A edge_weight(int32_t e) const { return weight == nullptr ? A(1) : A(widen(weight[p.graph.eid[e]])); }
  int64_t chunk() const { return direct && p.shared ? p.dim : width; }

  // Edges [begin, end) of one row in groups; `use` gets the group with messages ready for Buffered or direct use.
  template <class F>
  IL_INLINE void groups(int32_t begin, int32_t end, bool premultiply, F&& use) const {
    for (int64_t at = begin; at < end; at += kUnroll) {  // 64 bits: the last step may pass 2^31
      const int32_t e = int32_t(at);
      EdgeGroup<A> group;
      group.first = e;
      group.count = int(min64(kUnroll, end - e));
      // Edges are ordered by relation inside a row, so first and last decide.
      group.one_relation = p.graph.rel[e] == p.graph.rel[e + group.count - 1];
      for (int k = 0; k < group.count; ++k) {
        const T* xs = source_row(e + k);
        const T* rs = relation_row(e + k);
        group.weight[k] = edge_weight(e + k);
        if (direct) {
          group.x[k] = reinterpret_cast<const A*>(xs);
          group.r[k] = reinterpret_cast<const A*>(rs);
        } else {
          A* m = messages + k * width;
          message_row(p.mul, xs, rs, width, p.dim, p.shared, m);
          if (weight != nullptr && premultiply) {
            for (int64_t j = 0; j < width; ++j) m[j] *= group.weight[k];
          }
          group.x[k] = group.r[k] = m;
        }
      }
      use(group);
    }
  }
};

template <Sum S, bool Weighted, class T, class A>
IL_INLINE void reduce_row(const Walk<T>& walk, int32_t begin, int32_t end, const RowBuffers<A>& b) {
  const bool shared = walk.direct && walk.p.shared;
  walk.groups(begin, end, /*premultiply=*/S != Sum::kPna, [&](const EdgeGroup<A>& group) {
    if (!walk.direct) {
      accumulate_group<S, Weighted, Buffered>(group, walk.width, walk.width, false, b);
    } else if (walk.p.mul == Mul::kMul) {
      accumulate_group<S, Weighted, Product>(group, walk.width, walk.chunk(), shared, b);
    } else {
      accumulate_group<S, Weighted, Translation>(group, walk.width, walk.chunk(), shared, b);
    }
  });
}

template <class T, class A>
IL_INLINE void widen_row(const T* from, A* to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] = widen(from[j]);
}

template <class T, class A>
IL_INLINE void narrow_row(const A* from, T* to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] = narrow<T>(from[j]);
}

template <class A>
IL_INLINE A root(A x);
template <>
IL_INLINE float root(float x) {
  return __builtin_sqrtf(x);
}
template <>
IL_INLINE double root(double x) {
  return __builtin_sqrt(x);
}

constexpr double kMinVariance = 1e-6;

// One PNA row into the buffers: s = mean, hi = max, lo = min, q = std. `boundary` (or null) is one more message.
// Sums are kept relative to the row's first message: Q/D - mean^2 then does not cancel when messages are alike.
template <class T, class A>
void pna_reduce_row(const Walk<T>& walk, int64_t v, const A* boundary, const RowBuffers<A>& b) {
  const RelationalSpmm& p = walk.p;
  const int64_t w = walk.width;
  const int32_t begin = p.graph.indptr[v], end = p.graph.indptr[v + 1];
  const bool weighted = p.weight != nullptr;
  if (begin < end && !weighted) {
    message_row(p.mul, walk.source_row(begin), walk.relation_row(begin), w, p.dim, p.shared, b.shift);
    for (int64_t j = 0; j < w; ++j) b.shift[j] = b.shift[j] - b.shift[j] == A(0) ? b.shift[j] : A(0);
  } else {
    fill(b.shift, w, A(0));
  }
  if (boundary != nullptr) {
    for (int64_t j = 0; j < w; ++j) {
      A t = boundary[j] - b.shift[j];
      b.hi[j] = b.lo[j] = boundary[j];
      b.s[j] = t;
      b.q[j] = t * t;
    }
  } else {
    fill(b.s, w, A(0));
    fill(b.q, w, A(0));
    fill(b.hi, w, A(-INFINITY));
    fill(b.lo, w, A(INFINITY));
  }
  if (weighted) {
    reduce_row<Sum::kPna, true>(walk, begin, end, b);
  } else {
    reduce_row<Sum::kPna, false>(walk, begin, end, b);
  }
  const A count = A(end - begin) + A(boundary != nullptr);
  const A inverse = count > A(0) ? A(1) / count : A(0);
  const A floor = A(kMinVariance);
  for (int64_t j = 0; j < w; ++j) {
    A mean = b.s[j] * inverse;
    A variance = b.q[j] * inverse - mean * mean;
    A nan_mark = b.q[j] != b.q[j] ? b.q[j] : A(0);
    b.s[j] = b.shift[j] + mean;
    b.q[j] = root(variance < floor ? floor : variance);
    b.hi[j] = nan_mark != nan_mark ? nan_mark : b.hi[j];
    b.lo[j] = nan_mark != nan_mark ? nan_mark : b.lo[j];
  }
}

}  // namespace
}  // namespace IL_ISA
}  // namespace il
