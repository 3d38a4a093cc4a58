# SPDX-License-Identifier: Apache-2.0
"""relational_spmm around its GPU kernels: the orders of the edges, and what a message's gradient is made of.

The kernels are csrc/cuda/relational_spmm.cuh and csrc/triton/relational_spmm.py, each behind a :class:`Kernels`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Call", "Kernels", "Order", "Parts", "backward", "forward"]

SPLIT = 512  # edges of one task; a longer row is worked on in pieces
MEAN, MAX, MIN, LOGSUMEXP, OR, PNA = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Order:
    """All edges in some order, cut into tasks: the edges of one row, or a piece of a long row. int32 tensors."""

    src: Tensor  # (E,)
    rel: Tensor  # (E,)
    dst: Tensor  # (E,)
    eid: Tensor  # (E,)
    position: Tensor  # (E,) of the CSR
    starts: Tensor  # (tasks + 1,), by row
    pieces: Tensor  # int64 (rows,), tasks of each row
    tasks: Tensor  # (tasks, 4): row, begin, end, slot; the longest first; slot -1 where the task is its whole row
    merges: Tensor  # (split rows, 4): row, first slot, last slot + 1, -1
    num_slots: int


class Orders:
    """The orders of one graph, each made when first asked for (which waits for the device) and then kept."""

    def __init__(self, csr: Tensor, num_nodes: int, num_relations: int) -> None:
        csr = csr.detach()  # views of the key itself would keep it alive, and with it this entry
        self.num_nodes, self.num_relations = num_nodes, num_relations
        self.num_edges = (csr.numel() - num_nodes - 3) // 3
        start = num_nodes + 3
        self.indptr = csr[2:start]
        self.src, self.rel, self.eid = csr[start:].split(self.num_edges) if self.num_edges else (csr[:0],) * 3
        nodes = torch.arange(num_nodes, device=csr.device, dtype=torch.int32)
        self.dst = nodes.repeat_interleave(self.indptr.diff(), output_size=self.num_edges)

    def _order(self, start: Tensor, position: Tensor | None) -> Order:
        """`start` (rows + 1,): edges of each row; `position` (E,): where they are in the CSR, None for all in order."""
        parts = [self.src, self.rel, self.dst, self.eid]
        if position is None:
            position = torch.arange(self.num_edges, device=self.src.device, dtype=torch.int32)
        else:
            parts = [x[position] for x in parts]
        pieces = ((start.diff() + SPLIT - 1) // SPLIT).clamp(min=1).long()
        row = torch.arange(len(pieces), device=start.device).repeat_interleave(pieces)
        first = pieces.cumsum(0) - pieces
        begin = start[row] + SPLIT * (torch.arange(len(row), device=start.device) - first[row])
        end = torch.minimum(begin + SPLIT, start[row + 1])
        split = pieces > 1
        slot = torch.where(split[row], split[row].cumsum(0) - 1, -1)
        tasks = torch.stack([row, begin, end, slot], dim=1).int()
        last = (pieces * split).cumsum(0)
        num_slots = int(last[-1]) if len(last) else 0
        merges = torch.stack(
            [torch.arange(len(pieces), device=start.device), last - pieces, last, -torch.ones_like(last)], 1
        )
        order = Order(
            *parts,
            position,
            torch.cat([begin, begin.new_tensor([self.num_edges])]).int(),
            pieces,
            tasks[(begin - end).sort(stable=True).indices].contiguous(),
            merges[split].int().contiguous(),
            num_slots,
        )
        if start.is_cuda:
            torch.cuda.current_stream(start.device).synchronize()  # other streams will read these tensors
        return order

    def _grouped(self, key: Tensor, count: int) -> Order:
        values, order = key.sort(stable=True)
        start = torch.searchsorted(values, torch.arange(count + 1, device=key.device, dtype=torch.int32))
        return self._order(start, order.int())

    @functools.cached_property
    def by_row(self) -> Order:
        return self._order(self.indptr.long(), None)

    @functools.cached_property
    def by_source(self) -> Order:
        return self._grouped(self.src, self.num_nodes)

    @functools.cached_property
    def by_relation(self) -> Order:
        return self._grouped(self.rel, self.num_relations)


_ORDERS: WeakIdKeyDictionary = WeakIdKeyDictionary()  # packed CSR -> Orders


@dataclass(frozen=True)
class Call:
    """The operands, contiguous, and the sizes of one call."""

    orders: Orders
    relation: Tensor  # (R, d) or (R, B, d)
    input: Tensor  # (V, B, d)
    boundary: Tensor | None
    weight: Tensor | None
    sum: int
    mul: int

    @classmethod
    def of(cls, csr, relation, input, boundary, edge_weight, sum, mul) -> Call:
        if csr not in _ORDERS:
            _ORDERS[csr] = Orders(csr, len(input), len(relation))
        tensors = (None if x is None else x.contiguous() for x in (relation, input, boundary, edge_weight))
        return cls(_ORDERS[csr], *tensors, sum, mul)

    @property
    def columns(self) -> int:
        return self.input.shape[1] * self.input.shape[2]

    @property
    def accumulator(self) -> torch.dtype:
        return torch.float64 if self.input.dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Parts:
    """What the gradient of a message is made of, each (V, B, d); those that the sum does not use are None.

    d loss / d (a·m) = grad (+ (m - value) · spread, + high and low at the attaining edges, times exp(a·m - value)).
    """

    grad: Tensor
    value: Tensor | None = None
    high: Tensor | None = None
    low: Tensor | None = None
    first_high: Tensor | None = None
    first_low: Tensor | None = None
    spread: Tensor | None = None

    def tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


class Kernels(Protocol):
    """One implementation. Nothing is empty: rows, columns and, but in `forward`, edges are at least one."""

    def forward(self, call: Call, out: Tensor) -> None: ...

    def first_attaining(self, call: Call, targets: list[Tensor]) -> list[Tensor]:
        """int32 (V, B, d) for each target: first CSR position of the row whose message is the target, E where none."""

    def gather_grad(self, call: Call, parts: Parts, order: Order, of_relation: bool) -> Tensor:
        """(rows, C): the gradient of one operand summed over the edges of each row of the order."""

    def weight_grad(self, call: Call, parts: Parts) -> Tensor:
        """(E,) in the order of `edge_index`."""


def forward(use: Kernels, csr, relation, input, boundary, edge_weight, sum, mul) -> Tensor:
    return _forward(use, Call.of(csr, relation, input, boundary, edge_weight, sum, mul), input.dtype)


def _forward(use: Kernels, call: Call, dtype: torch.dtype) -> Tensor:
    nodes, batch, dim = call.input.shape
    out = call.input.new_empty((nodes, batch, 4, dim) if call.sum == PNA else (nodes, batch, dim), dtype=dtype)
    if out.numel():
        use.forward(call, out)
    return out


def backward(
    use: Kernels, grad_out, out, csr, relation, input, boundary, edge_weight, sum, mul, weight_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, relation, boundary and edge_weight, in their dtypes; empty where there is none."""
    call = Call.of(csr, relation, input, boundary, edge_weight, sum, mul)
    orders, acc = call.orders, call.accumulator
    zeros = functools.partial(torch.zeros, dtype=acc, device=input.device)
    parts = _parts(use, call, out, grad_out.to(acc).contiguous())
    some = orders.num_edges > 0 and input.numel() > 0 and sum != OR

    grad_input, grad_relation = zeros(input.shape), zeros((len(relation), *input.shape[1:]))
    if some:
        grad_input = use.gather_grad(call, parts, orders.by_source, False).view_as(grad_input)
        grad_relation = use.gather_grad(call, parts, orders.by_relation, True).view_as(grad_relation)
    if relation.dim() == 2:
        grad_relation = grad_relation.sum(1)
    grad_weight = grad_boundary = input.new_empty(0)
    if weight_grad:
        grad_weight = use.weight_grad(call, parts) if some else zeros(orders.num_edges)
    if boundary is not None:
        grad_boundary = _boundary_grad(call, out, parts)
    return tuple(x.to(input.dtype) for x in (grad_input, grad_relation, grad_boundary, grad_weight))


