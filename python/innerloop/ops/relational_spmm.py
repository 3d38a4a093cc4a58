# SPDX-License-Identifier: Apache-2.0
"""relational_spmm: the generalized Bellman-Ford step as one op, forward and backward."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .. import _cpu
from ..graph import RelGraph
from ..reference.relational_spmm import relational_spmm as _reference
from ..system import gpu_kernels
from . import _functions
from ._functions import Aggregate, Message
from ._registry import apply, define, last_derivative, wants_grad, warn_no_kernel

__all__ = ["MULS", "SUMS", "relational_spmm"]

# Codes of csrc/cpu/relational_spmm.h. "add" is the peers' name for the sum.
SUMS = {"sum": 0, "add": 0, "mean": 1, "max": 2, "min": 3, "logsumexp": 4, "or": 5, "pna": 6}
MULS = {"mul": 0, "add": 1, "rotate": 2, "min": 3, "and": 4}
_SUM_NAMES = ("sum", "mean", "max", "min", "logsumexp", "or", "pna")
_MUL_NAMES = ("mul", "add", "rotate", "min", "and")
_PNA = SUMS["pna"]
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Sum = Literal["sum", "add", "mean", "max", "min", "logsumexp", "or", "pna"]
Mul = Literal["mul", "add", "rotate", "min", "and"]


def relational_spmm(
    graph: RelGraph,
    relation: Tensor,
    input: Tensor,
    *,
    sum: Sum | Aggregate = "sum",
    mul: Mul | Message = "mul",
    boundary: Tensor | None = None,
    edge_weight: Tensor | None = None,
) -> Tensor:
    """One generalized Bellman-Ford step over a graph with typed edges.

    out[v] = ⊕ over in-edges e = (x, r, v) of a_e · (relation[r] ⊗ input[x]),  ⊕ boundary[v]

    No tensor with a row of channels per edge is formed, forward or backward. The result has the same bits in every
    run and for every number of threads. Sums are kept in float32 for half types and rounded once.

    Args:
        graph: V nodes, E edges, R relations.
        relation: (R, d) shared by all queries, or (R, B, d) with one table per query.
        input: (V, B, d) for B queries, or (V, d) for one. float32, float64, bfloat16 or float16.
        sum: ⊕. "sum" (or "add"), "mean", "max", "min", "logsumexp", "or" (1 where any message is non-zero), or
            "pna": mean, max, min and standard deviation in one pass; or an :class:`Aggregate` of your own functions.
        mul: ⊗. "mul" (DistMult), "add" (TransE), "rotate" (RotatE; channels [0, d/2) are the real part), "min",
            or "and" (1 where both are non-zero); or a :class:`Message` of your own functions. Functions are compiled
            into the loop by numba: float32 and float64 on the CPU, not under torch.compile or torch.func. A built-in
            sum beside a Message is "sum", "mean", "max" or "min", a built-in product beside an Aggregate is "mul" or
            "add".
        boundary: like `input`; one more message to each node, counted by "mean" and "pna".
        edge_weight: (E,) in the order of `graph.edge_index`. Default: `graph.edge_weight`, or 1.

    Returns:
        Like `input`; for "pna" (V, B, 4, d) or (V, 4, d) with [mean, max, min, std] on axis -2, where
        mean = S / D, std = sqrt(max(Q / D - mean², 1e-6)), S = Σ a·m + b, Q = Σ a·m² + b², D = number of messages.
        A row without any message holds the identity of ⊕: 0 (sum, mean, or), -inf (max, logsumexp), inf (min).

    Gradients:
        For `input`, `relation`, `boundary` and `edge_weight`. The whole gradient of a maximum or minimum goes to
        the first edge, by (relation, source, position), that attains it, and to the boundary only if no edge does;
        a tie in mul="min" goes to `input`. Half types: attains it after rounding. "or" and "and" have zero
        gradient. A second derivative raises.

    Raises:
        TypeError: `graph` is not a RelGraph, or an argument is not a tensor.
        ValueError: an unknown `sum` or `mul`, or shapes, dtypes or devices that do not fit; the message names
            the argument, what it is and what was expected.

    Source: Zhu et al., Neural Bellman-Ford Networks (NeurIPS 2021), eq. 4; `docs/nbfnet.md`.

    Example:
        >>> import torch, innerloop
        >>> graph = innerloop.RelGraph(torch.tensor([[0, 1], [2, 2]]), torch.tensor([0, 1]), num_nodes=3)
        >>> x, w = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[10.0], [100.0]])
        >>> innerloop.relational_spmm(graph, w, x).flatten()
        tensor([  0.,   0., 210.])
    """
    try:
        of_functions = isinstance(sum, Aggregate) or isinstance(mul, Message)
        sum_code, mul_code, csr = (None, None, graph.csr) if of_functions else (SUMS[sum], MULS[mul], graph.csr)
        if edge_weight is None:
            edge_weight = graph.edge_weight
        flat = input.dim() == 2
        if flat:
            input = input.unsqueeze(1)
            relation = relation.unsqueeze(1) if relation.dim() == 2 else relation
            boundary = boundary.unsqueeze(1) if boundary is not None else None
        if of_functions:
            _check(csr, relation, input, boundary, edge_weight, None)
            out = _functions.run(graph, relation, input, boundary, edge_weight, sum, mul)
        elif not input.is_cpu and not _has_kernel(graph, relation, input, boundary, edge_weight, mul_code):
            out = _plain(graph, relation, input, boundary, edge_weight, sum, mul)
        elif wants_grad(input, relation, boundary, edge_weight):
            out = apply(_RelationalSpmm, csr, relation, input, boundary, edge_weight, sum_code, mul_code)
        else:
            out = _call(csr, relation, input, boundary, edge_weight, sum_code, mul_code)
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError):
        # Only now is it worth the time to find out what was wrong.
        _explain_bad_call(graph, sum, mul, relation, input, boundary, edge_weight)
        raise
    return out.squeeze(1) if flat else out


# Read when the module is: torch.compile cannot trace a look into the environment and at what is installed.
_GPU_KERNELS = gpu_kernels()

_forward = define(
    "relational_spmm(Tensor csr, Tensor relation, Tensor input, Tensor? boundary, Tensor? edge_weight, "
    "int sum, int mul) -> Tensor"
)
_call = _forward.overload
_backward = define(
    "relational_spmm_backward(Tensor grad_out, Tensor out, Tensor csr, Tensor relation, Tensor input, "
    "Tensor? boundary, Tensor? edge_weight, int sum, int mul, bool weight_grad) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _has_kernel(graph, relation, input, boundary, edge_weight, mul) -> bool:
    """Whether tensors of this device have a kernel; on a GPU after the checks that the binding makes on the CPU."""
    if not input.is_cuda or _GPU_KERNELS is None:
        return False
    _check(graph.csr, relation, input, boundary, edge_weight, mul)
    for name, t, rows in (
        ("input", input, graph.num_nodes),
        ("relation", relation, graph.num_relations),
        ("edge_weight", edge_weight, graph.num_edges),
    ):
        if t is not None and t.shape[0] != rows:
            raise ValueError(f"relational_spmm: {name} has {t.shape[0]} rows, expected {rows}, those of the graph")
    return True


def _explain_bad_call(graph, sum, mul, relation, input, boundary, edge_weight) -> None:
    if not isinstance(graph, RelGraph):
        raise TypeError(f"relational_spmm: graph is {type(graph).__name__}, expected RelGraph")
    if not isinstance(sum, Aggregate) and sum not in SUMS:
        raise ValueError(f"relational_spmm: sum is {sum!r}, expected one of {', '.join(_SUM_NAMES)}")
    if not isinstance(mul, Message) and mul not in MULS:
        raise ValueError(f"relational_spmm: mul is {mul!r}, expected one of {', '.join(_MUL_NAMES)}")
    for name, t, optional in (
        ("relation", relation, False),
        ("input", input, False),
        ("boundary", boundary, True),
        ("edge_weight", edge_weight, True),
    ):
        if not isinstance(t, Tensor) and not (optional and t is None):
            raise TypeError(f"relational_spmm: {name} is {type(t).__name__}, expected a tensor")
    _check(graph.csr, relation, input, boundary, edge_weight, MULS.get(mul))


def _check(csr, relation, input, boundary, edge_weight, mul) -> None:
    """The checks that bind/relational_spmm.cpp makes on values, from shapes, dtypes and devices alone."""
    op = "relational_spmm"
    if input.dim() != 3:
        raise ValueError(f"{op}: input has shape {tuple(input.shape)}, expected (V, B, d) or (V, d)")
    if input.dtype not in _DTYPES:
        raise ValueError(f"{op}: input has dtype {input.dtype}, expected float32, float64, bfloat16 or float16")
    _, batch, dim = input.shape
    if mul == MULS["rotate"] and dim % 2:
        raise ValueError(f"{op}: input has shape {tuple(input.shape)}, expected an even number of channels for "
                         "mul='rotate' (real half, imaginary half)")  # fmt: skip
    if relation.dim() not in (2, 3) or tuple(relation.shape[1:]) not in ((dim,), (batch, dim)):
        raise ValueError(
            f"{op}: relation has shape {tuple(relation.shape)}, expected (R, {dim}) or (R, {batch}, {dim}) "
            f"for input of shape {tuple(input.shape)}"
        )
    if boundary is not None and boundary.shape != input.shape:
        raise ValueError(f"{op}: boundary has shape {tuple(boundary.shape)}, expected {tuple(input.shape)} like input")
    if edge_weight is not None and edge_weight.dim() != 1:
        raise ValueError(f"{op}: edge_weight has shape {tuple(edge_weight.shape)}, expected (E,)")
    for name, t in (("relation", relation), ("boundary", boundary), ("edge_weight", edge_weight)):
        if t is None:
            continue
        if t.dtype != input.dtype:
            raise ValueError(f"{op}: {name} has dtype {t.dtype}, expected {input.dtype} like input")
        if t.device != input.device:
            raise ValueError(f"{op}: {name} is on {t.device}, expected {input.device} like input")
    if csr.device != input.device:
        raise ValueError(f"{op}: graph is on {csr.device}, expected {input.device} like input; use graph.to(device)")


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _out_shape(input: Tensor, sum: int) -> tuple[int, ...]:
    nodes, batch, dim = input.shape
    return (nodes, batch, 4, dim) if sum == _PNA else (nodes, batch, dim)


@_forward.cpu
def _(csr, relation, input, boundary, edge_weight, sum, mul):
    input = input.contiguous()
    out = input.new_empty(_out_shape(input, sum)) if sum == _PNA else torch.empty_like(input)
    _cpu.relational_spmm(
        out,
        csr,
        relation.contiguous(),
        input,
        boundary if boundary is None else boundary.contiguous(),
        edge_weight if edge_weight is None else edge_weight.contiguous(),
        sum,
        mul,
        torch.get_num_threads(),
    )
    return out


def _gpu_implementation():
    """The one asked for by INNERLOOP_GPU; imported when first used, for Triton takes a second."""
    if _GPU_KERNELS == "cuda":
        from ._relational_spmm_cuda import CudaKernels

        return CudaKernels()
    from ._relational_spmm_triton import TritonKernels

    return TritonKernels()


@_forward.cuda
def _(csr, relation, input, boundary, edge_weight, sum, mul):
    from . import _relational_spmm_gpu as gpu

    return gpu.forward(_gpu_implementation(), csr, relation, input, boundary, edge_weight, sum, mul)


@_forward.fake
def _(csr, relation, input, boundary, edge_weight, sum, mul):
    _check(csr, relation, input, boundary, edge_weight, mul)
    return input.new_empty(_out_shape(input, sum))


@_backward.cpu
def _(grad_out, out, csr, relation, input, boundary, edge_weight, sum, mul, weight_grad):
    acc = torch.float64 if input.dtype == torch.float64 else torch.float32
    grad_input = input.new_empty(input.shape, dtype=acc)
    grad_relation = input.new_empty(relation.shape, dtype=acc)
    grad_boundary = None if boundary is None else input.new_empty(input.shape, dtype=acc)
    num_edges = (csr.numel() - input.shape[0] - 3) // 3
    grad_weight = input.new_empty(num_edges, dtype=acc) if weight_grad else None
    _cpu.relational_spmm_backward(
        grad_input, grad_relation, grad_boundary, grad_weight, grad_out.contiguous(), out.contiguous(), csr,
        relation.contiguous(), input.contiguous(), _contiguous(boundary), _contiguous(edge_weight), sum, mul,
        torch.get_num_threads(),
    )  # fmt: skip
    empty = input.new_empty(0)
    return (
        grad_input.to(input.dtype),
        grad_relation.to(input.dtype),
        empty if grad_boundary is None else grad_boundary.to(input.dtype),
        input.new_empty(0) if grad_weight is None else grad_weight.to(input.dtype),
    )


@_backward.cuda
def _(grad_out, out, csr, relation, input, boundary, edge_weight, sum, mul, weight_grad):
    from . import _relational_spmm_gpu as gpu

    return gpu.backward(
        _gpu_implementation(), grad_out, out, csr, relation, input, boundary, edge_weight, sum, mul, weight_grad
    )


@_backward.fake
def _(grad_out, out, csr, relation, input, boundary, edge_weight, sum, mul, weight_grad):
    grad_boundary = input.new_empty(0) if boundary is None else torch.empty_like(input)
    grad_weight = torch.empty_like(edge_weight) if weight_grad else input.new_empty(0)
    return (
        input.new_empty(input.shape),
        relation.new_empty(relation.shape),
        grad_boundary.new_empty(grad_boundary.shape),
        grad_weight,
    )


def _plain(graph, relation, input, boundary, edge_weight, sum, mul):
    """Devices without a kernel: the definition itself, differentiated by autograd."""
    _check(graph.csr, relation, input, boundary, edge_weight, MULS[mul])
    warn_no_kernel("relational_spmm", input.device.type)
    return _reference(
        graph.edge_index, graph.edge_type, graph.num_nodes, relation, input,
        sum=sum, mul=mul, boundary=boundary, edge_weight=edge_weight,
    )  # fmt: skip


# ---- batching: a vmapped dimension of size n is folded into the queries, (V, B, d) -> (V, n·B, d) ----


def _fold(t: Tensor | None, dim: int | None, n: int) -> Tensor | None:
    """(V, B, ...) with batch dimension `dim` (None: the same for all) -> (V, n·B, ...)."""
    if t is None:
        return None
    t = t.unsqueeze(1).expand(t.shape[0], n, *t.shape[1:]) if dim is None else t.movedim(dim, 1)
    return t.flatten(1, 2)


def _per_query(relation: Tensor, dim: int | None, n: int, batch: int) -> Tensor:
    """Relation table of all n·B queries: (R, n·B, d)."""
    relation = relation.unsqueeze(0).expand(n, *relation.shape) if dim is None else relation.movedim(dim, 0)
    if relation.dim() == 3:
        relation = relation.unsqueeze(2).expand(-1, -1, batch, -1)  # (n, R, B, d)
    return relation.transpose(0, 1).flatten(1, 2)


def _take(t: object, dim: int | None, i: int) -> object:
    return t.select(dim, i) if isinstance(t, Tensor) and dim is not None else t


def loop_over_batch(op, info, in_dims, args):
    """One call per sample: for a batched graph or batched edge weights, which the kernel has no axis for."""
    if info.batch_size == 0:
        raise ValueError(f"{getattr(op, 'name', 'innerloop')}: torch.func.vmap over 0 samples, expected at least 1")
    results = [op(*(_take(a, d, i) for a, d in zip(args, in_dims, strict=True))) for i in range(info.batch_size)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(None if r[0] is None else torch.stack(r) for r in zip(*results, strict=True))
    return stacked, tuple(None if r is None else 0 for r in stacked)


def _fold_forward(op, info, in_dims, csr, relation, input, boundary, edge_weight, sum, mul):
    n = info.batch_size
    if in_dims[0] is not None or in_dims[4] is not None:
        return loop_over_batch(op, info, in_dims, (csr, relation, input, boundary, edge_weight, sum, mul))
    batch = input.movedim(in_dims[2], 0).shape[2] if in_dims[2] is not None else input.shape[1]
    shared = relation.dim() - (in_dims[1] is not None) == 2
    if not (shared and in_dims[1] is None):
        relation = _per_query(relation, in_dims[1], n, batch)
    out = op(csr, relation, _fold(input, in_dims[2], n), _fold(boundary, in_dims[3], n), edge_weight, sum, mul)
    return out.unflatten(1, (n, batch)), 1


def _fold_backward(
    op, info, in_dims, grad_out, out, csr, relation, input, boundary, edge_weight, sum, mul, weight_grad
):  # fmt: skip
    n = info.batch_size
    if in_dims[2] is not None or in_dims[6] is not None or weight_grad:
        args = (grad_out, out, csr, relation, input, boundary, edge_weight, sum, mul, weight_grad)
        return loop_over_batch(op, info, in_dims, args)
    batch = input.movedim(in_dims[4], 0).shape[2] if in_dims[4] is not None else input.shape[1]
    shared = relation.dim() - (in_dims[3] is not None) == 2
    grad_input, grad_relation, grad_boundary, grad_weight = op(
        _fold(grad_out, in_dims[0], n), _fold(out, in_dims[1], n), csr,
        _per_query(relation, in_dims[3], n, batch), _fold(input, in_dims[4], n),
        _fold(boundary, in_dims[5], n), edge_weight, sum, mul, False,
    )  # fmt: skip
    grad_relation = grad_relation.unflatten(1, (n, batch)).movedim(1, 0)
    if shared:
        grad_relation = grad_relation.sum(2)
    grad_boundary = (
        grad_boundary.expand(n, 0) if boundary is None else grad_boundary.unflatten(1, (n, batch)).movedim(1, 0)
    )
    return (
        (grad_input.unflatten(1, (n, batch)), grad_relation, grad_boundary, grad_weight.expand(n, 0)),
        (1, 0, 0, 0),
    )


@_forward.vmap
def _(info, in_dims, *args):
    return _fold_forward(_forward, info, in_dims, *args)


@_backward.vmap
def _(info, in_dims, *args):
    return _fold_backward(_backward, info, in_dims, *args)


# ---- differentiation ----


class _RelationalSpmm(torch.autograd.Function):
    @staticmethod
    def forward(csr, relation, input, boundary, edge_weight, sum, mul):
        return _forward(csr, relation, input, boundary, edge_weight, sum, mul)

    @staticmethod
    def setup_context(ctx, inputs, output):
        csr, relation, input, boundary, edge_weight, sum, mul = inputs
        ctx.save_for_backward(output, csr, relation, input, boundary, edge_weight)
        ctx.codes = (sum, mul)

    @staticmethod
    def backward(ctx, grad_out):
        _, need_relation, need_input, need_boundary, need_weight, *_ = ctx.needs_input_grad
        apply = _RelationalSpmmBackward.apply if torch.is_grad_enabled() else _backward
        grad_input, grad_relation, grad_boundary, grad_weight = apply(
            grad_out, *ctx.saved_tensors, *ctx.codes, need_weight
        )
        return (
            None,
            grad_relation if need_relation else None,
            grad_input if need_input else None,
            grad_boundary if need_boundary else None,
            grad_weight if need_weight else None,
            None,
            None,
        )

    @staticmethod
    def vmap(info, in_dims, *args):
        # The Function and not the op, so that a gradient around vmap finds a node.
        return _fold_forward(_RelationalSpmm.apply, info, in_dims, *args)


def _backward_vmap(info, in_dims, *args):
    return _fold_backward(_RelationalSpmmBackward.apply, info, in_dims, *args)


_RelationalSpmmBackward = last_derivative("relational_spmm", _backward, _backward_vmap)
