// SPDX-License-Identifier: Apache-2.0
#include "core/simple_graph.h"

#include <algorithm>
#include <memory>
#include <vector>

namespace il {
namespace {

// How the pairs stand, found in one pass.
struct Order {
  bool in_range;
  bool ascending;  // strictly, by source, then destination: none comes twice
  bool upward;     // every source below its destination
};

Order order_of(const SimpleEdges& a) {
  // Unsigned, as any id may come: the highest bit of `signs` tells of one below 0 or above the last.
  const uint64_t last = static_cast<uint64_t>(a.num_nodes) - 1;
  uint64_t signs = 0;
  int64_t before = -1;  // the last pair as one number
  bool ascending = true, upward = true;
  for (int64_t e = 0; e < a.num_pairs; ++e) {
    const uint64_t u = static_cast<uint64_t>(a.src[e]), v = static_cast<uint64_t>(a.dst[e]);
    const int64_t pair = static_cast<int64_t>((u << 32) + v);
    signs |= u | v | (last - u) | (last - v);
    ascending &= pair > before;
    upward &= u < v;
    before = pair;
  }
  return {signs >> 63 == 0, ascending, upward};
}

// Whether ascending pairs hold the reverse of each. Reverses of a row's upward pairs follow each other in order, so a
// pointer into each row is enough.
bool symmetric(const SimpleEdges& a) {
  std::vector<int64_t> next(a.num_nodes, -1);
  int64_t balance = 0;
  for (int64_t e = 0; e < a.num_pairs; ++e) {
    const int64_t u = a.src[e], v = a.dst[e];
    if (u < v) {
      ++balance;
      if (next[u] < 0) next[u] = e;
    } else if (u > v) {
      --balance;
      const int64_t reverse = next[v]++;
      if (reverse < 0 || a.src[reverse] != v || a.dst[reverse] != u) return false;
    }
  }
  return balance == 0;
}

// Positions of the first appearance of each undirected edge, ascending.
std::vector<int64_t> first_appearances(const SimpleEdges& a) {
  const int64_t n = a.num_nodes, pairs = a.num_pairs;
  std::vector<int64_t> start(n + 1, 0);
  for (int64_t e = 0; e < pairs; ++e) ++start[std::min(a.src[e], a.dst[e]) + 1];
  for (int64_t v = 0; v < n; ++v) start[v + 1] += start[v];
  std::vector<int64_t> next(start.begin(), start.end() - 1), bucket(pairs);
  for (int64_t e = 0; e < pairs; ++e) bucket[next[std::min(a.src[e], a.dst[e])]++] = e;
  std::vector<int32_t> seen(n, -1);
  std::vector<bool> keep(pairs);
  for (int64_t v = 0; v < n; ++v) {
    for (int64_t p = start[v]; p < start[v + 1]; ++p) {
      const int64_t e = bucket[p], other = std::max(a.src[e], a.dst[e]);
      keep[e] = other != v && seen[other] != v;
      seen[other] = static_cast<int32_t>(v);
    }
  }
  std::vector<int64_t> kept;
  for (int64_t e = 0; e < pairs; ++e) {
    if (keep[e]) kept.push_back(e);
  }
  return kept;
}

// Fills `order` with the nodes in ascending order of (graph, degree, id).
void order_by_degree(const std::vector<int32_t>& degree, const int64_t* ptr, int64_t num_graphs, int32_t* order) {
  std::vector<int32_t> next;
  for (int64_t b = 0; b < num_graphs; ++b) {
    if (ptr[b] == ptr[b + 1]) continue;
    const auto first = degree.begin() + ptr[b], last = degree.begin() + ptr[b + 1];
    const int32_t top = *std::max_element(first, last);
    next.assign(top + 2, 0);
    for (auto d = first; d < last; ++d) ++next[*d + 1];
    for (int32_t d = 0; d <= top; ++d) next[d + 1] += next[d];
    for (int64_t v = ptr[b]; v < ptr[b + 1]; ++v) order[ptr[b] + next[degree[v]]++] = static_cast<int32_t>(v);
  }
}

}  // namespace

bool unpack_simple_graph(const int64_t* index, int64_t index_length, const int32_t* adjacency, int64_t adjacency_length,
                         SimpleGraph* out) {
  if (index_length < kSimpleHeader + 1) return false;
  const int64_t n = index[0], m = index[1];
  if (n < 0 || m < 0 || index_length != kSimpleHeader + 2 * n + 1 || adjacency_length != 4 * m + n) return false;
  const int64_t* rowptr = index + kSimpleHeader;
  *out = {n, m, rowptr, rowptr + n + 1, adjacency, adjacency + 2 * m, adjacency + 4 * m};
  return rowptr[0] == 0 && rowptr[n] == 2 * m;
}

int64_t find_simple_edges(const SimpleEdges& a) {
  const Order order = order_of(a);
  if (!order.in_range) return -1;
  int64_t m = 0;
  const auto keep = [&](int64_t e, bool kept) {
    a.ends[2 * m] = static_cast<int32_t>(a.src[e]);
    a.ends[2 * m + 1] = static_cast<int32_t>(a.dst[e]);
    m += kept;
  };
  if (order.ascending && order.upward) {
    for (int64_t e = 0; e < a.num_pairs; ++e) keep(e, true);
  } else if (order.ascending && symmetric(a)) {
    for (int64_t e = 0; e < a.num_pairs; ++e) keep(e, a.src[e] < a.dst[e]);
  } else {
    for (const int64_t e : first_appearances(a)) keep(e, true);
  }
  return m;
}

int64_t build_simple_graph(const SimpleGraphBuild& a) {
  const int64_t n = a.num_nodes, m = a.num_edges;
  if (a.num_graphs > 1) {
    std::vector<int32_t> graph(n);
    for (int64_t b = 0; b < a.num_graphs; ++b) {
      std::fill(graph.begin() + a.ptr[b], graph.begin() + a.ptr[b + 1], static_cast<int32_t>(b));
    }
    for (int64_t e = 0; e < m; ++e) {
      if (graph[a.ends[2 * e]] != graph[a.ends[2 * e + 1]]) return e;
    }
  }
  std::vector<int32_t> degree(n, 0);
  for (int64_t i = 0; i < 2 * m; ++i) ++degree[a.ends[i]];
  int64_t* rowptr = a.index + kSimpleHeader;
  int64_t* split = rowptr + n + 1;
  int32_t *col = a.adjacency, *eid = col + 2 * m, *order = eid + 2 * m;
  a.index[0] = n, a.index[1] = m;
  order_by_degree(degree, a.ptr, a.num_graphs, order);

  // Rows in any order first; then each rank appends itself to its neighbours' rows, which sorts all of them.
  std::vector<int32_t> rank(n);
  std::vector<int64_t> next(n);
  rowptr[0] = 0;
  for (int64_t r = 0; r < n; ++r) {
    rank[order[r]] = static_cast<int32_t>(r);
    next[r] = rowptr[r];
    rowptr[r + 1] = rowptr[r] + degree[order[r]];
  }
  struct Slot {
    int32_t col, eid;
  };
  const std::unique_ptr<Slot[]> unsorted(new Slot[2 * m + 1]);
  for (int64_t e = 0; e < m; ++e) {
    const int32_t u = rank[a.ends[2 * e]], v = rank[a.ends[2 * e + 1]];
    unsorted[next[u]++] = {v, static_cast<int32_t>(e)};
    unsorted[next[v]++] = {u, static_cast<int32_t>(e)};
  }
  std::copy(rowptr, rowptr + n, next.begin());
  for (int64_t r = 0; r < n; ++r) {
    split[r] = next[r];  // all lower ranks have been here
    for (int64_t p = rowptr[r]; p < rowptr[r + 1]; ++p) {
      const int64_t to = next[unsorted[p].col]++;
      col[to] = static_cast<int32_t>(r);
      eid[to] = unsorted[p].eid;
    }
  }
  return -1;
}

}  // namespace il
