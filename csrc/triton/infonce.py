# SPDX-License-Identifier: Apache-2.0
"""infonce on a GPU, forward and backward, without the matrix of scores and without atomics: the same bits in every run.

    s_ij = scale · q_i · k_j · inv_q[i] · inv_k[j],   r_i = lse_j s_ij,   c_j = lse_i s_ij over visible entries,
    or r_i = Σ_j softplus(s_ij + bias);   the positive of each row is left out, `positives` gives it by itself
    G_ij = grad_r_i e^(s_ij - r_i) + grad_c_j e^(s_ij - c_j),   dq = scale · G k,   dk = scale · Gᵀ q

Forward: a program owns a panel of rows and a run of columns. Tile by tile of its rows it walks the columns; the sums of
the rows are in registers, those of the columns in a line of memory which the program alone reads and writes. `merge`
adds up the runs (R · B numbers) and the panels (P · N numbers). Backward: `grad` owns a tile of rows of q, or of k, and
WIDTH channels of their gradient, walks a run of the other matrix, forms G again and adds up its product; `finish` adds
the runs and the positives, and projects through the norms. Per gradient that is one product for itself and one for the
scores of each WIDTH channels: 5 in all with the forward pass where D <= WIDTH, 3 + 2 ceil(D / WIDTH) else; kept scores
spare all but 3.

Launched by innerloop/ops/_infonce_triton.py. Products are of the dtype of the inputs, in chunks of D; sums in float32
(float64 for float64 tensors).
"""

import triton
import triton.language as tl

LSE, SOFTPLUS = tl.constexpr(0), tl.constexpr(1)  # ScoreSum of csrc/cpu/infonce.h

# Not worth a compilation of their own when they are 1 or divide by 16.
SIZES = ("num_q", "num_k", "num_x", "num_y", "size", "parts", "panel", "run")

# {(WIDTH, bytes of an element): {kernel: (rows, columns, CHUNK, warps, stages)}}; of `grad` its own rows, and the
# walked ones. WIDTH: channels of a gradient in one program, a power of two. Not yet tuned on a GPU.
CONFIGS = {
    (16, 2): {"forward": (128, 64, 16, 4, 3), "grad": (128, 64, 16, 4, 3)},
    (32, 2): {"forward": (128, 64, 32, 4, 3), "grad": (128, 64, 32, 4, 3)},
    (64, 2): {"forward": (128, 64, 64, 4, 3), "grad": (128, 64, 64, 8, 3)},
    (128, 2): {"forward": (128, 64, 64, 4, 3), "grad": (128, 64, 64, 8, 3)},
    (256, 2): {"forward": (128, 64, 64, 4, 3), "grad": (64, 64, 64, 8, 3)},
    (512, 2): {"forward": (128, 64, 64, 4, 3), "grad": (64, 32, 64, 8, 3)},
    (16, 4): {"forward": (64, 64, 16, 4, 2), "grad": (64, 32, 16, 4, 2)},
    (32, 4): {"forward": (64, 64, 32, 4, 2), "grad": (64, 32, 32, 4, 2)},
    (64, 4): {"forward": (64, 64, 32, 4, 2), "grad": (32, 32, 32, 4, 2)},
    (128, 4): {"forward": (64, 64, 32, 4, 2), "grad": (32, 32, 32, 8, 2)},
    (256, 4): {"forward": (64, 64, 32, 4, 2), "grad": (32, 16, 32, 8, 2)},
    (16, 8): {"forward": (32, 32, 16, 4, 1), "grad": (32, 32, 16, 4, 1)},
    (32, 8): {"forward": (32, 32, 16, 4, 1), "grad": (32, 32, 16, 4, 1)},
    (64, 8): {"forward": (32, 32, 16, 4, 1), "grad": (16, 16, 16, 4, 1)},
    (128, 8): {"forward": (32, 32, 16, 4, 1), "grad": (16, 16, 16, 8, 1)},
}


