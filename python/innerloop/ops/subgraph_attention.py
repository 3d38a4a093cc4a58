# SPDX-License-Identifier: Apache-2.0
"""subgraph_attention: the attention of MA-GCNN between the subgraphs of a graph, without the matrix of scores."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import _cpu
from ..reference.subgraph_attention import subgraph_attention as _reference
from ._registry import apply, define, last_derivative, wants_grad, warn_no_kernel
from .relational_spmm import loop_over_batch

__all__ = ["subgraph_attention"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def subgraph_attention(
    v: Tensor,
    e: Tensor,
    g: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["elu", "none"] = "elu",
    valid: Tensor | None = None,
) -> Tensor:
    """Attention whose score is the ReLU of a term of the query plus a term of the key.

    out_i = ELU(Σ_j softmax_j(ReLU(e_i + g_j)) v_j + bias)

    With the keys sorted by g, those that the ReLU cuts off are a prefix, and for the others exp(e_i + g_j) factors.
    Sums over prefixes and suffixes replace the N × N scores: O(N log N + N D) operations and O(N D) memory a head.

    Args:
        v: (B, H, N, D), values. float32, float64, bfloat16 or float16; half types are summed in float32.
        e, g: (B, H, N), the terms of the queries and of the keys, of v's dtype.
        bias: (H, D), of v's dtype.
        activation: "elu", or "none" for what ELU is applied to.
        valid: bool (B, N), False for nodes that take no part. Their rows of the result are 0, and whatever the others
            hold for them is not read. Without, all take part, padding too, as in the released code of MA-GCNN.

    Returns:
        (B, H, N, D). Where heads lie between nodes and channels in v's memory, (B, N, H, D), they do here too. A row
        with a score that is NaN or +inf is NaN.

    Gradients:
        For v, e, g and bias; a score of exactly 0 passes none on, like torch's ReLU. A second derivative raises.
        `torch.func.vmap` folds the mapped dimension into the heads; over `valid` it makes one call for each sample.

    Raises:
        TypeError: an argument that is no tensor, or an integer dtype.
        ValueError: shapes, dtypes, devices or a name that do not fit; the message names the argument.

    Source: Peng et al., Motif-Matching Based Subgraph-Level Attentional Convolutional Network for Graph Classification
        (AAAI 2020; arXiv 1811.08270), and its released code.
    """
    _check(v, e, g, bias, activation, valid)
    if not v.is_cpu and v.device.type != "meta":
        warn_no_kernel("subgraph_attention", v.device.type)
        return _reference(v, e, g, bias, activation=activation, valid=valid)
    args = (v, e, g, bias, valid, activation == "elu")
    return apply(_SubgraphAttention, *args) if wants_grad(v, e, g, bias) else _forward(*args)


def _check(v, e, g, bias, activation, valid) -> None:
    op = "subgraph_attention"
    if activation not in ("elu", "none"):
        raise ValueError(f"{op}: activation is {activation!r}, expected one of elu, none")
    for name, t in (("v", v), ("e", e), ("g", g), ("bias", bias), ("valid", valid)):
        if not isinstance(t, Tensor) and not (t is None and name in ("bias", "valid")):
            raise TypeError(f"{op}: {name} is {type(t).__name__}, expected a tensor")
    if v.dtype not in _DTYPES:
        raise TypeError(f"{op}: v has dtype {v.dtype}, expected float32, float64, bfloat16 or float16")
    if v.dim() != 4:
        raise ValueError(f"{op}: v has shape {tuple(v.shape)}, expected (B, H, N, D)")
    batch, heads, nodes, dim = v.shape
    rows = (batch, heads, nodes)
    for name, t, shape in (("e", e, rows), ("g", g, rows), ("bias", bias, (heads, dim))):
        if t is None:
            continue
        if tuple(t.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {tuple(t.shape)}, expected {shape}")
        if t.dtype != v.dtype or t.device != v.device:
            raise ValueError(f"{op}: {name} is {t.dtype} on {t.device}, expected {v.dtype} on {v.device} like v")
    if valid is None:
        return
    if valid.dtype != torch.bool or tuple(valid.shape) != (batch, nodes):
        raise ValueError(
            f"{op}: valid is {valid.dtype} of shape {tuple(valid.shape)}, expected torch.bool of shape {(batch, nodes)}"
        )
    if valid.device != v.device:
        raise ValueError(f"{op}: valid is on {valid.device}, expected {v.device} like v")


_ARGS = "Tensor v, Tensor e, Tensor g, Tensor? bias, Tensor? valid, bool elu"
_forward = define(f"subgraph_attention({_ARGS}) -> Tensor")
_backward = define(f"subgraph_attention_backward(Tensor grad_out, {_ARGS}) -> (Tensor, Tensor, Tensor, Tensor)")


def _operands(v, e, g, bias, valid, elu):
    e, g, bias, valid = (None if t is None else t.contiguous() for t in (e, g, bias, valid))
    return _neighbours(v), e, g, bias, valid, elu, torch.get_num_threads()


def _neighbours(t: Tensor) -> Tensor:
    return t if t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


def _like(v: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, N, D), with heads and nodes in v's order in memory."""
    batch, heads, nodes, dim = v.shape
    if v.stride(1) < v.stride(2):
        return v.new_empty((batch, nodes, heads, dim), dtype=dtype).transpose(1, 2)
    return v.new_empty(v.shape, dtype=dtype)


