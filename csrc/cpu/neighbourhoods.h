// SPDX-License-Identifier: Apache-2.0
// Triangles through directed edges: every edge goes from the lower rank to the higher, and a triangle v < u < w is seen
// once, at v, as the edge u -> w between two of v's out-neighbours. The work is the sum of outdeg(u) over the edges
// v -> u.
#pragma once

#include "cpu/workers.h"

namespace il {
namespace IL_ISA {
namespace {

// Directed edges are numbered row by row: the i-th out-edge of v has number `start(v) + i`.
class Oriented {
 public:
  struct Row {
    const int32_t* ends;
    int32_t count;
    int32_t start;
  };

  explicit Oriented(const SimpleGraph& graph) : g(graph), rows_(graph.num_nodes), degrees_(graph.num_nodes) {
    rows = rows_.get(), degrees = degrees_.get();
    int64_t edges = 0;
    for (int64_t v = 0; v < g.num_nodes; ++v) {
      const int64_t count = g.rowptr[v + 1] - g.split[v];
      rows[v] = {g.col + g.split[v], int32_t(count), int32_t(edges)};
      degrees[v] = int32_t(g.rowptr[v + 1] - g.rowptr[v]);
      edges += count;
      max_out = max64(max_out, count);
    }
    for (int64_t v = 0; v < g.num_nodes; ++v) {
      const int64_t d = outdegree(v);
      if (d * (d - 1) / 2 <= max_hits) continue;
      int64_t reach = 0;
      for (int64_t i = 0; i < d; ++i) reach += outdegree(out(v)[i]);
      max_hits = max64(max_hits, min64(reach, d * (d - 1) / 2));
    }
  }
  const int32_t* out(int64_t v) const { return rows[v].ends; }
  int64_t outdegree(int64_t v) const { return rows[v].count; }
  int64_t start(int64_t v) const { return rows[v].start; }
  int64_t degree(int64_t v) const { return degrees[v]; }

  SimpleGraph g;
  Row* rows;
  int32_t* degrees;
  int64_t max_out = 0;
  int64_t max_hits = 0;  // edges between the out-neighbours of one node, at most

 private:
  Scratch<Row> rows_;
  Scratch<int32_t> degrees_;
};

// A batch falls into blocks of ranks that no edge leaves. Where these are many and small, all passes over one block
// follow each other while it is in the cache, and threads need no sums of their own.
class Blocks {
 public:
  explicit Blocks(const Oriented& o, int threads) : starts_(o.g.num_nodes / kLeast + 2) {
    const int64_t n = o.g.num_nodes;
    int64_t reach = -1, edges = 0, most_edges = 0, *starts = starts_.get();
    starts[0] = 0;
    for (int64_t v = 0; v < n; ++v) {
      if (o.outdegree(v) > 0) reach = max64(reach, o.out(v)[o.outdegree(v) - 1]);
      edges += o.outdegree(v);
      if (reach > v || (v + 1 - starts[count] < kLeast && v + 1 < n)) continue;
      most_edges = max64(most_edges, edges), edges = 0;
      largest = max64(largest, v + 1 - starts[count]);
      starts[++count] = v + 1;
    }
    useful = count >= 4 * threads && most_edges <= min64(kMostEdges, o.g.num_edges / (2 * threads));
  }
  int64_t start(int64_t block) const { return starts_.data()[block]; }

  int64_t count = 0;
  int64_t largest = 0;  // nodes
  bool useful;

 private:
  static constexpr int64_t kLeast = 256, kMostEdges = 1 << 18;

  Scratch<int64_t> starts_;
};

constexpr int64_t kAhead = 4;  // rows lie anywhere: ask for one a few rows early

// An edge between two out-neighbours of a node: its place among the out-edges of the one, the other's index among the
// neighbours. An out-degree is below sqrt(2m) < 2^16.
struct Hit {
  uint32_t bits;
  int64_t member() const { return int64_t(bits & 0xffff) - 1; }
  int64_t place() const { return int64_t(bits >> 16); }
};

// The edges between the out-neighbours of each of a range of nodes, kept by a first pass for a second one. Threads
// write to blocks of their own; at most kMost bytes are kept, by all stores that share them.
class HitStore {
 public:
  explicit HitStore(int64_t num_nodes, int sharers = 1) : kept_(num_nodes), most_(kMost / sharers) {
    fill(kept_.get(), num_nodes, static_cast<int64_t*>(nullptr));
  }
  ~HitStore() { drop(nullptr); }
  // The rows of v, then its hits; null where they were not kept.
  const int64_t* find(int64_t v) const { return kept_.data()[v - first_]; }

  class Writer {
   public:
    explicit Writer(HitStore* store) : store_(store) {}
    // Starts over with the nodes [first, last), as many as there is room for. For stores of one writer.
    void restart(int64_t first, int64_t last) {
      fill(store_->kept_.get(), last - first, static_cast<int64_t*>(nullptr));
      store_->first_ = first;
      Block* block = store_->blocks_;
      store_->drop(block);
      free_ = block == nullptr ? nullptr : reinterpret_cast<int64_t*>(block + 1);
      left_ = store_->words_ = block == nullptr ? 0 : block->words;
    }
    void keep(int64_t v, const int64_t* row, int64_t size, const Hit* hit) {
      const int64_t words = size + 1 + (row[size] + 1) / 2;
      if (store_ == nullptr) return;
      if (words > left_ && !grow(words)) return;
      store_->kept_.get()[v - store_->first_] = free_;
      std::memcpy(free_, row, (size + 1) * sizeof(int64_t));
      std::memcpy(free_ + size + 1, hit, row[size] * sizeof(Hit));
      free_ += words, left_ -= words;
    }

