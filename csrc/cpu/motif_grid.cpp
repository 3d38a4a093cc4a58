// SPDX-License-Identifier: Apache-2.0
// The motifs around the most central nodes of each graph of a batch as a grid:
//   x[b, :, k s + p, k i + q] = (p, q) entry of the s-th motif around the i-th node by (centrality descending, ties)
//
// A task is a graph. Its CSR is written again by position in the order of nodes, rows ascending, so that the triples
// around a node come out in the order they are wanted in, and stop when the slots are full. Other sizes of motif are
// all enumerated, and the first ones kept. Writes k² slots num_nodes planes floats a graph.
#include "cpu/motif_grid.h"

#include "core/simd.h"
#include "cpu/graph_batch.h"

namespace il {
namespace IL_ISA {
namespace {

// Stable.
template <class A, class Before>
void merge_sort(A* items, int64_t n, A* spare, Before&& before) {
  for (int64_t width = 1; width < n; width *= 2) {
    for (int64_t begin = 0; begin + width < n; begin += 2 * width) {
      const int64_t middle = begin + width, end = min64(middle + width, n);
      if (!before(items[middle], items[middle - 1])) continue;
      std::memcpy(spare, items + begin, width * sizeof(A));
      for (int64_t left = 0, right = middle, to = begin; left < width; ++to) {
        items[to] = right < end && before(items[right], spare[left]) ? items[right++] : spare[left++];
      }
    }
  }
}

// Colour refinement (1-WL) of nodes that are already ordered by `before`, equal ones by index: classes are split by
// their neighbours' colours, edge values included, until nothing changes.
template <class Before>
void refine(const Csr& g, GraphBatch& batch, Arena& arena, const float* edge_value, int32_t* order, int32_t* spare,
            Before&& before) {
  const int64_t n = g.n;
  int32_t *color = arena.take<int32_t>(n), *finer = arena.take<int32_t>(n);
  uint64_t *near = arena.take<uint64_t>(g.end(n - 1)), *spare_near = arena.take<uint64_t>(n);
  auto count_classes = [&](auto&& less) {
    int32_t last = 0;
    for (int64_t i = 0; i < n; ++i) {
      last += i > 0 && less(order[i - 1], order[i]);
      finer[order[i]] = last;
    }
    std::memcpy(color, finer, n * sizeof(int32_t));
    return last;
  };
  auto precedes = [&](int32_t a, int32_t b) {  // equal colours have equal degrees
    if (color[a] != color[b]) return color[a] < color[b];
    const uint64_t *x = near + g.begin(a), *y = near + g.begin(b);
    for (int64_t i = 0; i < g.degree(a); ++i) {
      if (x[i] != y[i]) return x[i] < y[i];
    }
    return false;
  };
  int32_t classes = count_classes(before), known = -1;
  while (classes > known) {
    known = classes;
    for (int64_t v = 0; v < n; ++v) {
      for (int64_t e = g.begin(v); e < g.end(v); ++e) {
        // Bits that order like the float; adding 0 makes one zero of two.
        const uint32_t bits = edge_value == nullptr ? 0 : float_to_bits(edge_value[g.eid[e]] + 0.0f);
        const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
        near[e] = uint64_t(color[g.to(e)]) << 32 | ordered;
      }
      merge_sort(near + g.begin(v), g.degree(v), spare_near, [](uint64_t a, uint64_t b) { return a < b; });
    }
    merge_sort(order, n, spare, precedes);
    classes = count_classes(precedes);
    if (stopped(batch)) return;
  }
}

// Of the graph whose first node is `first`.
void order_nodes(const Csr& g, Arena& arena, MotifGrid& p, int64_t first, int32_t* order) {
  const int64_t n = g.n, *value = p.value + first;
  int32_t* spare = arena.take<int32_t>(n);
  const double* central = p.centrality;
  if (central != nullptr) {
    central += first;
  } else {
    double* closeness = arena.take<double>(n);
    closeness_of(g, p.batch, arena, nullptr, n, closeness);
    central = closeness;
  }
  for (int64_t v = 0; v < n; ++v) order[v] = int32_t(v);
  auto before = [&](int32_t a, int32_t b) {
    const double x = central[a], y = central[b];
    if (x != y) return x > y;
    if (p.tie != Tie::kOfficial && g.degree(a) != g.degree(b)) return g.degree(a) > g.degree(b);
    return p.tie == Tie::kCanonical && value[a] < value[b];
  };
  merge_sort(order, n, spare, before);
  if (p.tie == Tie::kCanonical && n > 0) refine(g, p.batch, arena, p.edge_value, order, spare, before);
}

// `out` is g with the nodes numbered by their position in `order`, the columns of a row ascending.
void renumber(const Csr& g, Arena& arena, const int32_t* order, Csr* out) {
  int32_t* rank = arena.take<int32_t>(g.n);
  int64_t* next = arena.take<int64_t>(g.n);
  int64_t at = 0;
  for (int64_t r = 0; r < g.n; ++r) {
    rank[order[r]] = int32_t(r);
    out->rowptr[r] = next[r] = at;
    at += g.degree(order[r]);
  }
  out->rowptr[g.n] = at;
  for (int64_t r = 0; r < g.n; ++r) {
    for (int64_t e = g.begin(order[r]); e < g.end(order[r]); ++e) {
      const int64_t to = next[rank[g.to(e)]]++;
      out->col[to] = int32_t(r);
      out->eid[to] = g.eid[e];
    }
  }
}

// ---- codes of motifs: the adjacency of nodes 0..k-1, pairs (0, 1), (0, 2), … from the highest bit down ----

IL_INLINE int pair_bit(int p, int q, int k) {
  const int low = p < q ? p : q, high = p < q ? q : p;
  return k * (k - 1) / 2 - 1 - (low * (2 * k - low - 1) / 2 + high - low - 1);
}
IL_INLINE bool joined(int code, int p, int q, int k) { return code >> pair_bit(p, q, k) & 1; }

// The next arrangement of positions 1..k-1 in lexicographic order; false after the last.
bool next_arrangement(int* a, int k) {
  int i = k - 2;
  while (i >= 1 && a[i] > a[i + 1]) --i;
  if (i < 1) return false;
  int j = k - 1;
  while (a[j] < a[i]) --j;
  exchange(a[i], a[j]);
  for (int low = i + 1, high = k - 1; low < high; ++low, --high) exchange(a[low], a[high]);
  return true;
}

bool connected(int code, int k) {
  int reached = 1;
  for (int round = 1; round < k; ++round) {
    for (int p = 0; p < k; ++p) {
      for (int q = 0; q < k; ++q) {
        if (p != q && reached >> p & 1 && joined(code, p, q, k)) reached |= 1 << q;
      }
    }
  }
  return reached == (1 << k) - 1;
}

// Of a motif whose nodes behind the root stand in ascending order: its largest code, the type that this is, and the
// first arrangement of the nodes that gives it.
struct Pattern {
  int type, code;
  int arrangement[kLargestMotif];
};

class Patterns {
 public:
  explicit Patterns(int k) : table_(int64_t(1) << k * (k - 1) / 2) {
    const int codes = 1 << k * (k - 1) / 2;
    for (int code = 0; code < codes; ++code) {
      Pattern& best = table_.get()[code];
      best.code = best.type = -1;
      if (!connected(code, k)) continue;
      int a[kLargestMotif];
      for (int p = 0; p < k; ++p) a[p] = p;
      do {
        int arranged = 0;
        for (int p = 0; p < k; ++p) {
          for (int q = p + 1; q < k; ++q) arranged |= int(joined(code, a[p], a[q], k)) << pair_bit(p, q, k);
        }
        if (arranged > best.code) {
          best.code = arranged;
          std::memcpy(best.arrangement, a, sizeof(a));
        }
      } while (next_arrangement(a, k));
    }
    for (int edges = k * (k - 1) / 2; edges > 0; --edges) {
      for (int code = 0; code < codes; ++code) {
        if (table_.data()[code].code == code && __builtin_popcount(code) == edges) table_.get()[code].type = types_++;
      }
    }
    for (int code = 0; code < codes; ++code) {
      Pattern& pattern = table_.get()[code];
      if (pattern.code >= 0) pattern.type = table_.data()[pattern.code].type;
    }
  }
  const Pattern& operator[](int code) const { return table_.data()[code]; }
  int64_t types() const { return types_; }

