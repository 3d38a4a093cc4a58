// SPDX-License-Identifier: Apache-2.0
// relational_spmm on a GPU: out[v] = ⊕ over in-edges e = (x, r, v) of a_e · (relation[r] ⊗ input[x]), ⊕ boundary[v]
//
// Layout. input, boundary and result are (V, C) with C = B·d columns, relation is (R, d) or (R, C). A block has
// blockDim.y tasks of blockDim.x threads; a thread owns N neighbouring columns of one task, keeps their accumulators in
// registers and walks the task's edges. blockIdx.x runs over tasks, blockIdx.y over tiles of columns: all tasks of one
// tile run before those of the next, so that a (V, 128)-slice of the input (7.4 MB for FB15k-237 in float32) stays in
// L2.
//
// Tasks. A task is a row, or a piece of a long one; pieces write their accumulators to `partial`, and `merge` or
// `merge_grad` adds those up in order. No atomic but a minimum over integers: the same bits in every run.
//
// Backward. `first_attaining` finds the one edge that receives the gradient of a maximum or minimum. `gather_grad` then
// collects instead of scattering, over the edges by source (gradient of the input) and by relation (of the relation
// table); `weight_grad` goes edge by edge. Messages are formed again, never stored.
//
// Bytes per edge and column, float32: forward 4 (input, from L2) + 4 (relation, mostly from L1); 8 bytes of indices per
// edge and tile of 128 columns. Backward of a sum 12, of PNA 32. Not yet measured on a GPU.
//
// Compiles with nvcc, with NVRTC (no host header is included) and, for tests without a GPU, as plain C++ behind
// tests/cuda/host.h. Compile without contraction (-fmad=false): a message must come out with the same bits in every
// kernel, or a maximum is not found again.
#pragma once

namespace il {

struct alignas(16) Task {
  int row, begin, end, slot;  // edges [begin, end) of its order; slot in `partial`, -1 where the task is a whole row
};

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

// What every kernel takes; unused members are null or 0. All members have 8 bytes: Python packs them.
struct SpmmArgs {
  const void* input;                               // T (V, C)
  const void* relation;                            // T (R, d) or (R, C)
  const void* boundary;                            // T (V, C), or null
  const void* weight;                              // T (E,), or null
  void* out;                                       // what the kernel computes
  void* partial;                                   // A (slots, fields, C)
  const Task* tasks;                               // (num_tasks,)
  const int* indptr;                               // (V + 1,) of the CSR
  const int *src, *rel, *dst, *eid, *position;     // (E,) in the order that the tasks refer to; position: in the CSR
  const void *grad, *value, *high, *low, *spread;  // A (V, C), see message_grad
  const int *first_high, *first_low;               // (V, C)
  const void *target_high, *target_low;            // T (V, C) of first_attaining
  long long num_tasks, C, d, E, sum, mul, shared_relation, of_relation, wide_out;
};

// Codes of csrc/cpu/relational_spmm.h.
enum : int { SUM, MEAN, MAX, MIN, LOGSUMEXP, OR, PNA };
enum : int { MUL, ADD, ROTATE, MIN_OF, AND };
// What a row accumulates.
enum : int { KIND_SUM /* sum, mean */, KIND_EXTREME /* max, min, or */, KIND_LOGSUMEXP, KIND_PNA };

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

#ifdef __CUDACC__
__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ __forceinline__ unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
// Over the blockDim.x threads of a task, a power of two of at most 32; every thread gets the total.
template <class A>
__device__ __forceinline__ A task_sum(A value) {
  for (int width = blockDim.x / 2; width > 0; width /= 2) value += __shfl_xor_sync(0xffffffffu, value, width);
  return value;
}
#endif

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(Half value) { return half_to_float(value.bits); }
__device__ __forceinline__ float widen(BFloat16 value) {
  union {
    unsigned int bits;
    float value;
  } u;
  u.bits = static_cast<unsigned int>(value.bits) << 16;
  return u.value;
}
__device__ __forceinline__ void narrow(float value, float* to) { *to = value; }
__device__ __forceinline__ void narrow(double value, double* to) { *to = value; }
__device__ __forceinline__ void narrow(float value, Half* to) { to->bits = float_to_half(value); }
__device__ __forceinline__ void narrow(float value, BFloat16* to) {
  union {
    float value;
    unsigned int bits;
  } u;
  u.value = value;
  const bool nan = value != value;
  to->bits = nan ? 0x7fc0 : static_cast<unsigned short>((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16);
}

// N neighbouring elements with one load or store; the address is a multiple of the size where N > 1.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};
template <int N, class T, class A>
__device__ __forceinline__ void load(const void* base, long long i, A (&to)[N], const T*) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(static_cast<const T*>(base) + i);
#pragma unroll
  for (int j = 0; j < N; ++j) to[j] = widen(pack.at[j]);
}
template <int N, class T, class A>
__device__ __forceinline__ void store(void* base, long long i, const A (&from)[N], const T*) {
  Pack<T, N> pack;
#pragma unroll
  for (int j = 0; j < N; ++j) narrow(from[j], &pack.at[j]);
  *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(base) + i) = pack;
}
#define IL_AS(T) static_cast<const T*>(nullptr)