@triton.jit
def _rows(ptr, row, stride, there, first, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """(rows, WIDTH) channels from `first` on, which lie side by side; 0 for what is not there."""
    c = first + tl.arange(0, WIDTH)
    mask = there[:, None] & (c < DIM)[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * stride + c[None, :], mask=mask, other=0)


@triton.jit
def _similarities(
    x_ptr, x_inverse_ptr, x, x_there, x_stride, y_ptr, y_inverse_ptr, y, y_there, y_stride, NORMALIZED: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr, X: tl.constexpr,
    Y: tl.constexpr,
):  # fmt: skip
    """(X, Y) of rows x and y of two matrices."""
    s = tl.zeros([X, Y], ACC)
    for c in range(0, DIM, CHUNK):
        a = _rows(x_ptr, x, x_stride, x_there, c, DIM, CHUNK)
        b = _rows(y_ptr, y, y_stride, y_there, c, DIM, CHUNK)
        s = tl.dot(a, tl.trans(b), s, input_precision=PRECISION, out_dtype=ACC)
    if NORMALIZED:
        by_x = tl.load(x_inverse_ptr + x, mask=x_there, other=0)
        by_y = tl.load(y_inverse_ptr + y, mask=y_there, other=0)
        s *= by_x[:, None] * by_y[None, :]
    return s


@triton.jit
def _visible(
    i, j, target, x_label_ptr, x, x_there, y_label_ptr, y, y_there, LABELS: tl.constexpr, SKIP_DIAGONAL: tl.constexpr,
    UPPER: tl.constexpr,
):  # fmt: skip
    """Whether entries (i, j) are negatives, but for limits; i, j and target broadcast to (rows x, rows y)."""
    seen = (x_there[:, None] & y_there[None, :]) & (j != target)
    if LABELS:
        of_x = tl.load(x_label_ptr + x, mask=x_there, other=0)
        of_y = tl.load(y_label_ptr + y, mask=y_there, other=0)
        seen &= of_x[:, None] != of_y[None, :]
    if SKIP_DIAGONAL:
        seen &= i != j
    if UPPER:
        seen &= j > i
    return seen


@triton.jit
def _below(s, limit_ptr, at, there, scale, AXIS: tl.constexpr):
    """Scores, -inf where the similarity is above the limit of its row (AXIS 1) or column (0)."""
    limit = tl.load(limit_ptr + at, mask=there, other=0) * scale
    return tl.where(s > tl.expand_dims(limit, AXIS), -float("inf"), s)


@triton.jit
def _add(s, top, total, AXIS: tl.constexpr):
    """The running maximum, and Σ e^(s - maximum), with the scores along an axis."""
    now = tl.maximum(top, tl.max(s, AXIS))
    base = tl.where(now == -float("inf"), 0.0, now)  # nothing visible yet
    return now, total * tl.exp(top - base) + tl.sum(tl.exp(s - tl.expand_dims(base, AXIS)), AXIS)


@triton.jit
def _softplus(x):
    e = tl.exp(-tl.abs(x))
    above = (1 + e) - 1
    # log(1 + e), with what 1 + e rounded away.
    log = tl.where(above == 0, e, tl.log(1 + e) * (e / tl.where(above == 0, 1.0, above)))
    return tl.maximum(x, 0.0) + log


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, e) / (1 + e)


