# SPDX-License-Identifier: Apache-2.0
"""Launches csrc/triton/band_attention.py, on tensors of one CUDA device, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton import band_attention as kernels

__all__ = ["backward", "forward"]

# Queries that one program adds up for the gradient of global keys, which every query sees.
_RUN = 1024


class _Call:
    """Operands of both passes as the kernels take them."""

    def __init__(
        self, q, k, v, low, high, key_valid, global_k, global_v, global_valid, residual, scale, dropout_p, seed,
        bias=None, bias_stride=1, bias_shift=0,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v, self.residual = _rows(q), _rows(k), _rows(v), _rows(residual)
        self.low, self.high = low.contiguous(), high.contiguous()
        self.has_global = global_k is not None and global_k.shape[2] > 0
        self.global_k, self.global_v = (t.contiguous() if self.has_global else q for t in (global_k, global_v))
        self.key_valid, self.global_valid = _bytes(key_valid), _bytes(global_valid)
        self.num_global = global_k.shape[2] if self.has_global else 0
        self.batch, self.heads, self.num_queries, dim = q.shape
        self.kv_heads, self.num_keys = k.shape[1:3]
        double = q.dtype == torch.float64
        self.acc = torch.float64 if double else torch.float32
        self.seed = q if seed is None else seed.to(q.device)
        self.bias = None if bias is None else bias.contiguous()
        self.bias_sizes = 0 if bias is None else bias.shape[1], bias_stride, bias_shift
        self.numbers = {
            "scale": scale,
            "below": int(dropout_p * 2**32),  # as in csrc/bind/attention.cpp
            "factor": 1 / (1 - dropout_p),
        }
        width = max(16, triton.next_power_of_2(dim))
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"  # allow_tf32, which raises beside the newer name
        self.configs = kernels.CONFIGS[width, q.element_size()]
        # Fusion is Triton's default until 3.10, and unsaid it warns.
        self.shape = {
            "ACC": tl.float64 if double else tl.float32,
            "DIM": dim,
            "WIDTH": width,
            "enable_fp_fusion": True,
        }
        self.products = {"DROP": dropout_p > 0, "PRECISION": "tf32" if tf32 else "ieee", **self.shape}

    def options(self, kernel: str) -> dict[str, object]:
        queries, keys, warps, stages = self.configs[kernel]
        return {"QUERIES": queries, "KEYS": keys, "num_warps": warps, "num_stages": stages, **self.numbers,
                **self.products}  # fmt: skip

    def query_tiles(self, size: int) -> int:
        return triton.cdiv(self.num_queries, size) * self.batch * self.heads

    def keys(self) -> tuple[Tensor, ...]:
        """What a walk over keys reads, in the order of `forward` and `grad_q`."""
        return (self.q, self.k, self.v, self.low, self.high, _or(self.key_valid, self.q), self.global_k, self.global_v,
                _or(self.global_valid, self.q), _or(self.bias, self.q))  # fmt: skip

    def flags(self) -> dict[str, bool]:
        return {
            "HAS_VALID": self.key_valid is not None,
            "HAS_GLOBAL": self.has_global,
            "HAS_GLOBAL_VALID": self.global_valid is not None,
            "HAS_BIAS": self.bias is not None,
        }

    def sizes(self) -> tuple[int, ...]:
        return self.heads, self.heads // self.kv_heads, self.num_queries, self.num_keys, self.num_global


def _rows(t: Tensor | None) -> Tensor | None:
    """Channels side by side, other strides as they are."""
    return t if t is None or t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that a kernel never follows, where there is no tensor."""
    return other if tensor is None else tensor


def _strides(*tensors: Tensor | None) -> list[int]:
    """Of batches, heads and rows."""
    return [stride for t in tensors for stride in ((0, 0, 0) if t is None else t.stride()[:3])]


def forward(q: Tensor, *rest) -> tuple[Tensor, Tensor]:
    """The op `innerloop::band_attention`."""
    call = _Call(q, *rest)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=call.acc, device=q.device)
    if out.numel():
        options = call.options("forward")
        with torch.cuda.device_of(q):
            kernels.forward[(call.query_tiles(options["QUERIES"]),)](
                *call.keys(), _or(call.residual, q), call.seed, out, lse,
                *_strides(call.q, call.k, call.v, call.residual), *call.sizes(), *call.bias_sizes,
                HAS_RESIDUAL=call.residual is not None, **call.flags(), **options,
            )  # fmt: skip
    return out, lse