@_forward.cpu
def _(v, e, g, bias, valid, elu):
    out = _like(v, v.dtype)
    _cpu.subgraph_attention(out, *_operands(v, e, g, bias, valid, elu))
    return out


@_forward.fake
def _(v, e, g, bias, valid, elu):
    return _like(v, v.dtype)


@_backward.cpu
def _(grad_out, v, e, g, bias, valid, elu):
    acc = torch.float64 if v.dtype == torch.float64 else torch.float32
    grad_v, grad_e, grad_g = _like(v, acc), v.new_empty(e.shape, dtype=acc), v.new_empty(g.shape, dtype=acc)
    grad_bias = None if bias is None else v.new_empty((len(v), *bias.shape), dtype=acc)
    _cpu.subgraph_attention_backward(
        grad_v, grad_e, grad_g, grad_bias, _neighbours(grad_out), *_operands(v, e, g, bias, valid, elu)
    )
    grad_bias = v.new_empty(0) if bias is None else grad_bias.sum(0)
    return grad_v.to(v.dtype), grad_e.to(v.dtype), grad_g.to(v.dtype), grad_bias.to(v.dtype)


@_backward.fake
def _(grad_out, v, e, g, bias, valid, elu):
    grad_bias = v.new_empty(0 if bias is None else bias.shape)
    return _like(v, v.dtype), v.new_empty(e.shape), v.new_empty(g.shape), grad_bias


# ---- batching: a vmapped dimension of size n is folded into the heads, (B, H, ...) -> (B, n·H, ...) ----


def _fold(t: Tensor | None, dim: int | None, n: int, heads: int) -> Tensor | None:
    """Dimension `dim` (None: the same for all) moved before the heads, which are dimension `heads` of a sample."""
    if t is None:
        return None
    t = t.unsqueeze(heads).expand(*t.shape[:heads], n, *t.shape[heads:]) if dim is None else t.movedim(dim, heads)
    return t.flatten(heads, heads + 1)


def _fold_forward(op, info, in_dims, v, e, g, bias, valid, elu):
    if in_dims[4] is not None:
        return loop_over_batch(op, info, in_dims, (v, e, g, bias, valid, elu))
    n = info.batch_size
    v, e, g = (_fold(t, dim, n, 1) for t, dim in zip((v, e, g), in_dims, strict=False))
    return op(v, e, g, _fold(bias, in_dims[3], n, 0), valid, elu).unflatten(1, (n, -1)), 1


def _fold_backward(op, info, in_dims, grad_out, v, e, g, bias, valid, elu):
    if in_dims[5] is not None:
        return loop_over_batch(op, info, in_dims, (grad_out, v, e, g, bias, valid, elu))
    n = info.batch_size
    grad_out, v, e, g = (_fold(t, dim, n, 1) for t, dim in zip((grad_out, v, e, g), in_dims, strict=False))
    *grads, grad_bias = op(grad_out, v, e, g, _fold(bias, in_dims[4], n, 0), valid, elu)
    grad_bias = grad_bias.expand(n, 0) if bias is None else grad_bias.unflatten(0, (n, -1))
    return (*(grad.unflatten(1, (n, -1)) for grad in grads), grad_bias), (1, 1, 1, 0)


@_forward.vmap
def _(info, in_dims, *args):
    return _fold_forward(_forward, info, in_dims, *args)


@_backward.vmap
def _(info, in_dims, *args):
    return _fold_backward(_backward, info, in_dims, *args)


# ---- differentiation ----


class _SubgraphAttention(torch.autograd.Function):
    @staticmethod
    def forward(v, e, g, bias, valid, elu):
        return _forward(v, e, g, bias, valid, elu)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.elu = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad_out):
        backward = _SubgraphAttentionBackward.apply if torch.is_grad_enabled() else _backward
        grads = backward(grad_out, *ctx.saved_tensors, ctx.elu)
        wanted = zip(grads, ctx.needs_input_grad, strict=False)
        return (*(grad if needed else None for grad, needed in wanted), None, None)

    @staticmethod
    def vmap(info, in_dims, *args):
        return _fold_forward(_SubgraphAttention.apply, info, in_dims, *args)


def _backward_vmap(info, in_dims, *args):
    return _fold_backward(_SubgraphAttentionBackward.apply, info, in_dims, *args)


_SubgraphAttentionBackward = last_derivative("subgraph_attention", _backward, _backward_vmap)
