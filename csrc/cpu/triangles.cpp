// SPDX-License-Identifier: Apache-2.0
// Triangles on every edge and at every node:
//   t(uv) = |N(u) ∩ N(v)|,  t(v) = ½ Σ_u t(uv)
// A triangle is found at its lowest node, its root. The highest ranks, among which most edges of a skewed graph lie,
// get rows of bits: there t(uv) is the population count of two rows. Other roots walk the rows of their out-neighbours,
// W = Σ over directed edges v -> u of outdeg(u) reads of 4 bytes and as many of 2, at most O(m^1.5), or look up the
// bits of pairs of out-neighbours. How many ranks get bits is chosen by counting operations. Each thread keeps sums of
// its own, 4 bytes an edge or 8 a node; the bits take up to 8 MiB.
#include "cpu/triangles.h"

#include "cpu/neighbourhoods.h"

namespace il {
namespace IL_ISA {
namespace {

// ---- bits in common, of rows of whole lines of 16 words ----

constexpr int64_t kLine = 16;

struct CommonBits {
  int64_t (*count)(const uint64_t* a, const uint64_t* b, int64_t words);
  double cycles;  // a word
};

int64_t count_words(const uint64_t* a, const uint64_t* b, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(a[w] & b[w]);
  return count;
}

#if defined(__AVX512F__)
__attribute__((target("avx512vpopcntdq"))) int64_t count_vectors(const uint64_t* a, const uint64_t* b, int64_t words) {
  __m512i even = _mm512_setzero_si512(), odd = even;
  for (int64_t w = 0; w < words; w += kLine) {
    const __m512i x = _mm512_and_si512(_mm512_loadu_si512(a + w), _mm512_loadu_si512(b + w));
    const __m512i y = _mm512_and_si512(_mm512_loadu_si512(a + w + 8), _mm512_loadu_si512(b + w + 8));
    even = _mm512_add_epi64(even, _mm512_popcnt_epi64(x));
    odd = _mm512_add_epi64(odd, _mm512_popcnt_epi64(y));
  }
  return _mm512_reduce_add_epi64(_mm512_add_epi64(even, odd));
}
#endif

CommonBits common_bits() {
#if defined(__AVX512F__)
  if (__builtin_cpu_supports("avx512vpopcntdq")) return {count_vectors, 0.4};
#endif
#if defined(__POPCNT__)
  return {count_words, 1.2};
#else
  return {count_words, 5};
#endif
}

// ---- which ranks get bits ----

// Neighbours of the ranks [first, last) among these.
struct BitRows {
  int64_t first, last, words;
  uint64_t* rows;
  int64_t most_pairs;  // so many members of a row are looked up in pairs: the rows to walk instead are longer

  bool has(int64_t v) const { return v >= first; }
  uint64_t* row(int64_t v) const { return rows + (v - first) * words; }
  void fill_row(const SimpleGraph& g, int64_t v) const {
    uint64_t* bits = row(v);
    fill(bits, words, uint64_t(0));
    for (int64_t p = g.rowptr[v + 1] - 1; p >= g.rowptr[v] && g.col[p] >= first; --p) {
      const int64_t j = g.col[p] - first;
      bits[j / 64] |= uint64_t(1) << (j % 64);
    }
  }
};

constexpr int64_t kMostRows = 8192;

// The highest of the ranks [first, last), which no edge leaves, for as many as bits take fewer cycles than rows of
// neighbours; counts of cycles are rough ones of a Zen 4.
BitRows choose_rows(const Oriented& o, int64_t first, int64_t last, double cycles_per_word, Arena& arena) {
  BitRows best{last, last, 0, nullptr, 0};
  double edges = 0, walked = 0, most = 0;
  for (int64_t size = 64, from = last; from > first && size <= kMostRows; size *= 2) {
    const int64_t to = max64(first, last - size), words = (last - to + 64 * kLine - 1) / (64 * kLine) * kLine;
    while (from > to) {
      --from;
      for (int64_t i = 0; i < o.outdegree(from); ++i) walked += double(o.outdegree(o.out(from)[i]));
      edges += double(o.outdegree(from));
    }
    const double bits = double(last - to) * double(words) / 2 + edges * (14 + double(words) * cycles_per_word);
    const double saved = 25 * edges + 2.9 * walked - bits;
    if (saved > most) most = saved, best = {to, last, words, nullptr, int64_t(2 * edges) / (last - to)};
  }
  if (best.words > 0) best.rows = arena.take<uint64_t>((last - best.first) * best.words);
  return best;
}

// ---- the passes ----

struct Pass {
  const Oriented& o;
  BitRows bits;
  CommonBits common;
  int32_t* edge;   // [m] by number of the directed edge, or null
  int64_t* twice;  // [n] 2 t by rank, or null
};

class FillWorker {
 public:
  FillWorker(const Pass& pass, bool) : pass_(pass) {}
  void operator()(int64_t v) { pass_.bits.fill_row(pass_.o.g, v); }
  void merge() {}

