# SPDX-License-Identifier: Apache-2.0
"""The ops behind the contrastive losses: sums over the scores of all pairs, and plain InfoNCE with its gradients."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _cpu
from ._infonce_common import LSE, MEMORY_BUDGET, accumulator, empty_results, rows_of
from ._registry import apply, define, last_derivative, wants_grad
from .relational_spmm import loop_over_batch

__all__ = ["Sums", "backward_op", "fits", "forward_op", "mean_loss", "sums_of"]

_CHUNK = 48  # least rows whose scores csrc/cpu/infonce.cpp keeps in one direction


class Sums(NamedTuple):
    positive: Tensor
    """(B,): similarity of each row and its target; 0 where there is none."""
    row: Tensor
    """(B,): lse of the visible scores of each row, bias not included; or Σ softplus."""
    column: Tensor
    """(N,), or empty."""
    row_count: Tensor
    """int64 (B,): visible scores, or empty."""
    column_count: Tensor
    scores: Tensor
    """(B, N), or empty: kept for the backward pass."""


_ARGS = (
    "Tensor q, Tensor k, Tensor? inverse_q, Tensor? inverse_k, Tensor log_scale, Tensor? bias, Tensor? targets, "
    "Tensor? labels_q, Tensor? labels_k, Tensor? limit_q, Tensor? limit_k, int kind, bool skip_diagonal, bool upper, "
    "bool columns"
)
forward_op = define(
    f"infonce({_ARGS}, bool counts, bool keep_scores) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
backward_op = define(
    "infonce_backward(Tensor grad_positive, Tensor grad_row, Tensor? grad_column, Tensor positive, Tensor row, "
    f"Tensor column, Tensor scores, {_ARGS}, bool want_q, bool want_k) -> (Tensor, Tensor, Tensor, Tensor)"
)


def sums_of(
    q, k, inverse, log_scale, *, bias=None, targets=None, labels=(None, None), limits=(None, None), skip_diagonal=False,
    upper=False, columns=False, counts=False, budget=MEMORY_BUDGET, kind=LSE,
) -> Sums:  # fmt: skip
    grad = wants_grad(q, k, log_scale, bias)
    keep = grad and q.shape[0] * k.shape[0] * accumulator(q.dtype).itemsize <= budget
    options = (*inverse, log_scale, bias, targets, *labels, *limits, kind, skip_diagonal, upper, columns, counts, keep)
    if not grad:
        return Sums(*forward_op(q, k, *options))
    if torch.compiler.is_compiling():  # Dynamo refuses one tensor in two places of a Function
        k = k.view_as(k)
        inverse_k = None if inverse[1] is None else inverse[1].view_as(inverse[1])
        labels_k = None if labels[1] is None else labels[1].view_as(labels[1])
        options = (inverse[0], inverse_k, log_scale, bias, targets, labels[0], labels_k, *options[7:])
    return Sums(*apply(_Infonce, q, k, *options))


def _operands(q, k, inverse_q, inverse_k, log_scale, bias, targets, labels_q, labels_k, limit_q, limit_k, kind,
              skip_diagonal, upper, columns) -> tuple:  # fmt: skip
    vectors = (None if t is None else t.contiguous() for t in (inverse_q, inverse_k, targets, labels_q, labels_k))
    limits = (None if t is None else t.contiguous() for t in (limit_q, limit_k))
    return (
        rows_of(q), rows_of(k), *vectors, *limits, math.exp(float(log_scale)), 0.0 if bias is None else float(bias),
        kind, skip_diagonal, upper, columns, torch.get_num_threads(),
    )  # fmt: skip


def _or_none(t: Tensor, there: bool) -> Tensor | None:
    return t if there else None


@forward_op.cpu
def _(q, k, *args):
    *rest, columns, counts, keep_scores = args
    positive, row, column, row_count, column_count, scores = results = empty_results(q, k, columns, counts, keep_scores)
    _cpu.infonce(
        positive, row, _or_none(column, columns), _or_none(row_count, counts),
        _or_none(column_count, counts and columns), _or_none(scores, keep_scores), *_operands(q, k, *rest, columns),
    )  # fmt: skip
    return results


@forward_op.cuda
def _(*args):
    from . import _infonce_triton as gpu

    return gpu.forward(*args)


@forward_op.fake
def _(q, k, *args):
    return empty_results(q, k, *args[-3:])


def _empty_gradients(q, k, want_q, want_k) -> tuple[Tensor, ...]:
    acc = accumulator(q.dtype)
    grad_q = torch.empty(q.shape if want_q else (0, 0), dtype=acc, device=q.device)
    grad_k = torch.zeros(k.shape if want_k else (0, 0), dtype=acc, device=q.device)
    dot = torch.empty(q.shape[0] if want_q else 0, dtype=acc, device=q.device)
    return grad_q, grad_k, dot, torch.empty(q.shape[0], dtype=acc, device=q.device)


@backward_op.cpu
def _(grad_positive, grad_row, grad_column, positive, row, column, scores, q, k, *args):
    *rest, columns, want_q, want_k = args
    grad_q, grad_k, dot, total = _empty_gradients(q, k, want_q, want_k)
    _cpu.infonce_backward(
        _or_none(grad_q, want_q), _or_none(grad_k, want_k), _or_none(dot, want_q), total, grad_positive.contiguous(),
        grad_row.contiguous(), grad_column.contiguous() if columns and grad_column is not None else None, positive, row,
        _or_none(column, columns), _or_none(scores, scores.numel() > 0), *_operands(q, k, *rest, columns),
    )  # fmt: skip
    return grad_q.to(q.dtype), grad_k.to(k.dtype), dot, total


@backward_op.cuda
def _(*args):
    from . import _infonce_triton as gpu

    return gpu.backward(*args)


@backward_op.vmap
def _(info, in_dims, *args):
    return loop_over_batch(backward_op, info, in_dims, args)


@backward_op.fake
def _(grad_positive, grad_row, grad_column, positive, row, column, scores, q, k, *args):
    grad_q, grad_k, dot, total = _empty_gradients(q, k, *args[-2:])
    return grad_q.to(q.dtype), grad_k.to(k.dtype), dot, total


class _Infonce(torch.autograd.Function):
    @staticmethod
    def forward(*args):
        return forward_op(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        tensors, ctx.flags = inputs[:11], inputs[11:15]
        positive, row, column, row_count, column_count, scores = output
        ctx.mark_non_differentiable(row_count, column_count, scores)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, positive, row, column, scores)

    @staticmethod
    def backward(ctx, grad_positive, grad_row, grad_column, *_):
        *tensors, positive, row, column, scores = ctx.saved_tensors
        grad_positive, grad_row = (torch.zeros_like(row) if g is None else g for g in (grad_positive, grad_row))
        needs = ctx.needs_input_grad
        # An empty row has no gradient whatever comes from above: -inf meets no number there.
        if ctx.flags[0] == LSE:
            grad_row = grad_row.masked_fill(row == -math.inf, 0)
            grad_column = None if grad_column is None else grad_column.masked_fill(column == -math.inf, 0)
        backward = _InfonceBackward.apply if torch.is_grad_enabled() else backward_op
        grad_q, grad_k, dot, total = backward(
            grad_positive, grad_row, grad_column, positive, row, column, scores, *tensors, *ctx.flags,
            needs[0] or needs[4], needs[1],
        )  # fmt: skip
        log_scale, bias = tensors[4:6]
        grad_scale = grad_bias = None
        if needs[4]:
            grad_scale = (dot.double() - grad_positive.double() * positive.double()).sum().to(log_scale.dtype)
        if bias is not None and needs[5]:
            grad_bias = total.double().sum().to(bias.dtype)
        return (
            grad_q if needs[0] else None, grad_k if needs[1] else None, None, None, grad_scale, grad_bias, *(None,) * 11
        )  # fmt: skip

    @staticmethod
    def vmap(info, in_dims, *args):
        return loop_over_batch(_Infonce.apply, info, in_dims, args)


def _backward_vmap(info, in_dims, *args):
    return loop_over_batch(_InfonceBackward.apply, info, in_dims, args)


_InfonceBackward = last_derivative("infonce", backward_op, _backward_vmap)


# ---- the mean loss and its gradients in one go ----

_mean_forward = define(
    "infonce_mean(Tensor q, Tensor k, Tensor? log_scale, Tensor? targets, Tensor? labels_q, Tensor? labels_k, "
    "float scale, bool normalize, bool skip_diagonal, bool symmetric, bool want_q, bool want_k) "
    "-> (Tensor, Tensor, Tensor)"
)


def fits(q: Tensor, k: Tensor, log_scale: Tensor | None, symmetric: bool, budget: int) -> bool:
    """Whether the scores that gradients need at a time may be there: all for both directions, else those of a chunk."""
    rows = q.shape[0] if symmetric else min(q.shape[0], _CHUNK)
    return not wants_grad(q, k, log_scale) or rows * k.shape[0] * accumulator(q.dtype).itemsize <= budget


def mean_loss(
    q, k, log_scale, scale: float, targets, labels, normalize: bool, symmetric: bool, skip_diagonal: bool = False
) -> Tensor:
    """The scale is `scale` times e^log_scale, a 0-d tensor or None."""
    want_q, want_k = wants_grad(q, log_scale), wants_grad(k)
    options = (log_scale, targets, *labels, scale, normalize, skip_diagonal, symmetric, want_q, want_k)
    if not (want_q or want_k):
        return _mean_forward(q, k, *options)[0][0]
    if torch.compiler.is_compiling():  # Dynamo refuses one tensor in two places of a Function
        k, labels_k = k.view_as(k), None if labels[1] is None else labels[1].view_as(labels[1])
        options = (log_scale, targets, labels[0], labels_k, *options[4:])
    return apply(_InfonceMean, q, k, *options)[0]


def _empty_mean(q, k, want_q, want_k) -> tuple[Tensor, ...]:
    acc = accumulator(q.dtype)
    return (
        torch.empty(2, dtype=acc, device=q.device),
        torch.empty(q.shape if want_q else 0, dtype=acc, device=q.device),
        torch.empty(k.shape if want_k else 0, dtype=acc, device=q.device),
    )


@_mean_forward.cpu
def _(q, k, log_scale, targets, labels_q, labels_k, scale, normalize, skip_diagonal, symmetric, want_q, want_k):
    sums, grad_q, grad_k = results = _empty_mean(q, k, want_q, want_k)
    vectors = (None if t is None else t.contiguous() for t in (targets, labels_q, labels_k))
    scale = scale if log_scale is None else scale * math.exp(float(log_scale))
    _cpu.infonce_mean(
        sums, _or_none(grad_q, want_q), _or_none(grad_k, want_k), rows_of(q), rows_of(k), *vectors, scale, normalize,
        skip_diagonal, *((0.5, 0.5) if symmetric else (1.0, 0.0)), want_q or want_k, torch.get_num_threads(),
    )  # fmt: skip
    return results


@_mean_forward.cuda
def _(*args):
    from . import _infonce_triton as gpu

    return gpu.mean(*args)


@_mean_forward.fake
def _(q, k, log_scale, targets, labels_q, labels_k, scale, normalize, skip_diagonal, symmetric, want_q, want_k):
    return _empty_mean(q, k, want_q, want_k)


class _InfonceMean(torch.autograd.Function):
    @staticmethod
    def forward(*args):
        sums, grad_q, grad_k = _mean_forward(*args)
        return *sums.unbind(), grad_q, grad_k

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, grad_scale, grad_q, grad_k = output
        ctx.mark_non_differentiable(grad_scale, grad_q, grad_k)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:3], grad_q, grad_k, grad_scale)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        if grad_loss is None:
            return (None,) * 12
        # With what the gradients belong to, so that a second derivative arrives at the node and raises.
        scaled = _Scaled.apply if torch.is_grad_enabled() else _scaled
        return *scaled(ctx.needs_input_grad, grad_loss, *ctx.saved_tensors), *(None,) * 9

    @staticmethod
    def vmap(info, in_dims, *args):
        return loop_over_batch(_InfonceMean.apply, info, in_dims, args)


def _scaled(needed: tuple[bool, ...], factor: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The needed gradients times `factor`, in the dtypes of what they belong to."""
    return tuple((factor * tensors[3 + i]).to(tensors[i].dtype) if needed[i] else None for i in range(3))


def _scaled_vmap(info, in_dims, *args):
    return loop_over_batch(_Scaled.apply, info, in_dims, args)


_Scaled = last_derivative("infonce", _scaled, _scaled_vmap)