 private:
  Scratch<Pattern> table_;
  int64_t types_ = 0;
};

// ---- the instances around a node ----

// First slot of a type where each has its share of them.
IL_INLINE int64_t first_slot(const MotifGrid& p, int64_t type, int64_t types) {
  return type * (p.slots / types) + min64(type, p.slots % types);
}

// The triples around v in order, put(slot, nodes, code), as far as there are slots. `near` is 0 for all nodes, before
// and after.
template <class Put>
void triples(const MotifGrid& p, const Csr& g, int64_t v, uint8_t* near, Put&& put) {
  for (int64_t e = g.begin(v); e < g.end(v); ++e) near[g.to(e)] = 1;
  int64_t slot = 0, end = 0;
  auto open = [&](int64_t type) {
    slot = p.per_type ? first_slot(p, type, 3) : slot;
    end = p.per_type ? first_slot(p, type + 1, 3) : p.slots;
  };
  auto take = [&](int64_t a, int64_t b, int code) {
    const int32_t nodes[] = {int32_t(v), int32_t(a), int32_t(b)};
    put(slot++, nodes, code);
  };
  open(0);  // triangle
  for (int64_t e = g.begin(v); e < g.end(v) && slot < end; ++e) {
    const int32_t a = g.to(e);
    for (int64_t f = g.lower(a, a + 1); f < g.end(a) && slot < end; ++f) {
      if (near[g.to(f)]) take(a, g.to(f), 0b111);
    }
  }
  open(1);  // path with v at its end
  for (int64_t e = g.begin(v); e < g.end(v) && slot < end; ++e) {
    const int32_t a = g.to(e);
    for (int64_t f = g.begin(a); f < g.end(a) && slot < end; ++f) {
      if (g.to(f) != v && !near[g.to(f)]) take(a, g.to(f), 0b101);
    }
  }
  open(2);  // path with v in its middle
  for (int64_t e = g.begin(v); e < g.end(v) && slot < end; ++e) {
    const int32_t a = g.to(e);
    int64_t f = g.begin(a);
    for (int64_t other = e + 1; other < g.end(v) && slot < end; ++other) {
      const int32_t b = g.to(other);
      while (f < g.end(a) && g.to(f) < b) ++f;
      if (f == g.end(a) || g.to(f) != b) take(a, b, 0b110);
    }
  }
  for (int64_t e = g.begin(v); e < g.end(v); ++e) near[g.to(e)] = 0;
}

// All connected k-sets that hold a node, each once (Wernicke's ESU without its condition on indices), and the first of
// them in order.
class Grower {
 public:
  Grower(MotifGrid& args, const Patterns& patterns, const Csr& graph, Arena& arena)
      : p(args),
        batch_(args.batch),
        k(args.k),
        patterns_(patterns),
        g(graph),
        near_(arena.take<uint8_t>(g.n)),
        extension_(arena.take<int32_t>(k * g.n)),
        kept_(arena.take<Instance>(p.slots)),
        filled_(arena.take<int64_t>(patterns.types())) {
    fill(near_, g.n, uint8_t(0));
  }

