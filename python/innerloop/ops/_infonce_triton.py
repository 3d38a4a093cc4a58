# SPDX-License-Identifier: Apache-2.0
"""Launches csrc/triton/infonce.py, on tensors of one CUDA device, or on the CPU in Triton's interpreter.

Memory beside arguments and results, in numbers of the accumulator's type: forward 2 for each column and panel, of which
there are at most _PANELS, and 2 for each row and run of columns, of which there are at most 7 above 8,192 rows of half
types, and _PROGRAMS / panels below; counts add a half. Backward a matrix like each gradient, one after the other; where
rows are few one for each run, together at most _PROGRAMS tiles of rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton import infonce as kernels
from ._infonce_common import LSE, MEMORY_BUDGET, accumulator, empty_results, inverse_norms, rows_of

__all__ = ["backward", "forward", "mean"]

_PROGRAMS = 256  # wanted at least: where tiles of rows are few, runs of columns go to several programs
_PANELS = 64  # of rows, at most: each has sums of all columns
_SIZE = 128  # sums that one program merges
_LARGEST = 2.0**14  # of a direction's G as a factor in float16


class _Side(NamedTuple):
    """What kernels read of q, or of k; a pointer that they never follow where there is nothing."""

    data: Tensor
    inverse: Tensor
    labels: Tensor
    limit: Tensor


class _Call:
    """Operands of both passes as the kernels take them; `scale` is a 0-d tensor."""

    def __init__(
        self, q, k, inverse_q, inverse_k, scale, bias, targets, labels_q, labels_k, limit_q, limit_k, kind,
        skip_diagonal, upper, columns,
    ) -> None:  # fmt: skip
        self.acc, self.columns = accumulator(q.dtype), columns
        self.inverse_q, self.inverse_k = inverse_q, inverse_k
        self.scale = scale.to(self.acc)
        self.bias = self.scale if bias is None else bias.to(self.acc)
        none = torch.full((len(q),), -1, device=q.device)
        self.targets = none if targets is None else targets.contiguous()
        normalized = inverse_q is not None or inverse_k is not None
        self.q = _side(q, inverse_q, labels_q, limit_q, normalized)
        self.k = _side(k, inverse_k, labels_k, limit_k, normalized)
        dim, size = q.shape[1], q.element_size()
        self.width = min(max(16, triton.next_power_of_2(dim)), 1024 // size)
        self.configs = kernels.CONFIGS[self.width, size]
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"  # allow_tf32, which raises beside the newer name
        # Fusion is Triton's default until 3.10, and unsaid it warns.
        self.shape = {
            "ACC": tl.float64 if self.acc == torch.float64 else tl.float32,
            "DIM": dim,
            "enable_fp_fusion": True,
        }
        self.products = {
            "KIND": kind,
            "NORMALIZED": normalized,
            "LABELS": labels_q is not None,
            "LIMITS": limit_q is not None,
            "SKIP_DIAGONAL": skip_diagonal,
            "UPPER": upper,
            "COLUMN_SUMS": columns,
            "PRECISION": "tf32" if tf32 else "ieee",
            **self.shape,
        }
        whole = max(16, triton.next_power_of_2(dim))
        self.whole = {"WIDTH": whole, "ROWS": max(1, 2048 // whole), **self.shape}

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.acc, device=self.scale.device)


def _side(data: Tensor, inverse: Tensor | None, labels: Tensor | None, limit: Tensor | None, normalized: bool) -> _Side:
    if normalized and inverse is None:
        inverse = torch.ones(len(data), dtype=accumulator(data.dtype), device=data.device)
    if normalized and data.dtype == torch.float16:
        # A row of zeros adds nothing, but its inverse norm leaves the range of G.
        inverse = inverse.masked_fill(inverse >= 1e12, 0)
    return _Side(rows_of(data), *(data if t is None else t.contiguous() for t in (inverse, labels, limit)))


def _runs(programs: int, size: int, tile: int) -> tuple[int, int]:
    """So many runs of a walk over `size` rows, each a program beside `programs` others, and the rows of one."""
    tiles = triton.cdiv(size, tile)
    if tiles == 0:
        return 0, tile
    run = triton.cdiv(tiles, max(1, _PROGRAMS // programs))
    return triton.cdiv(tiles, run), run * tile


def forward(
    q, k, inverse_q, inverse_k, log_scale, bias, targets, labels_q, labels_k, limit_q, limit_k, kind, skip_diagonal,
    upper, columns, counts, keep_scores,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The op `innerloop::infonce`."""
    with torch.cuda.device_of(q):
        call = _Call(
            q, k, inverse_q, inverse_k, log_scale.double().exp(), bias, targets, labels_q, labels_k, limit_q, limit_k,
            kind, skip_diagonal, upper, columns,
        )  # fmt: skip
        return _forward(call, counts, keep_scores)


