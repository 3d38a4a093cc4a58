// SPDX-License-Identifier: Apache-2.0
// Counts the matches of a compiled pattern (python/innerloop/ops/_match_plan.py) on a GPU: a warp for each edge that
// levels 0 and 1 can take, a depth-first search with a stack of its own in shared memory, 32 candidates tested at a
// time. It follows the plan's plain definition of a level: members of the shortest row among the adjacent levels that
// lie within the rank bounds, tested by binary search in the other rows. The last levels are only counted.
//
// Edges between nodes of large degree are shared by several warps, which take every `parts`-th chunk of the candidates
// of level 2. Memory besides the graph: 8 bytes per edge and per node, 1 KB of shared memory per block, however many
// matches there are. Not yet measured on a GPU.
#pragma once
#include "cuda/simple_graph.cuh"

namespace il {

struct MatchArgs {
  PackedGraph graph;
  long long* next;         // items handed out
  const int* plan;         // Plan.code
  const int* node_labels;  // (n,) by rank, or null
  const int* edge_labels;  // (m,), or null
  long long* roots;        // (n,) matches by the node of level 0
  long long parts;         // warps that share one edge; 1 where fewer than two levels follow it
  long long low, high;     // edges whose ends' degrees add up to [low, high)
};

// Layout of Plan.code, and the fields of a level that are used here.
constexpr int PLAN_HEADER = 5, PLAN_LEVEL = 14, PLAN_SET = 9, MAX_LEVELS = 8;
constexpr int DISTINCT = 3, NODE_LABEL = 7, ADJACENT = 10, APART = 11, LOWER = 12, HIGHER = 13;

struct Plan {
  const int* code;
  __device__ __forceinline__ int levels() const { return code[0]; }
  __device__ __forceinline__ int tail() const { return code[2]; }
  __device__ __forceinline__ int field(int level, int name) const {
    return code[PLAN_HEADER + level * PLAN_LEVEL + name];
  }
  __device__ __forceinline__ unsigned mask(int level, int name) const {
    return static_cast<unsigned>(field(level, name));
  }
  __device__ __forceinline__ int edge_label(int level, int other) const {
    const int q = levels();
    return code[PLAN_HEADER + q * PLAN_LEVEL + code[1] * PLAN_SET + q * q + level * q + other];
  }
};

// A level of the search. Lane 0 writes it.
struct Frame {
  long long at, end;  // positions of the candidates not tested yet
  unsigned todo;      // those of the chunk before `at` that fit and have not been taken
  int base;           // level in whose row they are
  int vertex;
};

__device__ __forceinline__ bool has_label(const int* labels, int i, int wanted) {
  return wanted < 0 || labels[i] == wanted;
}

struct Candidates {
  int base;
  Span span;
};

// The row of the adjacent level of least degree, within the rank bounds.
__device__ __forceinline__ Candidates candidates(const MatchArgs& p, const Frame* frames, int level) {
  const PackedGraph& g = p.graph;
  const Plan plan{p.plan};
  int base = -1, v = 0, from = 0, to = static_cast<int>(g.n);
  for (unsigned rest = plan.mask(level, ADJACENT); rest != 0; rest &= rest - 1) {
    const int j = lowest_bit(rest), other = frames[j].vertex;
    if (base < 0 || degree(g, other) < degree(g, v)) base = j, v = other;
  }
  for (unsigned rest = plan.mask(level, LOWER); rest != 0; rest &= rest - 1) {
    const int other = frames[lowest_bit(rest)].vertex;
    if (other >= from) from = other + 1;
  }
  for (unsigned rest = plan.mask(level, HIGHER); rest != 0; rest &= rest - 1) {
    const int other = frames[lowest_bit(rest)].vertex;
    if (other < to) to = other;
  }
  Span span = neighbors(g, v);
  if (from > 0) span.begin = from == v + 1 ? g.split[v] : first_from(g, span, from);
  if (to < g.n) span.end = first_from(g, span, to);
  return {base, span};
}

// Whether the neighbour at position `at` of the row of level `base` satisfies all but the bounds.
__device__ __forceinline__ bool fits(const MatchArgs& p, const Frame* frames, int level, int base, long long at) {
  const PackedGraph& g = p.graph;
  const Plan plan{p.plan};
  const int x = g.col[at];
  if (!has_label(p.node_labels, x, plan.field(level, NODE_LABEL))) return false;
  for (unsigned rest = plan.mask(level, DISTINCT); rest != 0; rest &= rest - 1) {
    if (x == frames[lowest_bit(rest)].vertex) return false;
  }
  for (unsigned rest = plan.mask(level, ADJACENT); rest != 0; rest &= rest - 1) {
    const int j = lowest_bit(rest);
    const long long edge = j == base ? at : find(g, neighbors(g, frames[j].vertex), x);
    if (edge < 0 || !has_label(p.edge_labels, g.eid[edge], plan.edge_label(level, j))) return false;
  }
  for (unsigned rest = plan.mask(level, APART); rest != 0; rest &= rest - 1) {
    if (find(g, neighbors(g, frames[lowest_bit(rest)].vertex), x) >= 0) return false;
  }
  return true;
}

// Whether any member of the range fits that is no vertex of an earlier level.
__device__ __forceinline__ bool whole_range(const Plan& plan, int level, int base) {
  return plan.mask(level, ADJACENT) == 1u << base && plan.mask(level, APART) == 0 &&
         plan.field(level, NODE_LABEL) < 0 && plan.edge_label(level, base) < 0;
}

__device__ __forceinline__ long long binomial(long long n, int k) {
  if (n < k) return 0;
  unsigned long long result = 1;
  for (int i = 0; i < k; ++i) result = result * static_cast<unsigned long long>(n - i) / (i + 1);
  return static_cast<long long>(result);
}

// What this lane contributes to the number of ways to fill the last levels, from `level` on.
__device__ __forceinline__ long long count_last(const MatchArgs& p, const Frame* frames, int level) {
  const Plan plan{p.plan};
  const auto [base, span] = candidates(p, frames, level);
  long long count = 0;
  if (whole_range(plan, level, base)) {
    if (lane() == 0 && span.size() > 0) count = span.size();
    const bool may_be_inside = lane() < level && (plan.mask(level, DISTINCT) >> lane() & 1);
    if (may_be_inside && find(p.graph, span, frames[lane()].vertex) >= 0) --count;
  } else {
    for (long long at = span.begin + lane(); at < span.end; at += WARP) count += fits(p, frames, level, base, at);
  }
  if (plan.tail() == 1) return count;
  count = sum_lanes(count);
  return lane() == 0 ? binomial(count, plan.tail()) : 0;
}

__device__ __forceinline__ void open_level(const MatchArgs& p, Frame* frames, int level, long long skip) {
  const auto [base, span] = candidates(p, frames, level);
  if (lane() == 0) {
    frames[level].at = span.begin + skip;
    frames[level].end = span.end;
    frames[level].todo = 0;
    frames[level].base = base;
  }
  warp_sync();
}

// What this lane finds of the matches whose levels 0 and 1 are placed: with candidates of level 2 from the chunks
// part, part + parts, ..
__device__ __forceinline__ long long search(const MatchArgs& p, Frame* frames, long long part) {
  const Plan plan{p.plan};
  const int last = plan.levels() - plan.tail();
  if (last == 2) return count_last(p, frames, 2);
  long long found = 0;
  int level = 2;
  open_level(p, frames, 2, part * WARP);
  while (level >= 2) {
    const Frame now = frames[level];
    warp_sync();
    const long long step = level == 2 ? p.parts * WARP : WARP;
    if (now.todo == 0 && now.at >= now.end) {
      --level;
    } else if (now.todo == 0) {
      const long long mine = now.at + lane();
      const unsigned fitting = ballot(mine < now.end && fits(p, frames, level, now.base, mine));
      if (lane() == 0) {
        frames[level].todo = fitting;
        frames[level].at = now.at + step;
      }
      warp_sync();
    } else {
      if (lane() == 0) {
        frames[level].vertex = p.graph.col[now.at - step + lowest_bit(now.todo)];
        frames[level].todo = now.todo & (now.todo - 1);
      }
      warp_sync();
      if (level + 1 == last) {
        found += count_last(p, frames, last);
      } else {
        open_level(p, frames, ++level, 0);
      }
    }
  }
  return found;
}

// Whether levels 0 and 1 can take the edge at a position of the adjacency, its row first.
__device__ __forceinline__ bool root_fits(const MatchArgs& p, long long at) {
  const PackedGraph& g = p.graph;
  const Plan plan{p.plan};
  const int v = g.row[at], u = g.col[at];
  const long long degrees = degree(g, v) + degree(g, u);
  if (degrees < p.low || degrees >= p.high) return false;
  if ((plan.field(1, LOWER) != 0 && u < v) || (plan.field(1, HIGHER) != 0 && u > v)) return false;
  return has_label(p.node_labels, v, plan.field(0, NODE_LABEL)) &&
         has_label(p.node_labels, u, plan.field(1, NODE_LABEL)) &&
         has_label(p.edge_labels, g.eid[at], plan.edge_label(1, 0));
}

// Patterns whose counted levels begin at 2 or deeper.
__global__ void __launch_bounds__(THREADS) match_edges(MatchArgs p) {
  __shared__ Frame stacks[WARPS][MAX_LEVELS];
  Frame* frames = stacks[warp()];
  const PackedGraph& g = p.graph;
  const long long positions = 2 * g.m, items = (positions + WARP - 1) / WARP * p.parts;
  for (long long item; (item = next_items(p.next, 1)) < items;) {
    const long long first = item / p.parts * WARP, mine = first + lane();
    unsigned fitting = ballot(mine < positions && root_fits(p, mine));
    for (; fitting != 0; fitting &= fitting - 1) {
      const long long at = first + lowest_bit(fitting);
      warp_sync();
      if (lane() == 0) frames[0].vertex = g.row[at], frames[1].vertex = g.col[at];
      warp_sync();
      const long long found = sum_lanes(search(p, frames, item % p.parts));
      if (lane() == 0 && found != 0) add(p.roots + g.order[g.row[at]], found);
    }
  }
}

// Patterns of which all levels but the first are counted; a warp for each node.
__global__ void __launch_bounds__(THREADS) match_nodes(MatchArgs p) {
  __shared__ Frame stacks[WARPS][MAX_LEVELS];
  Frame* frames = stacks[warp()];
  const PackedGraph& g = p.graph;
  const Plan plan{p.plan};
  for (long long v = static_cast<long long>(blockIdx.x) * WARPS + warp(); v < g.n; v += gridDim.x * WARPS) {
    if (!has_label(p.node_labels, static_cast<int>(v), plan.field(0, NODE_LABEL))) continue;
    warp_sync();
    if (lane() == 0) frames[0].vertex = static_cast<int>(v);
    warp_sync();
    const long long found = sum_lanes(count_last(p, frames, 1));
    if (lane() == 0) p.roots[g.order[v]] = found;
  }
}

#ifndef __CUDACC_RTC__
inline void (*const kMatchKernels[])(MatchArgs) = {match_edges, match_nodes};
#endif

}  // namespace il