template <class A>
__device__ __forceinline__ A infinity() {
  return static_cast<A>(widen(BFloat16{0x7f80}));
}
template <class A>
__device__ __forceinline__ A nan_max(A a, A b) {
  return a != a || a > b ? a : b;
}
template <class A>
__device__ __forceinline__ A nan_min(A a, A b) {
  return a != a || a < b ? a : b;
}
template <class A>
__device__ __forceinline__ A finite_or_zero(A value) {
  return value - value == 0 ? value : A(0);
}

// ---- messages ----

template <class T, int N>
struct Operands {
  using A = typename Accumulator<T>::type;
  A x[N], r[N];    // input[src], relation[rel]
  A xp[N], rp[N];  // ROTATE: the same of the other part of a complex channel
};

// Real parts are channels [0, d/2), imaginary ones [d/2, d). Returns the column of the other part.
__device__ __forceinline__ long long partner(long long c, long long d, bool& real) {
  real = c % d < d / 2;
  return real ? c + d / 2 : c - d / 2;
}

template <class T, int N>
__device__ __forceinline__ void load_relation(const SpmmArgs& p, int rel, long long c,
                                              typename Accumulator<T>::type (&to)[N]) {
  load<N>(p.relation, p.shared_relation ? rel * p.d + c % p.d : rel * p.C + c, to, IL_AS(T));
}

// FAST: mul is MUL and N neighbouring columns are loaded at once; else any mul, N = 1.
template <class T, bool FAST, int N>
__device__ __forceinline__ Operands<T, N> load_operands(const SpmmArgs& p, int src, int rel, long long c) {
  Operands<T, N> o{};
  load<N>(p.input, src * p.C + c, o.x, IL_AS(T));
  load_relation<T>(p, rel, c, o.r);
  if (!FAST && p.mul == ROTATE) {
    bool real;
    const long long other = partner(c, p.d, real);
    load<N>(p.input, src * p.C + other, o.xp, IL_AS(T));
    load_relation<T>(p, rel, other, o.rp);
  }
  return o;
}

template <bool FAST, class T, int N>
__device__ __forceinline__ typename Accumulator<T>::type message(const SpmmArgs& p, const Operands<T, N>& o, int j,
                                                                 long long c) {
  using A = typename Accumulator<T>::type;
  const A x = o.x[j], r = o.r[j];
  if (FAST || p.mul == MUL) return x * r;
  if (p.mul == ADD) return x + r;
  if (p.mul == ROTATE) {
    const bool real = c % p.d < p.d / 2;
    const A same = x * (real ? r : o.rp[j]), other = o.xp[j] * (real ? o.rp[j] : r);
    return real ? same - other : other + same;
  }
  if (p.mul == MIN_OF) return x != x || x <= r ? x : r;
  return x != x ? x : r != r ? r : A(x != 0 && r != 0);
}

template <class T>
__device__ __forceinline__ typename Accumulator<T>::type weight_of(const SpmmArgs& p, int eid) {
  return p.weight ? widen(static_cast<const T*>(p.weight)[eid]) : typename Accumulator<T>::type(1);
}

// ---- accumulation ----

template <class A, int KIND>
struct Row {
  A s = 0, q = 0;  // sum (of exp, relative to hi, in LOGSUMEXP); PNA: relative to `shift`
  A hi = -infinity<A>(), lo = infinity<A>();

  static constexpr int FIELDS = KIND == KIND_PNA ? 4 : KIND == KIND_LOGSUMEXP ? 2 : 1;

