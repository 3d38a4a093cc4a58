// SPDX-License-Identifier: Apache-2.0
// Attention of each query to a band of keys, and to a few global ones:
//   s_ij = scale · q_i · k_j (+ bias_h[j - p_i]),  j in [low_i, high_i) valid, or global
//   o_i = Σ_j softmax_j(s_ij) v_j (+ residual_i)
//
// Forward. A task walks its queries in tiles of kTile. Keys come in blocks of kBlock on a fixed grid; a block is packed
// once per task, transposed (channel-major) for the scores, into a ring that holds what one tile can see. A tile visits
// the blocks of its band with the online softmax: scores, weights and the tile's output stay in L1, and only blocks at
// the band's two ends are masked. Global keys are blocks that every tile visits first. FLOPs: 4 · D per visible (query,
// key); kTile queries share each load of a block from L2.
//
// Backward. The weights are formed again from the saved lse; 5 products instead of 2. Key gradients are added up in
// slabs beside the ring, and go to memory once per task and key. Tasks are runs of queries long enough that those of
// every second task share no key: first the even ones, then the odd ones. So there are no locks, and the same bits for
// every number of threads.
//
// Nothing of size queries × keys is stored: scratch is a band of keys per thread.
#include "cpu/band_attention.h"

#include "core/gemm.h"
#include "core/online_softmax.h"
#include "core/simd.h"
#include "core/transpose.h"

namespace il {
namespace IL_ISA {
namespace {

constexpr int64_t kTile = 24;          // queries
constexpr int64_t kBackwardTile = 48;  // more of them share the loads and stores of a key gradient
constexpr int64_t kGroup = 6;          // queries of a register tile
constexpr int64_t kBlock = 64;         // keys

// ---- dropout ----

// A small integer hash (two rounds of xor-shift and multiply), the same for a vector of j.
IL_INLINE uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}
IL_INLINE uint32_t row_seed(uint64_t seed, int64_t b, int64_t h, int64_t i) {
  const uint64_t at = seed ^ (uint64_t(b) << 48) ^ (uint64_t(h) << 32) ^ uint64_t(i);
  return mix(uint32_t(at) ^ mix(uint32_t(at >> 32) + 0x9e3779b9u));
}

// Sets weights to 0 or keep_factor times themselves; j counts from `first` in the hash.
template <class A>
void drop(A* row, int64_t from, int64_t to, int64_t first, uint32_t seed, uint32_t below, double factor) {
  for (int64_t j = from; j < to; ++j) {
    const A kept = row[j] * A(factor);
    row[j] = mix(uint32_t(first + j) * 0x9e3779b9u + seed) >= below ? kept : A(0);
  }
}

template <class T>
const T* row_of(const HeadsView& t, int64_t b, int64_t h, int64_t i) {
  return static_cast<const T*>(t.data) + b * t.batch_stride + h * t.head_stride + i * t.row_stride;
}

template <class A>
int64_t padded(int64_t n) {
  constexpr int64_t lanes = Lanes<A>::count;
  return (n + lanes - 1) / lanes * lanes;
}

// ---- blocks of keys, packed once per task ----

// A block of keys as the products read it.
template <class A>
struct Block {
  int64_t first;  // its first key
  const A* k_t;   // [D][kBlock]
  const A* v;     // [kBlock] rows, v_stride apart
  int64_t v_stride;
  const A* v_t;  // [D][kBlock], backward only
  const A* k;    // [kBlock] rows, k_stride apart, backward only
  int64_t k_stride;
  const A* mask;       // [kBlock] 0 or -inf, or null: all keys are valid
  A *grad_k, *grad_v;  // [kBlock][Dp] slabs, backward only
};

// Packs blocks of one (batch, key head) on demand. Slots are reused in turn.
template <class T>
class Ring {
  using A = typename AccOf<T>::type;

