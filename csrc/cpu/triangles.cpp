// SPDX-License-Identifier: Apache-2.0
// Triangles on every edge and at every node:
//   t(uv) = |N(u) ∩ N(v)|,  t(v) = ½ Σ_u t(uv)
// Each thread walks its own nodes and keeps a count for each edge (4 bytes); the work is W = Σ over directed edges v ->
// u of outdeg(u), one 4-byte and one 2-byte read each, at most O(m^1.5).
#include "cpu/triangles.h"

#include "cpu/neighbourhoods.h"

namespace il {
namespace IL_ISA {

void triangles(Triangles& args) {
  const SimpleGraph& g = args.graph;
  const Oriented oriented(g);
  Scratch<int32_t> counts(g.num_edges);
  int32_t* t = counts.get();
  fill(t, g.num_edges, int32_t(0));
  const TriangleSums sums{oriented, t};
  args.finished = share_out<TriangleWorker>(g.num_nodes, kChunk, args.threads, args.poll, sums);
  if (!args.finished) return;
  if (args.edge != nullptr) {
    for (int64_t v = 0; v < g.num_nodes; ++v) {
      for (int64_t i = 0; i < oriented.outdegree(v); ++i) {
        args.edge[g.eid[g.split[v] + i]] = t[oriented.start(v) + i];
      }
    }
  }
  if (args.node != nullptr) {
    Scratch<int64_t> twice(g.num_nodes);
    int64_t* at = twice.get();
    fill(at, g.num_nodes, int64_t(0));
    for (int64_t v = 0; v < g.num_nodes; ++v) {
      int64_t total = 0;
      for (int64_t i = 0; i < oriented.outdegree(v); ++i) {
        total += t[oriented.start(v) + i];
        at[oriented.out(v)[i]] += t[oriented.start(v) + i];
      }
      at[v] += total;
    }
    for (int64_t v = 0; v < g.num_nodes; ++v) args.node[g.order[v]] = at[v] / 2;
  }
}

}  // namespace IL_ISA
}  // namespace il
