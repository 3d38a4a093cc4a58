// SPDX-License-Identifier: Apache-2.0
// Subgraph matching: a depth-first search over the levels of a plan (ops/_match_plan.py). A level's vertex completes
// some candidate sets, each an intersection or a difference of one computed before with the vertex's neighbours; the
// next level runs over a range of one of them. Counting stops above the last levels, whose matches are binomials of a
// size.
//
// Roots (vertices of level 0) are shared out over the threads; each keeps at most 28 sets of the largest degree. No
// result is stored but what is asked for, so memory does not depend on the number of matches. A list goes on behind a
// match by its vertices: each level begins at that of the match, nothing before is searched again.
#include "cpu/match.h"

#include "cpu/set_ops.h"
#include "cpu/workers.h"

namespace il {
namespace IL_ISA {
namespace {

struct Level {
  int32_t set, above, below, distinct, inside, begin, end, node_label, node, orbit, adjacent, apart, lower, higher;
};
static_assert(sizeof(Level) == kPlanLevel * sizeof(int32_t), "the fields of Level in _match_plan.py");

struct SetCode {
  int32_t depth, base, operand, operation, above, below, edge_label, node_label, count_only;
};
static_assert(sizeof(SetCode) == kPlanSet * sizeof(int32_t), "the fields of CandidateSet in _match_plan.py");

enum Operation { kRow, kIntersect, kSubtract };

enum class Output { kCount, kTally, kList };

// C(n, k), or -1 beyond int64. Each step is a whole number.
int64_t binomial(int64_t n, int64_t k) {
  if (n < k) return 0;
  unsigned __int128 value = 1;
  for (int64_t i = 0; i < k; ++i) {
    value = value * uint64_t(n - i) / uint64_t(i + 1);
    if (value > uint64_t(INT64_MAX)) return -1;
  }
  return int64_t(value);
}

class Searcher {
 public:
  Searcher(Match& args, bool alone)
      : a_(args),
        g_(args.graph),
        size_(args.code[0]),
        tail_(args.code[2]),
        levels_(reinterpret_cast<const Level*>(args.code + kPlanHeader)),
        sets_(reinterpret_cast<const SetCode*>(args.code + kPlanHeader + kPlanLevel * size_)),
        orbit_of_pair_(args.code + kPlanHeader + kPlanLevel * size_ + kPlanSet * args.code[1]),
        node_(args.node, args.graph.num_nodes * args.num_node_orbits, alone),
        edge_(args.edge, args.graph.num_edges * args.num_edge_orbits, alone),
        widest_(widest(args.graph)),
        stored_(widest_ * args.code[1]),
        spare_(widest_) {
    output_ = args.list != nullptr                           ? Output::kList
              : args.node != nullptr || args.edge != nullptr ? Output::kTally
                                                             : Output::kCount;
  }

  void operator()(int64_t i) {
    const int64_t root = a_.roots == nullptr ? i : a_.roots[i];
    const int32_t label = levels_[0].node_label;
    if (label >= 0 && a_.node_labels[root] != label) return;
    full_ = false;
    left_ = a_.most;
    if (output_ == Output::kList) {
      at_ = a_.offsets[i] - a_.skip;
      if (a_.offsets[i + 1] - a_.skip <= 0 || at_ >= a_.take) return;
      resuming_ = at_ < 0 && a_.after != nullptr;
      at_ = max64(at_, 0);
    }
    const uint64_t found = place(0, int32_t(root));
    if (a_.by_root != nullptr) a_.by_root[i] = int64_t(found);
  }

  void merge() {
    const bool fits = node_.merge_checked() & edge_.merge_checked();
    a_.overflow |= overflow_ | !fits;
  }

 private:
  static int64_t widest(const SimpleGraph& g) {
    int64_t degree = 0;
    for (int64_t v = 0; v < g.num_nodes; ++v) degree = max64(degree, g.rowptr[v + 1] - g.rowptr[v]);
    return degree;
  }

  Sorted row(int64_t v) const { return {g_.col + g_.rowptr[v], g_.col + g_.rowptr[v + 1]}; }

