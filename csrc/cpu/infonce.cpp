// SPDX-License-Identifier: Apache-2.0
// Sums of exponentials over the similarities of all pairs of rows of two matrices, which are not stored:
//   s_ij = scale · <q_i, k_j> · inv_q[i] · inv_k[j];   r_i = log Σ_j e^s_ij,  c_j = log Σ_i e^s_ij over visible entries
// (InfoNCE, both directions from one pass), or r_i = Σ_j softplus(s_ij + bias) (SigLIP). The positive of a row, its
// target, is left out of the sums and given back by itself, so that the rounding of a tile never touches it.
//
// Forward. A task owns a panel of kPanel rows and walks the columns in blocks of kBlock, packed channel-major; scores
// of kTile rows and a block stay in L1. Row sums are the task's; column sums of the panels are merged in their order.
//
// Backward. G_ij = grad_row_i e^(s_ij - r_i) + grad_column_j e^(s_ij - c_j);  dq = scale · G k,  dk = scale · Gᵀ q.
// Panels one after another; within a panel a task owns a range of columns: it adds to their dk in place, and to a dq of
// its own; those are added up in order. 4 products of size B · N · D in all, 3 where the scores were kept. The cut
// depends on the shape alone: the same bits for every number of threads.
#include "cpu/infonce.h"

#include "core/gemm.h"
#include "core/online_softmax.h"
#include "core/simd.h"
#include "core/transpose.h"

namespace il {
namespace IL_ISA {
namespace {

constexpr int64_t kTile = 48;                      // rows
constexpr int64_t kBlock = 64;                     // columns
constexpr int64_t kPanel = 480;                    // rows of a task: against them the packing of a block is nothing
constexpr int64_t kMostPanels = 32;                // forward: each keeps column sums
constexpr int64_t kRanges = 16;                    // backward: ranges of columns in a panel
constexpr int64_t kPartBytes = int64_t(16) << 20;  // backward: of what they add to the rows of a panel, for wide rows

template <class A>
int64_t padded(int64_t n) {
  constexpr int64_t lanes = Lanes<A>::count;
  return (n + lanes - 1) / lanes * lanes;
}

template <class A>
IL_INLINE A inverse(const void* inv, int64_t i) {
  return inv != nullptr ? static_cast<const A*>(inv)[i] : A(1);
}

// Lanes of a row, widened.
template <class Lane, class T>
IL_INLINE Lane widened(const T* p) {
  using A = typename AccOf<T>::type;
  if constexpr (sizeof(Lane) == sizeof(A)) {
    return A(widen(p[0]));
  } else if constexpr (sizeof(T) == sizeof(A)) {
    return load<Lane>(p);
  } else {
    Lane v;
    for (int64_t l = 0; l < Lanes<A>::count; ++l) v[l] = widen(p[l]);
    return v;
  }
}
template <class T, class A, class U>
A dot_of(const U* a, const T* b, int64_t n) {
  return sum_of<A>(n, [&](auto lane, int64_t c) {
    using Lane = decltype(lane);
    return Lane(widened<Lane>(a + c) * widened<Lane>(b + c));
  });
}

// Rows [first, first + size) of a matrix, times their inverse norm and a factor, [size][Dp], padded with zeros.
template <class T, class A>
void load_rows(const void* data, int64_t stride, const void* inv, int64_t first, int64_t size, int64_t dim,
               double factor, A* to) {
  const int64_t dp = padded<A>(dim);
  for (int64_t r = 0; r < size; ++r, to += dp) {
    const T* row = static_cast<const T*>(data) + (first + r) * stride;
    const A by = inverse<A>(inv, first + r) * A(factor);
    for (int64_t c = 0; c < dim; ++c) to[c] = A(widen(row[c])) * by;
    for (int64_t c = dim; c < dp; ++c) to[c] = A(0);
  }
}

// A block of columns as the products read it.
template <class A>
struct Block {
  int64_t first, size;
  A* rows;        // [kBlock][Dp], zeros behind the last
  A* transposed;  // [D][kBlock]
};

template <class T, class A>
void load_block(const InfoNce& p, Block<A>& block) {
  const int64_t dp = padded<A>(p.dim);
  load_rows<T>(p.k, p.k_stride, p.inv_k, block.first, block.size, p.dim, 1, block.rows);
  fill(block.rows + block.size * dp, (kBlock - block.size) * dp, A(0));
  transpose(block.rows, dp, kBlock, p.dim, block.transposed, kBlock);
}

IL_INLINE int64_t target_of(const InfoNce& p, int64_t i) {
  return p.targets != nullptr ? p.targets[i] : p.own_target < 0 ? -1 : p.own_target + i;
}

// Whether a tile of rows from first_row on has nothing to see in a block.
template <class A>
bool hidden(const InfoNce& p, int64_t first_row, const Block<A>& block) {
  return p.upper && block.first + block.size - 1 <= first_row;
}

// e^x for x <= 0. Scores are kept as they are, not in base 2, whose larger numbers would round more.
template <class V, class A>
IL_INLINE V exp_below(V x) {
  return exp2_of<V, A>(V(x * A(kLog2E)));
}

// What is hidden of a tile of scores: -inf. Row limits hide from rows, column limits from columns, so a tile is masked
// once for each direction.
template <class A>
struct Masks {
  const InfoNce& p;