def _forward(call: _Call, counts: bool, keep_scores: bool) -> tuple[Tensor, ...]:
    q, k = call.q.data, call.k.data
    B, N = len(q), len(k)
    results = empty_results(q, k, call.columns, counts, keep_scores)
    positive, row, column, row_count, column_count, scores = results
    if B:
        kernels.positives[(triton.cdiv(B, call.whole["ROWS"]),)](
            q, call.q.inverse, k, call.k.inverse, call.targets, positive, q.stride(0), k.stride(0), B,
            NORMALIZED=call.products["NORMALIZED"], **call.whole,
        )  # fmt: skip
    rows, tile, chunk, warps, stages = call.configs["forward"]
    panel = triton.cdiv(triton.cdiv(B, rows), _PANELS) * rows if call.columns and B else rows
    panels = triton.cdiv(B, panel)
    runs, run = _runs(max(panels, 1), N, tile)
    row_parts = [call.empty(runs, B), call.empty(runs, B)]
    shape = (panels, N) if call.columns else (0, 0)
    column_parts = [call.empty(*shape).fill_(-torch.inf), call.empty(*shape).zero_()]
    row_counts, column_counts = (
        torch.zeros(shape if counts else 0, dtype=torch.int32, device=q.device) for shape in ((runs, B), shape)
    )
    if panels and runs:
        kernels.forward[(panels, runs)](
            *call.q, *call.k, call.targets, call.scale, call.bias, scores, *row_parts, row_counts, *column_parts,
            column_counts, q.stride(0), k.stride(0), B, N, panel, run, COUNTS=counts, KEEP=keep_scores, ROWS=rows,
            COLUMNS=tile, CHUNK=chunk, num_warps=warps, num_stages=stages, **call.products,
        )  # fmt: skip
    for parts, part_counts, total, count in (
        (row_parts, row_counts, row, row_count),
        (column_parts, column_counts, column, column_count),
    ):
        if len(total):
            kernels.merge[(triton.cdiv(len(total), _SIZE),)](
                *parts, part_counts, total, count, len(total), len(parts[0]), KIND=call.products["KIND"], COUNTS=counts,
                ACC=call.products["ACC"], SIZE=_SIZE, enable_fp_fusion=True,
            )  # fmt: skip
    return results


