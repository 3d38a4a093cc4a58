// SPDX-License-Identifier: Apache-2.0
// Loops over nodes whose cost differs by orders of magnitude, with sums private to each thread.
#pragma once

#include "cpu/arena.h"

// For inner loops that would lose their registers inside a large caller.
#define IL_NOINLINE __attribute__((noinline))

namespace il {
namespace IL_ISA {
namespace {

template <class A>
IL_INLINE A* zeros(Arena& arena, int64_t count) {
  A* memory = arena.take<A>(count);
  fill(memory, count, A(0));
  return memory;
}

// Zeroed sums of one thread, added to the shared ones in `merge`. A single thread adds to the shared ones directly.
// Integers, so the order of additions does not show. Null stays null.
template <class A>
class Partial {
 public:
  Partial(A* shared, int64_t count, bool alone)
      : shared_(shared), count_(count), own_(alone || shared == nullptr ? 0 : count) {
    if (alone || shared == nullptr) {
      sums = shared;
    } else {
      sums = own_.get();
      fill(sums, count, A(0));
    }
  }
  void merge() {
    if (sums == shared_) return;
    for (int64_t i = 0; i < count_; ++i) shared_[i] += sums[i];
  }
  // The same; false where a sum leaves A.
  bool merge_checked() {
    if (sums == shared_) return true;
    bool fits = true;
    for (int64_t i = 0; i < count_; ++i) fits &= !__builtin_add_overflow(shared_[i], sums[i], &shared_[i]);
    return fits;
  }
  A& operator[](int64_t i) { return sums[i]; }
  A* sums;

 private:
  A* shared_;
  int64_t count_;
  Scratch<A> own_;
};

// Worker(alone) is made once per thread; it gets worker(i) for each i of [begin, end), chunks in ascending order, and
// at the end worker.merge(), one thread at a time. Returns false when `poll` asked to stop.
template <class Worker, class Args>
IL_INLINE bool share_range(int64_t begin, int64_t end, int64_t chunk, int threads, Poll poll, Args& args) {
  const int64_t count = end - begin;
  int64_t next = begin;
  int stopped = 0;
  if (threads > (count + chunk - 1) / chunk) threads = int(max64(1, (count + chunk - 1) / chunk));
  const auto look = [&] {
    if (poll.ask == nullptr || !poll.ask(poll.state)) return;
#pragma omp atomic write
    stopped = 1;
  };
  Presence presence;
  parallel_tasks(threads, threads, [&](int64_t) {
    Worker worker(args, threads == 1);
    presence.enter();
    try {
      for (;;) {
        int64_t first;
        int stop;
#pragma omp atomic capture
        {
          first = next;
          next += chunk;
        }
#pragma omp atomic read
        stop = stopped;
        if (first >= end || stop) break;
        for (int64_t i = first; i < min64(first + chunk, end); ++i) {
          worker(i);
          if (chunk < 16 || i % 16 == 15) look();
        }
      }
    } catch (const OutOfMemory&) {  // the others stop, parallel_tasks throws it again
#pragma omp atomic write
      stopped = 1;
      presence.leave();
      throw;
    }
#pragma omp critical(il_merge)
    worker.merge();
    presence.leave();
    if (threads > 1) presence.wait(poll, look);
  });
  return stopped == 0;
}

template <class Worker, class Args>
IL_INLINE bool share_out(int64_t count, int64_t chunk, int threads, Poll poll, Args& args) {
  return share_range<Worker>(0, count, chunk, threads, poll, args);
}

}  // namespace
}  // namespace IL_ISA
}  // namespace il
