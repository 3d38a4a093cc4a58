// SPDX-License-Identifier: Apache-2.0
// Counts of 5 nodes at every edge, and from them at every node. All are non-induced first, so that each is a sum over
// pairs of nodes at distance two, triangles, 4-cliques or 5-cliques; only 5-cliques are listed as such. With T(e) the
// third nodes of the triangles on e, t(e) their number, and M(x, y) the common neighbours of two nodes, what is needed
// is
//   for each pair of nodes: |M(x, y)| and the number of edges inside M(x, y),
//   for each triangle: the number of 4-cliques on it,
//   for each neighbourhood: its 4-cycles (wheels),
//   and 5-cycles below their highest node.
// Nothing is kept for pairs: one root after the other has a dense row. Work: Σ_v d(v)² + Σ_e t(e)² a few times over,
// the edges around what two steps reach for 5-cycles, and the 5-cliques. Memory: 25 sums for each edge and thread.
#pragma once

#include "cpu/orbits4.h"

namespace il {
namespace IL_ISA {
namespace {

// Sums of one edge xy; z runs over T(xy), cycles and cliques over those on the edge. Numbers are of the edge orbit that
// the sum is for. "Both" adds the same sum with x and y exchanged, "twice" means that it has to be halved.
struct EdgeSums {
  int64_t fan_low;  // Σ_z t(xz) - 1 with x the lower end
  int64_t steps;    // Σ_z S(z)
  int64_t cycles;   // Σ_z C4(xz) + C4(yz)
  int64_t cliques;  // Σ_z K4(xz) + K4(yz)
  int64_t n26;      // Σ_z C(d(z) - 2, 2)
  int64_t n28;      // 5-cycles
  int64_t n30;      // both: Σ over w in N(y) of (|M(x, w)| - 1) (d(w) - 2)
  int64_t n33;      // both: Σ_z (t(xz) - 1) (d(z) - 3)
  int64_t n36;      // Σ_z t(z) - t(xz) - t(yz) + 1
  int64_t n42;      // both: Σ over w in N(y) of C(|M(x, w)| - 1, 2)
  int64_t n43;      // twice: Σ over 4-cycles of t(opposite edge)
  int64_t n44;      // both: Σ over 4-cycles x y w a of t(xa)
  int64_t n47;      // both: Σ_z C(t(xz) - 1, 2)
  int64_t n50;      // Σ_z (4-cliques on xyz) (d(z) - 3)
  int64_t n54;      // Σ_z (t(xz) - 1) (t(yz) - 1) - (4-cliques on xyz)
  int64_t n56;      // both: Σ over w in N(y) of edges inside M(x, w)
  int64_t n57;      // both: Σ over z, w in T(yz) of |M(x, w)| - 2
  int64_t n58;      // twice: Σ over pairs in T(xy) of |M| - 2
  int64_t n60;      // twice: Σ over 4-cliques of t(opposite edge) - 2
  int64_t n61;      // both: Σ_z (4-cliques on xyz) (t(xz) - 2)
  int64_t n63;      // twice: wheels with the edge on the rim
  int64_t n64;      // wheels with the edge as a spoke
  int64_t n65;      // both: Σ over 4-cliques x y z w of (4-cliques on xzw) - 1
  int64_t n66;      // Σ_z C(4-cliques on xyz, 2)
  int64_t n67;      // 5-cliques
};
constexpr int64_t kEdgeSums = sizeof(EdgeSums) / sizeof(int64_t);

// What the passes share, by eid unless said otherwise.
struct Five {
  const Counts& four;
  const NodeSums* nodes;
  const int32_t* t;
  const int64_t* k4;
  const int64_t* c4;
  const int64_t* fan;
  const int64_t* far;
  const int32_t* t_at;    // [2m] t by position in `col`
  const int64_t* back;    // [2m] position of the same edge in the other end's row
  const int64_t* apexes;  // [m + 1] T(e) is apex[apexes[e]] to apex[apexes[e + 1]]
  const int32_t* apex;
  EdgeSums* sums;   // [m]
  int64_t* second;  // [m, 3] both: Σ_z far(xz) - (d(y) - 2), then of fan of xz at z, then at x
  int64_t* cycles;  // [2m] 5-cycles by position
  int64_t* hubs;    // [n] Σ over w of C(|M(v, w)|, 3)
  int64_t* fresh;   // [2m] triangles at the row's node whose highest node is the last at or below the position before
};

// The graph between the neighbours of r that share a triangle with it, as rows of ascending local indices.
class Link {
 public:
  struct Entry {
    int32_t node, eid;
  };

