# SPDX-License-Identifier: Apache-2.0
"""band_attention on a GPU, forward and backward, without atomics: the same bits in every run.

    s_ij = scale · q_i · k_j (+ bias_h[j - p_i]),  j in [low_i, high_i) valid, or global
    o_i = Σ_j softmax_j(s_ij) v_j (+ residual_i)

Forward: a program owns a tile of queries of one head and walks the global keys, then the keys from the least `low` to
the greatest `high` of its queries, with the online softmax in base 2. Backward: the weights are formed again from lse.
`delta` prepares Σ_c do·o of each query; `grad_q` walks keys like the forward pass; `grad_kv` owns a tile of keys and
walks the queries that see them, one range per key since low and high never fall, for every query head of its group;
`grad_bias` owns a tile of distances and walks the queries of one head, a run of them a program.
Only ranges that some query or key of the tile has are walked; padded keys are read as 0, whatever they hold.

Launched by innerloop/ops/_band_attention_triton.py. Products are of the dtype of the inputs, sums in float32 (float64
for float64 tensors); channels are padded to WIDTH, a power of two.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)

# Not worth a compilation of their own when they are 1 or divide by 16.
SIZES = ("heads", "group", "num_queries", "num_keys", "num_global", "run", "hash_first", "below", "bias_width",
         "bias_stride", "bias_shift")  # fmt: skip

# {(WIDTH, bytes of an element): {kernel: (QUERIES, KEYS, warps, stages)}}. Not yet tuned on a GPU.
CONFIGS = {
    (16, 2): {"forward": (128, 64, 4, 3), "grad_q": (128, 64, 4, 2), "grad_kv": (64, 128, 4, 2)},
    (32, 2): {"forward": (128, 64, 4, 3), "grad_q": (128, 64, 4, 2), "grad_kv": (64, 64, 4, 2)},
    (64, 2): {"forward": (128, 64, 8, 3), "grad_q": (64, 64, 4, 2), "grad_kv": (32, 64, 4, 2)},
    (128, 2): {"forward": (64, 64, 8, 2), "grad_q": (64, 32, 4, 2), "grad_kv": (32, 64, 8, 2)},
    (256, 2): {"forward": (64, 32, 8, 2), "grad_q": (32, 32, 8, 1), "grad_kv": (32, 32, 8, 1)},
    (16, 4): {"forward": (64, 32, 4, 2), "grad_q": (64, 32, 4, 2), "grad_kv": (32, 64, 4, 2)},
    (32, 4): {"forward": (64, 32, 4, 2), "grad_q": (64, 32, 4, 2), "grad_kv": (32, 64, 4, 2)},
    (64, 4): {"forward": (32, 32, 4, 2), "grad_q": (32, 32, 4, 1), "grad_kv": (32, 32, 8, 1)},
    (128, 4): {"forward": (32, 16, 8, 1), "grad_q": (32, 16, 4, 1), "grad_kv": (32, 32, 8, 1)},
    (256, 4): {"forward": (32, 16, 8, 1), "grad_q": (16, 16, 8, 1), "grad_kv": (16, 16, 8, 1)},
    (16, 8): {"forward": (32, 32, 4, 1), "grad_q": (32, 32, 4, 1), "grad_kv": (32, 32, 4, 1)},
    (32, 8): {"forward": (32, 32, 4, 1), "grad_q": (32, 32, 4, 1), "grad_kv": (32, 32, 4, 1)},
    (64, 8): {"forward": (16, 16, 4, 1), "grad_q": (16, 16, 4, 1), "grad_kv": (16, 16, 4, 1)},
    (128, 8): {"forward": (16, 16, 4, 1), "grad_q": (16, 16, 4, 1), "grad_kv": (16, 16, 4, 1)},
    (256, 8): {"forward": (16, 16, 8, 1), "grad_q": (16, 8, 8, 1), "grad_kv": (8, 8, 8, 1)},
}


@triton.jit
def _rows(ptr, row, stride, there, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """(rows, WIDTH) of a tensor whose channels lie side by side; 0 for rows that are not there."""
    c = tl.arange(0, WIDTH)
    mask = there[:, None] & (c < DIM)[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * stride + c[None, :], mask=mask, other=0)


@triton.jit
def _store_rows(ptr, row, there, value, DIM: tl.constexpr, WIDTH: tl.constexpr):
    c = tl.arange(0, WIDTH)
    mask = there[:, None] & (c < DIM)[None, :]
    at = ptr + row.to(tl.int64)[:, None] * DIM + c[None, :]
    tl.store(at, value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _tile(rows, SIZE: tl.constexpr):
    """Rows of this program's tile, which of them are there, and its head, batches counted through."""
    tiles = tl.cdiv(rows, SIZE)
    at = tl.program_id(0) % tiles * SIZE + tl.arange(0, SIZE)
    return at, at < rows, tl.program_id(0) // tiles