def _parts(use: Kernels, call: Call, out: Tensor, grad: Tensor) -> Parts:
    acc, orders = call.accumulator, call.orders
    count = (orders.indptr.diff() + (call.boundary is not None)).to(acc)[:, None, None]
    inverse = count.clamp(min=1).reciprocal()

    def first(*targets: Tensor) -> list[Tensor]:
        if call.input.numel() and orders.num_edges:
            return use.first_attaining(call, [target.contiguous() for target in targets])
        return [torch.full(target.shape, orders.num_edges, dtype=torch.int32, device=out.device) for target in targets]

    if call.sum == MEAN:
        return Parts(grad * inverse)
    if call.sum in (MAX, MIN):
        return Parts(grad, first_high=first(out)[0])
    if call.sum == LOGSUMEXP:  # the value unrounded, so that the shares of a row add up to 1
        return Parts(grad, value=_forward(use, call, acc))
    if call.sum != PNA:
        return Parts(grad)
    mean, top, bottom, std = out.unbind(2)
    first_high, first_low = first(top, bottom)
    grad, high, low, grad_std = (x.contiguous() for x in grad.unbind(2))
    floor = float(torch.tensor(1e-6, dtype=acc).sqrt().to(out.dtype))
    flat = std <= floor
    if out.dtype != acc:  # unrounded: (m - mean) / std cancels where the mean is large
        mean, _, _, std = _forward(use, call, acc).unbind(2)
    spread = torch.where(flat, 0, grad_std * inverse / std.to(acc)).contiguous()
    return Parts(grad * inverse, mean.to(acc).contiguous(), high, low, first_high, first_low, spread)


def _boundary_grad(call: Call, out: Tensor, parts: Parts) -> Tensor:
    """The boundary is one more message, last in line for the extrema."""
    boundary, grad, none = call.boundary, parts.grad, call.orders.num_edges
    if call.sum == OR:
        return torch.zeros_like(boundary)
    if call.sum in (MAX, MIN):
        return torch.where((parts.first_high == none) & (boundary == out), grad, 0)
    wide = boundary.to(grad.dtype)
    if call.sum == LOGSUMEXP:
        return torch.where(wide == -torch.inf, 0, grad * (wide - parts.value).exp())
    if call.sum == PNA:
        _, top, bottom, _ = out.unbind(2)
        grad = grad + (wide - parts.value) * parts.spread
        grad = grad + torch.where((parts.first_high == none) & (boundary == top), parts.high, 0)
        grad = grad + torch.where((parts.first_low == none) & (boundary == bottom), parts.low, 0)
    return grad