  Link(const Five& five, int64_t max_degree, int64_t max_entries)
      : five_(five),
        marks_(five.four.graph.g.num_nodes),
        positions_(max_degree + 1),
        rows_(max_degree + 2),
        ends_(max_degree + 1),
        entries_(max_entries + 1) {
    position = positions_.get(), row = rows_.get(), entry = entries_.get();
    fill(marks_.get(), five.four.graph.g.num_nodes, int32_t(0));
  }

  IL_NOINLINE void load(int64_t r) {
    const Oriented& o = five_.four.graph;
    const SimpleGraph& g = o.g;
    int32_t* marks = marks_.get();
    int64_t* next = ends_.get();
    size = 0;
    int64_t entries = 0;
    for (int64_t p = g.rowptr[r]; p < g.rowptr[r + 1]; ++p) {
      if (five_.t_at[p] == 0) continue;
      position[size] = p;
      row[size] = next[size] = entries;
      entries += five_.t_at[p];
      marks[g.col[p]] = int32_t(++size);
    }
    row[size] = entries;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t a = g.col[position[i]], last = g.rowptr[a + 1];
      for (int64_t p = g.split[a]; p < last; ++p) {
        const int32_t mark = marks[g.col[p]];
        if (mark == 0) continue;
        entry[next[i]++] = {mark - 1, g.eid[p]};
        entry[next[mark - 1]++] = {int32_t(i), g.eid[p]};
      }
    }
    for (int64_t i = 0; i < size; ++i) marks[g.col[position[i]]] = 0;
  }

  int64_t size = 0;
  int64_t* position;  // of the neighbour in r's row
  int64_t* row;
  Entry* entry;

 private:
  const Five& five_;
  Scratch<int32_t> marks_;
  Scratch<int64_t> positions_, rows_, ends_;
  Scratch<Entry> entries_;
};

// Third nodes of the triangles on each edge, by eid; `next` starts where each edge's list does.
IL_INLINE void list_apexes(const Oriented& o, int64_t* next, int32_t* apex) {
  Neighbourhood near(o);
  for (int64_t v = 0; v < o.g.num_nodes; ++v) {
    if (o.outdegree(v) < 2) continue;
    near.load(v);
    const int32_t* eid = o.g.eid + o.g.split[v];
    for (int64_t i = 0; i < near.size; ++i) {
      const int64_t u = near.nodes[i];
      for (int64_t h = near.row[i]; h < near.row[i + 1]; ++h) {
        const int64_t j = near.hit[h].member();
        apex[next[eid[i]]++] = near.nodes[j];
        apex[next[eid[j]]++] = int32_t(u);
        apex[next[o.g.eid[o.g.split[u] + near.hit[h].place()]]++] = int32_t(v);
      }
    }
  }
}

struct LinkBounds {
  int64_t degree, entries;
};
IL_INLINE LinkBounds link_bounds(const Five& five) {
  const SimpleGraph& g = five.four.graph.g;
  LinkBounds bounds{0, 0};
  for (int64_t r = 0; r < g.num_nodes; ++r) {
    int64_t entries = 0;
    for (int64_t p = g.rowptr[r]; p < g.rowptr[r + 1]; ++p) entries += five.t_at[p];
    bounds.degree = max64(bounds.degree, five.four.graph.degree(r));
    bounds.entries = max64(bounds.entries, entries);
  }
  return bounds;
}

// Everything around one root: pairs (root, w), diamonds, and the 4-cycles and cliques of its link.
class RootWorker {
 public:
  RootWorker(const Five& five, bool alone) : RootWorker(five, alone, link_bounds(five)) {}

  void operator()(int64_t r) {
    if (o_.degree(r) < 2) return;
    reach(r);
    link_.load(r);
    if (link_.size > 0) diamonds(r);
    pair_[r] = {0, 0, 1, 0};
    pairs_of(r);
    forget(r);
    if (link_.size > 0) wheels(r);
  }

  void merge() {
    sums_.merge();
    hubs_.merge();
    fresh_.merge();
  }

