// SPDX-License-Identifier: Apache-2.0
// Orbits of all connected subgraphs on up to 4 nodes at every node or every edge, on a GPU; the equations are those of
// cpu/orbits4.h. From the triangles on each edge (triangles.cuh):
//
//   cliques   a block per node v: the edges among its out-neighbours as rows of bits. A pair of them that is an edge
//             has popcount(row & row) 4-cliques with v lowest. The sums over triangles that need all t come along.
//   cycles    a block per node v, the highest of a 4-cycle v u w u': counts[w] = number of u below v between v and w.
//             Nodes with many u are cut into parts by ranges of w, at quantiles of the edge ends below v.
//   steps     S(v) and t(v), which the neighbours of v need.
//   forms     the equations, and the output.
//
// Memory besides the graph and the output: 12 bytes per edge and some 50 per node (for edges 44 per edge), and for each
// resident block either max_out² / 8 bytes of bits or 4n bytes of counts, within what _motif_gpu.py allows. Work: W_T
// searches and a popcount per triangle and 64 out-neighbours; three walks over the paths below their highest node. Not
// yet measured on a GPU.
#pragma once
#include "cuda/simple_graph.cuh"

namespace il {

// 32 bytes: what an atomic on one of them brings into L2 serves the others.
struct alignas(32) EdgeTotals {
  long long cliques;  // K4
  long long cycles;   // C4, chords allowed
  long long fan;      // Σ over triangles (x, y, z) on xy of t(xz) - 1 + t(yz) - 1
  long long far;      // Σ over triangles (x, y, z) on xy of d(z) - 2
};

// Either the sums by node, in rank space, or those by edge are null.
struct OrbitArgs {
  PackedGraph graph;
  long long* next;           // items handed out
  const int* triangles;      // (m,) t
  long long* cliques;        // (n,) three times K4
  long long* cycles;         // (n,) twice C4, chords allowed
  long long* fan;            // (n,) Σ over triangles (v, a, b) of t(ab) - 1
  EdgeTotals* edges;         // (m,)
  unsigned long long* bits;  // (blocks, max_out · words)
  long long max_out, words;  // words: of 64 bits for max_out
  int* counts;               // (blocks, n), zero before and after
  const int* unit_node;      // (units,) node of each part, the heaviest last
  const int* unit_part;      // (units,)
  const int* parts;          // (n,)
  long long units;
  long long* steps;    // (n,) Σ over neighbours of d(u) - 1
  long long* at_node;  // (n,) triangles
  long long* out;      // (n, 15) or (m, 12)
  long long induced;
};

__device__ __forceinline__ long long pairs(long long x) { return x * (x - 1) / 2; }
// Without a product larger than the result: 3 divides one of the factors.
__device__ __forceinline__ long long triples(long long x) {
  return pairs(x) % 3 == 0 ? pairs(x) / 3 * (x - 2) : pairs(x) * ((x - 2) / 3);
}
__device__ __forceinline__ bool has_bit(const unsigned long long* row, int i) { return row[i / 64] >> (i % 64) & 1; }

// The next of the items that all blocks share out among them.
__device__ __forceinline__ long long next_item(long long* next) {
  __shared__ long long item;
  block_sync();  // the item before has been read, and its scratch is free
  if (threadIdx.x == 0) item = add(next, 1);
  block_sync();
  return item;
}

// The i-th out-neighbour of v against all others it is adjacent to, with v the lowest node; a warp's work.
// Returns twice the 4-cliques at it. For nodes it adds Σ over j > i of t(ij) - 1 to `fan`.
__device__ __forceinline__ long long clique_row(const OrbitArgs& p, const unsigned long long* bits, int width, int v,
                                                Span ends, int i, long long& fan) {
  const PackedGraph& g = p.graph;
  const unsigned long long* row = bits + static_cast<long long>(i) * width;
  const int u = g.col[ends.begin + i], vu = g.eid[ends.begin + i];
  const bool by_edge = p.edges != nullptr;
  long long cliques = 0, fan_u = 0, fan_vu = 0, far = 0;
  for (int j = lane(); j < ends.size(); j += WARP) {
    if (!has_bit(row, j)) continue;
    const unsigned long long* other = bits + static_cast<long long>(j) * width;
    long long both = 0;
    for (int k = 0; k < width; ++k) both += count_bits(row[k] & other[k]);
    cliques += both;
    const int w = g.col[ends.begin + j];
    const int t_vw = p.triangles[g.eid[ends.begin + j]] - 1;
    fan_u += t_vw;
    if (j < i && !by_edge) continue;
    const int uw = g.eid[find(g, above(g, j < i ? w : u), j < i ? u : w)];
    const int t_uw = p.triangles[uw] - 1;
    fan += t_uw;
    if (!by_edge) continue;
    fan_vu += t_vw + t_uw;
    far += degree(g, w) - 2;
    if (j < i) continue;
    add(&p.edges[uw].cliques, both);
    add(&p.edges[uw].fan, static_cast<long long>(t_vw) + p.triangles[vu] - 1);
    add(&p.edges[uw].far, degree(g, v) - 2);
  }
  cliques = sum_lanes(cliques);
  if (by_edge) {
    fan_vu = sum_lanes(fan_vu);
    far = sum_lanes(far);
  } else {
    fan_u = sum_lanes(fan_u);
  }
  if (lane() != 0) return cliques;
  if (by_edge) {
    add(&p.edges[vu].cliques, cliques / 2);
    add(&p.edges[vu].fan, fan_vu);
    add(&p.edges[vu].far, far);
  } else {
    add(p.cliques + u, cliques / 2 * 3);
    add(p.fan + u, fan_u);
  }
  return cliques;
}

__global__ void __launch_bounds__(THREADS) orbit_cliques(OrbitArgs p) {
  const PackedGraph& g = p.graph;
  unsigned long long* bits = p.bits + blockIdx.x * p.max_out * p.words;
  for (long long item; (item = next_item(p.next)) < g.n;) {
    const int v = static_cast<int>(g.n - 1 - item);
    const Span ends = above(g, v);
    const int size = static_cast<int>(ends.size()), width = (size + 63) / 64;
    if (size < 2) continue;
    for (long long i = threadIdx.x; i < static_cast<long long>(size) * width; i += THREADS) bits[i] = 0;
    block_sync();
    for (int i = warp(); i < size; i += WARPS) {
      for_common(g, {ends.begin + i + 1, ends.end}, above(g, g.col[ends.begin + i]), [&](long long at, long long) {
        const int j = static_cast<int>(at - ends.begin);
        set_bit(bits + static_cast<long long>(i) * width, j);
        set_bit(bits + static_cast<long long>(j) * width, i);
      });
    }
    block_sync();
    long long twice = 0, fan = 0;
    for (int i = warp(); i < size; i += WARPS) twice += clique_row(p, bits, width, v, ends, i, fan);
    if (p.edges != nullptr) continue;
    fan = sum_lanes(fan);
    if (lane() != 0) continue;
    add(p.cliques + v, twice / 2);
    add(p.fan + v, fan);
  }
}

constexpr int GROUP = 8;  // lanes for the row of one u: most rows are short

// Calls body(i, row) for each u below v, i its position, row: the positions of N(u) with w in [low, high). The lanes of
// a group get the same; all lanes of the block call it as often, with an empty row where there is no u left.
template <class Body>
__device__ __forceinline__ void for_below(const PackedGraph& g, int v, int low, int high, Body body) {
  const long long begin = g.rowptr[v], end = g.split[v];
  for (long long base = begin; base < end; base += THREADS / GROUP) {
    const long long i = base + threadIdx.x / GROUP;
    Span row{0, 0};
    if (i < end) {
      row = neighbors(g, g.col[i]);
      if (low > 0) row.begin = first_from(g, row, low);
      row.end = first_from(g, row, high);
    }
    body(i, row);
  }
}

__global__ void __launch_bounds__(THREADS) orbit_cycles(OrbitArgs p) {
  const PackedGraph& g = p.graph;
  int* counts = p.counts + blockIdx.x * g.n;
  const int part_of_group = threadIdx.x % GROUP;
  for (long long item; (item = next_item(p.next)) < p.units;) {
    const long long unit = p.units - 1 - item;
    const int v = p.unit_node[unit], part = p.unit_part[unit], parts = p.parts[v];
    const long long ends = g.rowptr[v];  // ends of edges below v
    const int low = part == 0 ? 0 : g.row[ends * part / parts];
    const int high = part + 1 == parts ? v : g.row[ends * (part + 1) / parts];
    if (low >= high) continue;
    for_below(g, v, low, high, [&](long long, Span row) {
      for (long long j = row.begin + part_of_group; j < row.end; j += GROUP) add(counts + g.col[j], 1);
    });
    block_sync();
    long long at_v = 0;
    for_below(g, v, low, high, [&](long long i, Span row) {
      long long cycles = 0;
      for (long long j = row.begin + part_of_group; j < row.end; j += GROUP) {
        const long long others = counts[g.col[j]] - 1;
        cycles += others;
        if (p.edges != nullptr && others != 0) add(&p.edges[g.eid[j]].cycles, others);
      }
      cycles = sum_lanes(cycles, GROUP);
      if (part_of_group != 0 || cycles == 0) return;
      if (p.edges != nullptr) {
        add(&p.edges[g.eid[i]].cycles, cycles);
      } else {
        add(p.cycles + g.col[i], 2 * cycles);
        at_v += cycles;
      }
    });
    block_sync();
    for_below(g, v, low, high, [&](long long, Span row) {
      for (long long j = row.begin + part_of_group; j < row.end; j += GROUP) {
        const long long count = take(counts + g.col[j]);  // 0 for all but the first
        if (p.edges == nullptr && count > 1) add(p.cycles + g.col[j], count * (count - 1));
      }
    });
    at_v = sum_lanes(at_v);
    if (lane() == 0 && at_v != 0) add(p.cycles + v, at_v);
  }
}

// A warp for each node.
__global__ void __launch_bounds__(THREADS) orbit_steps(OrbitArgs p) {
  const PackedGraph& g = p.graph;
  for (long long v = static_cast<long long>(blockIdx.x) * WARPS + warp(); v < g.n; v += gridDim.x * WARPS) {
    long long steps = 0, twice = 0;
    for (long long i = g.rowptr[v] + lane(); i < g.rowptr[v + 1]; i += WARP) {
      steps += degree(g, g.col[i]) - 1;
      twice += p.triangles[g.eid[i]];
    }
    steps = sum_lanes(steps);
    twice = sum_lanes(twice);
    if (lane() != 0) continue;
    p.steps[v] = steps;
    p.at_node[v] = twice / 2;
  }
}

// Orbits 0 to 14 of a node in the numbering of Pržulj (2007); a warp for each node.
__global__ void __launch_bounds__(THREADS) orbit_node_forms(OrbitArgs p) {
  const PackedGraph& g = p.graph;
  for (long long v = static_cast<long long>(blockIdx.x) * WARPS + warp(); v < g.n; v += gridDim.x * WARPS) {
    long long n4 = 0, n6 = 0, n9 = 0, n10 = 0, n13 = 0;
    for (long long i = g.rowptr[v] + lane(); i < g.rowptr[v + 1]; i += WARP) {
      const int u = g.col[i];
      const long long d = degree(g, u), t = p.triangles[g.eid[i]];
      n4 += p.steps[u];
      n6 += pairs(d - 1);
      n9 += p.at_node[u];
      n10 += t * (d - 2);
      n13 += pairs(t);
    }
    n4 = sum_lanes(n4), n6 = sum_lanes(n6), n9 = sum_lanes(n9), n10 = sum_lanes(n10), n13 = sum_lanes(n13);
    if (lane() != 0) continue;
    const long long d = degree(g, static_cast<int>(v)), t = p.at_node[v], steps = p.steps[v];
    long long* a = p.out + g.order[v] * 15ll;
    a[0] = d;
    a[1] = steps;
    a[2] = pairs(d);
    a[3] = t;
    a[4] = n4 - d * (d - 1) - 2 * t;
    a[5] = (d - 1) * steps - 2 * t;
    a[6] = n6;
    a[7] = triples(d);
    a[8] = p.cycles[v] / 2;
    a[9] = n9 - 2 * t;
    a[10] = n10;
    a[11] = t * (d - 2);
    a[12] = p.fan[v];
    a[13] = n13;
    a[14] = p.cliques[v] / 3;
    if (!p.induced) continue;
    a[13] -= 3 * a[14];
    a[12] -= 3 * a[14];
    a[11] -= 2 * a[13] + 3 * a[14];
    a[10] -= 2 * a[13] + 2 * a[12] + 6 * a[14];
    a[9] -= 2 * a[12] + 3 * a[14];
    a[8] -= a[13] + a[12] + 3 * a[14];
    a[7] -= a[11] + a[13] + a[14];
    a[6] -= a[9] + a[10] + a[13] + 2 * a[12] + 3 * a[14];
    a[5] -= 2 * a[8] + 2 * a[11] + a[10] + 4 * a[13] + 2 * a[12] + 6 * a[14];
    a[4] -= 2 * a[8] + 2 * a[9] + a[10] + 2 * a[13] + 4 * a[12] + 6 * a[14];
    a[2] -= t;
    a[1] -= 2 * t;
  }
}

// Orbits 0 to 11 of an edge; a thread for each position of the adjacency.
__global__ void __launch_bounds__(THREADS) orbit_edge_forms(OrbitArgs p) {
  const PackedGraph& g = p.graph;
  const long long threads = static_cast<long long>(gridDim.x) * THREADS;
  for (long long i = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; i < 2 * g.m; i += threads) {
    const int x = g.row[i], y = g.col[i], e = g.eid[i];
    if (y < x) continue;
    const EdgeTotals s = p.edges[e];
    const long long dx = degree(g, x) - 1, dy = degree(g, y) - 1, t = p.triangles[e];
    long long* a = p.out + e * 12ll;
    a[0] = dx + dy;
    a[1] = t;
    a[2] = p.steps[x] + p.steps[y] - dx - dy - 2 * t;
    a[3] = dx * dy - t;
    a[4] = pairs(dx) + pairs(dy);
    a[5] = s.cycles;
    a[6] = p.at_node[x] + p.at_node[y] - 2 * t;
    a[7] = s.far;
    a[8] = t * (dx + dy - 2);
    a[9] = s.fan;
    a[10] = pairs(t);
    a[11] = s.cliques;
    if (!p.induced) continue;
    a[10] -= a[11];
    a[9] -= 4 * a[11];
    a[8] -= 4 * a[10] + a[9] + 4 * a[11];
    a[7] -= a[9] + 2 * a[11];
    a[6] -= a[9] + 2 * a[11];
    a[5] -= a[9] + 2 * a[11];
    a[4] -= a[8] + a[6] + 2 * a[10] + a[9] + 2 * a[11];
    a[3] -= a[5] + a[8] + 2 * a[10] + a[9] + 2 * a[11];
    a[2] -= 2 * a[5] + 2 * a[6] + 2 * a[7] + 3 * a[9] + 4 * a[11];
    a[0] -= 2 * t;
  }
}

#ifndef __CUDACC_RTC__
inline void (*const kOrbitKernels[])(OrbitArgs) = {orbit_cliques, orbit_cycles, orbit_steps, orbit_node_forms,
                                                   orbit_edge_forms};
#endif

}  // namespace il