  template <class Put>
  void run(int64_t v, Put&& put) {
    fill(filled_, patterns_.types(), int64_t(0));
    members_[0] = int32_t(v);
    near_[v] = 1;
    for (int64_t e = g.begin(v); e < g.end(v); ++e) {
      near_[g.to(e)] = 1;
      extension_[e - g.begin(v)] = g.to(e);
    }
    grow(1, g.degree(v));
    near_[v] = 0;
    for (int64_t e = g.begin(v); e < g.end(v); ++e) near_[g.to(e)] = 0;
    for (int64_t type = 0; type < (p.per_type ? patterns_.types() : 1); ++type) {
      const int64_t begin = begin_of(type);
      for (int64_t i = 0; i < filled_[type]; ++i) {
        const Instance& one = kept_[begin + i];
        put(begin + i, one.nodes, one.code);
      }
    }
  }

 private:
  struct Instance {
    int type, code;
    int32_t nodes[kLargestMotif];
  };

  int64_t begin_of(int64_t type) const { return p.per_type ? first_slot(p, type, patterns_.types()) : 0; }
  int64_t end_of(int64_t type) const { return p.per_type ? begin_of(type + 1) : p.slots; }

  // The first `size` members are chosen; the next comes from the `count` nodes of the list of this size.
  void grow(int size, int64_t count) {
    const int32_t* list = extension_ + (size - 1) * g.n;
    for (int64_t i = 0; i < count; ++i) {
      if (++steps_ % 65536 == 0) stop_ = stopped(batch_);
      if (stop_) return;
      const int32_t v = members_[size] = list[i];
      if (size + 1 == k) {
        offer();
        continue;
      }
      int32_t* longer = extension_ + size * g.n;
      const int64_t rest = count - i - 1;
      int64_t length = rest;
      std::memcpy(longer, list + i + 1, rest * sizeof(int32_t));
      for (int64_t e = g.begin(v); e < g.end(v); ++e) {
        if (near_[g.to(e)]) continue;
        near_[g.to(e)] = 1;
        longer[length++] = g.to(e);
      }
      grow(size + 1, length);
      for (int64_t j = rest; j < length; ++j) near_[longer[j]] = 0;
    }
  }

  bool precedes(const Instance& a, const Instance& b) const {
    if (a.type != b.type) return a.type < b.type;
    for (int j = 1; j < k; ++j) {
      if (a.nodes[j] != b.nodes[j]) return a.nodes[j] < b.nodes[j];
    }
    return false;
  }