  __device__ __forceinline__ void add(A m, A a, bool weighted, A shift, int sum) {
    const A am = a * m;
    if (KIND == KIND_SUM) {
      s += am;
    } else if (KIND == KIND_EXTREME) {
      hi = nan_max(hi, sum == MIN ? -am : sum == MAX || am != am ? am : A(am != 0));
    } else if (KIND == KIND_LOGSUMEXP) {
      merge_exp(am, A(1));
    } else {
      const A t = am - shift;
      s += t;
      q += weighted ? am * m : t * t;
      hi = nan_max(hi, am);
      lo = nan_min(lo, am);
    }
  }

  __device__ __forceinline__ void merge_exp(A top, A share) {
    const A both = nan_max(hi, top), base = finite_or_zero(both);
    s = s * exp(hi - base) + share * exp(top - base);
    hi = both;
  }

  __device__ __forceinline__ void merge(const Row& other) {
    if (KIND == KIND_LOGSUMEXP) {
      merge_exp(other.hi, other.s);
    } else {
      s += other.s;
      q += other.q;
      hi = nan_max(hi, other.hi);
      lo = nan_min(lo, other.lo);
    }
  }

  // Fields in order, for `partial`.
  __device__ __forceinline__ A& field(int k) {
    if (KIND == KIND_SUM) return s;
    if (KIND == KIND_EXTREME) return hi;
    if (KIND == KIND_LOGSUMEXP) return k == 0 ? s : hi;
    return k == 0 ? s : k == 1 ? q : k == 2 ? hi : lo;
  }
};

template <class A, int KIND>
__device__ __forceinline__ A finish(const Row<A, KIND>& row, A inverse_count, int sum) {
  if (KIND == KIND_SUM) return sum == MEAN ? row.s * inverse_count : row.s;
  if (KIND == KIND_EXTREME)
    return sum == MAX ? row.hi : sum == MIN ? -row.hi : row.hi > 0 || row.hi != row.hi ? row.hi : A(0);
  if (row.hi != row.hi || row.hi == infinity<A>()) return row.hi;
  return row.s > 0 ? log(row.s) + finite_or_zero(row.hi) : -infinity<A>();
}

template <class T, int N, class A>
__device__ __forceinline__ void write(const SpmmArgs& p, long long i, const A (&value)[N]) {
  if (p.wide_out) {
    store<N>(p.out, i, value, IL_AS(A));
  } else {
    store<N>(p.out, i, value, IL_AS(T));
  }
}

// Relative to the row's first message, Q / D - mean² does not cancel where messages are alike. With edge weights, which
// enter Q once, there is no such form.
template <class T, int KIND, bool FAST, int N>
__device__ __forceinline__ void load_shift(const SpmmArgs& p, int v, long long c,
                                           typename Accumulator<T>::type (&shift)[N]) {
#pragma unroll
  for (int j = 0; j < N; ++j) shift[j] = 0;
  const int first = p.indptr[v];
  if (KIND != KIND_PNA || p.weight || first == p.indptr[v + 1]) return;
  const Operands<T, N> o = load_operands<T, FAST, N>(p, p.src[first], p.rel[first], c);
#pragma unroll
  for (int j = 0; j < N; ++j) shift[j] = finite_or_zero(message<FAST>(p, o, j, c + j));
}

// The boundary as one more message, then the result of the row.
template <class T, int KIND, int N, class A>
__device__ __forceinline__ void finish_row(const SpmmArgs& p, int v, long long c, Row<A, KIND> (&row)[N],
                                           const A (&shift)[N]) {
  const long long at = v * p.C + c;
  int count = p.indptr[v + 1] - p.indptr[v];
  if (p.boundary) {
    A b[N];
    load<N>(p.boundary, at, b, IL_AS(T));
#pragma unroll
    for (int j = 0; j < N; ++j) row[j].add(b[j], A(1), p.weight != nullptr, shift[j], int(p.sum));
    ++count;
  }
  const A inverse = A(1) / A(count > 1 ? count : 1);
  A value[N];
  if (KIND == KIND_PNA) {
    const long long first = at * 4 - 3 * (c % p.d);  // (V, B, 4, d): four rows of d channels for each query
    A std[N], hi[N], lo[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A mean = row[j].s * inverse, variance = row[j].q * inverse - mean * mean;
      value[j] = shift[j] + mean;
      hi[j] = row[j].hi;
      lo[j] = row[j].lo;
      std[j] = sqrt(variance < A(1e-6) ? A(1e-6) : variance);
    }
    write<T>(p, first, value);
    write<T>(p, first + p.d, hi);
    write<T>(p, first + 2 * p.d, lo);
    write<T>(p, first + 3 * p.d, std);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] = finish(row[j], inverse, int(p.sum));
    write<T>(p, at, value);
  }
}

