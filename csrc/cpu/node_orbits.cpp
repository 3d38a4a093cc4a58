// SPDX-License-Identifier: Apache-2.0
// Orbit counts of all connected induced subgraphs on up to k nodes, at every node and every edge, exactly.
// Nothing larger than a triangle is listed for k = 4: 4-cliques are population counts of bit rows, 4-cycles come from
// paths below their highest node, and the rest follows by linear equations (orbits4.h). k = 5 is in orbits5.h
// (passes) and orbits5_forms.h (closed forms).
//
// Work for k = 4: W = Σ over directed edges v -> u of outdeg(u) (6 bytes read each; 4 bytes kept for each triangle, up
// to 256 MiB, beyond which W is walked again), a population count per triangle and 64 out-neighbours, and three times
// the Σ of paths below the highest node (6 bytes each). Each thread keeps its own sums: 4 m + 24 n bytes, and 32 m more
// for edges.
#include "cpu/node_orbits.h"

#include "cpu/orbits4_dense.h"
#include "cpu/orbits5_forms.h"

namespace il {
namespace IL_ISA {
namespace {

void three_nodes(const Counts& c, const NodeSums* sums, NodeOrbits& args) {
  const SimpleGraph& g = c.graph.g;
  for (int64_t v = 0; v < g.num_nodes; ++v) {
    const int64_t d = sums[v].degree, t = sums[v].triangles, s = sums[v].steps;
    if (args.node != nullptr) {
      int64_t* a = args.node + 4 * int64_t(g.order[v]);
      a[0] = d, a[1] = s, a[2] = pairs(d), a[3] = t;
      if (args.induced) a[1] -= 2 * t, a[2] -= t;
    }
    for (int64_t i = 0; args.edge != nullptr && i < c.graph.outdegree(v); ++i) {
      const int64_t both = c.t[c.graph.start(v) + i];
      int64_t* a = args.edge + 2 * int64_t(g.eid[g.split[v] + i]);
      a[0] = d + sums[c.graph.out(v)[i]].degree - 2 - (args.induced ? 2 * both : 0);
      a[1] = both;
    }
  }
}

int64_t largest_degree(const Oriented& o) {
  int64_t largest = 0;
  for (int64_t v = 0; v < o.g.num_nodes; ++v) largest = max64(largest, o.degree(v));
  return largest;
}

constexpr int64_t kSmallCounts = 65536;  // below, counters of 16 bits stay in the first cache

bool count_cycles(const Counts& c, int64_t first, int64_t last, int threads, Poll poll) {
  if (largest_degree(c.graph) < kSmallCounts) {
    return share_range<CycleWorker<uint16_t>>(first, last, kChunk, threads, poll, c);
  }
  return share_range<CycleWorker<uint32_t>>(first, last, kChunk, threads, poll, c);
}

// A few operations an edge: nobody asks to stop meanwhile.
template <class Worker, class Args>
void walk_rows(const Counts& c, int threads, const Args& args) {
  share_out<Worker>(c.graph.g.num_nodes, kRows, threads, Poll{}, args);
}

void sum_edges(const SumArgs& sums, int threads) {
  walk_rows<TriangleSumWorker>(sums.counts, threads, sums);
  walk_rows<NearWorker>(sums.counts, threads, sums);
  walk_rows<FarWorker>(sums.counts, threads, sums);
}

struct BlockArgs {
  const Counts& counts;
  const Blocks& blocks;
  const SumArgs& sums;
  int threads;
  Poll poll;
};

template <class Count>
class BlockWorker {
 public:
  BlockWorker(const BlockArgs& a, bool)
      : blocks_(a.blocks),
        poll_(a.poll),
        hits_(a.blocks.largest, a.threads),
        counts_(with(a.counts, &hits_)),
        dense_(counts_),
        cliques_(counts_, true),
        fans_(counts_, true),
        cycles_(counts_, true),
        triangles_(a.sums, true),
        near_(a.sums, true),
        far_(a.sums, true) {}
  void operator()(int64_t block) {
    const int64_t first = blocks_.start(block), last = blocks_.start(block + 1);
    const Oriented& o = counts_.graph;
    // One graph after the other, or one component, where ranks allow.
    for (int64_t begin = first, end = first, reach = -1; end < last; ++end) {
      if (o.outdegree(end) > 0) reach = max64(reach, o.out(end)[o.outdegree(end) - 1]);
      if (reach > end) continue;
      if (dense_.suits(begin, end + 1)) {
        dense_(begin, end + 1);
      } else {
        list(begin, end + 1);
      }
      begin = end + 1;
    }
    walk(first, last, triangles_), walk(first, last, near_), walk(first, last, far_);
  }
  void merge() {}

