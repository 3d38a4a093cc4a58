// SPDX-License-Identifier: Apache-2.0
// relational_spmm: out[v] = (+)_{e=(x,r,v)} a_e * (relation[r] (x) input[x])  (+) boundary[v]
// The generalized Bellman-Ford step of NBFNet (Zhu et al. 2021, eq. 4); no E x B x d tensor exists at any time.
//
// Layout: edges in CSR order by destination; a row of `input` is B*d contiguous columns. Work is cut into column
// blocks of whole queries. Forward: (block, row range) tasks write disjoint output. Backward: a task owns a column
// block and walks every edge once, so it may add into the gradient rows of both the source and the relation without
// atomics or a transposed graph. Block widths depend on the shape alone: the bits do not depend on the threads.
//
// Per edge and column: forward 1 gather of input and relation (8 bytes, 2 flop; PNA 8 flop for all four statistics);
// backward the same gather and two read-modify-writes. The row routines are in relational_rows.h and
// relational_grads.h.
#include "cpu/relational_spmm.h"

#include "cpu/relational_grads.h"

namespace il {
namespace IL_ISA {
namespace {

constexpr int64_t kForwardColumns = 512;

template <class T>
void pna_row(const Walk<T>& walk, int64_t v, const RowBuffers<typename AccOf<T>::type>& b) {
  using A = typename AccOf<T>::type;
  const RelationalSpmm& p = walk.p;
  const int64_t w = walk.width, row = v * walk.columns_total + walk.first_column;
  if (p.boundary != nullptr) widen_row(static_cast<const T*>(p.boundary) + row, b.s, w);
  pna_reduce_row(walk, v, p.boundary != nullptr ? b.s : static_cast<const A*>(nullptr), b);
  T* out = static_cast<T*>(p.out) + 4 * row;
  for (int64_t base = 0; base < w; base += p.dim, out += 4 * p.dim) {
    narrow_row(b.s + base, out, p.dim);
    narrow_row(b.hi + base, out + p.dim, p.dim);
    narrow_row(b.lo + base, out + 2 * p.dim, p.dim);
    narrow_row(b.q + base, out + 3 * p.dim, p.dim);
  }
}

template <class T>
void plain_row(const Walk<T>& walk, int64_t v, const RowBuffers<typename AccOf<T>::type>& b) {
  using A = typename AccOf<T>::type;
  const RelationalSpmm& p = walk.p;
  const int64_t w = walk.width;
  const int32_t begin = p.graph.indptr[v], end = p.graph.indptr[v + 1];
  const int64_t row = v * walk.columns_total + walk.first_column;
  if (p.boundary != nullptr) {
    widen_row(static_cast<const T*>(p.boundary) + row, b.s, w);
    if (p.sum == Sum::kOr) {
      for (int64_t j = 0; j < w; ++j) b.s[j] = b.s[j] != b.s[j] ? b.s[j] : (b.s[j] != A(0) ? A(1) : A(0));
    }
  } else {
    A identity = A(0);
    if (p.sum == Sum::kMax || p.sum == Sum::kLogSumExp) identity = A(-INFINITY);
    if (p.sum == Sum::kMin) identity = A(INFINITY);
    fill(b.s, w, identity);
  }
  switch (p.sum) {
    case Sum::kSum: reduce_row<Sum::kSum, false>(walk, begin, end, b); break;
    case Sum::kMean: {
      reduce_row<Sum::kSum, false>(walk, begin, end, b);
      A count = A(end - begin) + A(p.boundary != nullptr);
      if (count > A(0)) {
        for (int64_t j = 0; j < w; ++j) b.s[j] /= count;
      }
      break;
    }
    case Sum::kMax: reduce_row<Sum::kMax, false>(walk, begin, end, b); break;
    case Sum::kMin: reduce_row<Sum::kMin, false>(walk, begin, end, b); break;
    case Sum::kOr: reduce_row<Sum::kOr, false>(walk, begin, end, b); break;
    case Sum::kLogSumExp: {
      // Two walks, one exp per message: first the maximum, then the sum relative to it.
      widen_row(b.s, b.lo, w);
      reduce_row<Sum::kMax, false>(walk, begin, end, b);
      for (int64_t j = 0; j < w; ++j) {
        b.shift[j] = b.s[j] - b.s[j] == A(0) ? b.s[j] : A(0);
        b.q[j] = exp_of(b.lo[j] - b.shift[j]);
      }
      for (int32_t e = begin; e < end; ++e) {
        message_row(p.mul, walk.source_row(e), walk.relation_row(e), w, p.dim, p.shared, walk.messages);
        if (walk.weight != nullptr) {
          A a = walk.edge_weight(e);
          for (int64_t j = 0; j < w; ++j) walk.messages[j] *= a;
        }
        accumulate_exp(walk.messages, w, b);
      }
      for (int64_t j = 0; j < w; ++j) b.s[j] = b.shift[j] + A(std::log(b.q[j]));
      break;
    }
    case Sum::kPna: break;
  }
  narrow_row(b.s, static_cast<T*>(p.out) + row, w);
}

template <class T>
void forward_rows(const RelationalSpmm& p, Block block, int64_t first, int64_t last, bool compact) {
  using A = typename AccOf<T>::type;
  const int64_t w = block.width;
  Scratch<A> scratch(w * (5 + kUnroll));
  Scratch<T> copy(compact ? p.graph.num_nodes * w : 0);
  A* s = scratch.get();
  const RowBuffers<A> b = {s, s + w, s + 2 * w, s + 3 * w, s + 4 * w};
  Walk<T> walk(p, block, s + 5 * w);
  if (compact) walk.use_compact(copy.get());
  for (int64_t v = first; v < last; ++v) {
    if (p.sum == Sum::kPna) {
      pna_row(walk, v, b);
    } else {
      plain_row(walk, v, b);
    }
  }
}

// Columns do not see each other, so the cut may depend on the threads: one task for a block of gather-sized width
// when there are enough of them, else wide blocks cut into row ranges.
template <class T>
void forward(const RelationalSpmm& p) {
  const bool small = (p.graph.num_edges + p.graph.num_nodes) * p.batch * p.dim < 32768;
  const Blocks narrow(p.batch, p.dim, gather_columns(p.graph.num_nodes, sizeof(T), p.dim));
  const bool compact = !small && narrow.count >= p.threads && worth_compacting(narrow, narrow[0].width, 1, p.threads);
  const Blocks blocks = compact ? narrow : Blocks(p.batch, p.dim, kForwardColumns);
  const RowRanges ranges(p.graph, compact || small ? 1 : 256);
  const int64_t tasks = blocks.count * ranges.count;
  parallel_tasks(tasks, small ? 1 : p.threads, [&](int64_t task) {
    const int64_t range = task % ranges.count;
    const int64_t last = range + 1 == ranges.count ? p.graph.num_nodes : ranges.first(range + 1);
    forward_rows<T>(p, blocks[task / ranges.count], ranges.first(range), last, compact);
  });
}

// ---- backward -------------------------------------------------------------------------------------------------

// Loads d out (and what the sum needs of the stored output) of row v into the row buffers.
template <class T, class A>
void load_row_grads(const RelationalSpmmBackward& args, int64_t v, int64_t first_column, int64_t w,
                    const RowGrads<A>& r) {
  const RelationalSpmm& p = args.forward;
  const int64_t row = v * p.batch * p.dim + first_column;
  const T* grad = static_cast<const T*>(args.grad_out);
  const T* out = static_cast<const T*>(p.out);
  const A count = A(p.graph.indptr[v + 1] - p.graph.indptr[v]) + A(p.boundary != nullptr);
  if (p.sum != Sum::kPna) {
    widen_row(grad + row, r.g, w);
    if (p.sum == Sum::kMean && count > A(0)) {
      for (int64_t j = 0; j < w; ++j) r.g[j] /= count;
    }
    if (p.sum == Sum::kMax || p.sum == Sum::kMin || p.sum == Sum::kLogSumExp) {
      widen_row(out + row, r.out, w);
      widen_row(r.g, r.hi_left, w);
    }
    return;
  }
  const A inverse = count > A(0) ? A(1) / count : A(0);
  const A floor = widen(narrow<T>(root(A(kMinVariance))));
  grad += 4 * row;
  out += 4 * row;
  for (int64_t base = 0; base < w; base += p.dim, grad += 4 * p.dim, out += 4 * p.dim) {
    for (int64_t j = 0; j < p.dim; ++j) {
      const int64_t c = base + j;
      A std = widen(out[3 * p.dim + j]);
      r.g[c] = widen(grad[j]) * inverse;
      r.out[c] = widen(out[j]);
      r.hi_left[c] = widen(grad[p.dim + j]);
      r.hi[c] = widen(out[p.dim + j]);
      r.lo_left[c] = widen(grad[2 * p.dim + j]);
      r.lo[c] = widen(out[2 * p.dim + j]);
      A spread = widen(grad[3 * p.dim + j]) * inverse / std;
      r.spread[c] = std <= floor ? A(0) : spread;
    }
  }
}

// Gradient of the boundary row: one more message, last in line for the extrema.
template <class T, class A>
void boundary_grad(const RelationalSpmm& p, const T* b, int64_t w, const RowGrads<A>& r, A* grad) {
  if (p.sum == Sum::kSum || p.sum == Sum::kMean) {
    std::memcpy(grad, r.g, w * sizeof(A));
    return;
  }
  for (int64_t j = 0; j < w; ++j) {
    A m = widen(b[j]);
    switch (p.sum) {
      case Sum::kMax:
      case Sum::kMin: grad[j] = m == r.out[j] ? r.hi_left[j] : A(0); break;
      case Sum::kLogSumExp: grad[j] = m == -A(INFINITY) ? A(0) : r.g[j] * exp_of(m - r.out[j]); break;
      default:
        grad[j] = A(0);  // or
        break;
      case Sum::kPna:
        grad[j] = r.g[j] + (m - r.out[j]) * r.spread[j] + (m == r.hi[j] ? r.hi_left[j] : A(0)) +
                  (m == r.lo[j] ? r.lo_left[j] : A(0));
        break;
    }
  }
}

// logsumexp of a half type was rounded when it was stored: divide the row's gradient by the sum of exp(message - out),
// which is 1 but for that rounding.
template <class T, class A>
void renormalise(const Walk<T>& walk, int64_t v, const RowGrads<A>& row, A* total) {
  const RelationalSpmm& p = walk.p;
  const int64_t w = walk.width;
  fill(total, w, A(0));
  auto add = [&](const A* m, A a) {
    for (int64_t j = 0; j < w; ++j) total[j] += a * m[j] == -A(INFINITY) ? A(0) : exp_of(a * m[j] - row.out[j]);
  };
  for (int32_t e = p.graph.indptr[v]; e < p.graph.indptr[v + 1]; ++e) {
    message_row(p.mul, walk.source_row(e), walk.relation_row(e), w, p.dim, p.shared, walk.messages);
    add(walk.messages, walk.edge_weight(e));
  }
  if (p.boundary != nullptr) {
    widen_row(static_cast<const T*>(p.boundary) + v * walk.columns_total + walk.first_column, walk.messages, w);
    add(walk.messages, A(1));
  }
  for (int64_t j = 0; j < w; ++j) row.g[j] = total[j] > A(0) ? row.g[j] / total[j] : row.g[j];
}

template <class T, class A>
void backward_block(const RelationalSpmmBackward& args, Block block, bool compact, bool clear, A* shared_relation_grad,
                    A* weight_grad) {
  const RelationalSpmm& p = args.forward;
  const int64_t w = block.width;
  Scratch<A> scratch(w * (8 + kUnroll));
  A* s = scratch.get();
  const RowGrads<A> row = {s, s + w, s + 2 * w, s + 3 * w, s + 4 * w, s + 5 * w, s + 6 * w};
  A* gm = s + 7 * w;
  Walk<T> walk(p, block, s + 8 * w);
  walk.direct =
      walk.direct && weight_grad == nullptr && p.weight == nullptr &&
      (p.sum == Sum::kSum || p.sum == Sum::kMean || p.sum == Sum::kMax || p.sum == Sum::kMin || p.sum == Sum::kPna);
  const int64_t columns_total = walk.columns_total;
  A* grad_output = static_cast<A*>(args.grad_input) + walk.first_column;
  A* grad_relation = p.shared ? shared_relation_grad : static_cast<A*>(args.grad_relation) + walk.first_column;
  Scratch<T> copy(compact ? p.graph.num_nodes * w : 0);
  Scratch<A> copy_grad(compact ? p.graph.num_nodes * w : 0);
  A* grad_input = grad_output;
  if (compact) {
    walk.use_compact(copy.get());
    walk.grad_stride = w;
    grad_input = copy_grad.get();
  }
  for (int64_t v = 0; v < p.graph.num_nodes; ++v) fill(grad_input + v * walk.grad_stride, w, A(0));
  for (int64_t r = 0; clear && r < p.num_relations; ++r) {
    fill(grad_relation + r * walk.rel_stride, p.shared ? p.dim : w, A(0));
  }
  for (int64_t v = 0; v < p.graph.num_nodes; ++v) {
    if (p.sum == Sum::kPna && v + 1 < p.graph.num_nodes) {
      const int64_t next = 4 * ((v + 1) * columns_total + walk.first_column);
      prefetch(static_cast<const T*>(args.grad_out) + next, 4 * w);
      prefetch(static_cast<const T*>(p.out) + next, 4 * w);
    }
    if (p.graph.indptr[v] == p.graph.indptr[v + 1] && args.grad_boundary == nullptr) continue;
    load_row_grads<T, A>(args, v, walk.first_column, w, row);
    if (p.sum == Sum::kLogSumExp && sizeof(T) < sizeof(A)) renormalise(walk, v, row, gm);
    scatter_row(walk, v, row, gm, grad_input, grad_relation, weight_grad);
    if (args.grad_boundary != nullptr) {
      const int64_t offset = v * columns_total + walk.first_column;
      boundary_grad(p, static_cast<const T*>(p.boundary) + offset, w, row,
                    static_cast<A*>(args.grad_boundary) + offset);
    }
  }
  for (int64_t v = 0; compact && v < p.graph.num_nodes; ++v) {
    std::memcpy(grad_output + v * columns_total, grad_input + v * w, w * sizeof(A));
  }
}

template <class T>
void backward(const RelationalSpmmBackward& args) {
  using A = typename AccOf<T>::type;
  const RelationalSpmm& p = args.forward;
  const Blocks blocks(p.batch, p.dim, gather_columns(p.graph.num_nodes, sizeof(T) + sizeof(A), p.dim));
  const int64_t table = p.num_relations * p.dim;
  // Where one partial table for each block would outgrow the node states (R close to E), the blocks add into one
  // table in turn instead.
  const bool one_table = p.shared && 4 * blocks.count * table > p.graph.num_nodes * p.batch * p.dim;
  const int64_t parts = one_table ? 1 : blocks.count;
  const int threads = one_table ? 1 : p.threads;
  const bool compact = worth_compacting(blocks, blocks[0].width, 2, threads);
  Scratch<A> relation_parts(p.shared ? parts * table : 0);
  Scratch<A> weight_parts(args.grad_weight != nullptr ? blocks.count * p.graph.num_edges : 0);
  const bool small = (p.graph.num_edges + p.graph.num_nodes) * p.batch * p.dim < 32768;
  parallel_tasks(blocks.count, small ? 1 : threads, [&](int64_t i) {
    backward_block<T, A>(args, blocks[i], compact, i == 0 || !one_table,
                         p.shared ? relation_parts.get() + (i % parts) * table : nullptr,
                         args.grad_weight != nullptr ? weight_parts.get() + i * p.graph.num_edges : nullptr);
  });
  if (p.shared) reduce_parts(relation_parts.get(), parts, table, static_cast<A*>(args.grad_relation));
  if (args.grad_weight != nullptr) {
    reduce_parts(weight_parts.get(), blocks.count, p.graph.num_edges, static_cast<A*>(args.grad_weight));
  }
}

}  // namespace

void relational_spmm(const RelationalSpmm& args) {
  switch (args.dtype) {
    case DType::kFloat32: forward<float>(args); break;
    case DType::kFloat64: forward<double>(args); break;
    case DType::kBFloat16: forward<bf16>(args); break;
    default: forward<fp16>(args);
  }
}

void relational_spmm_backward(const RelationalSpmmBackward& args) {
  switch (args.forward.dtype) {
    case DType::kFloat32: backward<float>(args); break;
    case DType::kFloat64: backward<double>(args); break;
    case DType::kBFloat16: backward<bf16>(args); break;
    default: backward<fp16>(args);
  }
}

}  // namespace IL_ISA
}  // namespace il