template <class T, bool FAST>
struct Width {
  static constexpr int N = !FAST ? 1 : sizeof(T) == 8 ? 2 : 4;
};

#define IL_TASK                                                                      \
  const long long t = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y; \
  if (t >= p.num_tasks) return;                                                      \
  const Task task = p.tasks[t];                                                      \
  const long long column_step = static_cast<long long>(gridDim.y) * blockDim.x * N;  \
  for (long long c = (static_cast<long long>(blockIdx.y) * blockDim.x + threadIdx.x) * N; c < p.C; c += column_step)

constexpr int UNROLL = 4;  // edges whose loads are in flight together

template <class T, int KIND, bool FAST>
__global__ void __launch_bounds__(128) spmm_forward(SpmmArgs p) {
  using A = typename Accumulator<T>::type;
  constexpr int N = Width<T, FAST>::N;
  IL_TASK {
    Row<A, KIND> row[N];
    A shift[N];
    load_shift<T, KIND, FAST>(p, task.row, c, shift);
    int e = task.begin;
    for (; e + UNROLL <= task.end; e += UNROLL) {
      Operands<T, N> o[UNROLL];
      A a[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
        o[u] = load_operands<T, FAST, N>(p, p.src[e + u], p.rel[e + u], c);
        a[u] = p.weight ? weight_of<T>(p, p.eid[e + u]) : A(1);
      }
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
        for (int j = 0; j < N; ++j)
          row[j].add(message<FAST>(p, o[u], j, c + j), a[u], p.weight != nullptr, shift[j], int(p.sum));
      }
    }
    for (; e < task.end; ++e) {
      const Operands<T, N> o = load_operands<T, FAST, N>(p, p.src[e], p.rel[e], c);
      const A a = p.weight ? weight_of<T>(p, p.eid[e]) : A(1);
#pragma unroll
      for (int j = 0; j < N; ++j)
        row[j].add(message<FAST>(p, o, j, c + j), a, p.weight != nullptr, shift[j], int(p.sum));
    }
    if (task.slot < 0) {
      finish_row<T, KIND>(p, task.row, c, row, shift);
      continue;
    }
#pragma unroll
    for (int k = 0; k < Row<A, KIND>::FIELDS; ++k) {
      A field[N];
#pragma unroll
      for (int j = 0; j < N; ++j) field[j] = row[j].field(k);
      store<N>(p.partial, (static_cast<long long>(task.slot) * Row<A, KIND>::FIELDS + k) * p.C + c, field, IL_AS(A));
    }
  }
}

// Tasks: rows whose pieces lie in slots [begin, end).
template <class T, int KIND, bool FAST>
__global__ void __launch_bounds__(128) spmm_merge(SpmmArgs p) {
  using A = typename Accumulator<T>::type;
  constexpr int N = Width<T, FAST>::N, FIELDS = Row<A, KIND>::FIELDS;
  IL_TASK {
    Row<A, KIND> row[N];
    for (long long slot = task.begin; slot < task.end; ++slot) {
      Row<A, KIND> piece[N];
#pragma unroll
      for (int k = 0; k < FIELDS; ++k) {
        A field[N];
        load<N>(p.partial, (slot * FIELDS + k) * p.C + c, field, IL_AS(A));
#pragma unroll
        for (int j = 0; j < N; ++j) piece[j].field(k) = field[j];
      }
#pragma unroll
      for (int j = 0; j < N; ++j) row[j].merge(piece[j]);
    }
    A shift[N];
    load_shift<T, KIND, FAST>(p, task.row, c, shift);
    finish_row<T, KIND>(p, task.row, c, row, shift);
  }
}