 private:
  static Counts with(Counts counts, HitStore* hits) {
    counts.hits = hits;
    return counts;
  }
  template <class Worker>
  void walk(int64_t first, int64_t last, Worker& worker) {
    for (int64_t v = first; v < last; ++v) {
      worker(v);
      if (v % 16 == 15 && poll_.ask != nullptr && poll_.ask(poll_.state)) return;  // as will share_range
    }
  }
  void list(int64_t first, int64_t last) {
    cliques_.writer().restart(first, last);
    walk(first, last, cliques_), walk(first, last, fans_), walk(first, last, cycles_);
  }

  const Blocks& blocks_;
  const Poll poll_;
  HitStore hits_;
  Counts counts_;
  DenseBlock dense_;
  CliqueWorker cliques_;
  FanWorker fans_;
  CycleWorker<Count> cycles_;
  TriangleSumWorker triangles_;
  NearWorker near_;
  FarWorker far_;
};

bool count_blocks(const BlockArgs& args, int threads, Poll poll) {
  if (largest_degree(args.counts.graph) < kSmallCounts) {
    return share_out<BlockWorker<uint16_t>>(args.blocks.count, 1, threads, poll, args);
  }
  return share_out<BlockWorker<uint32_t>>(args.blocks.count, 1, threads, poll, args);
}

// Columns 15 to 72 of a node from the sums of its edges' columns 12 to 67, which node_forms has filled up to 14.
void node_row(const Five& five, int64_t v, const int64_t* edges, int64_t* out) {
  const NodeSums& s = five.nodes[v];
  const int64_t d = s.degree, t = s.triangles, c4 = five.four.c4[v];
  const SimpleGraph& g = five.four.graph.g;
  int64_t squares = 0, ends = 0;
  for (int64_t p = g.rowptr[v]; p < g.rowptr[v + 1]; ++p) {
    const int64_t steps = five.four.graph.degree(g.col[p]) - 1;
    squares += steps * steps;
    ends += five.t_at[p] * steps;
  }
  fill(out + 15, 58, int64_t(0));
  out[17] = (s.steps * s.steps - squares) / 2 - c4 - ends + t;
  out[21] = s.steps * pairs(d - 1) - 2 * t * (d - 2);
  out[23] = quadruples(d);
  out[38] = c4 * (d - 2) - s.n13;
  out[50] = five.hubs[v];
  for (const NodeOfEdges& term : kNodeOfEdges) {
    out[term.orbit] += term.coefficient * (term.from_node ? out[term.source] : edges[term.source]);
  }
  // Divisors once each orbit is complete: its terms stand together.
  const NodeOfEdges* last = nullptr;
  for (const NodeOfEdges& term : kNodeOfEdges) {
    if (last == nullptr || last->orbit != term.orbit) out[term.orbit] /= term.divisor;
    last = &term;
  }
}

bool five_nodes(const Counts& c, const NodeSums* nodes, NodeOrbits& args, Arena& arena) {
  const Oriented& o = c.graph;
  const SimpleGraph& g = o.g;
  const int64_t n = g.num_nodes, m = g.num_edges;
  int32_t *t = arena.take<int32_t>(m), *t_at = arena.take<int32_t>(2 * m);
  int64_t *k4 = arena.take<int64_t>(m), *fan = arena.take<int64_t>(m), *far = arena.take<int64_t>(m);
  int64_t *back = arena.take<int64_t>(2 * m), *next = arena.take<int64_t>(n);
  for (int64_t v = 0; v < n; ++v) {
    next[v] = g.rowptr[v];
    for (int64_t i = 0; i < o.outdegree(v); ++i) {
      const int64_t number = o.start(v) + i, eid = g.eid[g.split[v] + i];
      t[eid] = c.t[number], k4[eid] = c.k4_edge[number];
      fan[eid] = c.fan_edge[number], far[eid] = c.far_edge[number];
    }
  }
  int64_t triangles = 0;
  for (int64_t v = 0; v < n; ++v) {
    for (int64_t p = g.rowptr[v]; p < g.rowptr[v + 1]; ++p) {
      t_at[p] = t[g.eid[p]];
      if (g.col[p] < v) continue;
      const int64_t q = next[g.col[p]]++;  // rows get their lower nodes in order
      back[p] = q, back[q] = p;
    }
  }
  int64_t *apexes = arena.take<int64_t>(m + 1), *filled = arena.take<int64_t>(m);
  for (int64_t e = 0; e < m; ++e) {
    apexes[e] = filled[e] = triangles;
    triangles += t[e];
  }
  apexes[m] = triangles;
  int32_t* apex = arena.take<int32_t>(triangles);
  list_apexes(o, filled, apex);
  const auto sums = [&](int64_t columns, int64_t rows) { return zeros<int64_t>(arena, columns * rows); };
  const Five five{c,          nodes,      t,          k4,
                  c.c4_edge,  fan,        far,        t_at,
                  back,       apexes,     apex,       reinterpret_cast<EdgeSums*>(sums(kEdgeSums, m)),
                  sums(3, m), sums(2, m), sums(1, n), sums(2, m)};
  constexpr int64_t few = 8;
  if (!share_out<RootWorker>(n, few, args.threads, args.poll, five)) return false;
  if (!share_out<SecondWorker>(n, few, args.threads, args.poll, five)) return false;
  if (!share_out<FiveCycleWorker>(n, few, args.threads, args.poll, five)) return false;
  if (!share_out<FiveCliqueWorker>(n, few, args.threads, args.poll, five)) return false;
  for (int64_t v = 0; v < n; ++v) {
    int64_t run = 0;
    for (int64_t p = g.rowptr[v]; p < g.rowptr[v + 1]; ++p) {
      run += five.fresh[p];
      five.sums[g.eid[p]].n28 += five.cycles[p] - 2 * run;
    }
  }
  const bool by_node = args.node != nullptr;
  int64_t* edges = sums(68, by_node ? n : 0);
  int64_t row[68];
  for (int64_t v = 0; v < n; ++v) {
    for (int64_t i = 0; i < o.outdegree(v); ++i) {
      const int64_t u = o.out(v)[i], eid = g.eid[g.split[v] + i], low = five.sums[eid].fan_low;
      int64_t* out = by_node ? row : args.edge + 68 * eid;
      edge_row(end_of(c, nodes, v, low), end_of(c, nodes, u, five.fan[eid] - low), five.sums[eid],
               five.second + 3 * eid, five.t[eid], five.c4[eid], five.k4[eid], five.far[eid], out);
      for (int64_t j = 12; by_node && j < 68; ++j) {
        edges[68 * v + j] += row[j];
        edges[68 * u + j] += row[j];
      }
      if (!by_node && args.induced) subtract_larger(kEdgeOverlap, out);
    }
  }
  for (int64_t v = 0; by_node && v < n; ++v) {
    int64_t* out = args.node + 73 * int64_t(g.order[v]);
    node_row(five, v, edges + 68 * v, out);
    if (args.induced) subtract_larger(kNodeOverlap, out);
  }
  return true;
}

// What follows from the sums for k = 3 and 4, and the first columns for k = 5, from all of which the larger orbits are
// subtracted at once.
void four_forms(const Counts& c, const NodeSums* nodes, NodeOrbits& args) {
  if (args.k == 3) return three_nodes(c, nodes, args);
  const bool four = args.k == 4, induced = args.induced && four;
  const Forms by_node{c, nodes, args.node, four ? 15 : 73, induced},
      by_edge{c, nodes, args.edge, four ? 12 : 68, induced};
  if (args.node != nullptr) walk_rows<NodeFormsWorker>(c, args.threads, by_node);
  if (args.edge != nullptr) walk_rows<EdgeFormsWorker>(c, args.threads, by_edge);
}

Counts counts_of(const Oriented& oriented, const MotifSums& sums) {
  return {oriented, nullptr,      sums.t,       sums.k4,       sums.c4,
          sums.fan, sums.k4_edge, sums.c4_edge, sums.fan_edge, sums.far_edge};
}

}  // namespace

void node_orbits(NodeOrbits& args) {
  const SimpleGraph& g = args.graph;
  const int64_t n = g.num_nodes, m = g.num_edges;
  const Oriented oriented(g);
  const bool four = args.k >= 4, edges = args.edge != nullptr || args.k == 5;
  Arena arena;
  int32_t* triangles = zeros<int32_t>(arena, m);
  NodeSums* nodes = arena.take<NodeSums>(n);
  SumSpace space(n, arena);
  int64_t* node = zeros<int64_t>(arena, four ? 3 * n : 0);
  int64_t* edge = edges && four ? zeros<int64_t>(arena, 4 * m) : nullptr;
  const auto column = [&](int64_t i) { return edge != nullptr ? edge + i * m : nullptr; };
  const Blocks blocks(oriented, args.threads);
  HitStore hits(four && !blocks.useful ? n : 0);
  const Counts c{oriented, &hits, triangles, node, node + n, node + 2 * n, column(0), column(1), column(2), column(3)};
  const SumArgs sums{c, space, nodes};
  args.finished = false;
  if (!four) {
    const TriangleSums only{oriented, c.t};
    if (!share_out<TriangleWorker>(n, kChunk, args.threads, args.poll, only)) return;
  } else if (blocks.useful) {
    if (!count_blocks({c, blocks, sums, args.threads, args.poll}, args.threads, args.poll)) return;
  } else {
    if (!share_out<CliqueWorker>(n, kChunk, args.threads, args.poll, c)) return;
    if (!share_out<FanWorker>(n, kChunk, args.threads, args.poll, c)) return;
    if (!count_cycles(c, 0, n, args.threads, args.poll)) return;
  }
  if (!four || !blocks.useful) sum_edges(sums, args.threads);
  four_forms(c, nodes, args);
  args.finished = args.k < 5 || five_nodes(c, nodes, args, arena);
}

void motif_sums(MotifSums& args) {
  const Oriented oriented(args.graph);
  const Counts c = counts_of(oriented, args);
  if (args.k4 == nullptr) {
    const TriangleSums only{oriented, args.t};
    args.finished = share_range<TriangleWorker>(args.first, args.last, kChunk, args.threads, args.poll, only);
    return;
  }
  args.finished = share_range<CliqueWorker>(args.first, args.last, kChunk, args.threads, args.poll, c) &&
                  count_cycles(c, args.first, args.last, args.threads, args.poll);
}

void fan_sums(MotifSums& args) {
  const Oriented oriented(args.graph);
  const Counts c = counts_of(oriented, args);
  args.finished = share_range<FanWorker>(args.first, args.last, kChunk, args.threads, args.poll, c);
}

void orbits_from_sums(NodeOrbits& args, const MotifSums& sums) {
  const Oriented oriented(args.graph);
  const Counts c = counts_of(oriented, sums);
  Arena arena;
  NodeSums* nodes = arena.take<NodeSums>(args.graph.num_nodes);
  SumSpace space(args.graph.num_nodes, arena);
  sum_edges({c, space, nodes}, args.threads);
  four_forms(c, nodes, args);
  args.finished = true;
}

}  // namespace IL_ISA
}  // namespace il
