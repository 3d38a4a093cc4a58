# SPDX-License-Identifier: Apache-2.0
"""Launches csrc/triton/relational_spmm.py, on tensors of one CUDA device, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton import relational_spmm as kernels
from ._relational_spmm_gpu import Call, Order, Parts

__all__ = ["TritonKernels"]


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that a kernel never follows, where there is no tensor."""
    return other if tensor is None else tensor


def _options(call: Call) -> dict[str, object]:
    edges, block, warps = next(config for least, config in kernels.CONFIGS.items() if call.columns >= least)
    # No fusion: a message must come out with the same bits in every kernel, or a maximum is not found again.
    config = {"EDGES": edges, "BLOCK": block, "num_warps": warps, "enable_fp_fusion": False}
    acc = tl.float64 if call.accumulator == torch.float64 else tl.float32
    return {"MUL_": call.mul, "SHARED": call.relation.dim() == 2, "ACC": acc, **config}


def _has_weight(call: Call) -> dict[str, bool]:
    return {"HAS_WEIGHT": call.weight is not None}


class TritonKernels:
    def forward(self, call: Call, out: Tensor) -> None:
        o, options = call.orders, _options(call)
        grid = (o.num_nodes, triton.cdiv(call.columns, options["BLOCK"]))
        kernels.forward[grid](
            call.input, call.relation, _or(call.boundary, call.input), _or(call.weight, call.input), out,
            o.indptr, o.src, o.rel, o.eid, call.columns, call.input.shape[2], SUM_=call.sum,
            HAS_BOUNDARY=call.boundary is not None, **_has_weight(call), **options,
        )  # fmt: skip

    def first_attaining(self, call: Call, targets: list[Tensor]) -> list[Tensor]:
        o, options = call.orders, _options(call)
        grid = (o.num_nodes, triton.cdiv(call.columns, options["BLOCK"]))
        positions = [torch.empty(target.shape, dtype=torch.int32, device=target.device) for target in targets]
        for target, position in zip(targets, positions, strict=True):
            kernels.first_attaining[grid](
                call.input, call.relation, _or(call.weight, call.input), target, position, o.indptr, o.src, o.rel,
                o.eid, call.columns, call.input.shape[2], o.num_edges, **_has_weight(call), **options,
            )  # fmt: skip
        return positions

    def gather_grad(self, call: Call, parts: Parts, order: Order, of_relation: bool) -> Tensor:
        o, options = call.orders, _options(call)
        result = torch.empty((len(order.tasks), call.columns), dtype=call.accumulator, device=call.input.device)
        kernels.gather_grad[(len(result), triton.cdiv(call.columns, options["BLOCK"]))](
            call.input, call.relation, _or(call.weight, call.input), result, order.starts, order.position, o.dst,
            o.src, o.rel, o.eid, call.columns, call.input.shape[2],
            *(_or(part, call.input) for part in parts.tensors()), OF_RELATION=of_relation, SUM_=call.sum,
            **_has_weight(call), **options,
        )  # fmt: skip
        if order.num_slots:
            result = torch.segment_reduce(result, "sum", lengths=order.pieces, axis=0, initial=0)
        return result

    def weight_grad(self, call: Call, parts: Parts) -> Tensor:
        o, options = call.orders, _options(call)
        result = torch.empty(o.num_edges, dtype=call.accumulator, device=call.input.device)
        kernels.weight_grad[(triton.cdiv(o.num_edges, options["EDGES"]),)](
            call.input, call.relation, call.weight, result, o.dst, o.src, o.rel, o.eid, call.columns,
            call.input.shape[2], o.num_edges, *(_or(part, call.input) for part in parts.tensors()), SUM_=call.sum,
            **options,
        )  # fmt: skip
        return result
