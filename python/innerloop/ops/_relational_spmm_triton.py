# SPDX-License-Identifier: Apache-2.0
"""Launches csrc/triton/relational_spmm.py, on tensors of one CUDA device, or on the CPU in Triton's interpreter."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..triton import relational_spmm as kernels

__all__ = ["backward", "forward"]

_SEGMENT = 128  # edges of one relation that one program adds up
_MEAN, _MAX, _MIN, _LOGSUMEXP, _OR, _PNA = 1, 2, 3, 4, 5, 6


class _Csr(NamedTuple):
    indptr: Tensor
    src: Tensor
    rel: Tensor
    eid: Tensor


class _Orders(NamedTuple):
    """Edges in other orders than that of the CSR; positions are those of the CSR, all int32."""

    dst: Tensor  # (E,)
    by_source: Tensor  # (E,)
    source_start: Tensor  # (V + 1,)
    by_relation: Tensor  # (E,)
    segment_start: Tensor  # (segments + 1,)
    segments: Tensor  # int64 (R,), segments of each relation


_ORDERS: WeakIdKeyDictionary = WeakIdKeyDictionary()  # packed CSR -> _Orders


def _unpack(csr: Tensor, num_nodes: int) -> _Csr:
    E = (csr.numel() - num_nodes - 3) // 3
    start = num_nodes + 3
    return _Csr(csr[2:start], *csr[start:].split(E) if E else (csr[:0],) * 3)


def _orders(csr: Tensor, num_nodes: int, num_relations: int) -> _Orders:
    if csr in _ORDERS:
        return _ORDERS[csr]
    g = _unpack(csr, num_nodes)
    E, device = len(g.src), csr.device

    def grouped(key: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, order = key.sort(stable=True)
        return order.int(), torch.searchsorted(values, torch.arange(count + 1, device=device, dtype=torch.int32))

    nodes = torch.arange(num_nodes, device=device, dtype=torch.int32)
    by_source, source_start = grouped(g.src, num_nodes)
    by_relation, relation_start = grouped(g.rel, num_relations)
    segments = (relation_start.diff() + _SEGMENT - 1) // _SEGMENT
    relation = torch.arange(num_relations, device=device).repeat_interleave(segments)
    first = torch.nn.functional.pad(segments.cumsum(0), (1, 0))[:-1]
    begin = relation_start[relation] + _SEGMENT * (torch.arange(len(relation), device=device) - first[relation])
    orders = _Orders(
        nodes.repeat_interleave(g.indptr.diff(), output_size=E),
        by_source,
        source_start.int(),
        by_relation,
        torch.cat([begin, begin.new_tensor([E])]).int(),
        segments,
    )
    _ORDERS[csr] = orders
    return orders


def _config(columns: int) -> dict[str, int]:
    edges, block, warps = next(config for least, config in kernels.CONFIGS.items() if columns >= least)
    # No fusion: a message must come out with the same bits in every kernel, or a maximum is not found again.
    return {"EDGES": edges, "BLOCK": block, "num_warps": warps, "enable_fp_fusion": False}


def _accumulator(dtype: torch.dtype) -> tuple[torch.dtype, tl.dtype]:
    return (torch.float64, tl.float64) if dtype == torch.float64 else (torch.float32, tl.float32)


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that a kernel never follows, where there is no tensor."""
    return other if tensor is None else tensor


def forward(csr, relation, input, boundary, edge_weight, sum, mul, *, dtype: torch.dtype | None = None) -> Tensor:
    """`dtype` of the result: that of the input, or the one that sums are kept in."""
    V, B, d = input.shape
    shape = (V, B, 4, d) if sum == _PNA else (V, B, d)
    out = input.new_empty(shape, dtype=dtype or input.dtype)
    if out.numel() == 0:
        return out
    g, config = _unpack(csr, V), _config(B * d)
    input, relation = input.contiguous(), relation.contiguous()
    boundary = None if boundary is None else boundary.contiguous()
    weight = None if edge_weight is None else edge_weight.contiguous()
    kernels.forward[(V, triton.cdiv(B * d, config["BLOCK"]))](
        input, relation, _or(boundary, input), _or(weight, input), out, *g, B * d, d,
        SUM_=sum, MUL_=mul, SHARED=relation.dim() == 2, HAS_BOUNDARY=boundary is not None,
        HAS_WEIGHT=weight is not None, ACC=_accumulator(input.dtype)[1], **config,
    )  # fmt: skip
    return out