@triton.jit
def _bands(low_ptr, high_ptr, rows, there):
    """low and high of rows; none for one that is not there. And the least and the greatest of them."""
    low = tl.load(low_ptr + rows, mask=there, other=2147483647)
    high = tl.load(high_ptr + rows, mask=there, other=0)
    return low, high, tl.min(low, 0), tl.max(high, 0)


@triton.jit
def _mix(x):
    """mix of csrc/cpu/band_attention.cpp, on uint32."""
    x ^= x >> 16
    x = tl.mul(x, 0x7FEB352D, sanitize_overflow=False)
    x ^= x >> 15
    x = tl.mul(x, 0x846CA68B, sanitize_overflow=False)
    x ^= x >> 16
    return x


@triton.jit
def _row_seed(seed_ptr, b, h, i):
    """row_seed of csrc/cpu/band_attention.cpp for queries i."""
    at = tl.load(seed_ptr) ^ (b.to(tl.int64) << 48) ^ (h.to(tl.int64) << 32) ^ i.to(tl.int64)
    top = tl.add((at >> 32).to(tl.uint32), 0x9E3779B9, sanitize_overflow=False)
    return _mix(at.to(tl.uint32) ^ _mix(top))


@triton.jit
def _keep(row, j, below):
    """Whether dropout keeps the weight of key j; j counts on through the global keys."""
    x = tl.mul(j.to(tl.uint32), 0x9E3779B9, sanitize_overflow=False)
    return _mix(tl.add(x, row, sanitize_overflow=False)) >= below.to(tl.uint32)


@triton.jit
def _biased(s, bias_ptr, column, seen, ACC: tl.constexpr):
    """Scores in base 2 with the bias, whose row begins at bias_ptr."""
    return s + tl.load(bias_ptr + column, mask=seen, other=0).to(ACC) * LOG2E


