// SPDX-License-Identifier: Apache-2.0
// What the kernels that count patterns share: the packed graph of core/simple_graph.h, sorted rows, the exchange
// between the lanes of a warp, and atomics. All sums are of integers, so that their order does not show.
//
// NVRTC-clean; compiled as plain C++ behind tests/cuda/fibers.h, which has its own primitives.
#pragma once

namespace il {

// Nodes are ranks in ascending (graph, degree, id) order. All members of argument structs have 8 bytes: Python packs
// them.
struct PackedGraph {
  const long long* rowptr;  // (n + 1,)
  const long long* split;   // (n,) where the neighbours of higher rank begin
  const int* col;           // (2m,) rows sorted
  const int* eid;           // (2m,) number of the undirected edge
  const int* order;         // (n,) node of each rank
  const int* row;           // (2m,) rank whose row a position lies in
  long long n, m;
};

constexpr int WARP = 32, THREADS = 128, WARPS = THREADS / WARP;

#ifdef __CUDACC__
__device__ __forceinline__ void warp_sync() { __syncwarp(); }
__device__ __forceinline__ void block_sync() { __syncthreads(); }
__device__ __forceinline__ unsigned ballot(bool value) { return __ballot_sync(0xffffffffu, value); }
template <class T>
__device__ __forceinline__ T broadcast(T value, int from) {
  return __shfl_sync(0xffffffffu, value, from);
}
// Over each `width` neighbouring lanes, a power of two; every lane gets the total.
template <class T>
__device__ __forceinline__ T sum_lanes(T value, int width = WARP) {
  for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}
__device__ __forceinline__ int count_bits(unsigned long long bits) { return __popcll(bits); }
__device__ __forceinline__ int lowest_bit(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }
// These return what was there before.
__device__ __forceinline__ int add(int* at, int value) { return atomicAdd(at, value); }
__device__ __forceinline__ long long add(long long* at, long long value) {
  return static_cast<long long>(
      atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value)));
}
__device__ __forceinline__ void set_bit(unsigned long long* row, int i) { atomicOr(row + i / 64, 1ull << (i % 64)); }
__device__ __forceinline__ int take(int* at) { return atomicExch(at, 0); }
#endif

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % WARP; }
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / WARP; }

// The next `count` of the items that all warps of a grid share out among them; `next` starts at 0.
__device__ __forceinline__ long long next_items(long long* next, long long count) {
  const long long first = lane() == 0 ? add(next, count) : 0;
  return broadcast(first, 0);
}

// Positions of `col` in ascending order of their neighbours.
struct Span {
  long long begin, end;
  __device__ __forceinline__ long long size() const { return end - begin; }
};
__device__ __forceinline__ Span neighbors(const PackedGraph& g, int v) { return {g.rowptr[v], g.rowptr[v + 1]}; }
__device__ __forceinline__ Span above(const PackedGraph& g, int v) { return {g.split[v], g.rowptr[v + 1]}; }
__device__ __forceinline__ long long degree(const PackedGraph& g, int v) { return g.rowptr[v + 1] - g.rowptr[v]; }

// First position of the span whose neighbour is x or above.
__device__ __forceinline__ long long first_from(const PackedGraph& g, Span in, int x) {
  const int* row = g.col + in.begin;
  int first = 0, count = static_cast<int>(in.size());  // a row has fewer than 2^31 entries
  while (count > 0) {
    const int half = count / 2;
    const bool below = row[first + half] < x;
    first = below ? first + half + 1 : first;
    count = below ? count - half - 1 : half;
  }
  return in.begin + first;
}

// Where x is in the span, -1 where it is not.
__device__ __forceinline__ long long find(const PackedGraph& g, Span in, int x) {
  const long long at = first_from(g, in, x);
  return at < in.end && g.col[at] == x ? at : -1;
}

// Calls hit(i, j) for the positions i of `a` and j of `b` of each common neighbour, spread over the lanes.
template <class Hit>
__device__ __forceinline__ void for_common(const PackedGraph& g, Span a, Span b, Hit hit) {
  const bool swap = b.size() < a.size();
  const Span few = swap ? b : a, many = swap ? a : b;
  for (long long i = few.begin + lane(); i < few.end; i += WARP) {
    const long long j = find(g, many, g.col[i]);
    if (j >= 0) hit(swap ? j : i, swap ? i : j);
  }
}

}  // namespace il