  bool by_direction() const { return p.limit_q != nullptr; }

  // One row of scores: targets, the diagonal and equal labels.
  IL_INLINE void row(A* s, int64_t i, const Block<A>& block) const {
    for (int64_t j = block.size; j < kBlock; ++j) s[j] = -A(INFINITY);
    if (p.kind == ScoreSum::kSoftplus) return;
    const int64_t target = target_of(p, i) - block.first;
    if (target >= 0 && target < kBlock) s[target] = -A(INFINITY);
    for (int64_t j = 0; p.upper && j < min64(i + 1 - block.first, kBlock); ++j) s[j] = -A(INFINITY);
    const int64_t own = p.first_row + i - block.first;
    if (p.skip_diagonal && own >= 0 && own < kBlock) s[own] = -A(INFINITY);
    if (p.labels_q != nullptr) {
      const int64_t label = p.labels_q[i];
      const int64_t* labels = p.labels_k + block.first;
      for (int64_t j = 0; j < block.size; ++j) s[j] = labels[j] == label ? -A(INFINITY) : s[j];
    }
  }
  // Those above the limit of the row, and of the columns.
  IL_INLINE void above_row(A* s, int64_t i) const {
    const A limit = static_cast<const A*>(p.limit_q)[i] * A(p.scale);
    for (int64_t j = 0; j < kBlock; ++j) s[j] = s[j] > limit ? -A(INFINITY) : s[j];
  }
  IL_INLINE void above_columns(A* s, const Block<A>& block) const {
    const A* limit = static_cast<const A*>(p.limit_k) + block.first;
    for (int64_t j = 0; j < block.size; ++j) s[j] = s[j] > limit[j] * A(p.scale) ? -A(INFINITY) : s[j];
  }
};

template <class A>
struct Running {
  A *top, *total;
  int64_t* count;
};

// Adds a tile of scores to the running sums of its rows.
template <class A>
void add_to_rows(const A* s, int64_t rows, Running<A> row) {
  using V = typename Lanes<A>::type;
  constexpr int64_t lanes = Lanes<A>::count;
  for (int64_t r = 0; r < rows; ++r, s += kBlock) {
    V high = load<V>(s);
    for (int64_t j = lanes; j < kBlock; j += lanes) high = nan_max(high, load<V>(s + j));
    const A now = nan_max(row.top[r], max_lanes<A>(high));
    if (now == -A(INFINITY)) continue;
    V sum = V{};
    for (int64_t j = 0; j < kBlock; j += lanes) sum += exp_below<V, A>(V(load<V>(s + j) - now));
    const A old = row.top[r] == -A(INFINITY) ? A(0) : row.total[r] * exp_below<V, A>(V{} + (row.top[r] - now))[0];
    row.total[r] = old + sum_lanes<A>(sum);
    row.top[r] = now;
    if (row.count != nullptr) {
      for (int64_t j = 0; j < kBlock; ++j) row.count[r] += s[j] > -A(INFINITY);
    }
  }
}

// Adds a tile of scores to the running sums of its columns.
template <class A>
void add_to_columns(const A* s, int64_t rows, Running<A> column) {
  using V = typename Lanes<A>::type;
  constexpr int64_t lanes = Lanes<A>::count;
  for (int64_t j = 0; j < kBlock; j += lanes) {
    const V before = load<V>(column.top + j);
    V now = before;
    for (int64_t r = 0; r < rows; ++r) now = nan_max(now, load<V>(s + r * kBlock + j));
    // A column without entries so far: any finite base gives sums of 0.
    const V base = now == V{} - A(INFINITY) ? V{} : now;
    V sum = load<V>(column.total + j) * exp_below<V, A>(V(before - base));
    for (int64_t r = 0; r < rows; ++r) sum += exp_below<V, A>(V(load<V>(s + r * kBlock + j) - base));
    store(column.top + j, now);
    store(column.total + j, sum);
  }
  if (column.count != nullptr) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < kBlock; ++j) column.count[j] += s[r * kBlock + j] > -A(INFINITY);
    }
  }
}

