# SPDX-License-Identifier: Apache-2.0
"""relational_spmm on a GPU, forward and backward, without atomics: the same bits in every run.

Forward: a program owns a row of the CSR and a block of columns and takes its in-edges EDGES at a time. Backward: maxima
and minima first get the position of the one edge that receives their gradient; then three products gather instead of
scattering, each over the edges in its own order: by source (input), by relation in segments of fixed length
(relation), edge by edge (weights). Messages are formed again, never stored.

Launched by innerloop/ops/_relational_spmm_triton.py. Arithmetic is in float32, float64 for float64 tensors.
"""

import triton
import triton.language as tl

# Codes of csrc/cpu/relational_spmm.h.
SUM, MEAN, MAX, MIN, LOGSUMEXP, OR, PNA = (tl.constexpr(k) for k in range(7))
MUL, ADD, ROTATE, MIN_OF, AND = (tl.constexpr(k) for k in range(5))

# {columns at least: (EDGES, BLOCK, warps)}. Not yet tuned on a GPU.
CONFIGS = {128: (8, 128, 4), 0: (16, 32, 1)}


@triton.jit
def _nan_max(a, b):
    return tl.where((a != a) | (a > b), a, b)


@triton.jit
def _nan_min(a, b):
    return tl.where((a != a) | (a < b), a, b)


@triton.jit
def _row(ptr, row, c, mask, C, ACC: tl.constexpr):
    """(edges, columns) of a (rows, C) tensor."""
    return tl.load(ptr + row.to(tl.int64)[:, None] * C + c[None, :], mask=mask, other=0).to(ACC)


@triton.jit
def _partner(c, d):
    """The other part of a complex channel: real parts are [0, d/2), imaginary ones [d/2, d)."""
    channel = c % d
    half = d // 2
    return tl.where(channel < half, c + half, c - half), channel < half


@triton.jit
def _relation(relation_ptr, rel, c, mask, C, d, SHARED: tl.constexpr, ACC: tl.constexpr):
    if SHARED:
        offset = rel.to(tl.int64)[:, None] * d + (c % d)[None, :]
    else:
        offset = rel.to(tl.int64)[:, None] * C + c[None, :]
    return tl.load(relation_ptr + offset, mask=mask, other=0).to(ACC)


@triton.jit
def _message(x_ptr, relation_ptr, src, rel, c, mask, C, d, MUL_: tl.constexpr, SHARED: tl.constexpr, ACC: tl.constexpr):
    """relation[rel] ⊗ input[src], (edges, columns)."""
    x = _row(x_ptr, src, c, mask, C, ACC)
    r = _relation(relation_ptr, rel, c, mask, C, d, SHARED, ACC)
    if MUL_ == MUL:
        m = x * r
    elif MUL_ == ADD:
        m = x + r
    elif MUL_ == ROTATE:
        p, real = _partner(c, d)
        xp = _row(x_ptr, src, p, mask, C, ACC)
        rp = _relation(relation_ptr, rel, p, mask, C, d, SHARED, ACC)
        m = tl.where(real[None, :], x * r - xp * rp, xp * r + x * rp)
    elif MUL_ == MIN_OF:
        m = tl.where((x != x) | (x <= r), x, r)
    else:
        both = tl.where((x != 0) & (r != 0), 1.0, 0.0).to(ACC)
        m = tl.where(x != x, x, tl.where(r != r, r, both))
    return m


