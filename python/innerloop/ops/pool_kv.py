# SPDX-License-Identifier: Apache-2.0
"""pool_kv: keys and values pooled along the sequence, the second level of Poolingformer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import _cpu
from ..reference.pool_kv import pool_kv as _reference
from ._registry import apply, define, last_derivative, wants_grad, warn_no_kernel
from .band_attention import _check as _check_attention
from .band_attention import _check_bias, attend, band
from .relational_spmm import loop_over_batch

__all__ = ["pool_kv", "pooled_valid", "pooling_attention"]

MODES = {"mean": 0, "max": 1, "ldconv": 2}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Mode = Literal["mean", "max", "ldconv"]


def pool_kv(
    k: Tensor,
    v: Tensor,
    *,
    kernel: int,
    stride: int,
    mode: Mode = "ldconv",
    weight_k: Tensor | None = None,
    weight_v: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Keys and values pooled over windows of `kernel` tokens, `stride` apart.

    Entry m pools the tokens t_u = m·stride - max(0, (kernel - stride) // 2) + u, u in [0, kernel). Those beyond the
    sequence or on padding take no part.

    | mode | entry m |
    |---|---|
    | "mean" | mean of x[t_u] |
    | "max" | maximum by channel; its gradient goes to the first token that attains it |
    | "ldconv" | Σ_u δ_u x[t_u], δ = softmax_u(weight[u] · x[c]) |

    c is the middle token, u = ⌊kernel / 2⌋, or where that takes no part the last before it that does, else the first
    behind it.

    Args:
        k, v: (B, H, L, D). float32, float64, bfloat16 or float16.
        kernel, stride: κ and ξ, at least 1.
        mode: see above.
        weight_k, weight_v: (kernel, D) shared by the heads, or (H, kernel, D); for "ldconv" only.
        valid: bool (B, L), False for padding.

    Returns:
        Two tensors (B, H, ⌈L / stride⌉, D). An entry without any token is 0, see :func:`pooled_valid`.

    Gradients:
        For k, v and the weights. A second derivative raises. `torch.func.vmap` makes one call for each sample.

    Raises:
        TypeError: an argument that is no tensor, or an integer dtype. ValueError: shapes, dtypes or numbers that do not
            fit; the message names the argument.

    Source: Zhang et al., Poolingformer (ICML 2021), section 3.2; Wu et al., dynamic convolutions (2019).
    """
    if mode not in MODES:
        raise ValueError(f"pool_kv: mode is {mode!r}, expected one of {', '.join(MODES)}")
    for name, value in (("kernel", kernel), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"pool_kv: {name} is {value!r}, expected an int of at least 1")
    for name, x, weight in (("k", k, weight_k), ("v", v, weight_v)):
        _check(name, x, weight, valid, kernel, mode)
    return (
        _pool(k, weight_k, valid, kernel, stride, mode),
        _pool(v, weight_v, valid, kernel, stride, mode),
    )


def pooled_valid(valid: Tensor, kernel: int, stride: int) -> Tensor:
    """bool (B, ⌈L / stride⌉): which pooled entries count, for the valid tokens of bool (B, L).

    Those that hold a valid token, but for windows of the padding before or behind a text that reach into it: the text
    alone does not have them.
    """
    own = _hold_a_token(valid, stride, stride)
    between = (own.cumsum(1) > 0) & (own.flip(1).cumsum(1).flip(1) > 0)
    return _hold_a_token(valid, kernel, stride) & between