 private:
  struct Pair {
    int64_t near, far;  // Σ over a in M(r, w) of t(ra), of t(aw)
    int32_t paths;      // |M(r, w)|
    int32_t inner;      // edges inside M(r, w)
  };
  struct Local {
    int32_t paths;    // common neighbours inside the link
    int32_t cliques;  // where adjacent: 4-cliques on the triangle with r, minus 1
    int64_t far;      // where adjacent: t - 2
  };

  RootWorker(const Five& five, bool alone, LinkBounds bounds)
      : five_(five),
        o_(five.four.graph),
        link_(five, bounds.degree, bounds.entries),
        sums_(&five.sums->fan_low, kEdgeSums * o_.g.num_edges, alone),
        hubs_(five.hubs, o_.g.num_nodes, alone),
        fresh_(five.fresh, 2 * o_.g.num_edges, alone),
        pairs_(o_.g.num_nodes),
        locals_(bounds.degree + 1),
        rims_(bounds.entries + 1),
        spokes_(4 * (bounds.degree + 1)) {
    pair_ = pairs_.get();
    fill(pair_, o_.g.num_nodes, Pair{0, 0, 0, 0});
    fill(locals_.get(), bounds.degree + 1, Local{0, 0, 0});
    edge_ = reinterpret_cast<EdgeSums*>(sums_.sums);
  }

  IL_NOINLINE void reach(int64_t r) {
    const SimpleGraph& g = o_.g;
    for (int64_t q = g.rowptr[r]; q < g.rowptr[r + 1]; ++q) {
      const int64_t c = g.col[q], near = five_.t_at[q];
      for (int64_t p = g.rowptr[c]; p < g.rowptr[c + 1]; ++p) {
        Pair& w = pair_[g.col[p]];
        w.near += near;
        w.far += five_.t_at[p];
        ++w.paths;
      }
    }
  }

  // Triangles (r, a, b) and w in T(ab).
  IL_NOINLINE void diamonds(int64_t r) {
    int64_t* sum = spokes_.get();
    fill(sum, link_.size, int64_t(0));
    pair_[r].paths = 2;  // r is in T(ab) too, and adds nothing
    for (int64_t a = 0; a < link_.size; ++a) {
      for (int64_t q = link_.row[a]; q < link_.row[a + 1] && link_.entry[q].node < a; ++q) {
        const int64_t eid = link_.entry[q].eid;
        int64_t others = 0;
        for (int64_t p = five_.apexes[eid]; p < five_.apexes[eid + 1]; ++p) {
          Pair& w = pair_[five_.apex[p]];
          others += w.paths - 2;
          ++w.inner;
        }
        edge_[eid].n58 += others;
        sum[a] += others;
        sum[link_.entry[q].node] += others;
      }
    }
    for (int64_t a = 0; a < link_.size; ++a) edge_[o_.g.eid[link_.position[a]]].n57 += sum[a];
  }

  IL_NOINLINE void pairs_of(int64_t r) {
    const SimpleGraph& g = o_.g;
    int64_t hubs = 0;
    for (int64_t q = g.rowptr[r]; q < g.rowptr[r + 1]; ++q) {
      const int64_t c = g.col[q], near = five_.t_at[q];
      int64_t n30 = 0, n42 = 0, n43 = near, n44 = near, n56 = 0;  // w = r takes `near` off again
      for (int64_t p = g.rowptr[c]; p < g.rowptr[c + 1]; ++p) {
        const Pair& w = pair_[g.col[p]];
        const int64_t others = w.paths - 1;
        n30 += others * (o_.degree(g.col[p]) - 2);
        n42 += pairs(others);
        n43 += w.far - five_.t_at[p];
        n44 += w.near - near;
        n56 += w.inner;
      }
      EdgeSums& e = edge_[g.eid[q]];
      e.n30 += n30, e.n42 += n42, e.n43 += n43, e.n44 += n44, e.n56 += n56;
      hubs += n42;
    }
    hubs_[r] += hubs / 3;
  }

  IL_NOINLINE void forget(int64_t r) {
    const SimpleGraph& g = o_.g;
    for (int64_t q = g.rowptr[r]; q < g.rowptr[r + 1]; ++q) {
      for (int64_t p = g.rowptr[g.col[q]]; p < g.rowptr[g.col[q] + 1]; ++p) pair_[g.col[p]] = {0, 0, 0, 0};
    }
  }