@triton.jit
def _attend(
    acc, top, total, q, low, high, first, end, k_ptr, k_row, v_ptr, v_row, valid_ptr, bias_ptr, bias_at, scale,
    row_seed, hash_first, below, factor, HAS_VALID: tl.constexpr, HAS_BIAS: tl.constexpr, DROP: tl.constexpr,
    PRECISION: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The online softmax over keys [first, end): Σ 2^(s - top) v, top, and Σ 2^(s - top)."""
    for start in range(first, end, KEYS):
        j = start + tl.arange(0, KEYS)
        there = j < end
        if HAS_VALID:
            there &= tl.load(valid_ptr + j, mask=there, other=0) != 0
        k = _rows(k_ptr, j, k_row, there, DIM, WIDTH)
        v = _rows(v_ptr, j, v_row, there, DIM, WIDTH)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        seen = (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None]) & there[None, :]
        if HAS_BIAS:
            s = _biased(s, bias_ptr, j[None, :] + bias_at[:, None], seen, acc.dtype)
        s = tl.where(seen, s, -float("inf"))
        now = tl.maximum(top, tl.max(s, 1))
        base = tl.where(now == -float("inf"), 0.0, now)  # nothing visible yet
        shrink = tl.exp2(top - base)
        p = tl.exp2(s - base[:, None])
        total = total * shrink + tl.sum(p, 1)
        top = now
        if DROP:
            p = tl.where(_keep(row_seed[:, None], (hash_first + j)[None, :], below), p * factor, 0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION, out_dtype=acc.dtype)
    return acc, top, total


@triton.jit(do_not_specialize=SIZES)
def forward(
    q_ptr, k_ptr, v_ptr, low_ptr, high_ptr, valid_ptr, global_k_ptr, global_v_ptr, global_valid_ptr, bias_ptr,
    residual_ptr, seed_ptr, out_ptr, lse_ptr, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    residual_batch, residual_head, residual_row, heads, group, num_queries, num_keys, num_global, bias_width,
    bias_stride, bias_shift, scale: tl.float64, below: tl.uint32, factor: tl.float64, HAS_VALID: tl.constexpr,
    HAS_GLOBAL: tl.constexpr, HAS_GLOBAL_VALID: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    DROP: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """out and lse of a tile of queries; grid (query tiles · B · H,)."""
    i, there, at = _tile(num_queries, QUERIES)
    b, h = (at // heads).to(tl.int64), (at % heads).to(tl.int64)
    kv = h // group
    q = _rows(q_ptr + b * q_batch + h * q_head, i, q_row, there, DIM, WIDTH)
    scale = tl.full([], scale, ACC) * LOG2E
    factor = tl.full([], factor, ACC)
    row_seed = i
    if DROP:
        row_seed = _row_seed(seed_ptr, b, h, i)
    acc = tl.zeros([QUERIES, WIDTH], ACC)
    top = tl.full([QUERIES], -float("inf"), ACC)
    total = tl.zeros([QUERIES], ACC)
    if HAS_GLOBAL:
        keys = (b * (heads // group) + kv) * num_global * DIM
        low = tl.zeros([QUERIES], tl.int32)
        acc, top, total = _attend(
            acc, top, total, q, low, low + num_global, 0, num_global, global_k_ptr + keys, DIM, global_v_ptr + keys,
            DIM, global_valid_ptr + b * num_global, bias_ptr, i, scale, row_seed, num_keys, below, factor,
            HAS_GLOBAL_VALID, False, DROP, PRECISION, DIM, WIDTH, KEYS,
        )  # fmt: skip
    low, high, first, end = _bands(low_ptr, high_ptr, i, there)
    acc, top, total = _attend(
        acc, top, total, q, low, high, first, end, k_ptr + b * k_batch + kv * k_head, k_row,
        v_ptr + b * v_batch + kv * v_head, v_row, valid_ptr + b * num_keys, bias_ptr + h * bias_width,
        bias_shift - i // bias_stride, scale, row_seed, 0, below, factor, HAS_VALID, HAS_BIAS, DROP, PRECISION, DIM,
        WIDTH, KEYS,
    )  # fmt: skip
    none = total == 0
    total = tl.where(none, 1.0, total)
    acc /= total[:, None]
    if HAS_RESIDUAL:
        residual = residual_ptr + b * residual_batch + h * residual_head
        acc += _rows(residual, i, residual_row, there, DIM, WIDTH).to(ACC)
    row = at.to(tl.int64) * num_queries
    _store_rows(out_ptr + row * DIM, i, there, acc, DIM, WIDTH)
    tl.store(lse_ptr + row + i, tl.where(none, -float("inf"), (top + tl.log2(total)) / LOG2E), mask=there)


@triton.jit(do_not_specialize=SIZES)
def delta(
    grad_out_ptr, out_ptr, residual_ptr, grad_lse_ptr, delta_ptr, grad_batch, grad_head, grad_row, out_batch, out_head,
    out_row, residual_batch, residual_head, residual_row, heads, num_queries, HAS_RESIDUAL: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr, ACC: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Σ_c grad_out · (out - residual) - grad_lse: what d loss / d s_ij subtracts; grid (query tiles · B · H,)."""
    i, there, at = _tile(num_queries, QUERIES)
    b, h = (at // heads).to(tl.int64), (at % heads).to(tl.int64)
    o = _rows(out_ptr + b * out_batch + h * out_head, i, out_row, there, DIM, WIDTH).to(ACC)
    if HAS_RESIDUAL:
        residual = residual_ptr + b * residual_batch + h * residual_head
        o -= _rows(residual, i, residual_row, there, DIM, WIDTH).to(ACC)
    g = _rows(grad_out_ptr + b * grad_batch + h * grad_head, i, grad_row, there, DIM, WIDTH).to(ACC)
    sums = tl.sum(g * o, 1)
    row = at.to(tl.int64) * num_queries
    if HAS_GRAD_LSE:
        sums -= tl.load(grad_lse_ptr + row + i, mask=there, other=0)
    tl.store(delta_ptr + row + i, sums, mask=there)


@triton.jit
def _lse2(lse_ptr, i, there):
    """lse in base 2; 0 for a query that sees nothing, whose scores are all -inf."""
    lse = tl.load(lse_ptr + i, mask=there, other=0)
    return tl.where(lse == -float("inf"), 0.0, lse) * LOG2E


@triton.jit
def _grad_q_of(
    acc, q, g, lse, delta, low, high, first, end, k_ptr, k_row, v_ptr, v_row, valid_ptr, bias_ptr, bias_at, scale,
    row_seed, hash_first, below, factor, HAS_VALID: tl.constexpr, HAS_BIAS: tl.constexpr, DROP: tl.constexpr,
    PRECISION: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """acc + Σ over keys [first, end) of d loss / d s_ij · k_j."""
    for start in range(first, end, KEYS):
        j = start + tl.arange(0, KEYS)
        there = j < end
        if HAS_VALID:
            there &= tl.load(valid_ptr + j, mask=there, other=0) != 0
        k = _rows(k_ptr, j, k_row, there, DIM, WIDTH)
        v = _rows(v_ptr, j, v_row, there, DIM, WIDTH)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        seen = (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None]) & there[None, :]
        if HAS_BIAS:
            s = _biased(s, bias_ptr, j[None, :] + bias_at[:, None], seen, acc.dtype)
        p = tl.exp2(tl.where(seen, s, -float("inf")) - lse[:, None])
        dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        if DROP:
            dp = tl.where(_keep(row_seed[:, None], (hash_first + j)[None, :], below), dp * factor, 0.0)
        ds = p * (dp - delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit(do_not_specialize=SIZES)
def grad_q(
    q_ptr, k_ptr, v_ptr, low_ptr, high_ptr, valid_ptr, global_k_ptr, global_v_ptr, global_valid_ptr, bias_ptr, seed_ptr,
    grad_out_ptr, lse_ptr, delta_ptr, grad_q_ptr, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head,
    v_row, grad_batch, grad_head, grad_row, heads, group, num_queries, num_keys, num_global, bias_width, bias_stride,
    bias_shift, scale: tl.float64, below: tl.uint32, factor: tl.float64, HAS_VALID: tl.constexpr,
    HAS_GLOBAL: tl.constexpr, HAS_GLOBAL_VALID: tl.constexpr, HAS_BIAS: tl.constexpr, DROP: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """scale · Σ_j d loss / d s_ij · k_j of a tile of queries; grid (query tiles · B · H,)."""
    i, there, at = _tile(num_queries, QUERIES)
    b, h = (at // heads).to(tl.int64), (at % heads).to(tl.int64)
    kv = h // group
    row = at.to(tl.int64) * num_queries
    q = _rows(q_ptr + b * q_batch + h * q_head, i, q_row, there, DIM, WIDTH)
    g = _rows(grad_out_ptr + b * grad_batch + h * grad_head, i, grad_row, there, DIM, WIDTH)
    lse = _lse2(lse_ptr + row, i, there)
    delta = tl.load(delta_ptr + row + i, mask=there, other=0)
    scale = tl.full([], scale, ACC)
    factor = tl.full([], factor, ACC)
    row_seed = i
    if DROP:
        row_seed = _row_seed(seed_ptr, b, h, i)
    acc = tl.zeros([QUERIES, WIDTH], ACC)
    if HAS_GLOBAL:
        keys = (b * (heads // group) + kv) * num_global * DIM
        low = tl.zeros([QUERIES], tl.int32)
        acc = _grad_q_of(
            acc, q, g, lse, delta, low, low + num_global, 0, num_global, global_k_ptr + keys, DIM, global_v_ptr + keys,
            DIM, global_valid_ptr + b * num_global, bias_ptr, i, scale * LOG2E, row_seed, num_keys, below, factor,
            HAS_GLOBAL_VALID, False, DROP, PRECISION, DIM, WIDTH, KEYS,
        )  # fmt: skip
    low, high, first, end = _bands(low_ptr, high_ptr, i, there)
    acc = _grad_q_of(
        acc, q, g, lse, delta, low, high, first, end, k_ptr + b * k_batch + kv * k_head, k_row,
        v_ptr + b * v_batch + kv * v_head, v_row, valid_ptr + b * num_keys, bias_ptr + h * bias_width,
        bias_shift - i // bias_stride, scale * LOG2E, row_seed, 0, below, factor, HAS_VALID, HAS_BIAS, DROP, PRECISION,
        DIM, WIDTH, KEYS,
    )  # fmt: skip
    _store_rows(grad_q_ptr + row * DIM, i, there, acc * scale, DIM, WIDTH)


@triton.jit(do_not_specialize=SIZES)
def grad_kv(
    q_ptr, k_ptr, v_ptr, begin_ptr, end_ptr, valid_ptr, bias_ptr, seed_ptr, grad_out_ptr, lse_ptr, delta_ptr,
    grad_k_ptr, grad_v_ptr, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, grad_batch,
    grad_head, grad_row, heads, group, num_queries, num_keys, run, hash_first, bias_width, bias_stride, bias_shift,
    scale: tl.float64, below: tl.uint32, factor: tl.float64, BAND: tl.constexpr, HAS_VALID: tl.constexpr,
    HAS_BIAS: tl.constexpr, DROP: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values from the queries of one run; grid (key tiles · B · Hkv, runs).

    Key j is seen by queries [begin_j, end_j), or by all of them without BAND.
    """
    j, there, at = _tile(num_keys, KEYS)
    kv_heads = heads // group
    b, kv = (at // kv_heads).to(tl.int64), (at % kv_heads).to(tl.int64)
    if HAS_VALID:
        there &= tl.load(valid_ptr + b * num_keys + j, mask=there, other=0) != 0
    run_begin = tl.program_id(1) * run
    run_end = tl.minimum(run_begin + run, num_queries)
    if BAND:
        begin, end, first, last = _bands(begin_ptr, end_ptr, j, there)
        first, last = tl.maximum(first, run_begin), tl.minimum(last, run_end)
    else:
        begin = tl.zeros([KEYS], tl.int32)
        end = tl.where(there, num_queries, 0)
        first, last = run_begin, run_end
    k = _rows(k_ptr + b * k_batch + kv * k_head, j, k_row, there, DIM, WIDTH)
    v = _rows(v_ptr + b * v_batch + kv * v_head, j, v_row, there, DIM, WIDTH)
    scale = tl.full([], scale, ACC)
    scale2 = scale * LOG2E
    factor = tl.full([], factor, ACC)
    dk = tl.zeros([KEYS, WIDTH], ACC)
    dv = tl.zeros([KEYS, WIDTH], ACC)
    for of in range(0, group):
        h = kv * group + of
        row = (b * heads + h) * num_queries
        for start in range(first, last, QUERIES):
            i = start + tl.arange(0, QUERIES)
            mine = i < last
            q = _rows(q_ptr + b * q_batch + h * q_head, i, q_row, mine, DIM, WIDTH)
            g = _rows(grad_out_ptr + b * grad_batch + h * grad_head, i, grad_row, mine, DIM, WIDTH)
            lse = _lse2(lse_ptr + row, i, mine)
            delta = tl.load(delta_ptr + row + i, mask=mine, other=0)
            s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2  # (KEYS, QUERIES)
            seen = (i[None, :] >= begin[:, None]) & (i[None, :] < end[:, None]) & mine[None, :]
            if HAS_BIAS:
                column = j[:, None] - i[None, :] // bias_stride + bias_shift
                s = _biased(s, bias_ptr + h * bias_width, column, seen, ACC)
            p = tl.exp2(tl.where(seen, s, -float("inf")) - lse[None, :])
            dp = tl.dot(v, tl.trans(g), input_precision=PRECISION)
            kept = p
            if DROP:
                keep = _keep(_row_seed(seed_ptr, b, h, i)[None, :], (hash_first + j)[:, None], below)
                kept = tl.where(keep, p * factor, 0.0)
                dp = tl.where(keep, dp * factor, 0.0)
            ds = p * (dp - delta[None, :])
            dv = tl.dot(kept.to(g.dtype), g, dv, input_precision=PRECISION, out_dtype=dv.dtype)
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION, out_dtype=dk.dtype)
    out = (tl.program_id(1).to(tl.int64) * (tl.num_programs(0) // tl.cdiv(num_keys, KEYS)) + at) * num_keys * DIM
    _store_rows(grad_k_ptr + out, j, j < num_keys, dk * scale, DIM, WIDTH)
    _store_rows(grad_v_ptr + out, j, j < num_keys, dv, DIM, WIDTH)


@triton.jit(do_not_specialize=SIZES)
def grad_bias(
    q_ptr, k_ptr, v_ptr, low_ptr, high_ptr, valid_ptr, bias_ptr, seed_ptr, grad_out_ptr, lse_ptr, delta_ptr,
    grad_bias_ptr, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, grad_batch, grad_head,
    grad_row, heads, group, num_queries, num_keys, run, bias_width, bias_stride, bias_shift, scale: tl.float64,
    below: tl.uint32, factor: tl.float64, HAS_VALID: tl.constexpr, DROP: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Σ_i d loss / d s_ij over the queries of a run, for a tile of columns; grid (column tiles · B · H, runs).

    QUERIES queries see QUERIES columns in fewer than 2 · QUERIES keys; gathered along its diagonals, their tile of
    gradients has a column for each.
    """
    c, there, at = _tile(bias_width, QUERIES)
    b, h = (at // heads).to(tl.int64), (at % heads).to(tl.int64)
    kv = h // group
    row = at.to(tl.int64) * num_queries
    scale = tl.full([], scale, ACC) * LOG2E
    factor = tl.full([], factor, ACC)
    first_column = tl.program_id(0) % tl.cdiv(bias_width, QUERIES) * QUERIES
    sums = tl.zeros([QUERIES], ACC)
    begin = tl.program_id(1) * run
    for start in range(begin, tl.minimum(begin + run, num_queries), QUERIES):
        i = start + tl.arange(0, QUERIES)
        mine = i < num_queries
        position = i // bias_stride - start // bias_stride
        first_key = start // bias_stride - bias_shift + first_column
        j = first_key + tl.arange(0, 2 * QUERIES)
        valid = (j >= 0) & (j < num_keys)
        if HAS_VALID:
            valid &= tl.load(valid_ptr + b * num_keys + j, mask=valid, other=0) != 0
        q = _rows(q_ptr + b * q_batch + h * q_head, i, q_row, mine, DIM, WIDTH)
        g = _rows(grad_out_ptr + b * grad_batch + h * grad_head, i, grad_row, mine, DIM, WIDTH)
        k = _rows(k_ptr + b * k_batch + kv * k_head, j, k_row, valid, DIM, WIDTH)
        v = _rows(v_ptr + b * v_batch + kv * v_head, j, v_row, valid, DIM, WIDTH)
        low, high, _, _ = _bands(low_ptr, high_ptr, i, mine)
        lse = _lse2(lse_ptr + row, i, mine)
        delta = tl.load(delta_ptr + row + i, mask=mine, other=0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        seen = (j[None, :] >= low[:, None]) & (j[None, :] < high[:, None]) & valid[None, :]
        column = j[None, :] - (i // bias_stride)[:, None] + bias_shift
        s = _biased(s, bias_ptr + h * bias_width, column, seen, ACC)
        p = tl.exp2(tl.where(seen, s, -float("inf")) - lse[:, None])
        dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        if DROP:
            keep = _keep(_row_seed(seed_ptr, b, h, i)[:, None], j[None, :], below)
            dp = tl.where(keep, dp * factor, 0.0)
        ds = p * (dp - delta[:, None])
        sums += tl.sum(tl.gather(ds, position[:, None] + tl.arange(0, QUERIES)[None, :], 1), 0)
    heads_before = tl.program_id(1).to(tl.int64) * (tl.num_programs(0) // tl.cdiv(bias_width, QUERIES)) + at
    tl.store(grad_bias_ptr + heads_before * bias_width + c, sums, mask=there)