 public:
  Ring(const HeadsView& k, const HeadsView& v, const uint8_t* valid, int64_t num_keys, int64_t dim, int64_t slots,
       bool backward, A* grad_k, A* grad_v)
      : k_(k),
        v_(v),
        valid_(valid),
        num_keys_(num_keys),
        dim_(dim),
        dp_(padded<A>(dim)),
        slots_(slots),
        backward_(backward),
        direct_(sizeof(T) == sizeof(A) && dim == padded<A>(dim) && valid == nullptr),
        tags_(slots),
        k_t_(slots * dim * kBlock),
        v_rows_(direct_ ? 0 : slots * kBlock * dp_),
        v_t_(backward ? slots * dim * kBlock : 0),
        k_rows_(backward && !direct_ ? slots * kBlock * dp_ : 0),
        mask_(valid != nullptr ? slots * kBlock : 0),
        grads_(backward ? 2 * slots * kBlock * dp_ : 0),
        grad_k_(grad_k),
        grad_v_(grad_v) {
    fill(tags_.get(), slots, int64_t(-1));
  }

  // For another head: forgets everything.
  void start(int64_t b, int64_t h) {
    flush();
    b_ = b;
    h_ = h;
  }

  Block<A> get(int64_t index) {
    const int64_t slot = index % slots_;
    const int64_t first = index * kBlock, size = min64(kBlock, num_keys_ - first);
    A* const k_t = k_t_.get() + slot * dim_ * kBlock;
    A* const v_rows = v_rows_.get() + slot * kBlock * dp_;
    A* const v_t = v_t_.get() + slot * dim_ * kBlock;
    A* const k_rows = k_rows_.get() + slot * kBlock * dp_;
    A* const mask = mask_.get() + slot * kBlock;
    A* const slab = grads_.get() + 2 * slot * kBlock * dp_;
    const bool direct = direct_ && size == kBlock;
    if (tags_.get()[slot] != index) {
      evict(slot);
      tags_.get()[slot] = index;
      pack(k_, first, size, k_t);
      if (backward_) {
        pack(v_, first, size, v_t);
        fill(slab, 2 * kBlock * dp_, A(0));
      }
      if (valid_ != nullptr) {
        const uint8_t* valid = valid_ + b_ * num_keys_ + first;
        for (int64_t j = 0; j < kBlock; ++j) mask[j] = j < size && valid[j] ? A(0) : -A(INFINITY);
      }
      if (!direct && !direct_) {
        widen_rows(v_, first, size, v_rows);
        if (backward_) widen_rows(k_, first, size, k_rows);
      }
    }
    // Direct: rows as they lie in memory. A block cut short by the last key is read no further than that.
    const A* v = direct_ ? reinterpret_cast<const A*>(row_of<T>(v_, b_, h_, first)) : v_rows;
    const A* k = direct_ ? reinterpret_cast<const A*>(row_of<T>(k_, b_, h_, first)) : k_rows;
    return {first,
            k_t,
            v,
            direct_ ? v_.row_stride : dp_,
            v_t,
            k,
            direct_ ? k_.row_stride : dp_,
            valid_ != nullptr ? mask : nullptr,
            slab,
            slab + kBlock * dp_};
  }

  void flush() {
    for (int64_t slot = 0; slot < slots_; ++slot) {
      evict(slot);
      tags_.get()[slot] = -1;
    }
  }

 private:
  bool counts(int64_t j) const { return valid_ == nullptr || valid_[b_ * num_keys_ + j]; }

  // to[c][j] = row j, channel c. Missing and invalid keys are 0, so that a NaN there is multiplied by no weight.
  void pack(const HeadsView& t, int64_t first, int64_t size, A* to) {
    constexpr int64_t step = 4;
    for (int64_t j0 = 0; j0 < kBlock; j0 += step) {
      if (j0 + step <= size && valid_ == nullptr) {
        transpose(row_of<T>(t, b_, h_, first + j0), t.row_stride, step, dim_, to + j0, kBlock);
      } else {
        for (int64_t j = j0; j < j0 + step; ++j) {
          const T* row = j < size && counts(first + j) ? row_of<T>(t, b_, h_, first + j) : nullptr;
          for (int64_t c = 0; c < dim_; ++c) to[c * kBlock + j] = row != nullptr ? A(widen(row[c])) : A(0);
        }
      }
    }
  }