def backward(
    grad_out, grad_lse, out, lse, q, k, v, low, high, key_valid, global_k, global_v, *rest
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The op `innerloop::band_attention_backward`."""
    call = _Call(q, k, v, low, high, key_valid, global_k, global_v, *rest)
    grad_out, out, lse = _rows(grad_out), _rows(out), lse.contiguous()
    with torch.cuda.device_of(q):
        saved = grad_out, lse, _delta(call, grad_out, grad_lse, out)
        grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if grad_q.numel():
            options = call.options("grad_q")
            kernels.grad_q[(call.query_tiles(options["QUERIES"]),)](
                *call.keys(), call.seed, *saved, grad_q, *_strides(call.q, call.k, call.v, grad_out), *call.sizes(),
                *call.bias_sizes, **call.flags(), **options,
            )  # fmt: skip
        # Key j is seen by the queries with low <= j < high: neither ever falls, so they lie side by side.
        j = torch.arange(call.num_keys, dtype=torch.int32, device=q.device)
        seen_by = [torch.searchsorted(bound, j, right=True, out_int32=True) for bound in (call.high, call.low)]
        grad_k, grad_v = _grad_kv(call, call.k, call.v, call.key_valid, seen_by, 0, saved)
        if call.has_global:
            grads = _grad_kv(call, call.global_k, call.global_v, call.global_valid, None, call.num_keys, saved)
        else:
            grads = [q.new_empty(0 if t is None else t.shape) for t in (global_k, global_v)]
        grad_bias = q.new_empty(0) if call.bias is None else _grad_bias(call, saved)
    return grad_q, grad_k, grad_v, *grads, grad_bias


def _delta(call: _Call, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor) -> Tensor:
    delta = torch.empty(out.shape[:3], dtype=call.acc, device=out.device)
    if delta.numel():
        size = max(16, 4096 // call.shape["WIDTH"])
        kernels.delta[(call.query_tiles(size),)](
            grad_out, out, _or(call.residual, out), out if grad_lse is None else grad_lse.contiguous(), delta,
            *_strides(grad_out, out, call.residual), call.heads, call.num_queries,
            HAS_RESIDUAL=call.residual is not None, HAS_GRAD_LSE=grad_lse is not None, QUERIES=size, **call.shape,
        )  # fmt: skip
    return delta


def _grad_kv(call: _Call, k, v, valid, seen_by, hash_first: int, saved: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of keys and values; without `seen_by` of global ones, from runs of queries added up after."""
    runs = 1 if seen_by is not None else max(1, triton.cdiv(call.num_queries, _RUN))
    dtype = call.q.dtype if runs == 1 else call.acc
    grads = [torch.empty((runs, *k.shape), dtype=dtype, device=k.device) for _ in range(2)]
    if k.numel():
        options = call.options("grad_kv")
        tiles = triton.cdiv(k.shape[2], options["KEYS"]) * call.batch * call.kv_heads
        kernels.grad_kv[(tiles, runs)](
            call.q, k, v, *(seen_by or (call.low, call.high)), _or(valid, k), _or(call.bias, k), call.seed, *saved,
            *grads, *_strides(call.q, k, v, saved[0]), *call.sizes()[:3], k.shape[2],
            call.num_queries if runs == 1 else _RUN, hash_first, *call.bias_sizes, BAND=seen_by is not None,
            HAS_VALID=valid is not None, HAS_BIAS=call.bias is not None and seen_by is not None, **options,
        )  # fmt: skip
    return [g[0] if runs == 1 else g.sum(0).to(call.q.dtype) for g in grads]


def _grad_bias(call: _Call, saved: tuple[Tensor, ...]) -> Tensor:
    """From runs of queries of each batch, added up after."""
    runs = max(1, triton.cdiv(call.num_queries, _RUN))
    shape = runs * call.batch, call.heads, call.bias_sizes[0]
    parts = torch.empty(shape, dtype=call.acc, device=call.q.device)
    if call.num_queries and parts.numel():
        # The keys of grad_q's tile, so that twice as many queries and keys fit where its operands do.
        size = call.configs["grad_q"][1]
        tiles = triton.cdiv(call.bias_sizes[0], size) * call.batch * call.heads
        kernels.grad_bias[(tiles, runs)](
            call.q, call.k, call.v, call.low, call.high, _or(call.key_valid, call.q), call.bias, call.seed, *saved,
            parts, *_strides(call.q, call.k, call.v, saved[0]), *call.sizes()[:4], _RUN, *call.bias_sizes,
            HAS_VALID=call.key_valid is not None, QUERIES=size, num_warps=4, num_stages=1, **call.numbers,
            **call.products,
        )  # fmt: skip
    else:
        parts.zero_()
    return parts.sum(0).to(call.bias.dtype)