  void offer() {
    int32_t sorted[kLargestMotif];
    for (int j = 0; j < k; ++j) {
      int at = j;
      for (; at > 1 && sorted[at - 1] > members_[j]; --at) sorted[at] = sorted[at - 1];
      sorted[at] = members_[j];
    }
    int code = 0;
    for (int a = 0; a < k; ++a) {
      for (int b = a + 1; b < k; ++b) code |= int(g.adjacent(sorted[a], sorted[b])) << pair_bit(a, b, k);
    }
    const Pattern& pattern = patterns_[code];
    Instance one{pattern.type, pattern.code, {}};
    for (int j = 0; j < k; ++j) one.nodes[j] = sorted[pattern.arrangement[j]];
    Instance* kept = kept_ + begin_of(one.type);
    int64_t& filled = filled_[p.per_type ? one.type : 0];
    const int64_t room = end_of(one.type) - begin_of(one.type);
    if (room == 0 || (filled == room && !precedes(one, kept[room - 1]))) return;
    filled += filled < room;
    int64_t at = filled - 1;
    for (; at > 0 && precedes(one, kept[at - 1]); --at) kept[at] = kept[at - 1];
    kept[at] = one;
  }

  const MotifGrid& p;
  GraphBatch& batch_;
  int64_t steps_ = 0;
  bool stop_ = false;
  const int k;
  const Patterns& patterns_;
  const Csr& g;
  uint8_t* near_;  // 1 for members and their neighbours
  int32_t* extension_;
  Instance* kept_;
  int64_t* filled_;
  int32_t members_[kLargestMotif];
};

// Writes instances of graph b, whose nodes are numbered by position in `order`.
struct Writer {
  const MotifGrid& p;
  const Csr& g;
  const int32_t* order;
  int64_t b;

  void clear() const {
    const int64_t cells = p.num_nodes * p.slots, block = p.k * p.k;
    fill(p.x + b * p.planes * cells * block, p.planes * cells * block, 0.0f);
    fill(p.index + b * cells * p.k, cells * p.k, int32_t(-1));
    fill(p.mask + b * cells, cells, uint8_t(0));
  }

  // K: p.k where it is known to the compiler, else 0.
  template <int K>
  void put(int64_t i, int64_t slot, const int32_t* nodes, int code) const {
    const int k = K > 0 ? K : p.k;
    const int64_t first = p.batch.ptr[b], cell = (b * p.num_nodes + i) * p.slots + slot;
    const int64_t width = p.num_nodes * k, plane = p.slots * k * width;
    float* block = p.x + b * p.planes * plane + slot * k * width + i * k;
    float* edges = block + (p.planes - 1) * plane;
    int32_t* index = p.index + cell * k;
    p.mask[cell] = 1;
    int bit = k * (k - 1) / 2;
    for (int r = 0; r < k; ++r) {
      const int64_t node = first + order[nodes[r]], value = p.value[node];
      index[r] = int32_t(node);
      block[(p.planes == 1 ? 0 : (value - 1) * plane) + r * (width + 1)] = p.planes == 1 ? float(value) : 1.0f;
      for (int c = r + 1; c < k; ++c) {
        if (!(code >> --bit & 1)) continue;
        const float edge = p.edge_value == nullptr ? 1.0f : p.edge_value[g.eid[g.lower(nodes[r], nodes[c])]];
        edges[r * width + c] = edges[c * width + r] = edge;
      }
    }
  }
};

}  // namespace

void motif_grid(MotifGrid& args) {
  const Patterns patterns(args.k == 3 ? 2 : args.k);  // triples need none
  for_each_graph(args.batch, [&](int64_t b, const Csr& g, Arena& arena) {
    int32_t* order = arena.take<int32_t>(g.n);
    order_nodes(g, arena, args, args.batch.ptr[b], order);
    Csr ranked(g.n, g.n > 0 ? g.end(g.n - 1) : 0, arena);
    renumber(g, arena, order, &ranked);
    const Writer writer{args, ranked, order, b};
    writer.clear();
    const int64_t centers = min64(g.n, args.num_nodes);
    if (args.k == 3) {
      uint8_t* near = arena.take<uint8_t>(g.n);
      fill(near, g.n, uint8_t(0));
      for (int64_t i = 0; i < centers; ++i) {
        triples(args, ranked, i, near,
                [&](int64_t slot, const int32_t* nodes, int code) { writer.put<3>(i, slot, nodes, code); });
      }
    } else {
      Grower grower(args, patterns, ranked, arena);
      for (int64_t i = 0; i < centers && !stopped(args.batch); ++i) {
        grower.run(i, [&](int64_t slot, const int32_t* nodes, int code) { writer.put<0>(i, slot, nodes, code); });
      }
    }
  });
}

}  // namespace IL_ISA
}  // namespace il