// log(1 + e^x) and its derivative.
template <class A>
IL_INLINE A softplus(A x) {
  return (x > A(0) ? x : A(0)) + std::log1p(std::exp(x > A(0) ? -x : x));
}
template <class V, class A>
IL_INLINE V sigmoid(V x) {
  const V e = exp_below<V, A>(V(x > V{} ? -x : x));
  return (x > V{} ? V{} + A(1) : e) / (V{} + A(1) + e);
}

template <class A>
A log_of(A top, A total) {
  return top == -A(INFINITY) ? top : A(double(top) + std::log(double(total)));
}

// Scores of rows [0, rows) of a panel of scaled queries and a block; kept ones are read, or written.
template <class A>
void scores_of(const InfoNce& p, const A* q, int64_t first_row, int64_t rows, const Block<A>& block, bool kept, A* s) {
  A* const store_at = p.scores == nullptr ? nullptr : static_cast<A*>(p.scores) + first_row * p.columns + block.first;
  if (kept) {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(s + r * kBlock, store_at + r * p.columns, block.size * sizeof(A));
    }
    return;
  }
  gemm<A>({q, padded<A>(p.dim), 1}, block.transposed, kBlock, s, kBlock, rows, kBlock, p.dim, false);
  if (p.kind == ScoreSum::kSoftplus) {
    for (int64_t j = 0; j < rows * kBlock; ++j) s[j] += A(p.bias);
  }
  if (store_at != nullptr) {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(store_at + r * p.columns, s + r * kBlock, block.size * sizeof(A));
    }
  }
}

// Rows of each of so many panels, whole tiles.
int64_t even_share(int64_t rows, int64_t panels) {
  const int64_t share = (rows + panels - 1) / max64(panels, 1);
  return max64((share + kTile - 1) / kTile * kTile, kTile);
}

// Column sums are merged panel by panel, so then the cut may not depend on the threads.
int64_t panel_count(const InfoNce& p) {
  const int64_t least = (p.rows + kPanel - 1) / kPanel;
  if (p.want_columns) return min64(least, kMostPanels);
  return max64(least, min64(p.threads, p.rows / kTile));
}

