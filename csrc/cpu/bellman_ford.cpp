// SPDX-License-Identifier: Apache-2.0
// Generalized Bellman-Ford over a semiring with scalar edge weights (Zhu et al. 2021, algorithm 1):
//   h_0(v) = one where v is the source, else zero;   h_t(v) = (+)_{e=(x,v)} h_{t-1}(x) (x) w_e  (+)  h_0(v)
//
// Sources are columns. A block of columns is kept as [V, width] with the width padded to whole vectors; padding
// columns have no source and stay zero. A row's running value lives in registers while its in-edges go by: per
// edge and column one load and two operations.
//
// min and max (idempotent): an edge is looked at only when its source changed since the row was last computed. To the
// fixpoint rows are relaxed in place, sweeping forth and back; for a number of steps, from the state of the step
// before. A column never sees another one, so results depend neither on the blocks nor on the threads.
// sum and logsumexp: whole steps over all rows that some source reaches.
#include "cpu/bellman_ford.h"

#include "core/simd.h"

namespace il {
namespace IL_ISA {
namespace {

constexpr int64_t kBlock = 64;    // columns
constexpr int kTile = 8;          // vectors of a row held in registers
constexpr int64_t kPadding = 16;  // floats of the widest vector

template <Times T, class V>
IL_INLINE V extend(V x, V w) {
  if constexpr (T == Times::kMul) return x * w;
  if constexpr (T == Times::kAdd) return x + w;
  if constexpr (T == Times::kMin) return w < x ? w : x;
  if constexpr (T == Times::kMax) return w > x ? w : x;
}

// The new value only where it is strictly better: a NaN (zero (x) inf) never is.
template <Plus P, class V>
IL_INLINE V combine(V a, V b) {
  if constexpr (P == Plus::kSum) return a + b;
  if constexpr (P == Plus::kMin) return b < a ? b : a;
  if constexpr (P == Plus::kMax) return b > a ? b : a;
}

template <Plus P, class A>
IL_INLINE bool better(A a, A b) {
  return P == Plus::kMin ? a < b : a > b;
}

template <class A>
struct Problem {
  const BellmanFord& p;
  const A* weight;  // [E] in CSR order
  int64_t largest_degree;
};

// One column block.
template <class A>
struct State {
  int64_t first, columns, width;
  A* value;       // [V, width]
  int32_t* last;  // [V, width] CSR position of the last edge of a best path, or null
};

// row = row (+) sum over the given edges of from[src] (x) w; true if any column changed. `row` may lie in `from`.
template <Plus P, Times T, class A>
bool relax_row(const Problem<A>& problem, const int32_t* edges, int64_t count, const A* from, int64_t width,
               const A* before, A* row) {
  using V = typename Lanes<A>::type;
  constexpr int64_t lanes = Lanes<A>::count;
  const int32_t* src = problem.p.graph.src;
  const A* weight = problem.weight;
  bool changed = false;
  auto tile = [&](auto vectors, int64_t base) {
    constexpr int N = decltype(vectors)::value;
    V acc[N];
    for (int k = 0; k < N; ++k) acc[k] = load<V>(before + base + k * lanes);
    for (int64_t i = 0; i < count; ++i) {
      const A* x = from + src[edges[i]] * width + base;
      const V w = weight[edges[i]] - V{};
      for (int k = 0; k < N; ++k) acc[k] = combine<P>(acc[k], extend<T>(load<V>(x + k * lanes), w));
    }
    for (int k = 0; k < N; ++k) {
      const auto differs = acc[k] != load<V>(before + base + k * lanes);
      for (int64_t j = 0; j < lanes; ++j) changed |= differs[j] != 0;
      store(row + base + k * lanes, acc[k]);
    }
  };
  int64_t base = 0;
  for (; base + kTile * lanes <= width; base += kTile * lanes) tile(Constant<kTile>{}, base);
  for (; base + 2 * lanes <= width; base += 2 * lanes) tile(Constant<2>{}, base);
  for (; base < width; base += lanes) tile(Constant<1>{}, base);
  return changed;
}

// The same, keeping the edge that made each value.
template <Plus P, Times T, class A>
bool relax_row_with_edges(const Problem<A>& problem, const int32_t* edges, int64_t count, const A* from, int64_t width,
                          A* row, int32_t* last) {
  bool changed = false;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t e = edges[i];
    const A* x = from + problem.p.graph.src[e] * width;
    const A w = problem.weight[e];
    int32_t any = 0;
    for (int64_t j = 0; j < width; ++j) {
      const A m = extend<T>(x[j], w);
      const bool take = better<P>(m, row[j]);
      row[j] = take ? m : row[j];
      last[j] = take ? e : last[j];
      any |= take;
    }
    changed |= any != 0;
  }
  return changed;
}

// Whether the last edges of some column form a cycle: going round it improved a value.
template <class A>
bool has_cycle(const Problem<A>& problem, const State<A>& s, int32_t* mark) {
  const CsrView& g = problem.p.graph;
  for (int64_t c = 0; c < s.columns; ++c) {
    fill(mark, g.num_nodes, int32_t(-1));
    for (int64_t start = 0; start < g.num_nodes; ++start) {
      int64_t v = start;
      while (mark[v] < 0) {
        mark[v] = int32_t(start);
        const int32_t e = s.last[v * s.width + c];
        if (e < 0) break;
        v = g.src[e];
        if (mark[v] == start) return true;
      }
    }
  }
  return false;
}

struct Outcome {
  int64_t steps;
  bool converged;
};

// In place to the fixpoint. Stamps count row visits: an edge is due when its source changed after the row's last visit.
template <Plus P, Times T, class A>
Outcome to_fixpoint(const Problem<A>& problem, const State<A>& s) {
  const CsrView& g = problem.p.graph;
  const int64_t w = s.width;
  Scratch<int64_t> changed_at(g.num_nodes), visited_at(g.num_nodes);
  Scratch<int32_t> due(problem.largest_degree), mark(problem.p.check_cycles ? g.num_nodes : 0);
  fill(changed_at.get(), g.num_nodes, int64_t(0));
  fill(visited_at.get(), g.num_nodes, int64_t(0));
  for (int64_t c = 0; c < s.columns; ++c) changed_at.get()[problem.p.source[s.first + c]] = 1;
  int64_t stamp = 1, sweeps = 0;
  for (;;) {
    bool any = false;
    const bool forth = sweeps % 2 == 0;
    for (int64_t i = 0; i < g.num_nodes; ++i) {
      const int64_t v = forth ? i : g.num_nodes - 1 - i;
      int64_t count = 0;
      for (int32_t e = g.indptr[v]; e < g.indptr[v + 1]; ++e) {
        due.get()[count] = e;
        count += changed_at.data()[g.src[e]] > visited_at.data()[v];
      }
      if (count == 0) continue;
      visited_at.get()[v] = stamp;
      A* row = s.value + v * w;
      const bool changed =
          s.last != nullptr ? relax_row_with_edges<P, T>(problem, due.data(), count, s.value, w, row, s.last + v * w)
                            : relax_row<P, T>(problem, due.data(), count, static_cast<const A*>(s.value), w, row, row);
      if (changed) changed_at.get()[v] = ++stamp;
      any |= changed;
    }
    if (!any) return {sweeps, true};
    ++sweeps;
    const bool power_of_two = (sweeps & (sweeps - 1)) == 0;
    if (sweeps >= problem.p.max_steps) return {sweeps, false};
    if (problem.p.check_cycles && power_of_two && sweeps >= 8 && has_cycle(problem, s, mark.get())) {
      return {sweeps, false};
    }
  }
}

// A given number of steps, each from the state of the step before.
template <Plus P, Times T, class A>
Outcome by_steps(const Problem<A>& problem, const State<A>& s) {
  const CsrView& g = problem.p.graph;
  const int64_t w = s.width;
  Scratch<A> next(g.num_nodes * w);
  Scratch<int64_t> changed_at(g.num_nodes);
  Scratch<int32_t> due(problem.largest_degree), changed(g.num_nodes);
  fill(changed_at.get(), g.num_nodes, int64_t(-1));
  for (int64_t c = 0; c < s.columns; ++c) changed_at.get()[problem.p.source[s.first + c]] = 0;
  for (int64_t step = 0; step < problem.p.max_steps; ++step) {
    int64_t num_changed = 0;
    for (int64_t v = 0; v < g.num_nodes; ++v) {
      int64_t count = 0;
      for (int32_t e = g.indptr[v]; e < g.indptr[v + 1]; ++e) {
        due.get()[count] = e;
        count += changed_at.data()[g.src[e]] == step;
      }
      if (count > 0 && relax_row<P, T>(problem, due.data(), count, static_cast<const A*>(s.value), w,
                                       static_cast<const A*>(s.value + v * w), next.get() + v * w)) {
        changed.get()[num_changed++] = int32_t(v);
      }
    }
    if (num_changed == 0) return {step, true};
    for (int64_t i = 0; i < num_changed; ++i) {
      const int64_t v = changed.data()[i];
      std::memcpy(s.value + v * w, next.data() + v * w, w * sizeof(A));
      changed_at.get()[v] = step + 1;
    }
  }
  return {problem.p.max_steps, false};
}

template <class A>
void init_block(const BellmanFord& p, const State<A>& s) {
  fill(s.value, p.graph.num_nodes * s.width, A(p.zero));
  if (s.last != nullptr) fill(s.last, p.graph.num_nodes * s.width, int32_t(-1));
  for (int64_t c = 0; c < s.columns; ++c) s.value[p.source[s.first + c] * s.width + c] = A(p.one);
}

template <class A>
void store_block(const BellmanFord& p, const State<A>& s) {
  A* out = static_cast<A*>(p.value);
  for (int64_t v = 0; v < p.graph.num_nodes; ++v) {
    const int64_t at = v * p.num_sources + s.first;
    std::memcpy(out + at, s.value + v * s.width, s.columns * sizeof(A));
    for (int64_t c = 0; p.predecessor != nullptr && c < s.columns; ++c) {
      const int32_t e = s.last[v * s.width + c];
      p.predecessor[at + c] = e < 0 ? -1 : p.graph.eid[e];
    }
  }
}

int64_t padded(int64_t columns) { return (columns + kPadding - 1) / kPadding * kPadding; }

// min and max: each block by itself.
template <Plus P, Times T, class A>
void idempotent(const Problem<A>& problem, BellmanFord& p, int threads) {
  const int64_t share = padded((p.num_sources + threads - 1) / threads);
  const int64_t width = min64(kBlock, max64(share, kPadding));
  const int64_t blocks = (p.num_sources + width - 1) / width;
  Scratch<Outcome> outcomes(blocks);
  parallel_tasks(blocks, threads, [&](int64_t i) {
    const int64_t columns = min64(width, p.num_sources - i * width);
    const bool edges = p.predecessor != nullptr || p.check_cycles;
    Scratch<A> value(p.graph.num_nodes * padded(columns));
    Scratch<int32_t> last(edges ? p.graph.num_nodes * padded(columns) : 0);
    const State<A> s = {i * width, columns, padded(columns), value.get(), edges ? last.get() : nullptr};
    init_block(p, s);
    outcomes.get()[i] = p.fixpoint ? to_fixpoint<P, T>(problem, s) : by_steps<P, T>(problem, s);
    store_block(p, s);
  });
  for (int64_t i = 0; i < blocks; ++i) {
    p.steps = max64(p.steps, outcomes.data()[i].steps);
    p.converged = p.converged && outcomes.data()[i].converged;
  }
}

// One row of a logsumexp step: the maximum, then the sum relative to it.
template <class A>
void logsumexp_row(const Problem<A>& problem, const int32_t* edges, int64_t count, const A* from, int64_t width,
                   const A* start, A* row, A* total) {
  for (int64_t j = 0; j < width; ++j) row[j] = start[j];
  for (int64_t i = 0; i < count; ++i) {
    const A* x = from + problem.p.graph.src[edges[i]] * width;
    const A w = problem.weight[edges[i]];
    for (int64_t j = 0; j < width; ++j) row[j] = x[j] + w > row[j] ? x[j] + w : row[j];
  }
  for (int64_t j = 0; j < width; ++j) {
    row[j] = row[j] == -A(INFINITY) ? A(0) : row[j];
    total[j] = exp_of(start[j] - row[j]);
  }
  for (int64_t i = 0; i < count; ++i) {
    const A* x = from + problem.p.graph.src[edges[i]] * width;
    const A w = problem.weight[edges[i]];
    for (int64_t j = 0; j < width; ++j) total[j] += exp_of(x[j] + w - row[j]);
  }
  for (int64_t j = 0; j < width; ++j) row[j] += A(std::log(total[j]));
}

// sum and logsumexp: all blocks step together, since they stop together. Rows are independent within a step.
template <Plus P, class A>
void accumulating(const Problem<A>& problem, BellmanFord& p, int threads) {
  const CsrView& g = p.graph;
  const int64_t V = g.num_nodes, blocks = (p.num_sources + kBlock - 1) / kBlock;
  const int64_t total_width = padded(p.num_sources);
  const int64_t chunks = max64(min64((V + g.num_edges) / 4096, 4 * threads), 1);
  Scratch<A> first(V * total_width), second(V * total_width);
  Scratch<uint8_t> reached(V * blocks), reached_next(V * blocks);
  Scratch<A> moved(blocks * chunks);
  A *now = first.get(), *next = second.get();
  auto block_state = [&](int64_t b, A* base) {
    const int64_t columns = min64(kBlock, p.num_sources - b * kBlock);
    return State<A>{b * kBlock, columns, padded(columns), base + V * b * kBlock, nullptr};
  };
  fill(reached.get(), V * blocks, uint8_t(0));
  for (int64_t b = 0; b < blocks; ++b) {
    init_block(p, block_state(b, now));
    init_block(p, block_state(b, next));
    for (int64_t c = 0; c < block_state(b, now).columns; ++c) reached.get()[b * V + p.source[b * kBlock + c]] = 1;
  }
  p.converged = false;
  while (p.steps < p.max_steps && !p.converged) {
    parallel_tasks(blocks * chunks, threads, [&](int64_t task) {
      const int64_t b = task / chunks, chunk = task % chunks;
      const State<A> from = block_state(b, now), to = block_state(b, next);
      const int64_t w = from.width, target = V + g.num_edges;
      Scratch<int32_t> due(problem.largest_degree);
      Scratch<A> start(2 * w);
      fill(start.get(), w, A(p.zero));
      A largest = A(0);
      for (int64_t v = 0; v < V; ++v) {
        // Rows are dealt by the work before them, so that each chunk has its share of a skewed graph.
        if ((v + g.indptr[v]) * chunks / max64(target, 1) != chunk) continue;
        int64_t count = 0;
        for (int32_t e = g.indptr[v]; e < g.indptr[v + 1]; ++e) {
          due.get()[count] = e;
          count += reached.data()[b * V + g.src[e]];
        }
        reached_next.get()[b * V + v] = reached.data()[b * V + v] | (count > 0);
        if (count == 0) continue;  // still its own start
        for (int64_t c = 0; c < from.columns; ++c) {
          start.get()[c] = p.source[from.first + c] == v ? A(p.one) : A(p.zero);
        }
        A* row = to.value + v * w;
        if constexpr (P == Plus::kSum) {
          relax_row<Plus::kSum, Times::kMul>(problem, due.data(), count, static_cast<const A*>(from.value), w,
                                             start.data(), row);
        } else {
          logsumexp_row(problem, due.data(), count, static_cast<const A*>(from.value), w, start.data(), row,
                        start.get() + w);
        }
        const A* old = from.value + v * w;
        for (int64_t c = 0; c < from.columns; ++c) {
          if (!(row[c] < A(INFINITY))) largest = A(NAN);  // diverged
          A step = row[c] == old[c] ? A(0) : row[c] - old[c];
          step = step < A(0) ? -step : step;
          const A size = row[c] < A(0) ? -row[c] : row[c];
          step = size > A(1) ? step / size : step;
          largest = step > largest ? step : largest;  // a NaN stays
        }
      }
      moved.get()[task] = largest;
    });
    bool still = true, diverged = false;
    for (int64_t i = 0; i < blocks * chunks; ++i) {
      still = still && double(moved.data()[i]) <= p.tolerance;
      diverged = diverged || moved.data()[i] != moved.data()[i];
    }
    std::memcpy(reached.get(), reached_next.data(), V * blocks);
    A* swap = now;
    now = next;
    next = swap;
    ++p.steps;
    p.converged = still && p.fixpoint;
    if (diverged && p.fixpoint) break;
  }
  for (int64_t b = 0; b < blocks; ++b) store_block(p, block_state(b, now));
}

template <class A>
void run(BellmanFord& p, int threads) {
  const CsrView& g = p.graph;
  Scratch<A> weight(g.num_edges);
  for (int64_t e = 0; e < g.num_edges; ++e) weight.get()[e] = static_cast<const A*>(p.weight)[g.eid[e]];
  int64_t largest = 0;
  for (int64_t v = 0; v < g.num_nodes; ++v) largest = max64(largest, g.indptr[v + 1] - g.indptr[v]);
  const Problem<A> problem = {p, weight.data(), largest};
  if (g.num_edges * p.num_sources < 32768) threads = 1;
  p.steps = 0;
  p.converged = true;
  auto with = [&](auto plus, auto other) {  // the other extremum distributes over this one
    constexpr Plus P = static_cast<Plus>(decltype(plus)::value);
    constexpr Times T = static_cast<Times>(decltype(other)::value);
    if (p.times == Times::kMul) return idempotent<P, Times::kMul>(problem, p, threads);
    if (p.times == Times::kAdd) return idempotent<P, Times::kAdd>(problem, p, threads);
    return idempotent<P, T>(problem, p, threads);
  };
  constexpr Constant<static_cast<int>(Plus::kMin)> kMin;
  constexpr Constant<static_cast<int>(Plus::kMax)> kMax;
  switch (p.plus) {
    case Plus::kSum: return accumulating<Plus::kSum>(problem, p, threads);
    case Plus::kLogSumExp: return accumulating<Plus::kLogSumExp>(problem, p, threads);
    case Plus::kMin: return with(kMin, Constant<static_cast<int>(Times::kMax)>{});
    case Plus::kMax: return with(kMax, Constant<static_cast<int>(Times::kMin)>{});
  }
}

}  // namespace

void bellman_ford(BellmanFord& args, int threads) {
  args.dtype == DType::kFloat64 ? run<double>(args, threads) : run<float>(args, threads);
}

}  // namespace IL_ISA
}  // namespace il