  // Pairs (x, b), b < x, of the link with the paths x y b inside it.
  IL_NOINLINE void wheels(int64_t r) {
    const int64_t size = link_.size;
    Local* local = locals_.get();
    int64_t *rim = rims_.get(), *n64 = spokes_.get(), *n65 = n64 + size, *n60 = n65 + size, *fresh = n60 + size;
    fill(rim, link_.row[size], int64_t(0));
    fill(n64, 4 * size, int64_t(0));
    for (int64_t x = 0; x < size; ++x) {
      const int64_t first = link_.row[x], last = link_.row[x + 1];
      for (int64_t q = first; q < last; ++q) {
        const Link::Entry* b = link_.entry + link_.row[link_.entry[q].node];
        for (; b->node < x; ++b) ++local[b->node].paths;
      }
      for (int64_t q = first; q < last && link_.entry[q].node < x; ++q) triangle(r, x, link_.entry[q], fresh);
      for (int64_t q = first; q < last; ++q) {
        const int64_t y = link_.entry[q].node, start = link_.row[y];
        int64_t cycles = 0, cliques = 0, far = 0;
        for (int64_t p = start; link_.entry[p].node < x; ++p) {
          const Local& b = local[link_.entry[p].node];
          cycles += b.paths - 1;
          rim[p] += b.paths - 1;
          cliques += b.cliques;
          far += b.far;
        }
        rim[q] += cycles;
        n65[y] += cliques;
        n60[y] += far;
      }
      for (int64_t b = 0; b < x; ++b) {
        const int64_t cycles = pairs(local[b].paths);
        n64[x] += cycles;
        n64[b] += cycles;
        local[b] = {0, 0, 0};
      }
    }
    for (int64_t x = 0; x < size; ++x) {
      EdgeSums& e = edge_[o_.g.eid[link_.position[x]]];
      e.n64 += n64[x], e.n65 += n65[x], e.n60 += n60[x];
      const int64_t behind = five_.back[link_.position[x]] + 1;
      if (behind < o_.g.rowptr[o_.g.col[link_.position[x]] + 1]) fresh_[behind] += fresh[x];
      for (int64_t q = link_.row[x]; q < link_.row[x + 1]; ++q) edge_[link_.entry[q].eid].n63 += rim[q];
    }
  }

  // Sums over the triangle (x, y, r) for the edge xy, with y the lower end.
  IL_INLINE void triangle(int64_t r, int64_t x, Link::Entry y, int64_t* fresh) {
    const SimpleGraph& g = o_.g;
    Local& pair = locals_.get()[y.node];
    const int64_t px = link_.position[x], py = link_.position[y.node];
    const int64_t tx = five_.t_at[px], ty = five_.t_at[py], d = o_.degree(r), k3 = pair.paths;
    pair.cliques = int32_t(k3 - 1);
    pair.far = five_.t[y.eid] - 2;
    EdgeSums& e = edge_[y.eid];
    e.fan_low += ty - 1;
    e.steps += five_.nodes[r].steps;
    e.cycles += five_.c4[g.eid[px]] + five_.c4[g.eid[py]];
    e.cliques += five_.k4[g.eid[px]] + five_.k4[g.eid[py]];
    e.n26 += pairs(d - 2);
    e.n33 += (tx + ty - 2) * (d - 3);
    e.n36 += five_.nodes[r].triangles - tx - ty + 1;
    e.n47 += pairs(tx - 1) + pairs(ty - 1);
    e.n50 += k3 * (d - 3);
    e.n54 += (tx - 1) * (ty - 1) - k3;
    e.n61 += k3 * (tx + ty - 4);
    e.n66 += pairs(k3);
    if (g.col[px] > r) return;
    // r is the triangle's highest node. 5-cycles that would run twice through one of its nodes, for each neighbour of
    // that node above r, which is then the highest of the cycle:
    const int64_t above_x = g.rowptr[g.col[px] + 1] - five_.back[px] - 1;
    const int64_t above_y = g.rowptr[g.col[py] + 1] - five_.back[py] - 1;
    const int64_t loss = above_x + above_y + o_.outdegree(r);
    e.n28 -= loss;
    edge_[g.eid[px]].n28 -= loss;
    edge_[g.eid[py]].n28 -= loss;
    ++fresh[x];
    ++fresh[y.node];
    if (o_.outdegree(r) > 0) ++fresh_[g.split[r]];
  }

