// SPDX-License-Identifier: Apache-2.0
// Closeness of every node of a batch of graphs, from all nodes of its component or from some, the sources P:
//   c(v) = |P \ v| / Σ_u d(v, u),  u in P
//
// Sources go through breadth-first search 64 at a time, a bit each (MS-BFS, Then et al. 2015); d(u, v) = d(v, u) makes
// counting bits enough. Components never meet, so they share the bits: the j-th source of each has bit j mod 64 of
// group j / 64. A level either asks the neighbours of every node that misses a bit, or, where few nodes got bits in the
// last level, hands these on: O(64 m) a group at worst, a few passes over the edges where the diameter is small. Tasks
// are graphs, or shares of the groups of one graph. 48 bytes a node and thread. No floating-point sums but one division
// a node.
#include "cpu/closeness.h"

#include "core/simd.h"
#include "cpu/graph_batch.h"

namespace il {
namespace IL_ISA {
namespace {

// number[v] becomes the place of v among the sources of its component, or -1. Sources are the first `samples` nodes of
// a component in `order`; without one in the order of a search, in which the nodes of a group are near each other.
// Returns how many the component with the most of them has.
int64_t number_sources(const Csr& g, Arena& arena, const int64_t* order, int64_t samples, int32_t* number) {
  const int64_t n = g.n;
  if (n <= 64 && samples >= n) {  // one group, components or not
    for (int64_t v = 0; v < n; ++v) number[v] = int32_t(v);
    return n;
  }
  int32_t *component = arena.take<int32_t>(3 * n), *taken = component + n, *found = taken + n;
  fill(component, n, int32_t(-1));
  fill(taken, n, int32_t(0));
  for (int64_t root = 0, at = 0, end = 0; root < n; ++root) {
    if (component[root] >= 0) continue;
    component[root] = int32_t(root);
    found[end++] = int32_t(root);
    for (; at < end; ++at) {
      for (int64_t e = g.begin(found[at]); e < g.end(found[at]); ++e) {
        if (component[g.to(e)] >= 0) continue;
        component[g.to(e)] = int32_t(root);
        found[end++] = g.to(e);
      }
    }
  }
  int64_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t v = order == nullptr ? found[i] : order[i];
    int32_t& count = taken[component[v]];
    number[v] = count < samples ? count++ : -1;
    most = max64(most, count);
  }
  return most;
}

// What a thread searches with, [n] each.
struct Search {
  uint64_t *distance, *reached;  // of each node, sums over the sources so far
  uint64_t *seen, *now, *next;  // which sources of the group have come to a node, did so in the last level, in this one
  int32_t *front, *fresh;       // the nodes whose `now` is not 0, whose `next` is not
};

// From the sources numbered first, first + 1, … that have a bit in `every`.
void search(const Csr& g, GraphBatch& batch, const int32_t* number, int64_t first, uint64_t every, Search s) {
  int64_t size = 0, behind = 0, looked = 0;
  for (int64_t v = 0; v < g.n; ++v) {
    const int64_t j = number[v] - first;
    s.seen[v] = s.now[v] = j >= 0 && j < 64 ? uint64_t(1) << j : 0;
    s.next[v] = 0;
    if (s.now[v] != 0) s.front[size++] = int32_t(v);
  }
  for (uint64_t level = 1; size > 0; ++level) {
    const bool few = 4 * size < g.n;
    looked += few ? size : g.n;
    if (looked > 65536) {
      looked = 0;
      if (stopped(batch)) return;
    }
    // `next` was `now` before the last level, and `fresh` its `behind` nodes.
    for (int64_t i = 0; i < behind; ++i) s.next[s.fresh[i]] = 0;
    int64_t found = 0;
    const auto take = [&](int64_t v, uint64_t bits) {
      const uint64_t count = __builtin_popcountll(bits);
      if (s.next[v] == 0) s.fresh[found++] = int32_t(v);
      s.next[v] |= bits;
      s.seen[v] |= bits;
      s.reached[v] += count;
      s.distance[v] += level * count;
    };
    if (few) {
      for (int64_t i = 0; i < size; ++i) {
        const uint64_t bits = s.now[s.front[i]];
        for (int64_t e = g.begin(s.front[i]); e < g.end(s.front[i]); ++e) {
          const uint64_t missing = bits & ~s.seen[g.to(e)];
          if (missing != 0) take(g.to(e), missing);
        }
      }
    } else {
      for (int64_t v = 0; v < g.n; ++v) {
        const uint64_t missing = every & ~s.seen[v];
        uint64_t bits = 0;
        for (int64_t e = g.begin(v); e < g.end(v) && bits != missing; ++e) bits |= s.now[g.to(e)] & missing;
        if (bits != 0) take(v, bits);
      }
    }
    exchange(s.now, s.next);
    exchange(s.front, s.fresh);
    behind = size;
    size = found;
  }
}

}  // namespace

void closeness_of(const Csr& g, GraphBatch& batch, Arena& arena, const int64_t* order, int64_t samples, double* out) {
  const int threads = batch.num_graphs > 1 ? 1 : batch.threads;
  const int64_t n = g.n, shares = min64((min64(n, samples) + 63) / 64, threads);
  uint64_t* words = arena.take<uint64_t>(5 * shares * n);
  int32_t* number = arena.take<int32_t>((1 + 2 * shares) * n);
  const int64_t most = number_sources(g, arena, order, samples, number), groups = (most + 63) / 64;
  parallel_tasks(shares, threads, [&](int64_t share) {
    uint64_t* word = words + 5 * share * n;
    int32_t* node = number + (1 + 2 * share) * n;
    const Search s{word, word + n, word + 2 * n, word + 3 * n, word + 4 * n, node, node + n};
    fill(word, 2 * n, uint64_t(0));
    for (int64_t group = share; group < groups && !stopped(batch); group += shares) {
      const int64_t sources = min64(64, most - 64 * group);
      search(g, batch, number, 64 * group, ~uint64_t(0) >> (64 - sources), s);
    }
  });
  for (int64_t v = 0; v < n; ++v) {
    uint64_t distance = 0, reached = 0;
    for (int64_t share = 0; share < shares; ++share) {
      distance += words[5 * share * n + v];
      reached += words[(5 * share + 1) * n + v];
    }
    out[v] = distance > 0 ? double(reached) / double(distance) : 0.0;
  }
}

void closeness(Closeness& args) {
  for_each_graph(args.batch, [&](int64_t b, const Csr& g, Arena& arena) {
    const int64_t first = args.batch.ptr[b];
    const int64_t* order = args.order == nullptr ? nullptr : args.order + first;
    closeness_of(g, args.batch, arena, order, args.samples, args.out + first);
  });
}

}  // namespace IL_ISA
}  // namespace il
