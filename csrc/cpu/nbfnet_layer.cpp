// SPDX-License-Identifier: Apache-2.0
// nbfnet_layer: a whole PNA layer of NBFNet in one pass over the nodes (Zhu et al. 2021, section 3.3):
//   f(v)   = PNA over in-edges of input[x] (x) relation[r], and the query where v is its source    (4 d)
//   pre(v) = W [input(v), f(v) (x) scalers(v)] + b                                                 (D)
//   out(v) = relu(LayerNorm(pre(v))) (+ input(v))
//
// The scalers depend on the degree alone, so the 12 d wide product is a 4 d wide one with the weights
// W1 + s W2 + s' W3 of that degree. Rows are visited by degree and those weights made once for each: a third of the
// multiplications, and neither the 12-fold nor the 4-fold feature tensor exists. A row's features stay in L1 from
// the gather to the store. Backward makes the features again from `input` (memory: `input` and `pre` of each layer)
// and keeps everything else in L1 as well; per node state U it reads input, pre and grad_out and writes grad_input.
//
// In the first layer the input is the boundary: nearly every row sees zero messages only. Such a row has the value of
// its degree, which is stored without a gather or a product; see FirstLayer.
//
// Parallel over blocks of queries (and row ranges in forward). Parameter gradients are kept per block and reduced in
// block order: the bits do not depend on the threads.
#include "cpu/nbfnet_layer.h"

#include "core/gemm.h"
#include "cpu/relational_grads.h"

namespace il {
namespace IL_ISA {
namespace {

constexpr int kGroup = 4;  // nodes of one degree that share a trip through the weights
constexpr int kScalers = 3;
constexpr int kStatistics = 4;

// Of a block: what gathers well, and blocks enough for four threads.
int64_t layer_columns(const NbfnetLayer& p, int64_t bytes_per_column) {
  const int64_t queries = gather_columns(p.graph.num_nodes, bytes_per_column, p.dim) / max64(p.dim, 1);
  return min64(max64(queries, 1), max64((p.batch + 3) / 4, 1)) * p.dim;
}

RelationalSpmm spmm_of(const NbfnetLayer& p) {
  RelationalSpmm s{};
  s.graph = p.graph;
  s.num_relations = p.num_relations;
  s.batch = p.batch;
  s.dim = p.dim;
  s.dtype = p.dtype;
  s.sum = Sum::kPna;
  s.mul = p.mul;
  s.shared = p.shared;
  s.input = p.input;
  s.relation = p.relation;
  s.threads = p.threads;
  return s;
}

int64_t degree(const CsrView& g, int64_t v) { return g.indptr[v + 1] - g.indptr[v]; }

// Nodes by in-degree (counting sort, stable), cut into groups of up to kGroup nodes of one degree.
struct Groups {
  Scratch<int32_t> order;  // [V]
  Scratch<int32_t> start;  // [count + 1]
  int64_t count = 0;

  explicit Groups(const CsrView& g) : order(g.num_nodes), start(g.num_nodes + 1) {
    int64_t largest = 0;
    for (int64_t v = 0; v < g.num_nodes; ++v) largest = max64(largest, degree(g, v));
    Scratch<int32_t> buckets(largest + 2);
    int32_t* next = buckets.get();
    fill(next, largest + 2, int32_t(0));
    for (int64_t v = 0; v < g.num_nodes; ++v) ++next[degree(g, v) + 1];
    for (int64_t k = 0; k <= largest; ++k) next[k + 1] += next[k];
    for (int64_t v = 0; v < g.num_nodes; ++v) order.get()[next[degree(g, v)]++] = int32_t(v);
    for (int64_t i = 0; i < g.num_nodes;) {
      start.get()[count++] = int32_t(i);
      const int64_t first = degree(g, order.get()[i]), begin = i;
      while (i < g.num_nodes && i - begin < kGroup && degree(g, order.get()[i]) == first) ++i;
    }
    start.get()[count] = int32_t(g.num_nodes);
  }
  const int32_t* nodes(int64_t i) const { return order.data() + start.data()[i]; }
  int64_t size(int64_t i) const { return start.data()[i + 1] - start.data()[i]; }
};

// Column of the official weight that belongs to statistic t of channel c under scaler k.
IL_INLINE int64_t update_column(int64_t d, int64_t c, int64_t t, int64_t k) {
  return d + (c * kStatistics + t) * kScalers + k;
}

// Weights by use: own [d][D]; then for each scaler k one [4 d][D], statistic-major.
template <class A>
struct Weights {
  int64_t d, D;
  Scratch<A> own;
  Scratch<A> update;