  // The part of a sorted list above every vertex of `above` and below every one of `below`.
  IL_INLINE Sorted between(Sorted set, int32_t above, int32_t below) const {
    int32_t low = -1, high = INT32_MAX;
    for (uint32_t rest = uint32_t(above); rest != 0; rest &= rest - 1) {
      const int32_t v = v_[__builtin_ctz(rest)];
      low = v > low ? v : low;
    }
    for (uint32_t rest = uint32_t(below); rest != 0; rest &= rest - 1) {
      const int32_t v = v_[__builtin_ctz(rest)];
      high = v < high ? v : high;
    }
    if (low >= 0) set.first = lower_bound(set.first, set.last, low + 1);
    if (high < INT32_MAX) set.last = lower_bound(set.first, set.last, high);
    return set;
  }

  // False once a set is empty: nothing can be matched below.
  bool compute(const Level& level) {
    for (int32_t s = level.begin; s < level.end; ++s) {
      const SetCode& code = sets_[s];
      const int32_t v = v_[code.operand];
      Sorted near = row(v);
      if (code.above >> code.operand & 1) near.first = g_.col + g_.split[v];
      if (code.below >> code.operand & 1) near.last = g_.col + g_.split[v];
      int32_t* to = stored_.get() + s * widest_;
      if (code.operation == kRow) {
        near = between(near, code.above & ~(1 << code.operand), code.below & ~(1 << code.operand));
        if (code.edge_label >= 0 || code.node_label >= 0) {
          near = labelled(near, code, to);
        }
        set_[s] = near;
        count_[s] = near.size();
      } else {
        const Sorted base = between(set_[code.base], code.above, code.below);
        if (code.edge_label >= 0) {
          count_[s] = intersect(base, labelled(near, code, spare_.get()), to);
        } else if (code.operation == kSubtract) {
          count_[s] = subtract(base, near, to);
        } else if (code.count_only && output_ == Output::kCount) {
          count_[s] = count_both(base, near);
        } else {
          count_[s] = intersect(base, near, to);
        }
        set_[s] = {to, to + count_[s]};
      }
      if (count_[s] == 0) return false;
    }
    return true;
  }

  // Those of a part of v's row with the labels of a set.
  Sorted labelled(Sorted near, const SetCode& code, int32_t* to) const {
    const int32_t* eid = g_.eid + (near.first - g_.col);
    int32_t* end = to;
    for (int64_t i = 0; i < near.size(); ++i) {
      const int32_t x = near.first[i];
      const bool edge = code.edge_label < 0 || a_.edge_labels[eid[i]] == code.edge_label;
      const bool node = code.operation != kRow || code.node_label < 0 || a_.node_labels[x] == code.node_label;
      *end = x;
      end += edge && node;
    }
    return {to, end};
  }

  // Matches with v at level i, given the levels before.
  uint64_t place(int i, int32_t v) {
    v_[i] = v;
    if (stopped()) return 0;
    if (i + 1 == size_) {
      leaf();
      return 1;
    }
    if (!compute(levels_[i])) return 0;
    const bool before_tail = i + 1 == size_ - tail_;
    const uint64_t found = before_tail && output_ == Output::kCount   ? count_tail(i + 1)
                           : before_tail && output_ == Output::kTally ? tally_tail(i + 1)
                                                                      : descend(i + 1);
    if (found > 0 && output_ == Output::kTally) tally(i, found);
    return found;
  }

  // How many of its range level i may take.
  int64_t count_candidates(const Level& level, Sorted range) const {
    int64_t candidates = range.size() - __builtin_popcount(uint32_t(level.inside));
    for (uint32_t rest = uint32_t(level.distinct & ~level.inside); rest != 0; rest &= rest - 1) {
      candidates -= contains(range, v_[__builtin_ctz(rest)]);
    }
    return candidates;
  }

  int64_t count_tail(int i) {
    const Level& level = levels_[i];
    // What only a count needs has no list, and no conditions beyond those of the set.
    const int64_t candidates = sets_[level.set].count_only
                                   ? count_[level.set] - __builtin_popcount(uint32_t(level.inside))
                                   : count_candidates(level, between(set_[level.set], level.above, level.below));
    int64_t found = tail_ == 1 ? max64(candidates, 0) : binomial(candidates, tail_);
    if (uint64_t(found) >= uint64_t(left_)) {  // so is -1
      overflow_ |= a_.most == INT64_MAX;
      full_ = true;
      found = left_;
    }
    left_ -= found;
    return found;
  }