class _Backward:
    """What both gradients are made of; grad_column is None where nothing comes from the columns."""

    def __init__(self, call: _Call, grad_positive, grad_row, grad_column, row, column, scores) -> None:
        self.call, self.scores, self.both = call, scores, grad_column is not None
        grad_row = grad_row.contiguous()
        grad_column = grad_column.contiguous() if self.both else grad_row
        self.q, self.k = (*call.q, row, grad_row), (*call.k, column, grad_column)
        # Of the product of each row and its target, whose similarity has the norms.
        target = call.targets.clamp(min=0)
        if call.inverse_q is not None:
            grad_positive = grad_positive * call.inverse_q
        if call.inverse_k is not None and len(call.inverse_k):
            grad_positive = grad_positive * call.inverse_k[target]
        self.pair_grad = grad_positive.masked_fill(call.targets < 0, 0)

    def gradient(self, of_k: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of q or k; of q also Σ_c gradient · q of each row, and Σ_j G_ij."""
        call = self.call
        (x, *_), (y, *_) = (self.k, self.q) if of_k else (self.q, self.k)
        grow = self._grow(of_k)
        factor = call.scale if grow is None else call.scale / grow
        parts, total = self._products(of_k, True, grow)
        grad = torch.empty(x.shape, dtype=dtype, device=x.device)
        dot = call.empty(0 if of_k else len(x))
        inverse = call.inverse_k if of_k else call.inverse_q
        pair = begin = call.targets
        if of_k:
            ordered, pair = call.targets.sort(stable=True)
            begin = torch.searchsorted(ordered, torch.arange(len(x) + 1, device=x.device), out_int32=True)
        if len(x):
            kernels.finish[(triton.cdiv(len(x), call.whole["ROWS"]),)](
                parts, x, x if inverse is None else inverse.contiguous(), y, self.pair_grad, pair, begin, factor, grad,
                dot, x.stride(0), y.stride(0), len(x), len(parts), OF_K=of_k, NORMALIZED=inverse is not None,
                **call.whole,
            )  # fmt: skip
        return grad, dot, total

    def total(self) -> Tensor:
        """Σ_j G_ij alone."""
        return self._products(False, False, None)[1]

    def _products(self, of_k: bool, product: bool, grow: Tensor | None) -> tuple[Tensor, Tensor]:
        call = self.call
        x, y = (self.k, self.q) if of_k else (self.q, self.k)
        rows, tile, chunk, warps, stages = call.configs["grad"]
        (num_x, dim), num_y = x[0].shape, len(y[0])
        slices = max(1, triton.cdiv(dim, call.width)) if product else 1
        tiles = triton.cdiv(num_x, rows)
        runs, run = _runs(max(1, tiles * slices), num_y, tile)
        parts = call.empty(runs, num_x, dim if product else 0)
        total = call.empty(runs, 0 if of_k else num_x)
        if tiles and runs:
            kernels.grad[(tiles, slices, runs)](
                *x, *y, call.targets, call.scale, call.bias, self.scores, call.scale if grow is None else grow, parts,
                total, x[0].stride(0), y[0].stride(0), num_x, num_y, run, OF_K=of_k, PRODUCT=product,
                KEPT=self.scores.numel() > 0, GROW=grow is not None, WIDTH=call.width, X=rows, Y=tile, CHUNK=chunk,
                num_warps=warps, num_stages=stages, **call.products | {"COLUMN_SUMS": self.both},
            )  # fmt: skip
        return parts, total.sum(0)

    def _grow(self, of_k: bool) -> Tensor | None:
        """What brings G, times the norms, to the range of float16: gradients of a mean over many rows are below it."""
        _, other = (self.k, self.q) if of_k else (self.q, self.k)
        if other[0].dtype != torch.float16 or not len(other[0]):
            return None
        largest = self.q[-1].abs().amax()
        if self.both:
            largest = torch.maximum(largest, self.k[-1].abs().amax())
        if self.call.products["NORMALIZED"]:
            largest = largest * other[1].amax()
        return _LARGEST / largest.clamp(min=1e-30)


def backward(
    grad_positive, grad_row, grad_column, positive, row, column, scores, q, k, inverse_q, inverse_k, log_scale, bias,
    targets, labels_q, labels_k, limit_q, limit_k, kind, skip_diagonal, upper, columns, want_q, want_k,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The op `innerloop::infonce_backward`."""
    with torch.cuda.device_of(q):
        call = _Call(
            q, k, inverse_q, inverse_k, log_scale.double().exp(), bias, targets, labels_q, labels_k, limit_q, limit_k,
            kind, skip_diagonal, upper, columns,
        )  # fmt: skip
        back = _Backward(call, grad_positive, grad_row, grad_column if columns else None, row, column, scores)
        if want_q:
            grad_q, dot, total = back.gradient(False, q.dtype)
        else:
            grad_q, dot, total = q.new_empty(0, 0), call.empty(0), back.total()
        grad_k = back.gradient(True, k.dtype)[0] if want_k else k.new_empty(0, 0)
    return grad_q, grad_k, dot, total


def mean(
    q, k, log_scale, targets, labels_q, labels_k, scale, normalize, skip_diagonal, symmetric, want_q, want_k
) -> tuple[Tensor, Tensor, Tensor]:
    """The op `innerloop::infonce_mean`, of the other two's kernels."""
    with torch.cuda.device_of(q):
        scale = torch.full((), scale, dtype=torch.float64, device=q.device)
        if log_scale is not None:
            scale = scale * log_scale.double().exp()
        if targets is None:
            targets = torch.arange(len(q), device=q.device)
        inverse = (inverse_norms(q), inverse_norms(k)) if normalize else (None, None)
        call = _Call(
            q, k, *inverse, scale, None, targets, labels_q, labels_k, None, None, LSE, skip_diagonal, False, symmetric
        )
        want = want_q or want_k
        keep = want and len(q) * len(k) * call.acc.itemsize <= MEMORY_BUDGET
        positive, row, column, _, _, scores = _forward(call, False, keep)
        weight = (0.5 if symmetric else 1.0) / max(len(q), 1)
        s = positive.double() * scale
        loss, grad_row, grad_s = _direction(row, s, weight)
        grad_column = None
        if symmetric:
            of_columns, grad, more = _direction(column[targets], s, weight)
            loss, grad_s = loss + of_columns, grad_s + more
            grad_column = torch.zeros_like(column).scatter(0, targets, grad.to(call.acc))
        grad_scale, grad_q, grad_k = torch.zeros_like(loss), call.empty(0), call.empty(0)
        if want:
            grads = (grad_s * scale).to(call.acc), grad_row.to(call.acc), grad_column
            back = _Backward(call, *grads, row, column, scores)
            if want_q:
                grad_q, dot, _ = back.gradient(False, call.acc)
                grad_scale = dot.double().sum()
            if want_k:
                grad_k, _, _ = back.gradient(True, call.acc)
    return torch.stack([loss, grad_scale]).to(call.acc), grad_q, grad_k


def _direction(negatives: Tensor, s: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Σ weight · (log(e^negatives + e^s) - s), and its derivatives by `negatives` and `s`, in float64."""
    negatives = negatives.double()
    lse = torch.logaddexp(negatives, s)
    return weight * (lse - s).sum(), weight * (negatives - lse).exp(), weight * (s - lse).expm1()