  explicit Weights(const NbfnetLayer& p) : d(p.dim), D(p.out_dim), own(d * D), update(kScalers * kStatistics * d * D) {
    const A* w = static_cast<const A*>(p.weight);
    for (int64_t n = 0; n < D; ++n, w += 13 * d) {
      for (int64_t c = 0; c < d; ++c) {
        own.get()[c * D + n] = w[c];
        for (int64_t t = 0; t < kStatistics; ++t) {
          for (int64_t k = 0; k < kScalers; ++k) {
            update.get()[((k * kStatistics + t) * d + c) * D + n] = w[update_column(d, c, t, k)];
          }
        }
      }
    }
  }

  // out [4 d][D] = W1 + s W2 + s' W3
  void combine(const A* scalers, A* out) const {
    const int64_t n = kStatistics * d * D;
    const A *w1 = update.data(), *w2 = w1 + n, *w3 = w2 + n;
    for (int64_t i = 0; i < n; ++i) out[i] = scalers[0] * w1[i] + scalers[1] * w2[i] + scalers[2] * w3[i];
  }
};

template <class A>
void transpose(const A* from, int64_t rows, int64_t cols, A* to) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) to[j * rows + i] = from[i * cols + j];
  }
}

// Whether zero input gives zero features for every relation: not where a weight or relation is not finite.
template <class A>
bool keeps_zero(const NbfnetLayer& p) {
  if (p.mul != Mul::kMul && p.mul != Mul::kRotate) return false;
  auto finite = [](const void* data, int64_t n) {
    const A* x = static_cast<const A*>(data);
    return sum_of<A>(n, [&](auto lane, int64_t j) {
             auto r = load<decltype(lane)>(x + j);
             return r - r;
           }) == A(0);
  };
  return finite(p.relation, p.num_relations * p.dim * (p.shared ? 1 : p.batch)) &&
         finite(p.weight, p.out_dim * 13 * p.dim);
}

// The input of the first layer for a block: one row for each source, and row 0 of zeros for all other nodes.
template <class A>
struct FirstLayer {
  const CsrView& g;
  int64_t count = 1;  // rows
  Scratch<int32_t> row_of;
  Scratch<A> rows;

  FirstLayer(bool wanted, const NbfnetLayer& p, Walk<A>& walk)
      : g(p.graph), row_of(wanted ? g.num_nodes : 0), rows(wanted ? (walk.width / p.dim + 1) * walk.width : 0) {
    if (!wanted) return;
    const int64_t w = walk.width, d = p.dim;
    fill(row_of.get(), g.num_nodes, int32_t(0));
    fill(rows.get(), (w / d + 1) * w, A(0));
    for (int64_t q = 0; q < w / d; ++q) {
      const int64_t query = walk.block.query + q;
      int32_t& row = row_of.get()[p.source[query]];
      if (row == 0) row = int32_t(count++);
      std::memcpy(rows.get() + row * w + q * d, static_cast<const A*>(p.query) + query * d, d * sizeof(A));
    }
    walk.row_of = row_of.data();
    walk.x = rows.data();
    walk.x_stride = w;
  }

  // Whether v is a source of the block or gets a message from one. All other rows have zero input and zero messages,
  // and no query learns from them.
  bool reaches(int64_t v) const {
    if (row_of.data()[v] != 0) return true;
    for (int32_t e = g.indptr[v]; e < g.indptr[v + 1]; ++e) {
      if (row_of.data()[g.src[e]] != 0) return true;
    }
    return false;
  }
};

// `pre` of a row that is not reached: only the constant std of its messages contributes.
template <class A>
void unreached_pre(const NbfnetLayer& p, const A* combined, A* y) {
  const A std = root(A(kMinVariance));
  const A zero = A(0);
  std::memcpy(y, p.bias, p.out_dim * sizeof(A));
  for (int t = 0; t < kStatistics; ++t) {
    gemm<A>({t == kStatistics - 1 ? &std : &zero, 0, 0}, combined + t * p.dim * p.out_dim, p.out_dim, y, p.out_dim, 1,
            p.out_dim, p.dim, true);
  }
}

