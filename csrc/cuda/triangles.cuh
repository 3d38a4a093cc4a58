// SPDX-License-Identifier: Apache-2.0
// Triangles on every edge and at every node on a GPU. A triangle v < u < w (ranks) is found once, by the warp of the
// edge v -> u: its lanes look up the shorter of the two rows above u in the longer one.
//
// Work: Σ over edges v -> u of min(outdeg(v), outdeg(u)) searches, at most O(m^1.5) of them (Chiba and Nishizeki), and
// two 4-byte atomics for each triangle. Warps draw 32 positions of the adjacency at a time. Memory besides the graph:
// 12 bytes per edge. Not yet measured on a GPU.
#pragma once
#include "cuda/simple_graph.cuh"

namespace il {

struct TriangleArgs {
  PackedGraph graph;
  long long* next;  // items handed out
  int* edge;        // (m,)
  long long* node;  // (n,)
};

// edge[eid] += triangles on the edge
__global__ void __launch_bounds__(THREADS) edge_triangles(TriangleArgs p) {
  const PackedGraph& g = p.graph;
  const long long positions = 2 * g.m;
  for (long long first; (first = next_items(p.next, WARP)) < positions;) {
    const long long mine = first + lane();
    unsigned upward = ballot(mine < positions && g.col[mine] > g.row[mine]);
    for (; upward != 0; upward &= upward - 1) {
      const long long at = first + lowest_bit(upward);
      int hits = 0;
      for_common(g, {at + 1, g.rowptr[g.row[at] + 1]}, above(g, g.col[at]), [&](long long i, long long j) {
        add(p.edge + g.eid[i], 1);
        add(p.edge + g.eid[j], 1);
        ++hits;
      });
      hits = sum_lanes(hits);
      if (lane() == 0 && hits != 0) add(p.edge + g.eid[at], hits);
    }
  }
}

// node[order[v]] = ½ Σ of `edge` over the edges of v; a warp for each node
__global__ void __launch_bounds__(THREADS) node_triangles(TriangleArgs p) {
  const PackedGraph& g = p.graph;
  for (long long v = static_cast<long long>(blockIdx.x) * WARPS + warp(); v < g.n; v += gridDim.x * WARPS) {
    long long twice = 0;
    for (long long i = g.rowptr[v] + lane(); i < g.rowptr[v + 1]; i += WARP) twice += p.edge[g.eid[i]];
    twice = sum_lanes(twice);
    if (lane() == 0) p.node[g.order[v]] = twice / 2;
  }
}

#ifndef __CUDACC_RTC__
inline void (*const kTriangleKernels[])(TriangleArgs) = {edge_triangles, node_triangles};
#endif

}  // namespace il
