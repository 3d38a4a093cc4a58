// SPDX-License-Identifier: Apache-2.0
// host.h for kernels whose threads wait for each other. Each block is a thread of the machine, each of its threads a
// fiber that runs until its next barrier. A warp runs as far as it can before the next one does, and its lanes, from
// barrier to barrier, now in ascending and now in descending order, so that a missing barrier shows. A barrier that
// some do not reach ends the process.
#pragma once
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "host.h"

#define __shared__ static thread_local  // one thread for each block

namespace il {

class Block {
 public:
  static inline thread_local Block* now = nullptr;

  template <class Kernel, class Args>
  static void run(Kernel kernel, const Args& args, unsigned threads) {
    Block block(threads);
    now = &block;
    block.body_ = [](void* task) {
      const auto& [k, a] = *static_cast<std::pair<Kernel, const Args*>*>(task);
      k(*a);
    };
    std::pair<Kernel, const Args*> task{kernel, &args};
    block.task_ = &task;
    block.run();
  }

  // All threads of the block, or of the warp.
  void wait(bool whole_block) {
    Fiber& me = fibers_[threadIdx.x];
    me.state = whole_block ? State::kBlock : State::kWarp;
    swapcontext(&me.context, &scheduler_);
  }

  // Deposits a value of each lane and returns those of the warp. Two buffers: who is one exchange ahead writes to the
  // other one, and nobody can be two ahead.
  template <class T>
  const T* exchange(T value) {
    static_assert(sizeof(T) <= 8);
    Fiber& me = fibers_[threadIdx.x];
    uint64_t* slots = slots_.data() + threadIdx.x / 32 * 64 + (me.exchanges++ % 2) * 32;
    T* values = reinterpret_cast<T*>(slots);
    values[threadIdx.x % 32] = value;
    wait(false);
    return values;
  }

 private:
  enum class State { kReady, kWarp, kBlock, kDone };
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state = State::kReady;
    unsigned exchanges = 0;
  };
  static constexpr std::size_t kStack = 1 << 16;

  explicit Block(unsigned threads) : fibers_(threads), slots_(threads * 2) {}

  static void start() {
    now->body_(now->task_);
    now->fibers_[threadIdx.x].state = State::kDone;
    swapcontext(&now->fibers_[threadIdx.x].context, &now->scheduler_);
  }

  void run() {
    for (Fiber& fiber : fibers_) {
      getcontext(&fiber.context);
      fiber.stack.reset(new char[kStack]);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      makecontext(&fiber.context, &Block::start, 0);
    }
    const unsigned warps = unsigned(fibers_.size()) / 32;
    for (unsigned round = blockIdx.x; !all(0, warps, State::kDone); ++round) {
      for (unsigned i = 0; i < warps; ++i) run_warp(round % 2 ? warps - 1 - i : i);
      if (!all(0, warps, State::kDone) && !pass(0, warps, State::kBlock)) stuck();
    }
  }

  void run_warp(unsigned w) {
    for (unsigned round = blockIdx.x;; ++round) {
      for (unsigned i = 0; i < 32; ++i) {
        threadIdx.x = w * 32 + (round % 2 ? 31 - i : i);
        Fiber& fiber = fibers_[threadIdx.x];
        if (fiber.state == State::kReady) swapcontext(&scheduler_, &fiber.context);
      }
      if (all(w, w + 1, State::kBlock) || all(w, w + 1, State::kDone)) return;
      if (!pass(w, w + 1, State::kWarp)) stuck();
    }
  }

  bool all(unsigned from_warp, unsigned to_warp, State state) const {
    for (unsigned i = from_warp * 32; i < to_warp * 32; ++i) {
      if (fibers_[i].state != state) return false;
    }
    return true;
  }
  // Lets through those that have met at a barrier.
  bool pass(unsigned from_warp, unsigned to_warp, State barrier) {
    if (!all(from_warp, to_warp, barrier)) return false;
    for (unsigned i = from_warp * 32; i < to_warp * 32; ++i) fibers_[i].state = State::kReady;
    return true;
  }
  [[noreturn]] static void stuck() {
    std::fputs("a barrier is not reached by all threads\n", stderr);
    std::abort();
  }

  std::vector<Fiber> fibers_;
  std::vector<uint64_t> slots_;
  ucontext_t scheduler_;
  void (*body_)(void*) = nullptr;
  void* task_ = nullptr;
};

template <class Args>
void run_blocks(void (*kernel)(Args), const Args& args, unsigned blocks, unsigned threads) {
  std::atomic<unsigned> started{0};
  std::vector<std::thread> machine;
  for (unsigned b = 0; b < blocks; ++b) {
    machine.emplace_back([&, b] {
      gridDim = {blocks, 1, 1};
      blockDim = {threads, 1, 1};
      threadIdx = {0, 0, 0};
      blockIdx = {b, 0, 0};
      for (++started; started < blocks;) std::this_thread::yield();  // none takes all the work before others are there
      Block::run(kernel, args, threads);
    });
  }
  for (std::thread& block : machine) block.join();
}

// The primitives of simple_graph.cuh.
inline void warp_sync() { Block::now->wait(false); }
inline void block_sync() { Block::now->wait(true); }
inline unsigned ballot(bool value) {
  const bool* values = Block::now->exchange(value);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= unsigned(values[i]) << i;
  return bits;
}
template <class T>
T broadcast(T value, int from) {
  return Block::now->exchange(value)[from];
}
template <class T>
T sum_lanes(T value, int width = 32) {
  const unsigned first = threadIdx.x % 32 / width * width;
  const T* values = Block::now->exchange(value);
  T sum = 0;
  for (int i = 0; i < width; ++i) sum += values[first + i];
  return sum;
}
inline int count_bits(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int lowest_bit(unsigned bits) { return __builtin_ctz(bits); }
inline int add(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline long long add(long long* at, long long value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline void set_bit(unsigned long long* row, int i) {
  __atomic_fetch_or(row + i / 64, 1ull << (i % 64), __ATOMIC_RELAXED);
}
inline int take(int* at) { return __atomic_exchange_n(at, 0, __ATOMIC_RELAXED); }

// Launches one of a table of kernels as the CUDA module does; 0 if it could.
template <class Args, std::size_t N>
int launch_on_host(void (*const (&kernels)[N])(Args), unsigned threads, int kernel, unsigned blocks, const void* args,
                   std::size_t size) {
  if (size != sizeof(Args) || kernel < 0 || kernel >= int(N)) return 1;
  Args packed;
  std::memcpy(&packed, args, size);
  run_blocks(kernels[kernel], packed, blocks, threads);
  return 0;
}

}  // namespace il