 private:
  const Pass& pass_;
};

// Edges whose ends both have bits.
class BitsWorker {
 public:
  BitsWorker(const Pass& pass, bool alone) : pass_(pass), twice_(pass.twice, pass.o.g.num_nodes, alone) {}
  void operator()(int64_t v) {
    const Oriented& o = pass_.o;
    const BitRows& bits = pass_.bits;
    const uint64_t* mine = bits.row(v);
    int64_t total = 0;
    for (int64_t i = 0; i < o.outdegree(v); ++i) {
      const int64_t u = o.out(v)[i], count = pass_.common.count(mine, bits.row(u), bits.words);
      if (pass_.edge != nullptr) {
        pass_.edge[o.start(v) + i] += int32_t(count);  // roots without bits have added theirs
      } else {
        total += count;
        twice_[u] += count;
      }
    }
    if (pass_.edge == nullptr) twice_[v] += total;
  }
  void merge() { twice_.merge(); }

 private:
  const Pass& pass_;
  Partial<int64_t> twice_;
};

// A root without bits, for counts at nodes alone: no edge needs to be known by its number.
class RootWorker {
 public:
  RootWorker(const Pass& pass, bool alone)
      : pass_(pass),
        o_(pass.o),
        twice_(pass.twice, pass.o.g.num_nodes, alone),
        marks_(pass.o.g.num_nodes),
        found_(pass.o.max_out + 1),
        local_(pass.o.max_out) {
    fill(marks_.get(), o_.g.num_nodes, uint8_t(0));
  }
  void operator()(int64_t v) {
    const int64_t size = o_.outdegree(v);
    if (size < 2) return;
    const int32_t* nodes = o_.out(v);
    int64_t high = size;
    while (high > 0 && pass_.bits.has(nodes[high - 1])) --high;
    const bool by_pair = size - high >= 2 && size - high <= pass_.bits.most_pairs;
    const int64_t walks = by_pair ? high : size - 1;
    int64_t total = by_pair ? pairs_with_bits(nodes + high, size - high) : 0;
    if (walks > 0) {
      uint8_t* marks = marks_.get();
      for (int64_t i = 1; i < size; ++i) marks[nodes[i]] = 1;
      for (int64_t i = 0; i < walks; ++i) {
        if (i + kAhead < walks) __builtin_prefetch(o_.out(nodes[i + kAhead]));
        const int32_t* end = filter(o_.rows[nodes[i]], marks, found_.get());
        for (const int32_t* w = found_.data(); w < end; ++w) twice_[*w] += 2;
        twice_[nodes[i]] += 2 * (end - found_.data());
        total += end - found_.data();
      }
      for (int64_t i = 1; i < size; ++i) marks[nodes[i]] = 0;
    }
    twice_[v] += 2 * total;
  }
  void merge() { twice_.merge(); }

 private:
  static IL_NOINLINE int32_t* filter(const Oriented::Row& u, const uint8_t* marks, int32_t* found) {
    for (const int32_t *w = u.ends, *end = u.ends + u.count; w < end; ++w) {
      *found = *w;
      found += marks[*w];
    }
    return found;
  }
  IL_NOINLINE int64_t pairs_with_bits(const int32_t* nodes, int64_t size) {
    const BitRows& bits = pass_.bits;
    int32_t* local = local_.get();
    fill(local, size, int32_t(0));
    int64_t total = 0;
    for (int64_t i = 0; i + 1 < size; ++i) {
      const uint64_t* row = bits.row(nodes[i]);
      int32_t here = 0;
      for (int64_t j = i + 1; j < size; ++j) {
        const int64_t w = nodes[j] - bits.first;
        const int32_t bit = int32_t(row[w / 64] >> (w % 64) & 1);
        here += bit;
        local[j] += bit;
      }
      local[i] += here;
      total += here;
    }
    for (int64_t i = 0; i < size; ++i) twice_[nodes[i]] += 2 * int64_t(local[i]);
    return total;
  }