def _hold_a_token(valid: Tensor, kernel: int, stride: int) -> Tensor:
    length = valid.shape[1]
    first = torch.arange(-(-length // stride), device=valid.device) * stride - max(0, (kernel - stride) // 2)
    token = first[:, None] + torch.arange(kernel, device=valid.device)
    inside = (token >= 0) & (token < length)
    return (valid[:, token.clamp(0, max(length - 1, 0))] & inside).any(-1)


def pooling_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    radius: int,
    kernel: int,
    stride: int,
    mode: Mode = "ldconv",
    weight_k: Tensor | None = None,
    weight_v: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    key_valid: Tensor | None = None,
    dropout_p: float = 0.0,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each query to the pooled keys around it: level 2 of Poolingformer, o = residual + z.

    z_i = Σ_m softmax_m(scale · q_i · k̄_m) v̄_m,  ⌊i / stride⌋ - radius <= m <= ⌊i / stride⌋ + radius

    Args:
        q: (B, H, L, D). k, v: (B, Hkv, L, D), before pooling.
        radius: pooled entries on each side (w₂ / ξ), or -1 for all.
        kernel, stride, mode, weight_k, weight_v: see :func:`pool_kv`.
        key_valid: bool (B, L), False for padding.
        residual: (B, H, L, D), level 1's output y, added in the same pass.
        bias: (H, 2 radius + 1), added to the scores by distance in pooled entries.
        causal: only entries all of whose window lies at or before the query.
        scale, dropout_p, return_lse: see :func:`band_attention`.

    Returns:
        (B, H, L, D); with `return_lse` also (B, H, L).

    Source: Zhang et al., Poolingformer (ICML 2021), section 3.2.
    """
    if isinstance(q, Tensor) and isinstance(k, Tensor) and q.dim() == k.dim() == 4 and q.shape[2] != k.shape[2]:
        raise ValueError(f"pooling_attention: k has {k.shape[2]} tokens, expected {q.shape[2]} like q")
    if isinstance(radius, bool) or not isinstance(radius, int | torch.SymInt) or radius < -1:
        raise ValueError(f"pooling_attention: radius is {radius!r}, expected an int of at least 0, or -1 for no limit")
    if bias is not None and radius < 0:
        raise ValueError(f"pooling_attention: bias is given with radius {radius}, expected a limited one")
    pooled_k, pooled_v = pool_kv(
        k, v, kernel=kernel, stride=stride, mode=mode, weight_k=weight_k, weight_v=weight_v, valid=key_valid
    )
    options = {"key_valid": None if key_valid is None else pooled_valid(key_valid, kernel, stride)}
    options |= {"dropout_p": dropout_p, "residual": residual}
    _check_attention(
        q, pooled_k, pooled_v, radius, radius, scale, options["key_valid"], None, None, stride, dropout_p, residual
    )
    if bias is not None:
        _check_bias(bias, q, radius, radius, heads=q.shape[1], op="pooling_attention")
    overhang = max(0, kernel - max(0, (kernel - stride) // 2) - stride)
    low, high = band(q.shape[2], pooled_k.shape[2], radius, radius, causal, stride, None, q.device, overhang)
    options |= {"bias": bias, "bias_stride": stride, "bias_shift": radius}
    out, lse = attend(q, pooled_k, pooled_v, low, high, scale, **options)
    return (out, lse) if return_lse else out


def _check(name: str, x: Tensor, weight: Tensor | None, valid: Tensor | None, kernel: int, mode: str) -> None:
    op = "pool_kv"
    for argument, t, optional in ((name, x, False), (f"weight_{name}", weight, True), ("valid", valid, True)):
        if not isinstance(t, Tensor) and not (optional and t is None):
            raise TypeError(f"{op}: {argument} is {type(t).__name__}, expected a tensor")
    if x.dtype not in _DTYPES:
        raise TypeError(f"{op}: {name} has dtype {x.dtype}, expected float32, float64, bfloat16 or float16")
    if x.dim() != 4:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected (B, H, L, D)")
    batch, heads, length, dim = x.shape
    if (weight is not None) != (mode == "ldconv"):
        kind = "none" if weight is None else "a tensor"
        raise ValueError(f"{op}: weight_{name} is {kind} with mode={mode!r}, expected a tensor for 'ldconv' alone")
    if weight is not None:
        if tuple(weight.shape) not in ((kernel, dim), (heads, kernel, dim)):
            raise ValueError(
                f"{op}: weight_{name} has shape {tuple(weight.shape)}, expected {(kernel, dim)} or "
                f"{(heads, kernel, dim)}"
            )
        if weight.dtype != x.dtype or weight.device != x.device:
            raise ValueError(
                f"{op}: weight_{name} is {weight.dtype} on {weight.device}, expected {x.dtype} on {x.device} like "
                f"{name}"
            )
    if valid is not None and (valid.dtype != torch.bool or tuple(valid.shape) != (batch, length)):
        raise ValueError(
            f"{op}: valid is {valid.dtype} of shape {tuple(valid.shape)}, expected torch.bool of shape "
            f"{(batch, length)}"
        )


def _pool(x: Tensor, weight: Tensor | None, valid: Tensor | None, kernel: int, stride: int, mode: str) -> Tensor:
    if not x.is_cpu and x.device.type != "meta":
        warn_no_kernel("pool_kv", x.device.type)
        return _reference(x, weight, valid, kernel=kernel, stride=stride, mode=mode)
    args = (x, weight, valid, kernel, stride, MODES[mode])
    return apply(_PoolKv, *args) if wants_grad(x, weight) else _forward(*args)


_ARGS = "Tensor x, Tensor? weight, Tensor? valid, int kernel, int stride, int mode"
_forward = define(f"pool_kv({_ARGS}) -> Tensor")
_backward = define(f"pool_kv_backward(Tensor grad_out, {_ARGS}) -> (Tensor, Tensor)")


def _operands(x, weight, valid, kernel, stride, mode):
    x = x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()
    weight, valid = (None if t is None else t.contiguous() for t in (weight, valid))
    return x, weight, valid, kernel, stride, mode, torch.get_num_threads()


def _shape(x: Tensor, stride: int) -> tuple[int, ...]:
    return (*x.shape[:2], (x.shape[2] + stride - 1) // stride, x.shape[3])


@_forward.cpu
def _(x, weight, valid, kernel, stride, mode):
    out = torch.empty(_shape(x, stride), dtype=x.dtype, device="cpu")
    _cpu.pool_kv(out, *_operands(x, weight, valid, kernel, stride, mode))
    return out


@_forward.fake
def _(x, weight, valid, kernel, stride, mode):
    return x.new_empty(_shape(x, stride))


@_forward.vmap
def _(info, in_dims, *args):
    return loop_over_batch(_forward, info, in_dims, args)


@_backward.vmap
def _(info, in_dims, *args):
    return loop_over_batch(_backward, info, in_dims, args)


@_backward.cpu
def _(grad_out, x, weight, valid, kernel, stride, mode):
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad_x = torch.empty(x.shape, dtype=acc, device="cpu")
    grad_weight = None
    if weight is not None:
        grad_weight = torch.empty((*x.shape[:2], kernel, x.shape[3]), dtype=acc, device="cpu")
    _cpu.pool_kv_backward(
        grad_x, grad_weight, grad_out.contiguous(), *_operands(x, weight, valid, kernel, stride, mode)
    )
    if weight is None:
        return grad_x.to(x.dtype), x.new_empty(0)
    grad_weight = grad_weight.sum(0) if weight.dim() == 3 else grad_weight.sum((0, 1))
    return grad_x.to(x.dtype), grad_weight.to(x.dtype)


@_backward.fake
def _(grad_out, x, weight, valid, kernel, stride, mode):
    return x.new_empty(x.shape), x.new_empty(0 if weight is None else weight.shape)


class _PoolKv(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, valid, kernel, stride, mode):
        return _forward(x, weight, valid, kernel, stride, mode)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, valid, *ctx.numbers = inputs
        ctx.save_for_backward(x, weight, valid)

    @staticmethod
    def backward(ctx, grad):
        x, weight, valid = ctx.saved_tensors
        backward = _PoolKvBackward.apply if torch.is_grad_enabled() else _backward
        grad_x, grad_weight = backward(grad, x, weight, valid, *ctx.numbers)
        return grad_x, None if weight is None else grad_weight, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        return loop_over_batch(_PoolKv.apply, info, in_dims, args)


def _backward_vmap(info, in_dims, *args):
    return loop_over_batch(_PoolKvBackward.apply, info, in_dims, args)


_PoolKvBackward = last_derivative("pool_kv", _backward, _backward_vmap)
