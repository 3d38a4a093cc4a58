// SPDX-License-Identifier: Apache-2.0
// Memory for many small tasks, each of which takes less time than its own calls of malloc would.
#pragma once

#include "core/simd.h"

namespace il {
namespace IL_ISA {

// Uninitialised memory for one task after the other.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { drop(); }

  template <class A>
  A* take(int64_t count) {
    const size_t bytes = (size_t(count > 0 ? count : 1) * sizeof(A) + 63) / 64 * 64;
    if (bytes > room_) grow(bytes);
    char* memory = free_;
    free_ += bytes, room_ -= bytes;
    return reinterpret_cast<A*>(memory);
  }
  // What was taken is free again; from then on in one piece.
  void reset() {
    if (blocks_ == nullptr) return;
    if (blocks_->next != nullptr) {
      const size_t all = all_;
      drop();
      grow(all);
    }
    free_ = reinterpret_cast<char*>(blocks_) + sizeof(Block), room_ = blocks_->bytes;
  }

 private:
  struct alignas(64) Block {
    Block* next;
    size_t bytes;
  };
  void grow(size_t bytes) {
    bytes = bytes > kLeast ? bytes : kLeast;
    Block* block = static_cast<Block*>(std::aligned_alloc(64, sizeof(Block) + bytes));
    if (block == nullptr) throw OutOfMemory{bytes};
    *block = {blocks_, bytes};
    blocks_ = block, all_ += bytes;
    free_ = reinterpret_cast<char*>(block) + sizeof(Block), room_ = bytes;
  }
  void drop() {
    while (blocks_ != nullptr) {
      Block* next = blocks_->next;
      std::free(blocks_);
      blocks_ = next;
    }
    all_ = room_ = 0;
  }

  static constexpr size_t kLeast = size_t(1) << 15;

  Block* blocks_ = nullptr;
  char* free_ = nullptr;
  size_t room_ = 0, all_ = 0;
};

namespace {

// Threads at work. A caller that is done waits for the others by asking on: they hear of a Ctrl-C through it alone.
class Presence {
 public:
  void enter() {
#pragma omp atomic update
    ++begun_;
  }
  void leave() {
#pragma omp atomic update
    ++ended_;
  }
  // Those that have not begun will see that nothing is left.
  template <class F>
  void wait(Poll poll, F&& look) {
    while (poll.ask != nullptr && poll.is_caller(poll.state)) {
      int64_t on, off;
#pragma omp atomic read
      off = ended_;
#pragma omp atomic read
      on = begun_;
      if (on == off) break;
      look();
      poll.nap(poll.state);
    }
  }

 private:
  int64_t begun_ = 0, ended_ = 0;
};

// task(i, arena) for i in [0, count), in ascending order on each of up to `threads` threads, which have an arena each.
template <class F>
IL_INLINE void tasks_in_arenas(int64_t count, int threads, F&& task, Poll poll = Poll{}) {
  threads = int(max64(1, min64(threads, count)));
  int64_t next = 0;
  Presence presence;
  parallel_tasks(threads, threads, [&](int64_t) {
    Arena arena;
    presence.enter();
    try {
      for (;;) {
        int64_t i;
#pragma omp atomic capture
        i = next++;
        if (i >= count) break;
        arena.reset();
        task(i, arena);
      }
    } catch (const OutOfMemory&) {
      presence.leave();
      throw;
    }
    presence.leave();
    if (threads > 1) presence.wait(poll, [&] { poll.ask(poll.state); });
  });
}

}  // namespace
}  // namespace IL_ISA
}  // namespace il