   private:
    bool grow(int64_t words) {
      const int64_t count = max64(words, kBlockWords);
      bool room = false;
#pragma omp critical(il_hits)
      if (store_->words_ + count <= store_->most_ / 8) {
        Block* block = static_cast<Block*>(std::malloc(sizeof(Block) + count * sizeof(int64_t)));
        if (block != nullptr) {
          block->next = store_->blocks_, block->words = count;
          store_->blocks_ = block, store_->words_ += count;
          free_ = reinterpret_cast<int64_t*>(block + 1), left_ = count;
          room = true;
        }
      }
      return room;
    }

    HitStore* store_;
    int64_t* free_ = nullptr;
    int64_t left_ = 0;
  };

 private:
  struct Block {
    Block* next;
    int64_t words;
  };
  // All blocks, or all behind the given one.
  void drop(Block* last) {
    Block*& from = last == nullptr ? blocks_ : last->next;
    while (from != nullptr) {
      Block* next = from->next;
      std::free(from);
      from = next;
    }
  }
  static constexpr int64_t kMost = int64_t(256) << 20, kBlockWords = 1 << 15;

  Scratch<int64_t*> kept_;
  const int64_t most_;
  int64_t first_ = 0;
  Block* blocks_ = nullptr;
  int64_t words_ = 0;
};

// The edges between the out-neighbours of v, for one v after the other.
class Neighbourhood {
 public:
  explicit Neighbourhood(const Oriented& graph)
      : o(graph), marks_(graph.g.num_nodes), rows_(graph.max_out + 1), hits_(graph.max_hits + 1) {
    std::memset(marks_.get(), 0, graph.g.num_nodes * sizeof(uint16_t));
  }

  // The edges out of the i-th out-neighbour are hit[row[i]] to hit[row[i + 1]].
  IL_NOINLINE void load(int64_t v) {
    uint16_t* marks = marks_.get();
    int64_t* rows = rows_.get();
    nodes = o.out(v), size = o.outdegree(v);
    row = rows, hit = hits_.get();
    // Rows ascend and lie above their own node: none leads to the first, and the last leads nowhere.
    for (int64_t i = 1; i < size; ++i) marks[nodes[i]] = uint16_t(i + 1);
    Hit* end = hits_.get();
    for (int64_t i = 0; i + 1 < size; ++i) {
      rows[i] = end - hit;
      if (i + kAhead < size) __builtin_prefetch(o.out(nodes[i + kAhead]));
      end = filter(o.rows[nodes[i]], marks, end);
    }
    if (size > 0) rows[size - 1] = end - hit;
    rows[size] = end - hit;
    for (int64_t i = 1; i < size; ++i) marks[nodes[i]] = 0;
  }

  // The same from a store, where it is there.
  void load(int64_t v, const HitStore* store) {
    const int64_t* kept = store == nullptr ? nullptr : store->find(v);
    if (kept == nullptr) return load(v);
    nodes = o.out(v), size = o.outdegree(v);
    row = kept, hit = reinterpret_cast<const Hit*>(kept + size + 1);
  }

  const Oriented& o;
  const int32_t* nodes = nullptr;
  int64_t size = 0;
  const int64_t* row = nullptr;
  const Hit* hit = nullptr;

 private:
  // Without a branch: what is no member is overwritten by the next hit.
  static IL_NOINLINE Hit* filter(const Oriented::Row& u, const uint16_t* marks, Hit* hit) {
    const int32_t *end = u.ends, *last = u.ends + u.count;
    for (uint32_t place = 0; end < last; ++end, place += 1 << 16) {
      const uint32_t mark = marks[*end];
      hit->bits = place | mark;
      hit += mark != 0;
    }
    return hit;
  }

  Scratch<uint16_t> marks_;
  Scratch<int64_t> rows_;
  Scratch<Hit> hits_;
};

struct TriangleSums {
  const Oriented& graph;
  int32_t* edge;  // [m], by number of the directed edge
};

class TriangleWorker {
 public:
  TriangleWorker(const TriangleSums& sums, bool alone)
      : o_(sums.graph), near_(sums.graph), edge_(sums.edge, sums.graph.g.num_edges, alone) {}
  void operator()(int64_t v) {
    if (o_.outdegree(v) < 2) return;
    near_.load(v);
    int32_t* mine = edge_.sums + o_.start(v);
    for (int64_t i = 0; i < near_.size; ++i) {
      mine[i] += int32_t(near_.row[i + 1] - near_.row[i]);
      int32_t* theirs = edge_.sums + o_.start(near_.nodes[i]);
      for (int64_t h = near_.row[i]; h < near_.row[i + 1]; ++h) {
        ++mine[near_.hit[h].member()];
        ++theirs[near_.hit[h].place()];
      }
    }
  }
  void merge() { edge_.merge(); }

 private:
  const Oriented& o_;
  Neighbourhood near_;
  Partial<int32_t> edge_;
};

constexpr int64_t kChunk = 64;   // nodes handed out at once
constexpr int64_t kRows = 1024;  // where the work is in proportion to the rows

}  // namespace
}  // namespace IL_ISA
}  // namespace il
