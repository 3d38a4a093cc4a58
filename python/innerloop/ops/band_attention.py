# SPDX-License-Identifier: Apache-2.0
"""band_attention: softmax attention of each query to a window of keys, in linear time and memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cpu
from ..reference.band_attention import band_attention as _reference
from ..system import gpu_kernels
from ._checks import readable
from ._registry import apply, define, last_derivative, wants_grad, warn_no_kernel
from .relational_spmm import loop_over_batch

__all__ = ["band_attention"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MAX_DIM = 256
_FAR = 2**32  # a radius beyond any sequence; larger ones would overflow

# Read when the module is: torch.compile cannot trace a look into the environment and at what is installed.
_GPU_KERNELS = gpu_kernels()


def band_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    left: int,
    right: int,
    causal: bool = False,
    scale: float | None = None,
    key_valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    global_index: Tensor | None = None,
    kv_stride: int = 1,
    dropout_p: float = 0.0,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each query to the keys in a window around it.

    out_i = Σ_j softmax_j(scale · q_i · k_j) v_j  over the keys j with p_i - left <= j <= p_i + right,
    where p_i = i + Lk - Lq (the last query sits at the last key), or p_i = ⌊i / kv_stride⌋ for pooled keys.

    `left` and `right` count keys on each side, the query's own not included: 2w + 1 keys for left = right = w. No
    tensor with a row of scores per query is formed, forward or backward: extra memory is O(B·H·Lq), and a window of
    keys per thread. The same bits in every run and for every number of threads.

    Args:
        q: (B, H, Lq, D), or (T, H, D) with `cu_seqlens`. float32, float64, bfloat16 or float16, D <= 256; half types
            are computed in float32. The last dimension must be contiguous, other strides are free (no copy is made).
        k, v: (B, Hkv, Lk, D), or (T, Hkv, D); Hkv divides H, and each key head serves H / Hkv neighbouring query heads.
        left, right: at least 0, or -1 for no limit.
        causal: no key after the query's own position; with kv_stride > 1 only pooled windows [m·s, m·s + s) that lie
            at or before the query (`pooling_attention` also counts what a window reaches to beyond its stride).
        scale: of the scores. Default: 1 / sqrt(D).
        key_valid: bool (B, Lk), False for padding. A query that sees no key gets 0, lse -inf and no gradient.
        cu_seqlens: integers (N + 1,), 0 = first, never falling, last = T: several sequences one after another, which do
            not see each other.
        global_index: int64 (B, G), positions of keys that every query sees besides its window, each counted once;
            -1 for none.
        kv_stride: ξ, queries per pooled key.
        dropout_p: probability that a weight is 0, the others being divided by 1 - dropout_p; from torch's generator.
        residual: (B, H, Lq, D), added to the result.
        bias: (H, left + 1 + right), added to the scores by distance (T5, ALiBi, Swin): column c belongs to the key at
            p_i - left + c; of q's dtype, or float32. -inf hides a distance. Both radii must then be limited (with
            `causal`, right = -1 is right = 0); global keys have no bias.
        return_lse: also return log Σ exp of the scores, in float32 (float64 for float64).

    Returns:
        Like q; with `return_lse` also (B, H, Lq), or (T, H) with `cu_seqlens`.

    Gradients:
        For q, k, v, residual, bias, and through lse. A second derivative raises. `torch.func.vmap` makes one call for
        each sample.

    Raises:
        TypeError: an argument that is no tensor, or an integer dtype.
        ValueError: shapes, dtypes or devices that do not fit, or a number out of its range; the message names the
            argument.

    Source: Zhang et al., Poolingformer (ICML 2021), equations 1 to 3; Beltagy et al., Longformer (2020).

    Example:
        >>> import torch, innerloop
        >>> q = k = v = torch.randn(1, 8, 1000, 64)
        >>> innerloop.band_attention(q, k, v, left=128, right=128).shape
        torch.Size([1, 8, 1000, 64])
    """
    packed = cu_seqlens is not None
    _check(q, k, v, left, right, scale, key_valid, cu_seqlens, global_index, kv_stride, dropout_p, residual)
    right = 0 if causal and right < 0 else right
    if bias is not None:
        _check_bias(bias, q, left, right, heads=q.shape[1])
    if packed:
        q, k, v, residual = (t if t is None else t.transpose(0, 1).unsqueeze(0) for t in (q, k, v, residual))
    low, high = band(q.shape[2], k.shape[2], left, right, causal, kv_stride, cu_seqlens, q.device)
    # Column of key j for query i: j - i // kv_stride + shift.
    shift = 0 if bias is None else left - (k.shape[2] - q.shape[2] if kv_stride == 1 else 0)
    out, lse = attend(q, k, v, low, high, scale, key_valid, global_index, dropout_p, residual, bias, kv_stride, shift)
    if packed:
        out, lse = out.squeeze(0).transpose(0, 1), lse.squeeze(0).transpose(0, 1)
    return (out, lse) if return_lse else out