template <class T>
void forward(const InfoNce& p) {
  using A = typename AccOf<T>::type;
  const int64_t dp = padded<A>(p.dim), size = even_share(p.rows, panel_count(p)), panels = (p.rows + size - 1) / size;
  const int64_t blocks = (p.columns + kBlock - 1) / kBlock, width = blocks * kBlock;
  const Masks<A> masks = {p};
  const int64_t column_width = p.want_columns ? width : 0, counts = p.column_count != nullptr ? width : 0;
  Scratch<A> tops(panels * column_width), totals(panels * column_width);
  Scratch<int64_t> column_counts(panels * counts);
  parallel_tasks(panels, p.threads, [&](int64_t panel) {
    const int64_t first = panel * size, rows = min64(size, p.rows - first);
    Scratch<A> q(rows * dp), block_rows(kBlock * dp), block_columns(kBlock * p.dim), tile(kTile * kBlock),
        copy(kTile * kBlock), top(rows), total(rows);
    Scratch<int64_t> count(rows);
    A* const column_top = tops.get() + panel * column_width;
    A* const column_total = totals.get() + panel * column_width;
    int64_t* const column_count = column_counts.get() + panel * counts;
    load_rows<T>(p.q, p.q_stride, p.inv_q, first, rows, p.dim, p.scale, q.get());
    fill(top.get(), rows, -A(INFINITY));
    fill(total.get(), rows, A(0));
    fill(count.get(), rows, int64_t(0));
    fill(column_top, column_width, -A(INFINITY));
    fill(column_total, column_width, A(0));
    fill(column_count, counts, int64_t(0));
    for (int64_t b = 0; b < blocks; ++b) {
      Block<A> block = {b * kBlock, min64(kBlock, p.columns - b * kBlock), block_rows.get(), block_columns.get()};
      load_block<T>(p, block);
      for (int64_t r = 0; r < rows; r += kTile) {
        const int64_t n = min64(kTile, rows - r);
        if (hidden(p, first + r, block)) continue;
        A* s = tile.get();
        scores_of(p, q.get() + r * dp, first + r, n, block, false, s);
        if (p.kind == ScoreSum::kSoftplus) {
          for (int64_t i = 0; i < n; ++i) {
            A sum = A(0);
            for (int64_t j = 0; j < block.size; ++j) sum += softplus(s[i * kBlock + j]);
            total.get()[r + i] += sum;
          }
          continue;
        }
        for (int64_t i = 0; i < n; ++i) masks.row(s + i * kBlock, first + r + i, block);
        A* by_column = s;
        if (masks.by_direction()) {
          by_column = copy.get();
          std::memcpy(by_column, s, n * kBlock * sizeof(A));
          for (int64_t i = 0; i < n; ++i) {
            masks.above_row(s + i * kBlock, first + r + i);
            if (p.want_columns) masks.above_columns(by_column + i * kBlock, block);
          }
        }
        add_to_rows<A>(s, n, {top.get() + r, total.get() + r, p.row_count != nullptr ? count.get() + r : nullptr});
        if (p.want_columns) {
          add_to_columns<A>(by_column, n,
                            {column_top + block.first, column_total + block.first,
                             counts > 0 ? column_count + block.first : nullptr});
        }
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = first + r;
      static_cast<A*>(p.row_sum)[i] =
          p.kind == ScoreSum::kSoftplus ? total.get()[r] : log_of(top.get()[r], total.get()[r]);
      if (p.row_count != nullptr) static_cast<int64_t*>(p.row_count)[i] = count.get()[r];
      static_cast<A*>(p.positive)[i] = A(0);
      if (target_of(p, i) < 0) continue;
      const T* k = static_cast<const T*>(p.k) + target_of(p, i) * p.k_stride;
      const T* row = static_cast<const T*>(p.q) + i * p.q_stride;
      const A dot = dot_of<T, A>(row, k, p.dim);
      static_cast<A*>(p.positive)[i] = dot * inverse<A>(p.inv_q, i) * inverse<A>(p.inv_k, target_of(p, i));
    }
  });
  if (!p.want_columns) return;
  for (int64_t j = 0; j < p.columns; ++j) {
    A top = -A(INFINITY);
    double total = 0;
    int64_t count = 0;
    for (int64_t panel = 0; panel < panels; ++panel) top = nan_max(top, tops.get()[panel * width + j]);
    for (int64_t panel = 0; panel < panels && top != -A(INFINITY); ++panel) {
      const A here = tops.get()[panel * width + j];
      if (here != -A(INFINITY)) total += double(totals.get()[panel * width + j]) * std::exp(double(here - top));
      if (counts > 0) count += column_counts.get()[panel * width + j];
    }
    static_cast<A*>(p.column_sum)[j] = log_of(top, A(total));
    if (p.column_count != nullptr) static_cast<int64_t*>(p.column_count)[j] = count;
  }
}

// ---- backward ----

// Scores to d loss / d score, in place. base: lse, +inf where there is none; column ones for this block.
template <class A>
void weights_of(const InfoNceBackward& args, const Masks<A>& masks, int64_t first_row, int64_t rows,
                const Block<A>& block, const A* row_base, const A* column_base, const A* column_grad, A* s,
                A* row_total) {
  using V = typename Lanes<A>::type;
  constexpr int64_t lanes = Lanes<A>::count;
  const A* grad_row = static_cast<const A*>(args.grad_row) + first_row;
  A by_column[kBlock];
  for (int64_t r = 0; r < rows; ++r, s += kBlock) {
    masks.row(s, first_row + r, block);
    V sum = V{};
    const V grad = V{} + grad_row[r];
    if (masks.p.kind == ScoreSum::kSoftplus) {
      for (int64_t j = 0; j < kBlock; j += lanes) {
        const V g = grad * sigmoid<V, A>(load<V>(s + j));
        sum += g;
        store(s + j, g);
      }
    } else {
      const V base = V{} + row_base[r];
      const A* seen_by_columns = s;
      if (masks.by_direction()) {
        std::memcpy(by_column, s, sizeof(by_column));
        masks.above_row(s, first_row + r);
        if (column_grad != nullptr) masks.above_columns(by_column, block);
        seen_by_columns = by_column;
      }
      for (int64_t j = 0; j < kBlock; j += lanes) {
        V g = grad * exp_below<V, A>(V(load<V>(s + j) - base));
        if (column_grad != nullptr) {
          g += load<V>(column_grad + j) * exp_below<V, A>(V(load<V>(seen_by_columns + j) - load<V>(column_base + j)));
        }
        sum += g;
        store(s + j, g);
      }
    }
    row_total[r] += sum_lanes<A>(sum);
  }
}

template <class A>
A base_of(const void* lse, int64_t i) {
  const A value = static_cast<const A*>(lse)[i];
  return value == -A(INFINITY) ? A(INFINITY) : value;
}

template <class T>
void backward(const InfoNceBackward& args) {
  using A = typename AccOf<T>::type;
  const InfoNce& p = args.forward;
  const int64_t D = p.dim, dp = padded<A>(D), blocks = (p.columns + kBlock - 1) / kBlock;
  const int64_t ranges = max64(min64(kRanges, blocks / 4), 1), width = blocks * kBlock,
                fitting = max64(kPartBytes / (ranges * dp * int64_t(sizeof(A))) / kTile * kTile, kTile),
                most = min64(kPanel, fitting), size = even_share(p.rows, (p.rows + most - 1) / most);
  const Masks<A> masks = {p};
  const bool columns = args.grad_column != nullptr && p.kind == ScoreSum::kLogSumExp;
  const bool want_q = args.grad_q != nullptr, want_k = args.grad_k != nullptr;
  Scratch<A> q(size * dp), parts(want_q ? ranges * size * dp : 0), row_base(size), column_base(width),
      column_grad(width), totals(ranges * size);
  for (int64_t j = 0; j < width && columns; ++j) {
    const bool there = j < p.columns;
    column_base.get()[j] = there ? base_of<A>(p.column_sum, j) : A(INFINITY);
    column_grad.get()[j] = there ? static_cast<const A*>(args.grad_column)[j] : A(0);
  }
  for (int64_t first = 0; first < p.rows; first += size) {
    const int64_t rows = min64(size, p.rows - first);
    load_rows<T>(p.q, p.q_stride, p.inv_q, first, rows, D, p.scale, q.get());
    for (int64_t r = 0; r < rows && p.kind == ScoreSum::kLogSumExp; ++r) {
      row_base.get()[r] = base_of<A>(p.row_sum, first + r);
    }
    parallel_tasks(ranges, p.threads, [&](int64_t range) {
      Scratch<A> block_rows(kBlock * dp), block_columns(kBlock * D), tile(kTile * kBlock), grad_block(kBlock * dp);
      A* const part = parts.get() + (want_q ? range * size * dp : 0);
      A* const total = totals.get() + range * size;
      if (want_q) fill(part, rows * dp, A(0));
      fill(total, rows, A(0));
      for (int64_t b = blocks * range / ranges; b < blocks * (range + 1) / ranges; ++b) {
        Block<A> block = {b * kBlock, min64(kBlock, p.columns - b * kBlock), block_rows.get(), block_columns.get()};
        load_block<T>(p, block);
        if (want_k) fill(grad_block.get(), kBlock * dp, A(0));
        for (int64_t r = 0; r < rows; r += kTile) {
          const int64_t n = min64(kTile, rows - r);
          if (hidden(p, first + r, block)) continue;
          A* s = tile.get();
          scores_of(p, q.get() + r * dp, first + r, n, block, p.scores != nullptr, s);
          weights_of(args, masks, first + r, n, block, row_base.get() + r, column_base.get() + block.first,
                     columns ? column_grad.get() + block.first : nullptr, s, total + r);
          if (want_q) gemm<A>({s, kBlock, 1}, block.rows, dp, part + r * dp, dp, n, dp, kBlock, true);
          if (want_k) gemm<A>({s, 1, kBlock}, q.get() + r * dp, dp, grad_block.get(), dp, kBlock, dp, n, true);
        }
        for (int64_t j = 0; j < block.size && want_k; ++j) {
          A* to = static_cast<A*>(args.grad_k) + (block.first + j) * D;
          const A by = inverse<A>(p.inv_k, block.first + j);
          for (int64_t c = 0; c < D; ++c) to[c] += grad_block.get()[j * dp + c] * by;
        }
      }
    });
    // Sums of the parts, and the positives; rows are few, and several may have one target, so in turn.
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = first + r, target = max64(target_of(p, i), 0);
      A total = A(0);
      for (int64_t range = 0; range < ranges; ++range) total += totals.get()[range * size + r];
      static_cast<A*>(args.row_total)[i] = total;
      const A inv_q = inverse<A>(p.inv_q, i), inv_k = inverse<A>(p.inv_k, target);
      const A g = target_of(p, i) < 0 ? A(0) : static_cast<const A*>(args.grad_positive)[i] * inv_q * inv_k;
      const T* row_q = static_cast<const T*>(p.q) + i * p.q_stride;
      const T* row_k = static_cast<const T*>(p.k) + target * p.k_stride;
      if (want_k && g != A(0)) {
        A* to = static_cast<A*>(args.grad_k) + target * D;
        for (int64_t c = 0; c < D; ++c) to[c] += g * A(widen(row_q[c]));
      }
      if (want_q) {
        A* to = static_cast<A*>(args.grad_q) + i * D;
        const A by = inv_q * A(p.scale);
        for (int64_t c = 0; c < D; ++c) {
          A sum = A(0);
          for (int64_t range = 0; range < ranges; ++range) sum += parts.get()[(range * size + r) * dp + c];
          to[c] = sum * by + (g != A(0) ? g * A(widen(row_k[c])) : A(0));
        }
      }
    }
  }
  // Through x / max(‖x‖, eps): what is along x goes, but where eps was the greater.
  auto project = [&](void* grad, const void* data, int64_t stride, const void* inv, int64_t rows, A* dots) {
    if (grad == nullptr) return;
    for (int64_t i = 0; i < rows; ++i) {
      A* g = static_cast<A*>(grad) + i * D;
      const T* x = static_cast<const T*>(data) + i * stride;
      const A dot = dot_of<T, A>(g, x, D);
      if (dots != nullptr) dots[i] = dot;
      const A by = inverse<A>(inv, i);
      if (inv == nullptr || by >= A(1e12)) continue;
      const A along = dot * by * by;
      for (int64_t c = 0; c < D; ++c) g[c] -= along * A(widen(x[c]));
    }
  };
  project(args.grad_q, p.q, p.q_stride, p.inv_q, p.rows, static_cast<A*>(args.row_dot));
  if (!args.more_rows) project(args.grad_k, p.k, p.k_stride, p.inv_k, p.columns, nullptr);
}