// first_high[v, c]: first CSR position of row v whose message, rounded as stored, equals target_high[v, c]; E where
// none does. The same of first_low where there is a target_low. Both hold E before.
template <class T, bool FAST>
__global__ void __launch_bounds__(128) spmm_first_attaining(SpmmArgs p) {
  using A = typename Accumulator<T>::type;
  constexpr int N = Width<T, FAST>::N;
  const bool two = p.target_low != nullptr;
  IL_TASK {
    const long long at = static_cast<long long>(task.row) * p.C + c;
    A high[N]{}, low[N]{};
    int first_high[N], first_low[N], missing = two ? 2 * N : N;
    load<N>(p.target_high, at, high, IL_AS(T));
    if (two) load<N>(p.target_low, at, low, IL_AS(T));
#pragma unroll
    for (int j = 0; j < N; ++j) first_high[j] = first_low[j] = static_cast<int>(p.E);
    for (int e = task.begin; e < task.end && missing > 0; ++e) {
      const Operands<T, N> o = load_operands<T, FAST, N>(p, p.src[e], p.rel[e], c);
      const A a = p.weight ? weight_of<T>(p, p.eid[e]) : A(1);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        T stored;
        narrow(a * message<FAST>(p, o, j, c + j), &stored);
        const A am = widen(stored);
        if (am == high[j] && first_high[j] == p.E) {
          first_high[j] = e;
          --missing;
        }
        if (two && am == low[j] && first_low[j] == p.E) {
          first_low[j] = e;
          --missing;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {  // pieces of a row meet here
      if (first_high[j] < p.E) atomicMin(const_cast<int*>(p.first_high) + at + j, first_high[j]);
      if (two && first_low[j] < p.E) atomicMin(const_cast<int*>(p.first_low) + at + j, first_low[j]);
    }
  }
}

// ---- backward ----

// d loss / d m of edge `position` into row dst, column c, without the edge weight. m: its message, am: weighted.
// grad: of the row, times 1 / D in a mean and PNA; value: of the row (LOGSUMEXP), or its mean (PNA); high, low:
// gradients of maximum and minimum; spread: gradient of std / (D · std).
template <class A, int KIND>
__device__ __forceinline__ A message_grad(const SpmmArgs& p, A m, A am, int position, int dst, long long c) {
  const long long at = dst * p.C + c;
  if (KIND == KIND_EXTREME) return p.first_high[at] == position ? static_cast<const A*>(p.grad)[at] : A(0);
  A grad = static_cast<const A*>(p.grad)[at];
  if (KIND == KIND_LOGSUMEXP) return am == -infinity<A>() ? A(0) : grad * exp(am - static_cast<const A*>(p.value)[at]);
  if (KIND == KIND_PNA) {
    grad += (m - static_cast<const A*>(p.value)[at]) * static_cast<const A*>(p.spread)[at];
    if (p.first_high[at] == position) grad += static_cast<const A*>(p.high)[at];
    if (p.first_low[at] == position) grad += static_cast<const A*>(p.low)[at];
  }
  return grad;
}

// The same for N neighbouring columns at once.
template <class A, int KIND, int N>
__device__ __forceinline__ void message_grads(const SpmmArgs& p, const A (&m)[N], A a, int position, int dst,
                                              long long c, A (&grad)[N]) {
  const long long at = dst * p.C + c;
  load<N>(p.grad, at, grad, IL_AS(A));
  A value[N], spread[N], high[N], low[N];
  Pack<int, N> first_high{}, first_low{};
  if (KIND == KIND_EXTREME || KIND == KIND_PNA) first_high = *reinterpret_cast<const Pack<int, N>*>(p.first_high + at);
  if (KIND == KIND_LOGSUMEXP || KIND == KIND_PNA) load<N>(p.value, at, value, IL_AS(A));
  if (KIND == KIND_PNA) {
    first_low = *reinterpret_cast<const Pack<int, N>*>(p.first_low + at);
    load<N>(p.spread, at, spread, IL_AS(A));
    load<N>(p.high, at, high, IL_AS(A));
    load<N>(p.low, at, low, IL_AS(A));
  }
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (KIND == KIND_EXTREME && first_high.at[j] != position) grad[j] = 0;
    if (KIND == KIND_LOGSUMEXP) grad[j] = a * m[j] == -infinity<A>() ? A(0) : grad[j] * exp(a * m[j] - value[j]);
    if (KIND == KIND_PNA) {
      grad[j] += (m[j] - value[j]) * spread[j];
      if (first_high.at[j] == position) grad[j] += high[j];
      if (first_low.at[j] == position) grad[j] += low[j];
    }
  }
}

// out (rows, C) in A: gradient of one operand, summed over a task's edges, which share their source (gradient of the
// input) or their relation (of_relation).
template <class T, int KIND, bool FAST>
__global__ void __launch_bounds__(128) spmm_gather_grad(SpmmArgs p) {
  using A = typename Accumulator<T>::type;
  constexpr int N = Width<T, FAST>::N;
  IL_TASK {
    A total[N];
#pragma unroll
    for (int j = 0; j < N; ++j) total[j] = 0;
#pragma unroll 2
    for (int k = task.begin; k < task.end; ++k) {
      const int src = p.src[k], rel = p.rel[k], dst = p.dst[k], position = p.position[k];
      const Operands<T, N> o = load_operands<T, FAST, N>(p, src, rel, c);
      const A a = p.weight ? weight_of<T>(p, p.eid[k]) : A(1);
      A m[N], g[N];
#pragma unroll
      for (int j = 0; j < N; ++j) m[j] = message<FAST>(p, o, j, c + j);
      message_grads<A, KIND>(p, m, a, position, dst, c, g);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        A part = a * g[j];
        if (FAST || p.mul == MUL) {
          part *= p.of_relation ? o.x[j] : o.r[j];
        } else if (p.mul == MIN_OF) {
          if ((o.x[j] <= o.r[j]) == (p.of_relation != 0)) part = 0;
        } else if (p.mul == AND) {
          part = 0;
        } else if (p.mul == ROTATE) {
          bool real;
          const long long other = partner(c, p.d, real);
          Operands<T, N> swapped = o;
          swapped.x[j] = o.xp[j];
          swapped.xp[j] = o.x[j];
          swapped.r[j] = o.rp[j];
          swapped.rp[j] = o.r[j];
          const A mp = message<false>(p, swapped, j, other);
          const A gp = a * message_grad<A, KIND>(p, mp, a * mp, position, dst, other);
          const A own = p.of_relation ? o.x[j] : o.r[j], cross = p.of_relation ? o.xp[j] : o.rp[j];
          part = real ? part * own + gp * cross : part * cross - gp * own;
        }
        total[j] += part;
      }
    }
    if (task.slot < 0) {
      store<N>(p.out, static_cast<long long>(task.row) * p.C + c, total, IL_AS(A));
    } else {
      store<N>(p.partial, static_cast<long long>(task.slot) * p.C + c, total, IL_AS(A));
    }
  }
}