def attend(
    q, k, v, low, high, scale=None, key_valid=None, global_index=None, dropout_p=0.0, residual=None,
    bias=None, bias_stride=1, bias_shift=0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out and lse of checked arguments, (B, H, L, D), for the keys [low, high) of each query."""
    global_k = global_v = global_valid = None
    if global_index is not None and global_index.numel() and k.shape[2]:
        global_k, global_v, global_valid, key_valid = _globals(k, v, key_valid, global_index)
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    tensors = (q, k, v, low, high, key_valid, global_k, global_v, global_valid, residual)
    if not q.is_cpu and q.device.type != "meta" and not _has_kernel(q):
        out, lse = _plain(*tensors, scale, dropout_p, bias, bias_stride, bias_shift)
    else:
        seed = None
        if dropout_p > 0:
            # On the device, where reading it does not wait: the call may be captured in a CUDA graph.
            seed = torch.randint(2**62, (1,), dtype=torch.int64, device=q.device if q.is_cuda else "cpu")
        rest = scale, float(dropout_p), seed, bias, bias_stride, bias_shift
        if wants_grad(q, k, v, global_k, global_v, residual, bias):
            if torch.compiler.is_compiling():  # Dynamo refuses one tensor in two places of a Function
                tensors = (q, k.view_as(k), v.view_as(v), *tensors[3:])
            # The backward pass needs the result alone; subtracting the residual from a rounded sum would lose it.
            out, lse = apply(_BandAttention, *tensors[:-1], None, *rest)
            out = out if residual is None else out + residual
        else:
            out, lse = _forward(*tensors, *rest)
    return out, lse


def _has_kernel(q: Tensor) -> bool:
    return q.is_cuda and _GPU_KERNELS == "triton"


def band(
    num_queries, num_keys, left, right, causal, kv_stride, cu_seqlens, device, overhang=0
) -> tuple[Tensor, Tensor]:
    """Keys [low, high) of each query, int32 (Lq,): neither ever falls.

    overhang: tokens behind its stride that a pooled key reaches to; they count under `causal`.
    """
    left, right = min(left, _FAR), min(right, _FAR)
    i = torch.arange(num_queries, device=device)
    own = i // kv_stride if kv_stride > 1 else i + (num_keys - num_queries)
    first, end = torch.zeros_like(i), torch.full_like(i, num_keys)
    if cu_seqlens is not None:
        bounds = cu_seqlens.to(device, torch.int64)
        sequence = torch.searchsorted(bounds, i, right=True)
        first, end = bounds[sequence - 1], bounds[sequence]
    low = first if left < 0 else torch.maximum(first, own - left)
    high = end if right < 0 else torch.minimum(end, own + right + 1)
    if causal:
        # A pooled key is complete at its last token, m·s + s - 1 + overhang.
        high = torch.minimum(high, own + 1 if kv_stride == 1 and not overhang else (i + 1 - overhang) // kv_stride)
    low, high = low.clamp(0, num_keys), high.clamp(0, num_keys)
    return low.to(torch.int32), torch.maximum(high, low).to(torch.int32)


def _globals(k, v, key_valid, index) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Global keys and values, which of them count, and the keys left to the band."""
    there = index >= 0
    at = index.clamp(min=0)
    if key_valid is None:
        key_valid = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
    there = there & key_valid.gather(1, at)
    # The first of equal indices counts.
    again = (index[:, :, None] == index[:, None, :]).tril(-1).any(2)
    there = there & ~again
    rest = key_valid.scatter(1, at, torch.zeros_like(there))
    rest[:, 0] = key_valid[:, 0] & ~(index == 0).any(1)  # where an index of -1 was sent
    at = at[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
    return k.gather(2, at), v.gather(2, at), there, rest


def _check(q, k, v, left, right, scale, key_valid, cu_seqlens, global_index, kv_stride, dropout_p, residual) -> None:
    op = "band_attention"
    given = {"q": q, "k": k, "v": v, "residual": residual}
    for name, t in {**given, "key_valid": key_valid, "cu_seqlens": cu_seqlens, "global_index": global_index}.items():
        if not isinstance(t, Tensor) and not (t is None and name not in "qkv"):
            raise TypeError(f"{op}: {name} is {type(t).__name__}, expected a tensor")
    if q.dtype not in _DTYPES:
        raise TypeError(f"{op}: q has dtype {q.dtype}, expected float32, float64, bfloat16 or float16")
    rank, layout = (3, "(T, H, D)") if cu_seqlens is not None else (4, "(B, H, L, D)")
    for name, t in given.items():
        if t is None:
            continue
        if t.dim() != rank:
            raise ValueError(f"{op}: {name} has shape {tuple(t.shape)}, expected {layout}")
        if t.dtype != q.dtype:
            raise ValueError(f"{op}: {name} has dtype {t.dtype}, expected {q.dtype} like q")
        if t.device != q.device:
            raise ValueError(f"{op}: {name} is on {t.device}, expected {q.device} like q")
    heads = 1
    if k.shape != v.shape:
        raise ValueError(f"{op}: v has shape {tuple(v.shape)}, expected {tuple(k.shape)} like k")
    if q.shape[-1] != k.shape[-1] or (rank == 4 and q.shape[0] != k.shape[0]):
        raise ValueError(f"{op}: k has shape {tuple(k.shape)}, which does not go with q of shape {tuple(q.shape)}")
    if not 1 <= q.shape[-1] <= _MAX_DIM:
        raise ValueError(f"{op}: q has {q.shape[-1]} channels, expected 1 to {_MAX_DIM}")
    if k.shape[heads] == 0 or q.shape[heads] % k.shape[heads]:
        raise ValueError(
            f"{op}: k has {k.shape[heads]} heads, expected a number that divides the {q.shape[heads]} of q"
        )
    if residual is not None and residual.shape != q.shape:
        raise ValueError(f"{op}: residual has shape {tuple(residual.shape)}, expected {tuple(q.shape)} like q")
    for name, value in (("left", left), ("right", right)):
        if isinstance(value, bool) or not isinstance(value, int | torch.SymInt) or value < -1:
            raise ValueError(f"{op}: {name} is {value!r}, expected an int of at least 0, or -1 for no limit")
    if isinstance(kv_stride, bool) or not isinstance(kv_stride, int | torch.SymInt) or kv_stride < 1:
        raise ValueError(f"{op}: kv_stride is {kv_stride!r}, expected an int of at least 1")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{op}: dropout_p is {dropout_p!r}, expected a number in [0, 1)")
    if isinstance(scale, Tensor):
        raise TypeError(f"{op}: scale is a tensor, expected a number (it gets no gradient); multiply q by it")
    if scale is not None and not abs(scale) < float("inf"):
        raise ValueError(f"{op}: scale is {scale!r}, expected a finite number")
    num_keys = k.shape[0] if rank == 3 else k.shape[2]
    for name, t in (("key_valid", key_valid), ("global_index", global_index)):
        if t is not None and t.device != q.device:
            raise ValueError(f"{op}: {name} is on {t.device}, expected {q.device} like q")
    if key_valid is not None:
        if cu_seqlens is not None:
            raise ValueError(f"{op}: key_valid is given with cu_seqlens, expected one of them")
        if key_valid.dtype != torch.bool or tuple(key_valid.shape) != (k.shape[0], num_keys):
            raise ValueError(
                f"{op}: key_valid is {key_valid.dtype} of shape {tuple(key_valid.shape)}, expected torch.bool of shape "
                f"{(k.shape[0], num_keys)}"
            )
    if global_index is not None:
        _check_global(op, global_index, cu_seqlens, k.shape[0], num_keys)
    if cu_seqlens is not None:
        if kv_stride != 1 or q.shape[0] != k.shape[0]:
            raise ValueError(f"{op}: cu_seqlens is given with kv_stride {kv_stride} and {k.shape[0]} keys, expected 1 "
                             f"and {q.shape[0]}, one for each query")  # fmt: skip
        _check_bounds(op, cu_seqlens, q.shape[0])


def _check_bias(bias: Tensor, q: Tensor, left: int, right: int, heads: int, op: str = "band_attention") -> None:
    if not isinstance(bias, Tensor):
        raise TypeError(f"{op}: bias is {type(bias).__name__}, expected a tensor")
    if left < 0 or right < 0:
        raise ValueError(f"{op}: bias is given with left {left} and right {right}, expected both limited")
    if tuple(bias.shape) != (heads, left + 1 + right):
        raise ValueError(
            f"{op}: bias has shape {tuple(bias.shape)}, expected (H, left + 1 + right) = {(heads, left + 1 + right)}"
        )
    # float32 beside half types: a parameter under autocast.
    if bias.dtype not in (q.dtype, _accumulator(q.dtype)) or bias.device != q.device:
        raise ValueError(f"{op}: bias is {bias.dtype} on {bias.device}, expected {q.dtype} on {q.device} like q")


def _check_global(op: str, index: Tensor, cu_seqlens: Tensor | None, batch: int, num_keys: int) -> None:
    if cu_seqlens is not None:
        raise ValueError(f"{op}: global_index is given with cu_seqlens, expected one of them")
    if index.dtype != torch.int64 or index.dim() != 2 or index.shape[0] != batch:
        raise ValueError(
            f"{op}: global_index is {index.dtype} of shape {tuple(index.shape)}, expected torch.int64 of shape "
            f"({batch}, G)"
        )
    if readable(index) and index.numel() and (int(index.min()) < -1 or int(index.max()) >= num_keys):
        bad = index[(index < -1) | (index >= num_keys)][0]
        raise ValueError(f"{op}: global_index holds {int(bad)}, expected positions in [0, {num_keys}), or -1")


def _check_bounds(op: str, bounds: Tensor, total: int) -> None:
    if bounds.dtype not in (torch.int32, torch.int64) or bounds.dim() != 1 or len(bounds) < 1:
        raise ValueError(
            f"{op}: cu_seqlens is {bounds.dtype} of shape {tuple(bounds.shape)}, expected integers of shape (N + 1,)"
        )
    if not readable(bounds):
        return
    if int(bounds[0]) != 0 or int(bounds[-1]) != total or bool((bounds.diff() < 0).any()):
        raise ValueError(f"{op}: cu_seqlens is {bounds.tolist()[:8]}…, expected 0 first, {total} last, never falling")


_ARGS = (
    "Tensor q, Tensor k, Tensor v, Tensor low, Tensor high, Tensor? key_valid, Tensor? global_k, Tensor? global_v, "
    "Tensor? global_valid, Tensor? residual, float scale, float dropout_p, Tensor? seed, Tensor? bias=None, "
    "SymInt bias_stride=1, SymInt bias_shift=0"
)
_forward = define(f"band_attention({_ARGS}) -> (Tensor, Tensor)")
_backward = define(
    f"band_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {_ARGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows(t: Tensor | None) -> Tensor | None:
    """Channels side by side, other strides as they are."""
    return t if t is None or t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


def _operands(
    q, k, v, low, high, key_valid, global_k, global_v, global_valid, residual, scale, dropout_p, seed,
    bias=None, bias_stride=1, bias_shift=0,
):  # fmt: skip
    masks = (None if t is None else t.contiguous() for t in (key_valid, global_k, global_v, global_valid))
    return (
        *(_rows(t) for t in (q, k, v)), low, high, *masks, _rows(residual), scale, dropout_p,
        0 if seed is None else int(seed), None if bias is None else bias.to(_accumulator(q.dtype)).contiguous(),
        bias_stride, bias_shift, torch.get_num_threads(),
    )  # fmt: skip


def _bias_of(rest: tuple) -> Tensor | None:
    """Of what follows global_v; torch leaves trailing arguments out where they have their defaults."""
    return rest[5] if len(rest) > 5 else None


@_forward.cpu
def _(q, *rest):
    out = torch.empty(q.shape, dtype=q.dtype, device="cpu")
    lse = torch.empty(q.shape[:3], dtype=_accumulator(q.dtype), device="cpu")
    _cpu.band_attention(out, lse, *_operands(q, *rest))
    return out, lse


@_forward.cuda
def _(*args):
    from . import _band_attention_triton as gpu

    return gpu.forward(*args)


@_forward.fake
def _(q, *rest):
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=_accumulator(q.dtype))


@_forward.vmap
def _(info, in_dims, *args):
    return loop_over_batch(_forward, info, in_dims, args)


@_backward.vmap
def _(info, in_dims, *args):
    return loop_over_batch(_backward, info, in_dims, args)


@_backward.cpu
def _(grad_out, grad_lse, out, lse, q, k, v, low, high, key_valid, global_k, global_v, *rest):
    acc = _accumulator(q.dtype)
    grad_q = torch.empty(q.shape, dtype=acc, device="cpu")
    shapes = (k.shape, v.shape, *(((0,),) * 2 if global_k is None else (global_k.shape, global_v.shape)))
    grads = [torch.zeros(shape, dtype=acc, device="cpu") for shape in shapes]
    bias = _bias_of(rest)
    grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=acc, device="cpu")
    _cpu.band_attention_backward(
        grad_q, *grads, grad_bias, _rows(grad_out), None if grad_lse is None else grad_lse.contiguous(), _rows(out),
        lse, *_operands(q, k, v, low, high, key_valid, global_k, global_v, *rest),
    )  # fmt: skip
    grad_bias = q.new_empty(0) if grad_bias is None else grad_bias.to(bias.dtype)
    return *(g.to(q.dtype) for g in (grad_q, *grads)), grad_bias


@_backward.cuda
def _(*args):
    from . import _band_attention_triton as gpu

    return gpu.backward(*args)


@_backward.fake
def _(grad_out, grad_lse, out, lse, q, k, v, low, high, key_valid, global_k, global_v, *rest):
    none = q.new_empty(0)
    bias = _bias_of(rest)
    like = (q, k, v, *(none if t is None else t for t in (global_k, global_v, bias)))
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in like)