  const Pass& pass_;
  const Oriented& o_;
  Partial<int64_t> twice_;
  Scratch<uint8_t> marks_;
  Scratch<int32_t> found_, local_;
};

bool run(const Pass& pass, int threads, Poll poll) {
  const int64_t n = pass.o.g.num_nodes, first = pass.bits.first;
  share_range<FillWorker>(first, n, kChunk, threads, Poll{}, pass);
  if (pass.edge != nullptr) {
    const TriangleSums sums{pass.o, pass.edge};
    if (!share_range<TriangleWorker>(0, first, kChunk, threads, poll, sums)) return false;
  } else if (!share_range<RootWorker>(0, first, kChunk, threads, poll, pass)) {
    return false;
  }
  return share_range<BitsWorker>(first, n, kChunk, threads, poll, pass);
}

// A block of a batch after the other, each with bits of its own.
struct Batch {
  const Blocks& blocks;
  const Pass& all;
};

class BlockWorker {
 public:
  BlockWorker(const Batch& batch, bool)
      : blocks_(batch.blocks),
        pass_(batch.all),
        sums_{pass_.o, pass_.edge},
        by_edge_(sums_, true),
        roots_(pass_, true),
        bits_(pass_, true) {}
  void operator()(int64_t block) {
    const int64_t first = blocks_.start(block), last = blocks_.start(block + 1);
    arena_.reset();
    pass_.bits = choose_rows(pass_.o, first, last, pass_.common.cycles, arena_);
    for (int64_t v = pass_.bits.first; v < last; ++v) pass_.bits.fill_row(pass_.o.g, v);
    for (int64_t v = first; v < pass_.bits.first; ++v) {
      if (pass_.edge != nullptr) {
        by_edge_(v);
      } else {
        roots_(v);
      }
    }
    for (int64_t v = pass_.bits.first; v < last; ++v) bits_(v);
  }
  void merge() {}

 private:
  const Blocks& blocks_;
  Arena arena_;
  Pass pass_;
  TriangleSums sums_;
  TriangleWorker by_edge_;
  RootWorker roots_;
  BitsWorker bits_;
};

bool count(const Oriented& o, int32_t* edge, int64_t* twice, const Triangles& args) {
  Arena arena;
  const CommonBits common = common_bits();
  const int64_t n = o.g.num_nodes;
  const Blocks blocks(o, args.threads);
  if (blocks.useful) {
    const Pass all{o, {n, n, 0, nullptr, 0}, common, edge, twice};
    const Batch batch{blocks, all};
    return share_range<BlockWorker>(0, blocks.count, 1, args.threads, args.poll, batch);
  }
  return run({o, choose_rows(o, 0, n, common.cycles, arena), common, edge, twice}, args.threads, args.poll);
}

}  // namespace

void triangles(Triangles& args) {
  const SimpleGraph& g = args.graph;
  const Oriented oriented(g);
  Arena arena;
  args.finished = true;
  if (args.edge != nullptr) {
    int32_t* t = zeros<int32_t>(arena, g.num_edges);
    args.finished = count(oriented, t, nullptr, args);
    for (int64_t v = 0; v < g.num_nodes && args.finished; ++v) {
      for (int64_t i = 0; i < oriented.outdegree(v); ++i) {
        args.edge[g.eid[g.split[v] + i]] = t[oriented.start(v) + i];
      }
    }
  }
  if (args.node != nullptr && args.finished) {
    int64_t* twice = zeros<int64_t>(arena, g.num_nodes);
    args.finished = count(oriented, nullptr, twice, args);
    for (int64_t v = 0; v < g.num_nodes && args.finished; ++v) args.node[g.order[v]] = twice[v] / 2;
  }
}

}  // namespace IL_ISA
}  // namespace il