  // The last levels are images of each other under automorphisms that fix the rest, so all have the orbits of the first
  // of them; each candidate is in as many matches as there are choices of the others.
  uint64_t tally_tail(int i) {
    const Level& level = levels_[i];
    const Sorted range = between(set_[level.set], level.above, level.below);
    const int64_t candidates = count_candidates(level, range);
    if (candidates < tail_) return 0;
    const uint64_t found = uint64_t(binomial(candidates, tail_)), each = uint64_t(binomial(candidates - 1, tail_ - 1));
    for (const int32_t* x = range.first; x < range.last; ++x) {
      if (taken(*x, uint32_t(level.distinct))) continue;
      v_[i] = *x;
      tally(i, each);
    }
    return found;
  }

  uint64_t descend(int i) {
    const Level& level = levels_[i];
    const Sorted range = between(set_[level.set], level.above, level.below);
    const int32_t* x = range.first;
    if (resuming_) {  // the levels above are those of `after`
      x = lower_bound(x, range.last, a_.after[i]);
      resuming_ = x < range.last && *x == a_.after[i];
    }
    uint64_t found = 0;
    for (; x < range.last; ++x) {
      if (!taken(*x, uint32_t(level.distinct))) found = sum(found, place(i, *x));
      resuming_ = false;
    }
    return found;
  }

  IL_INLINE bool taken(int32_t x, uint32_t levels) const {
    for (; levels != 0; levels &= levels - 1) {
      if (v_[__builtin_ctz(levels)] == x) return true;
    }
    return false;
  }

  // A match of a list: other outputs stop above the last level.
  IL_INLINE void leaf() {
    if (resuming_) return;  // `after` itself
    int64_t* to = a_.list + at_ * size_;
    for (int l = 0; l < size_; ++l) to[levels_[l].node] = g_.order[v_[l]];
    full_ = ++at_ >= a_.take;
  }

  // Adds matches to level i's vertex and to its edges to earlier levels.
  void tally(int i, uint64_t found) {
    const Level& level = levels_[i];
    if (a_.node != nullptr) add(node_[int64_t(v_[i]) * a_.num_node_orbits + level.orbit], found);
    if (a_.edge == nullptr) return;
    for (uint32_t rest = uint32_t(level.adjacent); rest != 0; rest &= rest - 1) {
      const int j = __builtin_ctz(rest);
      const Sorted near = row(v_[i] < v_[j] ? v_[i] : v_[j]);
      const int32_t other = v_[i] < v_[j] ? v_[j] : v_[i];
      const int64_t eid = g_.eid[lower_bound(near.first, near.last, other) - g_.col];
      add(edge_[eid * a_.num_edge_orbits + orbit_of_pair_[i * size_ + j]], found);
    }
  }

  // Numbers of matches may be beyond int64 where nothing adds them up: -1, the greatest, stands for all of these.
  static IL_INLINE uint64_t sum(uint64_t a, uint64_t b) { return a + b < a || a + b > INT64_MAX ? UINT64_MAX : a + b; }
  IL_INLINE void add(int64_t& sum, uint64_t found) {
    overflow_ |= found > INT64_MAX || __builtin_add_overflow(sum, int64_t(found), &sum);
  }

  // Asks now and then. The search then unwinds without counting on, as it does once there are as many as wanted.
  IL_INLINE bool stopped() {
    if (++steps_ % 1024 == 0 && a_.poll.ask != nullptr) stop_ = a_.poll.ask(a_.poll.state);
    return stop_ || full_;
  }

  Match& a_;
  const SimpleGraph& g_;
  const int size_, tail_;
  const Level* levels_;
  const SetCode* sets_;
  const int32_t* orbit_of_pair_;
  Partial<int64_t> node_, edge_;
  int64_t widest_;
  Scratch<int32_t> stored_, spare_;
  Output output_;
  int64_t at_ = 0, left_ = 0;
  uint64_t steps_ = 0;
  bool stop_ = false, overflow_ = false, full_ = false, resuming_ = false;
  int32_t v_[kMaxPattern];
  Sorted set_[kMaxPattern * (kMaxPattern - 1) / 2];
  int64_t count_[kMaxPattern * (kMaxPattern - 1) / 2];
};

}  // namespace

void match(Match& args) { args.finished = share_out<Searcher>(args.num_roots, 16, args.threads, args.poll, args); }

}  // namespace IL_ISA
}  // namespace il