// The boundary of row v: the query of every column whose source is v, zero elsewhere.
template <class A>
void boundary_row(const NbfnetLayer& p, Block block, int64_t v, A* out) {
  fill(out, block.width, A(0));
  const A* query = static_cast<const A*>(p.query);
  for (int64_t q = 0; q < block.width / p.dim; ++q) {
    if (p.source[block.query + q] != v) continue;
    std::memcpy(out + q * p.dim, query + (block.query + q) * p.dim, p.dim * sizeof(A));
  }
}

template <class A>
struct Moments {
  A mean, inverse_std;
};

template <class A>
IL_INLINE Moments<A> moments(const A* y, int64_t n, A eps) {
  const A mean = sum_of<A>(n, [&](auto lane, int64_t j) { return load<decltype(lane)>(y + j); }) / A(n);
  const A variance = sum_of<A>(n,
                               [&](auto lane, int64_t j) {
                                 auto t = load<decltype(lane)>(y + j) - mean;
                                 return t * t;
                               }) /
                     A(n);
  return {mean, A(1) / root(variance + eps)};
}

// out = relu(LayerNorm(y)) (+ input), each step if wanted; one query of one row.
template <class A>
void epilogue(const NbfnetLayer& p, const A* y, const A* input, A* out) {
  const A* gain = static_cast<const A*>(p.norm_weight);
  const A* shift = static_cast<const A*>(p.norm_bias);
  Moments<A> m{A(0), A(1)};
  if (gain != nullptr) m = moments(y, p.out_dim, A(p.eps));
  columns<A>(p.out_dim, [&](auto lane, int64_t j) {
    using V = decltype(lane);
    V z = load<V>(y + j);
    if (gain != nullptr) z = (z - m.mean) * m.inverse_std * load<V>(gain + j) + load<V>(shift + j);
    if (p.relu) z = z < V{} ? V{} : z;  // NaN stays
    if (p.residual) z += load<V>(input + j);
    store(out + j, z);
  });
}

// Row buffers of one node of a group.
template <class A>
RowBuffers<A> node_buffers(const RowBuffers<A>& b, int64_t offset) {
  return {b.s + offset, b.q + offset, b.hi + offset, b.lo + offset, b.shift};
}

