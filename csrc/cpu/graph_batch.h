// SPDX-License-Identifier: Apache-2.0
// Kernels of which a task is a graph of a batch, copied out of the batch's CSR into one of its own.
#pragma once

#include "cpu/arena.h"
#include "cpu/closeness.h"

namespace il {
namespace IL_ISA {

struct Csr {
  const int64_t n;
  int64_t* rowptr;
  int32_t *col, *eid;

  Csr(int64_t nodes, int64_t entries, Arena& arena)
      : n(nodes),
        rowptr(arena.take<int64_t>(nodes + 1)),
        col(arena.take<int32_t>(entries)),
        eid(arena.take<int32_t>(entries)) {}
  int64_t begin(int64_t v) const { return rowptr[v]; }
  int64_t end(int64_t v) const { return rowptr[v + 1]; }
  int64_t degree(int64_t v) const { return end(v) - begin(v); }
  int32_t to(int64_t e) const { return col[e]; }
  // First entry of row v, whose columns ascend, that is at least `column`.
  int64_t lower(int64_t v, int64_t column) const {
    int64_t low = begin(v), high = end(v);
    while (high - low > 8) {
      const int64_t middle = (low + high) / 2;
      if (to(middle) < column) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    while (low < high && to(low) < column) ++low;
    return low;
  }
  bool adjacent(int64_t v, int64_t w) const {
    const int64_t e = lower(v, w);
    return e < end(v) && to(e) == w;
  }
};

// See closeness.cpp. `order` holds all nodes of g, or is null.
void closeness_of(const Csr& g, GraphBatch& batch, Arena& arena, const int64_t* order, int64_t samples, double* out);

namespace {

template <class A>
IL_INLINE void exchange(A& a, A& b) {
  const A kept = a;
  a = b;
  b = kept;
}

bool stopped(GraphBatch& batch) {
  bool going;
#pragma omp atomic read
  going = batch.finished;
  if (going && (batch.poll.ask == nullptr || !batch.poll.ask(batch.poll.state))) return false;
#pragma omp atomic write
  batch.finished = false;
  return true;
}

// body(b, graph, arena) for each graph of the batch, its nodes numbered from 0 in the user's order.
template <class F>
void for_each_graph(GraphBatch& batch, F&& body) {
  const SimpleGraph& all = batch.graph;
  Scratch<int32_t> rank(all.num_nodes);
  for (int64_t r = 0; r < all.num_nodes; ++r) rank.get()[all.order[r]] = int32_t(r);
  batch.closed = batch.finished = true;
  tasks_in_arenas(
      batch.num_graphs, batch.threads,
      [&](int64_t b, Arena& arena) {
        if (stopped(batch)) return;
        const int64_t first = batch.ptr[b], n = batch.ptr[b + 1] - first;
        int64_t entries = 0;
        for (int64_t v = 0; v < n; ++v) {
          const int64_t r = rank.data()[first + v];
          entries += all.rowptr[r + 1] - all.rowptr[r];
        }
        Csr g(n, entries, arena);
        int64_t at = 0;
        for (int64_t v = 0; v < n; ++v) {
          g.rowptr[v] = at;
          const int64_t r = rank.data()[first + v];
          for (int64_t e = all.rowptr[r]; e < all.rowptr[r + 1]; ++e, ++at) {
            const int64_t w = all.order[all.col[e]] - first;
            if (w < 0 || w >= n) {
#pragma omp atomic write
              batch.closed = false;
              return;
            }
            g.col[at] = int32_t(w);
            g.eid[at] = all.eid[e];
          }
        }
        g.rowptr[n] = at;
        body(b, g, arena);
      },
      batch.poll);
}

}  // namespace
}  // namespace IL_ISA
}  // namespace il