  // Rows padded with zeros; missing and invalid keys are 0 here too.
  void widen_rows(const HeadsView& t, int64_t first, int64_t size, A* to) {
    for (int64_t j = 0; j < kBlock; ++j, to += dp_) {
      const bool there = j < size && counts(first + j);
      const T* row = there ? row_of<T>(t, b_, h_, first + j) : nullptr;
      for (int64_t c = 0; c < dim_; ++c) to[c] = there ? A(widen(row[c])) : A(0);
      for (int64_t c = dim_; c < dp_; ++c) to[c] = A(0);
    }
  }

  void evict(int64_t slot) {
    const int64_t index = tags_.get()[slot];
    if (!backward_ || index < 0) return;
    const A* slab = grads_.get() + 2 * slot * kBlock * dp_;
    const int64_t first = index * kBlock, size = min64(kBlock, num_keys_ - first);
    const int64_t at = ((b_ * num_heads_ + h_) * num_keys_ + first) * dim_;
    for (int64_t j = 0; j < size; ++j) {
      for (int64_t c = 0; c < dim_; ++c) {
        grad_k_[at + j * dim_ + c] += slab[j * dp_ + c];
        grad_v_[at + j * dim_ + c] += slab[(kBlock + j) * dp_ + c];
      }
    }
  }

 public:
  int64_t num_heads_ = 1;