// Adds up the pieces of rows in order: out[row] = Σ partial[slot] over slots [begin, end).
template <class A>
__global__ void __launch_bounds__(128) spmm_merge_grad(SpmmArgs p) {
  constexpr int N = 1;
  IL_TASK {
    A total = 0;
    for (long long slot = task.begin; slot < task.end; ++slot)
      total += static_cast<const A*>(p.partial)[slot * p.C + c];
    static_cast<A*>(p.out)[static_cast<long long>(task.row) * p.C + c] = total;
  }
}

// out[eid] = Σ over columns of d loss / d a; a task is one edge, the threads of its row of the block add up its
// columns.
template <class T, int KIND>
__global__ void __launch_bounds__(128) spmm_weight_grad(SpmmArgs p) {
  using A = typename Accumulator<T>::type;
  const long long e = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool live = e < p.E;  // all threads of a warp take part in the sum below
  A total = 0;
  if (live) {
    const int src = p.src[e], rel = p.rel[e], dst = p.dst[e];
    const A a = weight_of<T>(p, p.eid[e]);
    for (long long c = threadIdx.x; c < p.C; c += blockDim.x) {
      const Operands<T, 1> o = load_operands<T, false, 1>(p, src, rel, c);
      const A m = message<false>(p, o, 0, c);
      A g = message_grad<A, KIND>(p, m, a * m, int(e), dst, c);
      // The weight enters Q once: d(a m²) = 2 a m dm + m² da, half of what message_grad counts.
      if (KIND == KIND_PNA) g -= m * A(0.5) * static_cast<const A*>(p.spread)[dst * p.C + c];
      total += g * m;
    }
  }
  total = task_sum(total);
  // The last thread: on a GPU each has the total, in tests/cuda/host.h only that one.
  if (live && threadIdx.x == blockDim.x - 1) static_cast<A*>(p.out)[p.eid[e]] = total;
}

}  // namespace il