class _BandAttention(torch.autograd.Function):
    @staticmethod
    def forward(*args):
        return _forward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, scale, dropout_p, seed, bias, bias_stride, bias_shift = inputs
        ctx.save_for_backward(*output, *tensors, seed, bias)
        ctx.numbers, ctx.bias_numbers = (scale, dropout_p), (bias_stride, bias_shift)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        out, lse, *tensors, seed, bias = ctx.saved_tensors
        if grad_out is None:
            if grad_lse is None:
                return (None,) * 16
            grad_out = torch.zeros_like(out)
        backward = _BandAttentionBackward.apply if torch.is_grad_enabled() else _backward
        grads = backward(grad_out, grad_lse, out, lse, *tensors, *ctx.numbers, seed, bias, *ctx.bias_numbers)
        grad_q, grad_k, grad_v, grad_global_k, grad_global_v, grad_bias = grads
        none = tensors[6] is None
        grad_global_k, grad_global_v = (None, None) if none else (grad_global_k, grad_global_v)
        grad_residual = None if tensors[9] is None else grad_out
        return (grad_q, grad_k, grad_v, None, None, None, grad_global_k, grad_global_v, None, grad_residual,
                None, None, None, None if bias is None else grad_bias, None, None)  # fmt: skip

    @staticmethod
    def vmap(info, in_dims, *args):
        return loop_over_batch(_BandAttention.apply, info, in_dims, args)


def _backward_vmap(info, in_dims, *args):
    return loop_over_batch(_BandAttentionBackward.apply, info, in_dims, args)


_BandAttentionBackward = last_derivative("band_attention", _backward, _backward_vmap)


def _plain(
    q, k, v, low, high, key_valid, global_k, global_v, global_valid, residual, scale, dropout_p,
    bias, bias_stride, bias_shift,
):  # fmt: skip
    """Devices without a kernel: the definition itself, with its (Lq, Lk) scores."""
    warn_no_kernel("band_attention", q.device.type)
    acc = _accumulator(q.dtype)
    q_, k_, v_, global_k, global_v, residual, bias = (
        None if t is None else t.to(acc) for t in (q, k, v, global_k, global_v, residual, bias)
    )
    out, lse = _reference(
        q_, k_, v_, low, high, scale=scale, key_valid=key_valid, global_k=global_k, global_v=global_v,
        global_valid=global_valid, residual=residual, dropout_p=dropout_p, bias=bias, bias_stride=bias_stride,
        bias_shift=bias_shift,
    )  # fmt: skip
    return out.to(q.dtype), lse