template <class A>
void forward(const NbfnetLayer& p) {
  const RelationalSpmm s = spmm_of(p);
  const int64_t d = p.dim, D = p.out_dim, V = p.graph.num_nodes;
  const Blocks blocks(p.batch, d, layer_columns(p, sizeof(A)));
  const Weights<A> weights(p);
  const Groups groups(p.graph);
  const bool first_layer = p.input == nullptr, skip_unreached = first_layer && keeps_zero<A>(p);
  // Rows do not see each other, so the cut may depend on the threads.
  const bool compact =
      !first_layer && blocks.count >= p.threads && worth_compacting(blocks, blocks[0].width, 1, p.threads);
  const int64_t chunks = compact ? 1 : min64(max64(groups.count / 16, 1), 64);
  const bool small = (p.graph.num_edges + V) * p.batch * d < 4096;
  parallel_tasks(blocks.count * chunks, small ? 1 : p.threads, [&](int64_t task) {
    const Block block = blocks[task % blocks.count];
    const int64_t w = block.width, queries = w / d;
    Scratch<A> scratch(w * (2 + kUnroll + 5 * kGroup) + kGroup * queries * D + kStatistics * d * D + d + 2 * D);
    A* a = scratch.get();
    A* boundary = a;
    Walk<A> walk(s, block, a + 2 * w);
    Scratch<A> copy(compact ? V * w : 0);
    if (compact) walk.use_compact(copy.get());
    const FirstLayer<A> first(first_layer, p, walk);
    const RowBuffers<A> b = {a + (2 + kUnroll) * w, a + (2 + kUnroll + kGroup) * w, a + (2 + kUnroll + 2 * kGroup) * w,
                             a + (2 + kUnroll + 3 * kGroup) * w, a + w};
    A* input = a + (2 + kUnroll + 4 * kGroup) * w;
    A* y = input + kGroup * w;
    A* combined = y + kGroup * queries * D;
    A* zeros = combined + kStatistics * d * D;
    A* unreached_y = zeros + d;
    A* unreached_out = unreached_y + D;
    fill(zeros, d, A(0));
    const A* statistics[kStatistics] = {b.s, b.hi, b.lo, b.q};
    int64_t combined_degree = -1;
    // Groups are dealt out like cards: the large degrees, which come last in the order, are shared by all tasks.
    for (int64_t i = task / blocks.count; i < groups.count; i += chunks) {
      int32_t nodes[kGroup];
      std::memcpy(nodes, groups.nodes(i), groups.size(i) * sizeof(int32_t));
      if (degree(p.graph, nodes[0]) != combined_degree) {
        combined_degree = degree(p.graph, nodes[0]);
        weights.combine(static_cast<const A*>(p.scalers) + kScalers * nodes[0], combined);
        if (skip_unreached) {
          unreached_pre(p, combined, unreached_y);
          epilogue(p, unreached_y, zeros, unreached_out);
        }
      }
      int64_t size = 0;
      for (int64_t k = 0; k < groups.size(i); ++k) {
        if (!skip_unreached || first.reaches(nodes[k])) {
          nodes[size++] = nodes[k];
          continue;
        }
        const int64_t at = (nodes[k] * p.batch + block.query) * D;
        for (int64_t q = 0; q < queries; ++q) {
          if (p.pre != nullptr) std::memcpy(static_cast<A*>(p.pre) + at + q * D, unreached_y, D * sizeof(A));
          std::memcpy(static_cast<A*>(p.out) + at + q * D, unreached_out, D * sizeof(A));
        }
      }
      for (int64_t k = 0; k < size; ++k) {
        boundary_row(p, block, nodes[k], boundary);
        pna_reduce_row(walk, nodes[k], static_cast<const A*>(boundary), node_buffers(b, k * w));
        std::memcpy(input + k * w, walk.x + walk.row(nodes[k]) * walk.x_stride, w * sizeof(A));
      }
      const int64_t rows = size * queries;
      for (int64_t r = 0; r < rows; ++r) std::memcpy(y + r * D, p.bias, D * sizeof(A));
      gemm<A>({input, d, 1}, weights.own.data(), D, y, D, rows, D, d, true);
      for (int t = 0; t < kStatistics; ++t) {
        gemm<A>({statistics[t], d, 1}, combined + t * d * D, D, y, D, rows, D, d, true);
      }
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = (nodes[r / queries] * p.batch + block.query + r % queries) * D;
        if (p.pre != nullptr) std::memcpy(static_cast<A*>(p.pre) + at, y + r * D, D * sizeof(A));
        epilogue(p, y + r * D, input + r * d, static_cast<A*>(p.out) + at);
      }
    }
  });
}

// Parameter gradients of one block, laid out like Weights, then bias and LayerNorm.
template <class A>
struct ParameterGrads {
  A *own, *update, *bias, *gain, *shift;
  static int64_t size(int64_t d, int64_t D) { return (1 + kScalers * kStatistics) * d * D + 3 * D; }
  ParameterGrads(A* base, int64_t d, int64_t D) : own(base) {
    update = own + d * D;
    bias = update + kScalers * kStatistics * d * D;
    gain = bias + D;
    shift = gain + D;
  }
};

// Back through residual, relu and LayerNorm for one query of one row: gy = d pre, and the parameters' gradients.
template <class A>
void epilogue_backward(const NbfnetLayer& p, const A* y, const A* grad_out, A* gy, const ParameterGrads<A>& grads) {
  const int64_t D = p.out_dim;
  const A* gain = static_cast<const A*>(p.norm_weight);
  const A* shift = static_cast<const A*>(p.norm_bias);
  if (gain == nullptr) {
    columns<A>(D, [&](auto lane, int64_t j) {
      using V = decltype(lane);
      V g = load<V>(grad_out + j);
      if (p.relu) g = load<V>(y + j) > V{} ? g : V{};
      store(gy + j, g);
      store(grads.bias + j, load<V>(grads.bias + j) + g);
    });
    return;
  }
  const Moments<A> m = moments(y, D, A(p.eps));
  columns<A>(D, [&](auto lane, int64_t j) {
    using V = decltype(lane);
    const V x = (load<V>(y + j) - m.mean) * m.inverse_std, w = load<V>(gain + j);
    V g = load<V>(grad_out + j);
    if (p.relu) g = x * w + load<V>(shift + j) > V{} ? g : V{};
    store(grads.gain + j, load<V>(grads.gain + j) + g * x);
    store(grads.shift + j, load<V>(grads.shift + j) + g);
    store(gy + j, g * w);
  });
  const A mean = sum_of<A>(D, [&](auto lane, int64_t j) { return load<decltype(lane)>(gy + j); }) / A(D);
  const A slope = sum_of<A>(D,
                            [&](auto lane, int64_t j) {
                              using V = decltype(lane);
                              return load<V>(gy + j) * (load<V>(y + j) - m.mean);
                            }) *
                  m.inverse_std / A(D);
  columns<A>(D, [&](auto lane, int64_t j) {
    using V = decltype(lane);
    const V x = (load<V>(y + j) - m.mean) * m.inverse_std;
    const V g = (load<V>(gy + j) - mean - x * slope) * m.inverse_std;
    store(gy + j, g);
    store(grads.bias + j, load<V>(grads.bias + j) + g);
  });
}