@triton.jit(do_not_specialize=SIZES)
def forward(
    q_ptr, q_inverse_ptr, q_label_ptr, q_limit_ptr, k_ptr, k_inverse_ptr, k_label_ptr, k_limit_ptr, target_ptr,
    scale_ptr, bias_ptr, scores_ptr, row_top_ptr, row_total_ptr, row_count_ptr, column_top_ptr, column_total_ptr,
    column_count_ptr, q_stride, k_stride, num_q, num_k, panel, run, KIND: tl.constexpr, NORMALIZED: tl.constexpr,
    LABELS: tl.constexpr, LIMITS: tl.constexpr, SKIP_DIAGONAL: tl.constexpr, UPPER: tl.constexpr,
    COLUMN_SUMS: tl.constexpr, COUNTS: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Sums of a panel of rows over a run of columns, and of those columns over the panel; grid (panels, runs).

    row_*: (runs, num_q). column_*: (panels, num_k), which hold the sums of nothing before.
    """
    scale = tl.load(scale_ptr)
    first_row = tl.program_id(0) * panel
    first_column = tl.program_id(1) * run
    end_column = tl.minimum(first_column + run, num_k)
    row_at = tl.program_id(1).to(tl.int64) * num_q
    column_at = tl.program_id(0).to(tl.int64) * num_k
    for start_row in range(first_row, tl.minimum(first_row + panel, num_q), ROWS):
        i = start_row + tl.arange(0, ROWS)
        row_there = i < num_q
        target = tl.load(target_ptr + i, mask=row_there, other=-1).to(tl.int32)
        top = tl.full([ROWS], -float("inf"), ACC)
        total = tl.zeros([ROWS], ACC)
        count = tl.zeros([ROWS], tl.int32)
        first = first_column
        if UPPER:
            first = tl.maximum(first, start_row + 1)
        for start in range(first, end_column, COLUMNS):
            j = start + tl.arange(0, COLUMNS)
            there = j < end_column
            s = _similarities(
                q_ptr, q_inverse_ptr, i, row_there, q_stride, k_ptr, k_inverse_ptr, j, there, k_stride, NORMALIZED,
                PRECISION, ACC, DIM, CHUNK, ROWS, COLUMNS,
            )  # fmt: skip
            s *= scale
            if KIND == SOFTPLUS:
                s += tl.load(bias_ptr)
            if KEEP:
                at = scores_ptr + i.to(tl.int64)[:, None] * num_k + j[None, :]
                tl.store(at, s, mask=row_there[:, None] & there[None, :])
            if KIND == SOFTPLUS:
                total += tl.sum(tl.where(there[None, :], _softplus(s), 0.0), 1)
            else:
                seen = _visible(
                    i[:, None], j[None, :], target[:, None], q_label_ptr, i, row_there, k_label_ptr, j, there, LABELS,
                    SKIP_DIAGONAL, UPPER,
                )  # fmt: skip
                s = tl.where(seen, s, -float("inf"))
                by_row = s
                if LIMITS:
                    by_row = _below(s, q_limit_ptr, i, row_there, scale, 1)
                top, total = _add(by_row, top, total, 1)
                if COUNTS:
                    count += tl.sum((by_row != -float("inf")).to(tl.int32), 1)
                if COLUMN_SUMS:
                    if LIMITS:
                        s = _below(s, k_limit_ptr, j, there, scale, 0)
                    column_top = tl.load(column_top_ptr + column_at + j, mask=there, other=0)
                    column_total = tl.load(column_total_ptr + column_at + j, mask=there, other=0)
                    column_top, column_total = _add(s, column_top, column_total, 0)
                    tl.store(column_top_ptr + column_at + j, column_top, mask=there)
                    tl.store(column_total_ptr + column_at + j, column_total, mask=there)
                    if COUNTS:
                        column_count = tl.load(column_count_ptr + column_at + j, mask=there, other=0)
                        column_count += tl.sum((s != -float("inf")).to(tl.int32), 0)
                        tl.store(column_count_ptr + column_at + j, column_count, mask=there)
        tl.store(row_top_ptr + row_at + i, top, mask=row_there)
        tl.store(row_total_ptr + row_at + i, total, mask=row_there)
        if COUNTS:
            tl.store(row_count_ptr + row_at + i, count, mask=row_there)
        if COLUMN_SUMS:
            tl.debug_barrier()  # what one thread stored of the columns, others may load for the next rows


@triton.jit(do_not_specialize=SIZES)
def merge(
    top_ptr, total_ptr, count_ptr, sum_ptr, count_sum_ptr, size, parts, KIND: tl.constexpr, COUNTS: tl.constexpr,
    ACC: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One sum, and one count, from (parts, size) of them, in order."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there = at < size
    top = tl.full([SIZE], -float("inf"), ACC)
    total = tl.zeros([SIZE], ACC)
    count = tl.zeros([SIZE], tl.int64)
    for part in range(0, parts):
        of_part = tl.cast(part, tl.int64) * size + at
        more = tl.load(total_ptr + of_part, mask=there, other=0)
        if KIND == SOFTPLUS:
            total += more
        else:
            more_top = tl.load(top_ptr + of_part, mask=there, other=0)
            now = tl.maximum(top, more_top)
            base = tl.where(now == -float("inf"), 0.0, now)
            total = total * tl.exp(top - base) + more * tl.exp(more_top - base)
            top = now
        if COUNTS:
            count += tl.load(count_ptr + of_part, mask=there, other=0)
    if KIND == LSE:
        total = tl.where(total == 0, -float("inf"), top + tl.log(tl.where(total == 0, 1.0, total)))
    tl.store(sum_ptr + at, total, mask=there)
    if COUNTS:
        tl.store(count_sum_ptr + at, count, mask=there)


@triton.jit(do_not_specialize=SIZES)
def positives(
    q_ptr, q_inverse_ptr, k_ptr, k_inverse_ptr, target_ptr, positive_ptr, q_stride, k_stride, num_q,
    NORMALIZED: tl.constexpr, ACC: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Similarity of each row and its target, 0 where there is none; grid (row tiles,). WIDTH: of the whole row."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = i < num_q
    target = tl.load(target_ptr + i, mask=there, other=-1)
    pair = target >= 0
    q = _rows(q_ptr, i, q_stride, pair, 0, DIM, WIDTH).to(ACC)
    k = _rows(k_ptr, target, k_stride, pair, 0, DIM, WIDTH).to(ACC)
    dot = tl.sum(q * k, 1)
    if NORMALIZED:
        dot *= tl.load(q_inverse_ptr + i, mask=pair, other=0) * tl.load(k_inverse_ptr + target, mask=pair, other=0)
    tl.store(positive_ptr + i, dot, mask=there)


@triton.jit
def _softmax(s, lse_ptr, grad_ptr, limit_ptr, at, there, scale, LIMITS: tl.constexpr, AXIS: tl.constexpr):
    """grad · e^(s - lse) of rows (AXIS 1) or columns (0); 0 where nothing is visible."""
    if LIMITS:
        s = _below(s, limit_ptr, at, there, scale, AXIS)
    lse = tl.load(lse_ptr + at, mask=there, other=float("inf"))
    lse = tl.where(lse == -float("inf"), float("inf"), lse)
    grad = tl.load(grad_ptr + at, mask=there, other=0)
    return tl.expand_dims(grad, AXIS) * tl.exp(s - tl.expand_dims(lse, AXIS))


@triton.jit(do_not_specialize=SIZES)
def grad(
    x_ptr, x_inverse_ptr, x_label_ptr, x_limit_ptr, x_lse_ptr, x_grad_ptr, y_ptr, y_inverse_ptr, y_label_ptr,
    y_limit_ptr, y_lse_ptr, y_grad_ptr, target_ptr, scale_ptr, bias_ptr, scores_ptr, grow_ptr, part_ptr, total_ptr,
    x_stride, y_stride, num_x, num_y, run, OF_K: tl.constexpr, PRODUCT: tl.constexpr, KIND: tl.constexpr,
    NORMALIZED: tl.constexpr, LABELS: tl.constexpr, LIMITS: tl.constexpr, SKIP_DIAGONAL: tl.constexpr,
    UPPER: tl.constexpr, COLUMN_SUMS: tl.constexpr, KEPT: tl.constexpr, GROW: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, X: tl.constexpr, Y: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Σ_j G_ij inv_k[j] k_j of a tile of rows x, over a run of rows y; grid (x tiles, slices of channels, runs).

    x and y are q and k, and with OF_K k and q. part: (runs, num_x, DIM), with PRODUCT. total: (runs, num_q), Σ_j G_ij,
    without OF_K. G is rounded to the dtype of y as a factor, times `grow`, which keeps it in the range of float16.
    """
    x = tl.program_id(0) * X + tl.arange(0, X)
    x_there = x < num_x
    scale = tl.load(scale_ptr)
    first = tl.program_id(2) * run
    end = tl.minimum(first + run, num_y)
    if OF_K:
        if UPPER:
            end = tl.minimum(end, tl.program_id(0) * X + X - 1)
    else:
        x_target = tl.load(target_ptr + x, mask=x_there, other=-1).to(tl.int32)
        if UPPER:
            first = tl.maximum(first, tl.program_id(0) * X + 1)
    acc = tl.zeros([X, WIDTH], ACC)
    total = tl.zeros([X], ACC)
    for start in range(first, end, Y):
        y = start + tl.arange(0, Y)
        y_there = y < end
        if OF_K:
            i = y[None, :]
            j = x[:, None]
            target = tl.load(target_ptr + y, mask=y_there, other=-1).to(tl.int32)[None, :]
            num_k = num_x
        else:
            i = x[:, None]
            j = y[None, :]
            target = x_target[:, None]
            num_k = num_y
        if KEPT:
            there = x_there[:, None] & y_there[None, :]
            s = tl.load(scores_ptr + i.to(tl.int64) * num_k + j, mask=there, other=0)
        else:
            s = _similarities(
                x_ptr, x_inverse_ptr, x, x_there, x_stride, y_ptr, y_inverse_ptr, y, y_there, y_stride, NORMALIZED,
                PRECISION, ACC, DIM, CHUNK, X, Y,
            )  # fmt: skip
            s *= scale
            if KIND == SOFTPLUS:
                s += tl.load(bias_ptr)
        if KIND == SOFTPLUS:
            if OF_K:
                upstream = tl.load(y_grad_ptr + y, mask=y_there, other=0)[None, :]
            else:
                upstream = tl.load(x_grad_ptr + x, mask=x_there, other=0)[:, None]
            g = tl.where(y_there[None, :], upstream * _sigmoid(s), 0.0)
        else:
            seen = _visible(
                i, j, target, x_label_ptr, x, x_there, y_label_ptr, y, y_there, LABELS, SKIP_DIAGONAL, UPPER
            )
            s = tl.where(seen, s, -float("inf"))
            g = tl.zeros([X, Y], ACC)
            if COLUMN_SUMS or not OF_K:
                g += _softmax(s, x_lse_ptr, x_grad_ptr, x_limit_ptr, x, x_there, scale, LIMITS, 1)
            if COLUMN_SUMS or OF_K:
                g += _softmax(s, y_lse_ptr, y_grad_ptr, y_limit_ptr, y, y_there, scale, LIMITS, 0)
        total += tl.sum(g, 1)
        if PRODUCT:
            if NORMALIZED:
                g *= tl.load(y_inverse_ptr + y, mask=y_there, other=0)[None, :]
            if GROW:
                g *= tl.load(grow_ptr)
            rows = _rows(y_ptr, y, y_stride, y_there, tl.program_id(1) * WIDTH, DIM, WIDTH)
            acc = tl.dot(g.to(rows.dtype), rows, acc, input_precision=PRECISION, out_dtype=ACC)
    at = tl.program_id(2).to(tl.int64) * num_x + x
    if PRODUCT:
        c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        tl.store(part_ptr + at[:, None] * DIM + c[None, :], acc, mask=x_there[:, None] & (c < DIM)[None, :])
    if not OF_K:
        if tl.program_id(1) == 0:
            tl.store(total_ptr + at, total, mask=x_there)


@triton.jit(do_not_specialize=SIZES)
def finish(
    part_ptr, x_ptr, x_inverse_ptr, y_ptr, pair_grad_ptr, pair_ptr, begin_ptr, factor_ptr, grad_ptr, dot_ptr, x_stride,
    y_stride, num_x, parts, OF_K: tl.constexpr, NORMALIZED: tl.constexpr, ACC: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of rows x from what `grad` left, their positives, and the norms; grid (row tiles,).

    pair: the target of each row of q, or with OF_K rows of q sorted by target, those of column j at [begin_j,
    begin_j+1). pair_grad (num_q,): against q_i · k_target. dot (num_q,): gradient · q_i before the projection.
    NORMALIZED: x has inverse norms. WIDTH: of the whole row.
    """
    x = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = x < num_x
    g = tl.zeros([ROWS, WIDTH], ACC)
    for part in range(0, parts):
        g += _rows(part_ptr, tl.cast(part, tl.int64) * num_x + x, DIM, there, 0, DIM, WIDTH)
    by = tl.full([ROWS], 1, ACC)
    if NORMALIZED:
        by = tl.load(x_inverse_ptr + x, mask=there, other=0)
    g *= (by * tl.load(factor_ptr))[:, None]
    if OF_K:
        begin = tl.load(begin_ptr + x, mask=there, other=0)
        end = tl.load(begin_ptr + x + 1, mask=there, other=0)
        for n in range(0, tl.max(end - begin, 0)):
            at = begin + n
            pair = tl.load(pair_ptr + at, mask=at < end, other=0)
            weight = tl.load(pair_grad_ptr + pair, mask=at < end, other=0)
            g += weight[:, None] * _rows(y_ptr, pair, y_stride, weight != 0, 0, DIM, WIDTH).to(ACC)
    else:
        pair = tl.load(pair_ptr + x, mask=there, other=-1)
        weight = tl.load(pair_grad_ptr + x, mask=there, other=0)
        g += weight[:, None] * _rows(y_ptr, pair, y_stride, weight != 0, 0, DIM, WIDTH).to(ACC)
    rows = _rows(x_ptr, x, x_stride, there, 0, DIM, WIDTH).to(ACC)
    dot = tl.sum(g * rows, 1)
    if not OF_K:
        tl.store(dot_ptr + x, dot, mask=there)
    if NORMALIZED:
        # Through x / max(‖x‖, 1e-12): what is along x goes, but where 1e-12 was the greater.
        g -= tl.where(by < 1e12, dot * by * by, 0.0)[:, None] * rows
    c = tl.arange(0, WIDTH)
    to = grad_ptr + x.to(tl.int64)[:, None] * DIM + c[None, :]
    tl.store(to, g.to(grad_ptr.dtype.element_ty), mask=there[:, None] & (c < DIM)[None, :])