  const Five& five_;
  const Oriented& o_;
  Link link_;
  Partial<int64_t> sums_, hubs_, fresh_;
  Scratch<Pair> pairs_;
  Scratch<Local> locals_;
  Scratch<int64_t> rims_, spokes_;
  Pair* pair_;
  EdgeSums* edge_;
};

// Sums over triangles that need `fan` of all edges.
class SecondWorker {
 public:
  SecondWorker(const Five& five, bool alone) : SecondWorker(five, alone, link_bounds(five)) {}

  void operator()(int64_t r) {
    const Oriented& o = five_.four.graph;
    link_.load(r);
    int64_t *away = ends_.get(), *here = away + link_.size, *rest = here + link_.size;
    for (int64_t i = 0; i < link_.size; ++i) {
      const int64_t p = link_.position[i], eid = o.g.eid[p];
      const int64_t low = five_.sums[eid].fan_low, high = five_.fan[eid] - low;
      away[i] = o.g.col[p] < r ? low : high;
      here[i] = o.g.col[p] < r ? high : low;
      rest[i] = five_.far[eid] - (o.degree(o.g.col[p]) - 2);
    }
    for (int64_t x = 0; x < link_.size; ++x) {
      for (int64_t q = link_.row[x]; q < link_.row[x + 1] && link_.entry[q].node < x; ++q) {
        const int64_t y = link_.entry[q].node;
        int64_t* e = sums_.sums + 3 * int64_t(link_.entry[q].eid);
        e[0] += rest[x] + rest[y];
        e[1] += here[x] + here[y];
        e[2] += away[x] + away[y];
      }
    }
  }

  void merge() { sums_.merge(); }

 private:
  SecondWorker(const Five& five, bool alone, LinkBounds bounds)
      : five_(five),
        link_(five, bounds.degree, bounds.entries),
        sums_(five.second, 3 * five.four.graph.g.num_edges, alone),
        ends_(3 * (bounds.degree + 1)) {}

  const Five& five_;
  Link link_;
  Partial<int64_t> sums_;
  Scratch<int64_t> ends_;
};

// 5-cycles v a b c e with highest node v: f(b) is the number of a between v and b, g(b) = Σ over c of f(c), all below
// v. Paths v a b: cycles are g(b) less those through a or v twice. Edges bc: f(b) f(c) less the same. What depends on
// triangles alone is in RootWorker and `fresh`.
class FiveCycleWorker {
 public:
  FiveCycleWorker(const Five& five, bool alone)
      : five_(five),
        g_(five.four.graph.g),
        at_(five.cycles, 2 * g_.num_edges, alone),
        ends_(g_.num_nodes),
        reached_(g_.num_nodes) {
    fill(ends_.get(), g_.num_nodes, End{0, 0, 0});
  }

  void operator()(int64_t v) {
    const int64_t first = g_.rowptr[v], last = g_.split[v];
    if (first == last) return;  // one neighbour makes no cycle, but its terms cancel those of `fresh`
    End* end = ends_.get();
    const int64_t reached = paths(v);
    for (int64_t q = first; q < last; ++q) end[g_.col[q]].near = 1;
    for (int64_t i = 0; i < reached; ++i) edges(v, reached_.get()[i]);
    for (int64_t q = first; q < last; ++q) at_[q] += back(v, g_.col[q]);
    for (int64_t q = first; q < last; ++q) end[g_.col[q]] = {0, 0, 0};
    for (int64_t i = 0; i < reached; ++i) end[reached_.get()[i]] = {0, 0, 0};
  }

  void merge() { at_.merge(); }

 private:
  struct End {
    int32_t paths;  // f
    int32_t near;   // adjacent to v
    int64_t cycles;
  };

  IL_NOINLINE int64_t paths(int64_t v) {
    End* end = ends_.get();
    int32_t* reached = reached_.get();
    int64_t count = 0;
    for (int64_t q = g_.rowptr[v]; q < g_.split[v]; ++q) {
      for (const int32_t* b = g_.col + g_.rowptr[g_.col[q]]; *b < v; ++b) {
        reached[count] = *b;
        count += end[*b].paths++ == 0;
      }
    }
    return count;
  }
  IL_NOINLINE void edges(int64_t v, int64_t b) {
    End* end = ends_.get();
    const int64_t row = g_.rowptr[b], count = g_.rowptr[b + 1] - row;
    const int32_t* c = g_.col + row;
    int64_t *at = at_.sums + row, cycles = 0, p = 0;
    const int64_t f = end[b].paths, near = end[b].near;
    for (; p < count && c[p] < b; ++p) {
      const End& other = end[c[p]];
      cycles += other.paths;
      at[p] += (f - other.near) * (other.paths - near);
    }
    for (; p < count && c[p] < v; ++p) cycles += end[c[p]].paths;
    end[b].cycles = cycles - near * (p - 1);
  }
  IL_NOINLINE int64_t back(int64_t v, int64_t a) {
    const End* end = ends_.get();
    const int64_t row = g_.rowptr[a], f = end[a].paths;
    const int32_t* b = g_.col + row;
    int64_t total = 0;
    for (int64_t p = 0; b[p] < v; ++p) {
      const int64_t cycles = end[b[p]].cycles - f;
      total += cycles;
      at_[row + p] += cycles;
    }
    return total;
  }