template <class A>
void backward_block(const NbfnetLayerBackward& args, const RelationalSpmm& s, Block block, const Groups& groups,
                    const Weights<A>& weights, const A* own_transposed, const ParameterGrads<A>& grads,
                    A* shared_relation_grad, bool compact, bool clear, bool skip_unreached) {
  const NbfnetLayer& p = args.forward;
  const int64_t d = p.dim, D = p.out_dim, V = p.graph.num_nodes, w = block.width, queries = w / d;
  const int64_t table = kStatistics * d * D, wide = kGroup * w;
  Scratch<A> scratch(w * (2 + kUnroll) + 11 * wide + kGroup * queries * D + 3 * table + 3 * D);
  A* a = scratch.get();
  A* gm = a;  // also the shift of the reduction
  Walk<A> walk(s, block, a + 2 * w);
  a += (2 + kUnroll) * w;
  const RowBuffers<A> b = {a, a + wide, a + 2 * wide, a + 3 * wide, gm};
  A* boundary = a + 4 * wide;
  A* input = a + 5 * wide;
  A* input_grad = a + 6 * wide;
  A* feature_grad[kStatistics] = {a + 7 * wide, a + 8 * wide, a + 9 * wide, a + 10 * wide};  // mean max min std
  A* gy = a + 11 * wide;
  A* combined = gy + kGroup * queries * D;
  A* combined_transposed = combined + table;
  A* combined_grad = combined_transposed + table;
  A* unreached_y = combined_grad + table;
  A* unreached_gy = unreached_y + D;  // of one row
  A* unreached_total = unreached_gy + D;
  const A* statistics[kStatistics] = {b.s, b.hi, b.lo, b.q};

  // The first layer has a gradient row for each source, and row 0 takes what nobody asks for.
  const bool first_layer = p.input == nullptr;
  const FirstLayer<A> first(first_layer, p, walk);
  const int64_t rows_of_x = first_layer ? first.count : V;
  Scratch<A> copy(compact ? V * w : 0), copy_grad(compact || first_layer ? rows_of_x * w : 0);
  A* grad_output = first_layer ? nullptr : static_cast<A*>(args.grad_input) + walk.first_column;
  A* grad_input = grad_output;
  if (compact) walk.use_compact(copy.get());
  if (compact || first_layer) {
    walk.grad_stride = w;
    grad_input = copy_grad.get();
  }
  A* grad_relation = p.shared ? shared_relation_grad : static_cast<A*>(args.grad_relation) + walk.first_column;
  for (int64_t r = 0; r < rows_of_x; ++r) fill(grad_input + r * walk.grad_stride, w, A(0));
  for (int64_t r = 0; clear && r < p.num_relations; ++r)
    fill(grad_relation + r * walk.rel_stride, p.shared ? d : w, A(0));
  fill(grads.own, ParameterGrads<A>::size(d, D), A(0));
  fill(combined_grad, table, A(0));
  fill(unreached_total, D, A(0));

  int64_t combined_degree = -1;
  const A* scalers = nullptr;
  auto flush = [&] {  // d W_k += scaler_k d (combined)
    const A std = root(A(kMinVariance));
    for (int64_t i = 0; skip_unreached && i < table / kStatistics; ++i) {
      combined_grad[(kStatistics - 1) * table / kStatistics + i] += std * unreached_total[i % D];
    }
    fill(unreached_total, D, A(0));
    for (int k = 0; scalers != nullptr && k < kScalers; ++k) {
      A* into = grads.update + k * table;
      for (int64_t i = 0; i < table; ++i) into[i] += scalers[k] * combined_grad[i];
    }
    fill(combined_grad, table, A(0));
  };
  for (int64_t i = 0; i < groups.count; ++i) {
    int32_t nodes[kGroup];
    std::memcpy(nodes, groups.nodes(i), groups.size(i) * sizeof(int32_t));
    if (degree(p.graph, nodes[0]) != combined_degree) {
      flush();
      combined_degree = degree(p.graph, nodes[0]);
      scalers = static_cast<const A*>(p.scalers) + kScalers * nodes[0];
      weights.combine(scalers, combined);
      for (int t = 0; t < kStatistics; ++t) transpose(combined + t * d * D, d, D, combined_transposed + t * d * D);
      if (skip_unreached) unreached_pre(p, combined, unreached_y);
    }
    int64_t size = 0;
    for (int64_t k = 0; k < groups.size(i); ++k) {
      if (!skip_unreached || first.reaches(nodes[k])) {
        nodes[size++] = nodes[k];
        continue;
      }
      const A* grad_out = static_cast<const A*>(args.grad_out) + (nodes[k] * p.batch + block.query) * D;
      for (int64_t q = 0; q < queries; ++q) {
        epilogue_backward(p, unreached_y, grad_out + q * D, unreached_gy, grads);
        for (int64_t n = 0; n < D; ++n) unreached_total[n] += unreached_gy[n];
      }
    }
    if (i + 1 < groups.count) {
      for (int64_t k = 0; k < groups.size(i + 1); ++k) {
        const int64_t next = (groups.nodes(i + 1)[k] * p.batch + block.query) * D;
        prefetch(static_cast<const A*>(args.grad_out) + next, queries * D);
        prefetch(static_cast<const A*>(p.pre) + next, queries * D);
      }
    }
    if (size == 0) continue;
    const int64_t rows = size * queries;
    for (int64_t k = 0; k < size; ++k) {
      boundary_row(p, block, nodes[k], boundary + k * w);
      pna_reduce_row(walk, nodes[k], static_cast<const A*>(boundary + k * w), node_buffers(b, k * w));
      std::memcpy(input + k * w, walk.x + walk.row(nodes[k]) * walk.x_stride, w * sizeof(A));
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (nodes[r / queries] * p.batch + block.query + r % queries) * D;
      epilogue_backward(p, static_cast<const A*>(p.pre) + at, static_cast<const A*>(args.grad_out) + at, gy + r * D,
                        grads);
    }
    gemm<A>({input, 1, d}, gy, D, grads.own, D, d, D, rows, true);
    gemm<A>({gy, D, 1}, own_transposed, d, input_grad, d, rows, d, D, false);
    for (int t = 0; t < kStatistics; ++t) {
      gemm<A>({statistics[t], 1, d}, gy, D, combined_grad + t * d * D, D, d, D, rows, true);
      gemm<A>({gy, D, 1}, combined_transposed + t * d * D, d, feature_grad[t], d, rows, d, D, false);
    }
    const A inverse = A(1) / A(combined_degree + 1);
    const A floor = root(A(kMinVariance));
    for (int64_t j = 0; j < size * w; ++j) {  // d std becomes the spread, d mean its share of each message
      A spread = feature_grad[3][j] * inverse / b.q[j];
      feature_grad[0][j] *= inverse;
      feature_grad[3][j] = b.q[j] <= floor ? A(0) : spread;
    }
    for (int64_t k = 0; k < size; ++k) {
      const int64_t v = nodes[k], o = k * w;
      const RowGrads<A> row = {
          feature_grad[0] + o, b.s + o, feature_grad[3] + o, b.hi + o, b.lo + o, feature_grad[1] + o,
          feature_grad[2] + o};
      A* grad_row = grad_input + walk.row(v) * walk.grad_stride;
      const A* grad_out = static_cast<const A*>(args.grad_out) + (v * p.batch + block.query) * D;
      for (int64_t j = 0; j < w; ++j) grad_row[j] += input_grad[o + j];
      for (int64_t j = 0; p.residual && j < w; ++j) grad_row[j] += grad_out[j];
      scatter_row(walk, v, row, gm, grad_input, grad_relation, static_cast<A*>(nullptr));
      for (int64_t q = 0; q < queries; ++q) {
        if (p.source[block.query + q] != v) continue;
        A* grad_query = static_cast<A*>(args.grad_query) + (block.query + q) * d;
        for (int64_t j = 0; j < d; ++j) {
          const int64_t c = q * d + j;
          const A value = boundary[o + c];
          grad_query[j] = row.g[c] + (value - row.out[c]) * row.spread[c] +
                          (value == row.hi[c] ? row.hi_left[c] : A(0)) + (value == row.lo[c] ? row.lo_left[c] : A(0));
        }
      }
    }
  }
  flush();
  for (int64_t q = 0; first_layer && q < queries; ++q) {  // the boundary as input, besides as message
    const A* grad = grad_input + walk.row(p.source[block.query + q]) * w + q * d;
    A* grad_query = static_cast<A*>(args.grad_query) + (block.query + q) * d;
    for (int64_t j = 0; j < d; ++j) grad_query[j] += grad[j];
  }
  for (int64_t v = 0; compact && v < V; ++v) {
    std::memcpy(grad_output + v * walk.columns_total, grad_input + v * w, w * sizeof(A));
  }
}