 private:
  const HeadsView &k_, &v_;
  const uint8_t* valid_;
  int64_t num_keys_, dim_, dp_, slots_;
  bool backward_, direct_;
  int64_t b_ = 0, h_ = 0;
  Scratch<int64_t> tags_;
  Scratch<A> k_t_, v_rows_, v_t_, k_rows_, mask_, grads_;
  A *grad_k_, *grad_v_;
};

// ---- a tile of queries and its band ----

// Queries [first, first + size) of one head, and what they have seen so far.
template <class A>
struct Tile {
  int64_t b, h, first, size;
  const A* q;  // [size][D], times scale · log2 e
  A* scores;   // [kTile][kBlock]
  A* out;      // [kTile][Dp]
  A* top;      // [kTile] largest score
  A* total;    // [kTile][lanes] Σ 2^(score - top), by lane
};

// Keys of the block, relative to its first, that group rows [g, g + rows) of the tile see: the union over the rows.
struct Span {
  int64_t from, to;
  bool whole;  // all of the block, for every row
};

template <class A>
IL_INLINE void mask_row(A* s, int64_t from, int64_t to, int64_t low, int64_t high, const A* mask) {
  for (int64_t j = from; j < to && j < low; ++j) s[j] = -A(INFINITY);
  for (int64_t j = max64(high, from); j < to; ++j) s[j] = -A(INFINITY);
  if (mask != nullptr) {
    for (int64_t j = from; j < to; ++j) s[j] = mask[j] == A(0) ? s[j] : mask[j];
  }
}

// The band of row i, or all keys (global ones).
struct Band {
  const int32_t *low, *high;
  int64_t num_keys;
  IL_INLINE int64_t lo(int64_t i) const { return low != nullptr ? low[i] : 0; }
  IL_INLINE int64_t hi(int64_t i) const { return low != nullptr ? high[i] : num_keys; }
};

// Row i of the bias, so that key block_first + j reads [j], and the keys of the block that i sees.
template <class A>
struct BiasRow {
  const A* data;
  int64_t from, to;
};
template <class A>
IL_INLINE BiasRow<A> bias_row(const BandAttention& p, const Band& band, int64_t h, int64_t i, int64_t block_first) {
  const int64_t at = block_first - i / p.bias_stride + p.bias_shift;
  return {static_cast<const A*>(p.bias) + h * p.bias_width + at, max64(band.lo(i) - block_first, 0),
          min64(band.hi(i) - block_first, kBlock)};
}
// In base 2, as the scores are.
template <class A>
IL_INLINE void add_bias(A* s, const BiasRow<A>& row) {
  for (int64_t j = row.from; j < row.to; ++j) s[j] += row.data[j] * A(kLog2E);
}

template <class A>
IL_INLINE Span span_of(const Band& band, int64_t first_row, int64_t rows, int64_t block_first) {
  const int64_t from = max64(band.lo(first_row) - block_first, 0);
  const int64_t to = min64(band.hi(first_row + rows - 1) - block_first, kBlock);
  const bool whole = band.lo(first_row + rows - 1) <= block_first && band.hi(first_row) >= block_first + kBlock;
  return {from, to, whole};
}

template <class A>
void forward_block(const BandAttention& p, const Tile<A>& tile, const Block<A>& block, const Band& band,
                   int64_t hash_first) {
  using V = typename Lanes<A>::type;
  constexpr int64_t lanes = Lanes<A>::count;
  const int64_t D = p.dim, dp = padded<A>(D);
  for (int64_t g = 0; g < tile.size; g += kGroup) {
    const int64_t rows = min64(kGroup, tile.size - g);
    const Span span = span_of<A>(band, tile.first + g, rows, block.first);
    if (span.from >= span.to) continue;
    const int64_t n0 = span.from / lanes * lanes, n1 = min64((span.to + lanes - 1) / lanes * lanes, kBlock);
    A* s = tile.scores + g * kBlock;
    gemm<A>({tile.q + g * D, D, 1}, block.k_t + n0, kBlock, s + n0, kBlock, rows, n1 - n0, D, false);
    for (int64_t r = 0; r < rows; ++r, s += kBlock) {
      const int64_t i = tile.first + g + r;
      if (p.bias != nullptr && band.low != nullptr) add_bias(s, bias_row<A>(p, band, tile.h, i, block.first));
      V high = load<V>(s + n0);
      if (span.whole && block.mask == nullptr) {
        for (int64_t j = n0 + lanes; j < n1; j += lanes) {
          const V x = load<V>(s + j);
          high = x > high ? x : high;  // a NaN beside numbers is lost here, and comes back in the sum
        }
      } else {
        mask_row(s, n0, n1, band.lo(i) - block.first, band.hi(i) - block.first, block.mask);
        high = load<V>(s + n0);
        for (int64_t j = n0 + lanes; j < n1; j += lanes) high = nan_max(high, load<V>(s + j));
      }
      A& top = tile.top[g + r];
      A* const total = tile.total + (g + r) * lanes;
      if (!none_above<A>(high, V{} + top)) {
        const A now = max_lanes<A>(high);
        const A shrink = top == -A(INFINITY) ? A(0) : exp2_of<V, A>(V{} + (top - now))[0];
        const V factor = V{} + shrink;
        A* out = tile.out + (g + r) * dp;
        for (int64_t c = 0; c < dp; c += lanes) store(out + c, V(load<V>(out + c) * factor));
        store(total, V(load<V>(total) * factor));
        top = now;
      }
      if (top == -A(INFINITY)) {  // nothing visible yet
        for (int64_t j = n0; j < n1; j += lanes) store(s + j, V{});
        continue;
      }
      const V base = V{} + top;
      V sum = load<V>(total);
      for (int64_t j = n0; j < n1; j += lanes) {
        const V w = exp2_of<V, A>(V(load<V>(s + j) - base));
        sum += w;
        store(s + j, w);
      }
      store(total, sum);
      if (p.drop_below > 0) {
        drop(s, n0, n1, hash_first, row_seed(p.seed, tile.b, tile.h, i), p.drop_below, p.keep_factor);
      }
    }
    gemm<A>({tile.scores + g * kBlock + span.from, kBlock, 1}, block.v + span.from * block.v_stride, block.v_stride,
            tile.out + g * dp, dp, rows, dp, span.to - span.from, true);
  }
}

// ---- forward ----

// Blocks that queries [first, last] of a tile see.
struct Blocks {
  int64_t from, to;
};
inline Blocks blocks_of(const Band& band, int64_t first, int64_t last) {
  const int64_t from = band.lo(first), to = band.hi(last);
  return from < to ? Blocks{from / kBlock, (to + kBlock - 1) / kBlock} : Blocks{0, 0};
}

// Most blocks that a tile sees: the slots of a ring.
int64_t ring_slots(const Band& band, int64_t num_queries, int64_t tile) {
  int64_t most = 1;
  for (int64_t i = 0; i < num_queries; i += tile) {
    const Blocks blocks = blocks_of(band, i, min64(i + tile, num_queries) - 1);
    most = max64(most, blocks.to - blocks.from);
  }
  return most;
}

template <class T>
void load_queries(const BandAttention& p, const HeadsView& view, int64_t b, int64_t h, int64_t first, int64_t size,
                  double factor, typename AccOf<T>::type* to) {
  using A = typename AccOf<T>::type;
  for (int64_t r = 0; r < size; ++r) {
    const T* row = row_of<T>(view, b, h, first + r);
    for (int64_t c = 0; c < p.dim; ++c) to[r * p.dim + c] = A(widen(row[c])) * A(factor);
  }
}

template <class T>
void forward(const BandAttention& p) {
  using A = typename AccOf<T>::type;
  constexpr int64_t lanes = Lanes<A>::count;
  const int64_t D = p.dim, dp = padded<A>(D), group = p.heads / p.kv_heads;
  const Band band = {p.low, p.high, p.num_keys}, all = {nullptr, nullptr, p.num_global};
  const int64_t tiles = (p.num_queries + kTile - 1) / kTile;
  // Few queries: no block is read twice.
  const int64_t slots = tiles == 1 && group == 1 ? 1 : ring_slots(band, p.num_queries, kTile);
  // Runs of tiles, long against the band that each has to pack again. Rows do not depend on how they are dealt.
  const int64_t heads = p.batch * p.kv_heads;
  const int64_t wanted = max64(4 * p.threads / max64(heads, 1), 1);
  const int64_t run = max64((tiles + wanted - 1) / wanted, min64(tiles, 4 * slots * kBlock / kTile + 1));
  const int64_t runs = (tiles + run - 1) / run;
  parallel_tasks(heads * runs, p.threads, [&](int64_t task) {
    const int64_t b = task / runs / p.kv_heads, kv = task / runs % p.kv_heads;
    Ring<T> ring(p.k, p.v, p.key_valid, p.num_keys, D, slots, false, nullptr, nullptr);
    Ring<T> globals(p.global_k, p.global_v, p.global_valid, p.num_global, D,
                    max64((p.num_global + kBlock - 1) / kBlock, 1), false, nullptr, nullptr);
    ring.start(b, kv);
    globals.start(b, kv);
    Scratch<A> q(kTile * D), scores(kTile * kBlock), out(kTile * dp), top(kTile), total(kTile * lanes);
    for (int64_t t = task % runs * run; t < min64(task % runs * run + run, tiles); ++t) {
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        const int64_t first = t * kTile, size = min64(kTile, p.num_queries - first);
        load_queries<T>(p, p.q, b, h, first, size, p.scale * kLog2E, q.get());
        fill(out.get(), kTile * dp, A(0));
        fill(top.get(), kTile, -A(INFINITY));
        fill(total.get(), kTile * lanes, A(0));
        const Tile<A> tile = {b, h, first, size, q.data(), scores.get(), out.get(), top.get(), total.get()};
        for (int64_t j = 0; j * kBlock < p.num_global; ++j) {
          forward_block(p, tile, globals.get(j), all, p.num_keys + j * kBlock);
        }
        const Blocks blocks = blocks_of(band, first, first + size - 1);
        for (int64_t j = blocks.from; j < blocks.to; ++j) forward_block(p, tile, ring.get(j), band, j * kBlock);
        for (int64_t r = 0; r < size; ++r) {
          const A sum = sum_lanes<A>(load<typename Lanes<A>::type>(total.data() + r * lanes));
          const bool seen = sum != A(0);
          const A inverse = seen ? A(1) / sum : A(0);
          T* to = const_cast<T*>(row_of<T>(p.out, b, h, first + r));
          const A* from = out.data() + r * dp;
          if (p.residual.data != nullptr) {
            const T* residual = row_of<T>(p.residual, b, h, first + r);
            for (int64_t c = 0; c < D; ++c) to[c] = narrow<T>(A(from[c] * inverse + widen(residual[c])));
          } else {
            for (int64_t c = 0; c < D; ++c) to[c] = narrow<T>(A(from[c] * inverse));
          }
          static_cast<A*>(p.lse)[(b * p.heads + h) * p.num_queries + first + r] =
              seen ? A((top.data()[r] + std::log2(sum)) / kLog2E) : -A(INFINITY);
        }
      }
    }
  });
}

// ---- backward ----

template <class A>
struct BackwardTile {
  int64_t b, h, first, size;
  const A* q;         // [size][D], times scale · log2 e
  const A* grad_out;  // [size][Dp]
  const A* lse;       // [size], in base 2; +inf for a row that sees nothing
  const A* delta;     // [size], Σ grad_out · out
  A *weight, *grad;   // [kBackwardTile][kBlock]
  A* grad_q;          // [kBackwardTile][Dp]
  A* grad_bias;       // [bias_width] of this head, or null
};

template <class A>
void backward_block(const BandAttention& p, const BackwardTile<A>& tile, const A* q_rows, const Block<A>& block,
                    const Band& band, int64_t hash_first) {
  using V = typename Lanes<A>::type;
  constexpr int64_t lanes = Lanes<A>::count;
  const int64_t D = p.dim, dp = padded<A>(D);
  // One range of keys for the whole tile: the products over queries take all rows at once.
  const Span all_rows = span_of<A>(band, tile.first, tile.size, block.first);
  if (all_rows.from >= all_rows.to) return;
  const int64_t n0 = all_rows.from / lanes * lanes, n1 = min64((all_rows.to + lanes - 1) / lanes * lanes, kBlock);
  gemm<A>({tile.q, D, 1}, block.k_t + n0, kBlock, tile.weight + n0, kBlock, tile.size, n1 - n0, D, false);
  gemm<A>({tile.grad_out, dp, 1}, block.v_t + n0, kBlock, tile.grad + n0, kBlock, tile.size, n1 - n0, D, false);
  for (int64_t r = 0; r < tile.size; ++r) {
    const int64_t i = tile.first + r;
    A* w = tile.weight + r * kBlock;
    A* g = tile.grad + r * kBlock;
    const bool biased = p.bias != nullptr && band.low != nullptr;
    const BiasRow<A> bias = biased ? bias_row<A>(p, band, tile.h, i, block.first) : BiasRow<A>{};
    if (biased) add_bias(w, bias);
    if (!all_rows.whole || block.mask != nullptr) {
      mask_row(w, n0, n1, band.lo(i) - block.first, band.hi(i) - block.first, block.mask);
    }
    const V base = V{} + tile.lse[r], delta = V{} + tile.delta[r];
    if (p.drop_below == 0) {
      for (int64_t j = n0; j < n1; j += lanes) {
        const V weight = exp2_of<V, A>(V(load<V>(w + j) - base));
        store(w + j, weight);
        store(g + j, V(weight * (load<V>(g + j) - delta)));
      }
    } else {
      A kept[kBlock];
      for (int64_t j = n0; j < n1; ++j) kept[j] = A(1);
      drop(kept, n0, n1, hash_first, row_seed(p.seed, tile.b, tile.h, i), p.drop_below, p.keep_factor);
      for (int64_t j = n0; j < n1; j += lanes) {
        const V weight = exp2_of<V, A>(V(load<V>(w + j) - base)), keep = load<V>(kept + j);
        store(w + j, V(weight * keep));
        store(g + j, V(weight * (load<V>(g + j) * keep - delta)));
      }
    }
    if (biased && tile.grad_bias != nullptr) {
      A* to = tile.grad_bias + (bias.data - (static_cast<const A*>(p.bias) + tile.h * p.bias_width));
      for (int64_t j = bias.from; j < bias.to; ++j) to[j] += g[j];
    }
  }
  const int64_t from = all_rows.from, count = all_rows.to - all_rows.from;
  gemm<A>({tile.grad + from, kBlock, 1}, block.k + from * block.k_stride, block.k_stride, tile.grad_q, dp, tile.size,
          dp, count, true);
  gemm<A>({tile.weight + from, 1, kBlock}, tile.grad_out, dp, block.grad_v + from * dp, dp, count, dp, tile.size, true);
  gemm<A>({tile.grad + from, 1, kBlock}, q_rows, dp, block.grad_k + from * dp, dp, count, dp, tile.size, true);
}

template <class T>
void backward(const BandAttentionBackward& args) {
  using A = typename AccOf<T>::type;
  const BandAttention& p = args.forward;
  const int64_t D = p.dim, dp = padded<A>(D), group = p.heads / p.kv_heads;
  const Band band = {p.low, p.high, p.num_keys}, all = {nullptr, nullptr, p.num_global};
  const int64_t slots = ring_slots(band, p.num_queries, kBackwardTile),
                global_slots = max64((p.num_global + kBlock - 1) / kBlock, 1);
  const int64_t tiles = (p.num_queries + kBackwardTile - 1) / kBackwardTile, heads = p.batch * p.kv_heads;
  // A run lasts until the keys of the one before it are out of sight; global keys never are, so there is one run then.
  Scratch<int64_t> ends(tiles + 1);
  int64_t runs = 0;
  const int64_t least = p.num_global > 0 ? tiles : min64(tiles, 2 * slots * kBlock / kBackwardTile + 1);
  for (int64_t t = 0; t < tiles; ++runs) {
    ends.get()[runs] = t;
    const int64_t before =
        t > 0 ? band.hi(t * kBackwardTile - 1) + kBlock - 1 : 0;  // blocks below are the previous run's
    t = min64(t + least, tiles);
    while (t < tiles && band.lo(t * kBackwardTile) / kBlock < before / kBlock) ++t;
  }
  ends.get()[runs] = tiles;
  // A bias is shared by all queries: every task adds to a part of its own, and the parts are added up in order.
  const int64_t bias_size = args.grad_bias != nullptr ? group * p.bias_width : 0;
  Scratch<A> bias_parts(heads * runs * bias_size);
  fill(bias_parts.get(), heads * runs * bias_size, A(0));
  for (int64_t parity = 0; parity < 2; ++parity) {
    const int64_t some = (runs + 1 - parity) / 2;
    parallel_tasks(heads * some, p.threads, [&](int64_t task) {
      const int64_t b = task / some / p.kv_heads, kv = task / some % p.kv_heads, run = 2 * (task % some) + parity;
      Ring<T> ring(p.k, p.v, p.key_valid, p.num_keys, D, slots, true, static_cast<A*>(args.grad_k),
                   static_cast<A*>(args.grad_v));
      Ring<T> globals(p.global_k, p.global_v, p.global_valid, p.num_global, D, p.num_global > 0 ? global_slots : 0,
                      true, static_cast<A*>(args.grad_global_k), static_cast<A*>(args.grad_global_v));
      ring.num_heads_ = globals.num_heads_ = p.kv_heads;
      ring.start(b, kv);
      globals.start(b, kv);
      Scratch<A> q(kBackwardTile * D), q_rows(kBackwardTile * dp), grad_out(kBackwardTile * dp),
          weight(kBackwardTile * kBlock), grad(kBackwardTile * kBlock);
      Scratch<A> grad_q(kBackwardTile * dp), lse(kBackwardTile), delta(kBackwardTile);
      fill(q_rows.get(), kBackwardTile * dp, A(0));
      fill(grad_out.get(), kBackwardTile * dp, A(0));
      for (int64_t t = ends.data()[run]; t < ends.data()[run + 1]; ++t) {
        for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
          const int64_t first = t * kBackwardTile, size = min64(kBackwardTile, p.num_queries - first);
          load_queries<T>(p, p.q, b, h, first, size, p.scale * kLog2E, q.get());
          for (int64_t r = 0; r < size; ++r) {
            const T* g = row_of<T>(args.grad_out, b, h, first + r);
            const T* o = row_of<T>(p.out, b, h, first + r);
            A sum = A(0);
            const T* residual = p.residual.data != nullptr ? row_of<T>(p.residual, b, h, first + r) : nullptr;
            for (int64_t c = 0; c < D; ++c) {
              grad_out.get()[r * dp + c] = widen(g[c]);
              sum += A(widen(g[c])) * (A(widen(o[c])) - (residual != nullptr ? A(widen(residual[c])) : A(0)));
              q_rows.get()[r * dp + c] = q.data()[r * D + c];
            }
            if (args.grad_lse != nullptr) {
              sum -= static_cast<const A*>(args.grad_lse)[(b * p.heads + h) * p.num_queries + first + r];
            }
            delta.get()[r] = sum;
            const A saved = static_cast<const A*>(p.lse)[(b * p.heads + h) * p.num_queries + first + r];
            lse.get()[r] = saved == -A(INFINITY) ? A(INFINITY) : saved * A(kLog2E);
            if (saved == -A(INFINITY)) {  // saw nothing: whatever its row holds, weights of 0 must not meet NaN
              delta.get()[r] = A(0);
              fill(grad_out.get() + r * dp, dp, A(0));
              fill(q_rows.get() + r * dp, dp, A(0));
            }
          }
          fill(grad_q.get(), kBackwardTile * dp, A(0));
          A* const part = bias_parts.get() + (task / some * runs + run) * bias_size;
          A* const grad_bias = bias_size > 0 ? part + h % group * p.bias_width : nullptr;
          const BackwardTile<A> tile = {b,
                                        h,
                                        first,
                                        size,
                                        q.data(),
                                        grad_out.data(),
                                        lse.data(),
                                        delta.data(),
                                        weight.get(),
                                        grad.get(),
                                        grad_q.get(),
                                        grad_bias};
          for (int64_t j = 0; j * kBlock < p.num_global; ++j) {
            backward_block(p, tile, q_rows.data(), globals.get(j), all, p.num_keys + j * kBlock);
          }
          const Blocks blocks = blocks_of(band, first, first + size - 1);
          for (int64_t j = blocks.from; j < blocks.to; ++j) {
            backward_block(p, tile, q_rows.data(), ring.get(j), band, j * kBlock);
          }
          A* to = static_cast<A*>(args.grad_q) + ((b * p.heads + h) * p.num_queries + first) * D;
          for (int64_t r = 0; r < size; ++r) {
            for (int64_t c = 0; c < D; ++c) to[r * D + c] = grad_q.data()[r * dp + c] * A(p.scale);
          }
        }
      }
      ring.flush();
      globals.flush();
    });
  }
  // Slabs hold gradients against q · scale · log2 e.
  auto unscale = [&](void* grad, int64_t keys) {
    A* g = static_cast<A*>(grad);
    const int64_t n = heads * keys * D;
    for (int64_t i = 0; i < n; ++i) g[i] *= A(1 / kLog2E);
  };
  if (bias_size > 0) {
    A* to = static_cast<A*>(args.grad_bias);
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t j = 0; j < p.bias_width; ++j) {
        double sum = 0;
        for (int64_t b = 0; b < p.batch; ++b) {
          for (int64_t run = 0; run < runs; ++run) {
            sum += bias_parts
                       .get()[((b * p.kv_heads + h / group) * runs + run) * bias_size + h % group * p.bias_width + j];
          }
        }
        to[h * p.bias_width + j] = A(sum);
      }
    }
  }
  unscale(args.grad_k, p.num_keys);
  if (p.num_global > 0) unscale(args.grad_global_k, p.num_global);
}

}  // namespace

void band_attention(const BandAttention& args) {
  switch (args.dtype) {
    case DType::kFloat64: return forward<double>(args);
    case DType::kBFloat16: return forward<bf16>(args);
    case DType::kFloat16: return forward<fp16>(args);
    default: return forward<float>(args);
  }
}

void band_attention_backward(const BandAttentionBackward& args) {
  switch (args.forward.dtype) {
    case DType::kFloat64: return backward<double>(args);
    case DType::kBFloat16: return backward<bf16>(args);
    case DType::kFloat16: return backward<fp16>(args);
    default: return backward<float>(args);
  }
}

}  // namespace IL_ISA
}  // namespace il