// Rows of a chunk whose scores are there at a time, where only row sums are wanted.
template <class A>
int64_t chunk_rows(int64_t columns) {
  constexpr int64_t bytes = int64_t(16) << 20;
  return max64(min64(bytes / (max64(columns, 1) * int64_t(sizeof(A))), 2 * kPanel) / kTile * kTile, kTile);
}

template <class T>
void mean_loss(const InfoNceMean& args) {
  using A = typename AccOf<T>::type;
  const InfoNce& all = args.scores;
  const int64_t B = all.rows, N = all.columns;
  const bool both = args.column_weight != 0;
  // Sums over columns need all rows; otherwise a chunk's gradients follow as soon as its own sums are there.
  const int64_t chunk = both ? max64(B, 1) : chunk_rows<A>(N);
  Scratch<A> inv_q(B), inv_k(N), positive(chunk), row(chunk), column(both ? N : 0), grad_positive(chunk),
      grad_row(chunk), grad_column(both ? N : 0), dot(chunk), total(chunk),
      scores(args.want_gradients ? min64(chunk, B) * N : 0);
  auto norms = [&](const void* data, int64_t stride, int64_t rows, A* inverse) {
    for (int64_t i = 0; i < rows; ++i) {
      const T* x = static_cast<const T*>(data) + i * stride;
      const A norm = std::sqrt(dot_of<T, A>(x, x, all.dim));
      inverse[i] = A(1) / (norm < A(1e-12) ? A(1e-12) : norm);
    }
  };
  if (args.normalize) {
    norms(all.q, all.q_stride, B, inv_q.get());
    norms(all.k, all.k_stride, N, inv_k.get());
  }
  if (args.grad_k != nullptr) fill(static_cast<A*>(args.grad_k), N * all.dim, A(0));
  double loss = 0, grad_scale = 0;
  for (int64_t first = 0; first < B; first += chunk) {
    InfoNce p = all;
    p.rows = min64(chunk, B - first);
    p.q = static_cast<const T*>(all.q) + first * all.q_stride;
    p.targets = all.targets != nullptr ? all.targets + first : nullptr;
    p.own_target = p.first_row = first;
    p.labels_q = all.labels_q != nullptr ? all.labels_q + first : nullptr;
    if (args.normalize) p.inv_q = inv_q.get() + first, p.inv_k = inv_k.get();
    p.want_columns = both;
    p.positive = positive.get(), p.row_sum = row.get(), p.column_sum = column.get();
    p.scores = args.want_gradients ? scores.get() : nullptr;
    forward<T>(p);
    fill(grad_column.get(), both ? N : 0, A(0));
    for (int64_t i = 0; i < p.rows; ++i) {
      const double s = double(positive.get()[i]) * p.scale;
      double against_s = 0;
      // One direction: adds its loss, returns d loss / d (lse of the negatives).
      auto direction = [&](double negatives, double weight) {
        const double top = negatives > s ? negatives : s;
        const double lse = top + std::log(std::exp(negatives - top) + std::exp(s - top));
        loss += weight * (lse - s);
        against_s += weight * (std::exp(s - lse) - 1);
        return weight * std::exp(negatives - lse);
      };
      grad_row.get()[i] = A(direction(double(row.get()[i]), args.row_weight / B));
      const int64_t target = target_of(p, i);
      if (both) grad_column.get()[target] = A(direction(double(column.get()[target]), args.column_weight / B));
      grad_positive.get()[i] = A(against_s * p.scale);
    }
    if (!args.want_gradients) continue;
    A* const grad_q = args.grad_q != nullptr ? static_cast<A*>(args.grad_q) + first * p.dim : nullptr;
    backward<T>({p, grad_positive.get(), grad_row.get(), both ? grad_column.get() : nullptr, grad_q, args.grad_k,
                 grad_q != nullptr ? dot.get() : nullptr, total.get(), first + chunk < B});
    for (int64_t i = 0; i < p.rows && grad_q != nullptr; ++i) grad_scale += double(dot.get()[i]);
  }
  static_cast<A*>(args.sums)[0] = A(loss);
  static_cast<A*>(args.sums)[1] = A(grad_scale);
}

}  // namespace

void infonce(const InfoNce& args) {
  switch (args.dtype) {
    case DType::kFloat64: return forward<double>(args);
    case DType::kBFloat16: return forward<bf16>(args);
    case DType::kFloat16: return forward<fp16>(args);
    default: return forward<float>(args);
  }
}

void infonce_backward(const InfoNceBackward& args) {
  switch (args.forward.dtype) {
    case DType::kFloat64: return backward<double>(args);
    case DType::kBFloat16: return backward<bf16>(args);
    case DType::kFloat16: return backward<fp16>(args);
    default: return backward<float>(args);
  }
}

void infonce_mean(const InfoNceMean& args) {
  switch (args.scores.dtype) {
    case DType::kFloat64: return mean_loss<double>(args);
    case DType::kBFloat16: return mean_loss<bf16>(args);
    case DType::kFloat16: return mean_loss<fp16>(args);
    default: return mean_loss<float>(args);
  }
}

}  // namespace IL_ISA
}  // namespace il