template <class A>
void backward(const NbfnetLayerBackward& args) {
  const NbfnetLayer& p = args.forward;
  const RelationalSpmm s = spmm_of(p);
  const int64_t d = p.dim, D = p.out_dim, V = p.graph.num_nodes;
  const Blocks blocks(p.batch, d, layer_columns(p, 2 * sizeof(A)));
  const Weights<A> weights(p);
  Scratch<A> own_transposed(d * D);
  transpose(weights.own.data(), d, D, own_transposed.get());
  const Groups groups(p.graph);
  const int64_t table = p.num_relations * d, parameters = ParameterGrads<A>::size(d, D);
  // Where one partial table for each block would outgrow the node states (R close to E), the blocks add into one
  // table in turn instead.
  const bool one_table = p.shared && 4 * blocks.count * table > p.graph.num_nodes * p.batch * d;
  const int64_t parts = one_table ? 1 : blocks.count;
  const int threads = one_table ? 1 : p.threads;
  const bool compact = p.input != nullptr && worth_compacting(blocks, blocks[0].width, 2, threads);
  const bool skip_unreached = p.input == nullptr && keeps_zero<A>(p);
  Scratch<A> relation_parts(p.shared ? parts * table : 0);
  Scratch<A> parameter_parts((blocks.count + 1) * parameters);
  const bool small = (p.graph.num_edges + V) * p.batch * d < 4096;
  parallel_tasks(blocks.count, small ? 1 : threads, [&](int64_t i) {
    backward_block<A>(args, s, blocks[i], groups, weights, own_transposed.get(),
                      ParameterGrads<A>(parameter_parts.get() + i * parameters, d, D),
                      p.shared ? relation_parts.get() + (i % parts) * table : nullptr, compact, i == 0 || !one_table,
                      skip_unreached);
  });
  if (p.shared) reduce_parts(relation_parts.get(), parts, table, static_cast<A*>(args.grad_relation));
  A* total = parameter_parts.get() + blocks.count * parameters;
  reduce_parts(parameter_parts.get(), blocks.count, parameters, total);
  const ParameterGrads<A> g(total, d, D);
  A* grad_weight = static_cast<A*>(args.grad_weight);
  for (int64_t n = 0; n < D; ++n, grad_weight += 13 * d) {
    for (int64_t c = 0; c < d; ++c) {
      grad_weight[c] = g.own[c * D + n];
      for (int64_t t = 0; t < kStatistics; ++t) {
        for (int64_t k = 0; k < kScalers; ++k) {
          grad_weight[update_column(d, c, t, k)] = g.update[((k * kStatistics + t) * d + c) * D + n];
        }
      }
    }
  }
  std::memcpy(args.grad_bias, g.bias, D * sizeof(A));
  if (args.grad_norm_weight != nullptr) {
    std::memcpy(args.grad_norm_weight, g.gain, D * sizeof(A));
    std::memcpy(args.grad_norm_bias, g.shift, D * sizeof(A));
  }
}

}  // namespace

void nbfnet_layer(const NbfnetLayer& args) {
  args.dtype == DType::kFloat64 ? forward<double>(args) : forward<float>(args);
}

void nbfnet_layer_backward(const NbfnetLayerBackward& args) {
  args.forward.dtype == DType::kFloat64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace IL_ISA
}  // namespace il