def backward(
    grad_out, out, csr, relation, input, boundary, edge_weight, sum, mul, weight_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, relation, boundary and edge_weight, in their dtypes; empty where there is none."""
    V, B, d = input.shape
    R, C = len(relation), B * d
    acc, ACC = _accumulator(input.dtype)
    g, config = _unpack(csr, V), _config(C)
    E = len(g.src)
    input, relation = input.contiguous(), relation.contiguous()
    weight = None if edge_weight is None else edge_weight.contiguous()
    shared = relation.dim() == 2
    options = {"MUL_": mul, "SHARED": shared, "ACC": ACC, **config}
    has_weight = weight is not None
    orders = _orders(csr, V, R)
    columns = triton.cdiv(C, config["BLOCK"])

    # What a message's gradient is made of, per row and column.
    grad = grad_out.to(acc).contiguous()
    count = (g.indptr.diff() + (boundary is not None)).to(acc)[:, None, None]
    inverse = count.clamp(min=1).reciprocal()
    value = high = low = spread = first_high = first_low = None

    def first(target: Tensor) -> Tensor:
        position = torch.empty((V, B, d), dtype=torch.int32, device=input.device)
        if position.numel():
            kernels.first_attaining[(V, columns)](
                input, relation, _or(weight, input), target.contiguous(), position, *g, C, d, E,
                HAS_WEIGHT=has_weight, **options,
            )  # fmt: skip
        return position

    if sum == _MEAN:
        grad = grad * inverse
    elif sum in (_MAX, _MIN):
        first_high = first(out)
    elif sum == _LOGSUMEXP:  # unrounded, so that the shares of a row add up to 1
        value = forward(csr, relation, input, boundary, edge_weight, sum, mul, dtype=acc)
    elif sum == _PNA:
        mean, top, bottom, std = out.unbind(2)
        first_high, first_low = first(top), first(bottom)
        grad, high, low, grad_std = (x.contiguous() for x in grad.unbind(2))
        floor = torch.tensor(1e-6, dtype=acc).sqrt().to(out.dtype)
        value, grad = mean.to(acc).contiguous(), grad * inverse
        spread = torch.where(std <= floor.to(std.device), 0, grad_std * inverse / std.to(acc)).contiguous()
    parts = tuple(_or(t, input) for t in (grad, value, high, low, first_high, first_low, spread))

    def gather(rows: int, start: Tensor, position: Tensor, of_relation: bool) -> Tensor:
        result = torch.zeros((rows, C), dtype=acc, device=input.device)
        if result.numel() and sum != _OR:
            kernels.gather_grad[(rows, columns)](
                input, relation, _or(weight, input), result, start, position, orders.dst, g.src, g.rel, g.eid, C, d,
                *parts, OF_RELATION=of_relation, SUM_=sum, HAS_WEIGHT=has_weight, **options,
            )  # fmt: skip
        return result

    grad_input = gather(V, orders.source_start, orders.by_source, False).view(V, B, d)
    partial = gather(len(orders.segment_start) - 1, orders.segment_start, orders.by_relation, True)
    grad_relation = partial.new_zeros(R, C)
    if partial.numel():
        grad_relation = torch.segment_reduce(partial, "sum", lengths=orders.segments, axis=0, initial=0)
    grad_relation = grad_relation.view(R, B, d)
    if shared:
        grad_relation = grad_relation.sum(1)

    grad_weight = input.new_empty(0)
    if weight_grad:
        grad_weight = torch.zeros(E, dtype=acc, device=input.device)
        if E and C and sum != _OR:
            kernels.weight_grad[(triton.cdiv(E, config["EDGES"]),)](
                input, relation, weight, grad_weight, orders.dst, g.src, g.rel, g.eid, C, d, E, *parts, SUM_=sum,
                **options,
            )  # fmt: skip
    grad_boundary = input.new_empty(0)
    if boundary is not None:
        grad_boundary = _boundary_grad(boundary, out, E, sum, *parts)
    return tuple(x.to(input.dtype) for x in (grad_input, grad_relation, grad_boundary, grad_weight))


def _boundary_grad(boundary, out, num_edges, sum, grad, value, high, low, first_high, first_low, spread) -> Tensor:
    """The boundary is one more message, last in line for the extrema."""
    if sum == _OR:
        return torch.zeros_like(boundary)
    if sum in (_MAX, _MIN):
        return torch.where((first_high == num_edges) & (boundary == out), grad, 0)
    wide = boundary.to(grad.dtype)
    if sum == _LOGSUMEXP:
        return torch.where(wide == -torch.inf, 0, grad * (wide - value).exp())
    if sum == _PNA:
        _, top, bottom, _ = out.unbind(2)
        grad = grad + (wide - value) * spread
        grad = grad + torch.where((first_high == num_edges) & (boundary == top), high, 0)
        grad = grad + torch.where((first_low == num_edges) & (boundary == bottom), low, 0)
    return grad