@triton.jit
def forward(
    x_ptr, relation_ptr, boundary_ptr, weight_ptr, out_ptr, indptr_ptr, src_ptr, rel_ptr, eid_ptr, C, d,
    SUM_: tl.constexpr, MUL_: tl.constexpr, SHARED: tl.constexpr, HAS_BOUNDARY: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[v] = ⊕ a · (relation ⊗ input) ⊕ boundary; grid (V, column blocks)."""
    v = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = c < C
    begin = tl.load(indptr_ptr + v)
    end = tl.load(indptr_ptr + v + 1)
    inf = float("inf")
    s = tl.zeros([BLOCK], ACC)
    q = tl.zeros([BLOCK], ACC)
    hi = tl.full([BLOCK], -inf, ACC)
    lo = tl.full([BLOCK], inf, ACC)
    nan = tl.zeros([BLOCK], tl.int32)
    shift = tl.zeros([BLOCK], ACC)
    if SUM_ == PNA and not HAS_WEIGHT:
        # Relative to the first message: Q / D - mean² does not cancel when messages are alike.
        if begin < end:
            one = begin + tl.zeros([1], tl.int32)
            first = _message(x_ptr, relation_ptr, tl.load(src_ptr + one), tl.load(rel_ptr + one), c, columns[None, :],
                             C, d, MUL_, SHARED, ACC)  # fmt: skip
            shift = tl.sum(first, 0)
            shift = tl.where(shift - shift == 0, shift, 0.0)
    count = (end - begin).to(ACC)
    for start in range(begin, end, EDGES):
        e = start + tl.arange(0, EDGES)
        live = e < end
        mask = live[:, None] & columns[None, :]
        src = tl.load(src_ptr + e, mask=live, other=0)
        rel = tl.load(rel_ptr + e, mask=live, other=0)
        m = _message(x_ptr, relation_ptr, src, rel, c, mask, C, d, MUL_, SHARED, ACC)
        am = m
        if HAS_WEIGHT:
            am = m * tl.load(weight_ptr + tl.load(eid_ptr + e, mask=live, other=0), mask=live, other=0).to(ACC)[:, None]
        nan += tl.sum(tl.where(mask & (am != am), 1, 0), 0)
        if SUM_ == SUM or SUM_ == MEAN:
            s += tl.sum(tl.where(mask, am, 0.0), 0)
        elif SUM_ == OR:
            s += tl.sum(tl.where(mask & (am != 0), 1.0, 0.0), 0).to(ACC)
        elif SUM_ == LOGSUMEXP:
            top = tl.maximum(hi, tl.max(tl.where(mask, am, -inf), 0))
            base = tl.where(tl.abs(top) == inf, 0.0, top)
            s = s * tl.exp(hi - base) + tl.sum(tl.where(mask, tl.exp(am - base[None, :]), 0.0), 0)
            hi = top
        else:
            if SUM_ != MIN:
                hi = tl.maximum(hi, tl.max(tl.where(mask, am, -inf), 0))
            if SUM_ != MAX:
                lo = tl.minimum(lo, tl.min(tl.where(mask, am, inf), 0))
            if SUM_ == PNA:
                t = am - shift[None, :]
                square = am * m if HAS_WEIGHT else t * t
                s += tl.sum(tl.where(mask, t, 0.0), 0)
                q += tl.sum(tl.where(mask, square, 0.0), 0)
    if HAS_BOUNDARY:
        b = tl.load(boundary_ptr + v * C + c, mask=columns, other=0).to(ACC)
        nan += tl.where(b != b, 1, 0)
        count += 1
        if SUM_ == OR:
            s += tl.where(b != 0, 1.0, 0.0).to(ACC)
        elif SUM_ == LOGSUMEXP:
            top = tl.maximum(hi, b)
            base = tl.where(tl.abs(top) == inf, 0.0, top)
            s = s * tl.exp(hi - base) + tl.exp(b - base)
            hi = top
        elif SUM_ == PNA:
            s += b - shift
            q += b * b if HAS_WEIGHT else (b - shift) * (b - shift)
        else:
            s += b
        hi = tl.maximum(hi, b) if SUM_ != LOGSUMEXP else hi
        lo = tl.minimum(lo, b)
    bad = nan > 0
    none = float("nan")
    inverse = 1.0 / tl.maximum(count, 1.0)
    at = v * C + c
    if SUM_ == PNA:
        mean = s * inverse
        variance = q * inverse - mean * mean
        std = tl.sqrt(tl.maximum(variance, 1e-6))
        # (V, B, 4, d): four rows of d channels for each query
        at = v * C * 4 + (c // d) * 4 * d + c % d
        tl.store(out_ptr + at, tl.where(bad, none, shift + mean), mask=columns)
        tl.store(out_ptr + at + d, tl.where(bad, none, hi), mask=columns)
        tl.store(out_ptr + at + 2 * d, tl.where(bad, none, lo), mask=columns)
        tl.store(out_ptr + at + 3 * d, tl.where(bad, none, std), mask=columns)
    else:
        if SUM_ == SUM:
            out = s
        elif SUM_ == MEAN:
            out = s * inverse
        elif SUM_ == MAX:
            out = hi
        elif SUM_ == MIN:
            out = lo
        elif SUM_ == OR:
            out = tl.where(s > 0, 1.0, 0.0)
        else:
            base = tl.where(tl.abs(hi) == inf, 0.0, hi)
            out = tl.where(s > 0, tl.log(tl.where(s > 0, s, 1.0)) + base, -inf)
            out = tl.where(hi == inf, inf, out)
        tl.store(out_ptr + at, tl.where(bad, none, out), mask=columns)


@triton.jit
def _weighted(m, weight_ptr, eid, live, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr):
    """a · m, and a, (edges, columns) both."""
    a = tl.full(m.shape, 1.0, ACC)
    if HAS_WEIGHT:
        a *= tl.load(weight_ptr + eid, mask=live, other=0).to(ACC)[:, None]
    return a * m, a


@triton.jit
def first_attaining(
    x_ptr, relation_ptr, weight_ptr, target_ptr, position_ptr, indptr_ptr, src_ptr, rel_ptr, eid_ptr, C, d, E,
    MUL_: tl.constexpr, SHARED: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr, EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """position[v, c] = first CSR position of row v whose message, rounded as stored, equals target[v, c]; else E."""
    v = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = c < C
    begin = tl.load(indptr_ptr + v)
    end = tl.load(indptr_ptr + v + 1)
    target = tl.load(target_ptr + v * C + c, mask=columns, other=0)
    position = tl.full([BLOCK], E, tl.int32)
    for start in range(begin, end, EDGES):
        e = start + tl.arange(0, EDGES)
        live = e < end
        mask = live[:, None] & columns[None, :]
        src = tl.load(src_ptr + e, mask=live, other=0)
        rel = tl.load(rel_ptr + e, mask=live, other=0)
        m = _message(x_ptr, relation_ptr, src, rel, c, mask, C, d, MUL_, SHARED, ACC)
        am, _ = _weighted(m, weight_ptr, tl.load(eid_ptr + e, mask=live, other=0), live, HAS_WEIGHT, ACC)
        hit = mask & (am.to(target.dtype) == target[None, :])
        position = tl.minimum(position, tl.min(tl.where(hit, e[:, None], E), 0))
    tl.store(position_ptr + v * C + c, position, mask=columns)


@triton.jit
def _message_grad(
    m, am, a, e, dst, c, mask, C, grad_ptr, out_ptr, hi_ptr, lo_ptr, first_hi_ptr, first_lo_ptr, spread_ptr,
    SUM_: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """d loss / d m for edges e into rows dst, (edges, columns); `a` included."""
    if SUM_ == MAX or SUM_ == MIN:
        hit = mask & (_row(first_hi_ptr, dst, c, mask, C, tl.int32) == e[:, None])
        return tl.where(hit, a * _row(grad_ptr, dst, c, hit, C, ACC), 0.0)
    grad = _row(grad_ptr, dst, c, mask, C, ACC)
    if SUM_ == LOGSUMEXP:
        out = _row(out_ptr, dst, c, mask, C, ACC)
        return tl.where(am == -float("inf"), 0.0, a * grad * tl.exp(am - out))
    if SUM_ == PNA:
        grad += (m - _row(out_ptr, dst, c, mask, C, ACC)) * _row(spread_ptr, dst, c, mask, C, ACC)
        top = mask & (_row(first_hi_ptr, dst, c, mask, C, tl.int32) == e[:, None])
        grad += tl.where(top, _row(hi_ptr, dst, c, top, C, ACC), 0.0)
        bottom = mask & (_row(first_lo_ptr, dst, c, mask, C, tl.int32) == e[:, None])
        grad += tl.where(bottom, _row(lo_ptr, dst, c, bottom, C, ACC), 0.0)
    return a * grad


@triton.jit
def gather_grad(
    x_ptr, relation_ptr, weight_ptr, result_ptr, start_ptr, position_ptr, dst_ptr, src_ptr, rel_ptr, eid_ptr, C, d,
    grad_ptr, out_ptr, hi_ptr, lo_ptr, first_hi_ptr, first_lo_ptr, spread_ptr,
    OF_RELATION: tl.constexpr, SUM_: tl.constexpr, MUL_: tl.constexpr, SHARED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of one operand, summed over the edges position[start[i]:start[i + 1]]; grid (rows, column blocks).

    The edges of a row share its source (gradient of the input) or its relation (of the relation table).
    """
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = c < C
    begin = tl.load(start_ptr + i)
    end = tl.load(start_ptr + i + 1)
    total = tl.zeros([BLOCK], ACC)
    for start in range(begin, end, EDGES):
        k = start + tl.arange(0, EDGES)
        live = k < end
        mask = live[:, None] & columns[None, :]
        e = tl.load(position_ptr + k, mask=live, other=0)
        src = tl.load(src_ptr + e, mask=live, other=0)
        rel = tl.load(rel_ptr + e, mask=live, other=0)
        dst = tl.load(dst_ptr + e, mask=live, other=0)
        eid = tl.load(eid_ptr + e, mask=live, other=0)
        m = _message(x_ptr, relation_ptr, src, rel, c, mask, C, d, MUL_, SHARED, ACC)
        am, a = _weighted(m, weight_ptr, eid, live, HAS_WEIGHT, ACC)
        g = _message_grad(m, am, a, e, dst, c, mask, C, grad_ptr, out_ptr, hi_ptr, lo_ptr, first_hi_ptr, first_lo_ptr,
                          spread_ptr, SUM_, ACC)  # fmt: skip
        if MUL_ == ADD:
            part = g
        elif MUL_ == AND:
            part = tl.zeros_like(g)
        elif MUL_ == MIN_OF:
            x = _row(x_ptr, src, c, mask, C, ACC)
            r = _relation(relation_ptr, rel, c, mask, C, d, SHARED, ACC)
            if OF_RELATION:
                part = tl.where(x <= r, 0.0, g)
            else:
                part = tl.where(x <= r, g, 0.0)
        else:
            if OF_RELATION:
                other = _row(x_ptr, src, c, mask, C, ACC)
            else:
                other = _relation(relation_ptr, rel, c, mask, C, d, SHARED, ACC)
            if MUL_ == MUL:
                part = g * other
            else:
                p, real = _partner(c, d)
                if OF_RELATION:
                    other_p = _row(x_ptr, src, p, mask, C, ACC)
                else:
                    other_p = _relation(relation_ptr, rel, p, mask, C, d, SHARED, ACC)
                mp = _message(x_ptr, relation_ptr, src, rel, p, mask, C, d, MUL_, SHARED, ACC)
                amp, _ = _weighted(mp, weight_ptr, eid, live, HAS_WEIGHT, ACC)
                gp = _message_grad(mp, amp, a, e, dst, p, mask, C, grad_ptr, out_ptr, hi_ptr, lo_ptr, first_hi_ptr,
                                   first_lo_ptr, spread_ptr, SUM_, ACC)  # fmt: skip
                part = tl.where(real[None, :], g * other + gp * other_p, g * other_p - gp * other)
        total += tl.sum(tl.where(mask, part, 0.0), 0)
    tl.store(result_ptr + i * C + c, total, mask=columns)


@triton.jit
def weight_grad(
    x_ptr, relation_ptr, weight_ptr, result_ptr, dst_ptr, src_ptr, rel_ptr, eid_ptr, C, d, E,
    grad_ptr, out_ptr, hi_ptr, lo_ptr, first_hi_ptr, first_lo_ptr, spread_ptr,
    SUM_: tl.constexpr, MUL_: tl.constexpr, SHARED: tl.constexpr, ACC: tl.constexpr, EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """result[eid] = Σ over columns of d loss / d a; grid (edge blocks,)."""
    e = tl.program_id(0) * EDGES + tl.arange(0, EDGES)
    live = e < E
    src = tl.load(src_ptr + e, mask=live, other=0)
    rel = tl.load(rel_ptr + e, mask=live, other=0)
    dst = tl.load(dst_ptr + e, mask=live, other=0)
    eid = tl.load(eid_ptr + e, mask=live, other=0)
    total = tl.zeros([EDGES], ACC)
    for first in range(0, C, BLOCK):
        c = first + tl.arange(0, BLOCK)
        mask = live[:, None] & (c < C)[None, :]
        m = _message(x_ptr, relation_ptr, src, rel, c, mask, C, d, MUL_, SHARED, ACC)
        am, _ = _weighted(m, weight_ptr, eid, live, True, ACC)
        one = tl.full(m.shape, 1.0, ACC)
        g = _message_grad(m, am, one, e, dst, c, mask, C, grad_ptr, out_ptr, hi_ptr, lo_ptr, first_hi_ptr, first_lo_ptr,
                          spread_ptr, SUM_, ACC)  # fmt: skip
        if SUM_ == PNA:
            # The weight enters Q once: d(a m²) = 2 a m dm + m² da, half of what g counts.
            spread = _row(spread_ptr, dst, c, mask, C, ACC)
            g -= m * 0.5 * spread
        total += tl.sum(tl.where(mask, g * m, 0.0), 1)
    tl.store(result_ptr + eid, total, mask=live)