  const Five& five_;
  const SimpleGraph& g_;
  Partial<int64_t> at_;
  Scratch<End> ends_;
  Scratch<int32_t> reached_;
};

// 5-cliques with lowest node v: the triangles (i, j, l) among its out-neighbours, each with a population count of those
// next to all three.
class FiveCliqueWorker {
 public:
  FiveCliqueWorker(const Five& five, bool alone)
      : o_(five.four.graph),
        near_(o_),
        sums_(&five.sums->fan_low, kEdgeSums * o_.g.num_edges, alone),
        bits_(o_.max_out * ((o_.max_out + 63) / 64)),
        found_(o_.max_hits + 1),
        at_(o_.max_out + 1) {
    edge_ = reinterpret_cast<EdgeSums*>(sums_.sums);
  }

  void operator()(int64_t v) {
    if (o_.outdegree(v) < 4) return;
    near_.load(v);
    const int64_t size = near_.size, width = (size + 63) / 64, hits = near_.row[size];
    if (hits < 6) return;
    uint64_t* bits = bits_.get();
    fill(bits, size * width, uint64_t(0));
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t h = near_.row[i]; h < near_.row[i + 1]; ++h) {
        const int64_t j = near_.hit[h].member();
        bits[i * width + j / 64] |= uint64_t(1) << (j % 64);
        bits[j * width + i / 64] |= uint64_t(1) << (i % 64);
      }
    }
    fill(found_.get(), hits, int64_t(0));
    fill(at_.get(), size, int64_t(0));
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t h = near_.row[i]; h < near_.row[i + 1]; ++h) triangles(i, h, width);
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t u = near_.nodes[i];
      edge_[o_.g.eid[o_.g.split[v] + i]].n67 += at_.get()[i] / 3;
      for (int64_t h = near_.row[i]; h < near_.row[i + 1]; ++h) {
        edge_[o_.g.eid[o_.g.split[u] + near_.hit[h].place()]].n67 += found_.get()[h] / 2;
      }
    }
  }

  void merge() { sums_.merge(); }

 private:
  // Triangles on the h-th edge ij, third node above j. The hits of i and of j beyond it are both in ascending order.
  IL_NOINLINE void triangles(int64_t i, int64_t h, int64_t width) {
    const uint64_t* bits = bits_.get();
    int64_t *found = found_.get(), *at = at_.get();
    const int64_t j = near_.hit[h].member();
    const uint64_t *a = bits + i * width, *b = bits + j * width;
    int64_t on_edge = 0, hi = h + 1;
    const int64_t last = near_.row[i + 1];
    for (int64_t hj = near_.row[j]; hj < near_.row[j + 1]; ++hj) {
      const int64_t l = near_.hit[hj].member();
      while (hi < last && near_.hit[hi].member() < l) ++hi;
      if (hi == last) break;
      if (near_.hit[hi].member() != l) continue;
      const uint64_t* c = bits + l * width;
      int64_t fourth = 0;
      for (int64_t x = 0; x < width; ++x) fourth += __builtin_popcountll(a[x] & b[x] & c[x]);
      on_edge += fourth;
      found[hi] += fourth;
      found[hj] += fourth;
      at[l] += fourth;
    }
    found[h] += on_edge;
    at[i] += on_edge;
    at[j] += on_edge;
  }

  const Oriented& o_;
  Neighbourhood near_;
  Partial<int64_t> sums_;
  Scratch<uint64_t> bits_;
  Scratch<int64_t> found_, at_;
  EdgeSums* edge_;
};

}  // namespace
}  // namespace IL_ISA
}  // namespace il
