# SPDX-License-Identifier: Apache-2.0
"""Messages and aggregates given as Python functions of numbers, compiled into relational_spmm's loop by numba."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ._registry import apply

__all__ = ["Aggregate", "Message", "run"]


@dataclass(frozen=True)
class Message:
    """⊗ as a function of two numbers, channel by channel, for `relational_spmm(mul=…)` and NBFNet's `message`.

    Args:
        function: (x, w) -> m, of a channel of the source and of the relation.
        grad: (x, w) -> (dm/dx, dm/dw). Without it no gradient can be asked for.

    Both are compiled by numba (`pip install innerloop[numba]`): arithmetic and `math`, no tensors. Globals and closures
    are read once; a new function object is compiled anew, so make it once.

    Example:
        >>> import math
        >>> tanh = Message(lambda x, w: math.tanh(x * w),
        ...                lambda x, w: (w / math.cosh(x * w) ** 2, x / math.cosh(x * w) ** 2))
    """

    function: Callable[[float, float], float]
    grad: Callable[[float, float], tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        _check_functions("Message", function=self.function)
        _check_functions("Message", optional=True, grad=self.grad)


@dataclass(frozen=True)
class Aggregate:
    """⊕ as a fold over the messages of a row, for `relational_spmm(sum=…)` and NBFNet's `aggregate`.

    out = finish(add(… add(add(zero, m₁), m₂) …, m_n), n), the boundary being the last message.

    Args:
        add: (total, m) -> total.
        zero: the total of no messages.
        finish: (total, n) -> out; default: the total.
        share: (m, out, n) -> d out / d m. Without it no gradient can be asked for.

    Both are compiled by numba (`pip install innerloop[numba]`): arithmetic and `math`, no tensors. Messages come in the
    order of the graph's rows: by (relation, source, position).

    Example:
        >>> l2 = Aggregate(lambda total, m: total + m * m, 0.0, lambda total, n: math.sqrt(total),
        ...                lambda m, out, n: m / out if out > 0 else 0.0)
    """

    add: Callable[[float, float], float]
    zero: float
    finish: Callable[[float, int], float] | None = None
    share: Callable[[float, float, int], float] | None = None
    # Maxima and minima: the share goes to the first message that equals the result.
    _first: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        _check_functions("Aggregate", add=self.add)
        _check_functions("Aggregate", optional=True, finish=self.finish, share=self.share)
        if isinstance(self.zero, bool) or not isinstance(self.zero, float | int):
            raise TypeError(f"Aggregate: zero is {type(self.zero).__name__}, expected a number")


def _check_functions(kind: str, optional: bool = False, **functions: object) -> None:
    for name, function in functions.items():
        if not callable(function) and not (optional and function is None):
            raise TypeError(f"{kind}: {name} is {type(function).__name__}, expected a function of numbers")


def _one(m, out, n):
    return 1.0


# The built-in operations that can be joined with a function.
MESSAGES = {
    "mul": Message(lambda x, w: x * w, lambda x, w: (w, x)),
    "add": Message(lambda x, w: x + w, lambda x, w: (1.0, 1.0)),
}
_SUM = Aggregate(lambda total, m: total + m, 0.0, share=_one)
AGGREGATES = {
    "sum": _SUM,
    "add": _SUM,
    "mean": Aggregate(_SUM.add, 0.0, lambda total, n: total / max(n, 1), lambda m, out, n: 1.0 / n),
    "max": Aggregate(lambda total, m: m if m > total or m != m else total, -math.inf, share=_one, _first=True),
    "min": Aggregate(lambda total, m: m if m < total or m != m else total, math.inf, share=_one, _first=True),
}


def run(graph, relation, input, boundary, edge_weight, sum, mul) -> Tensor:
    """relational_spmm where `sum` or `mul` is a function; (V, B, d) arguments, already checked for shapes."""
    aggregate = _pick("sum", sum, Aggregate, AGGREGATES)
    message = _pick("mul", mul, Message, MESSAGES)
    if input.device.type != "cpu" or input.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"relational_spmm: input is {input.dtype} on {input.device}, expected float32 or float64 on the CPU where "
            "sum or mul is a function"
        )
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError("relational_spmm: functions as sum or mul are not implemented under torch.func")
    for name, t, rows in (
        ("input", input, graph.num_nodes),
        ("relation", relation, graph.num_relations),
        ("edge_weight", edge_weight, graph.num_edges),
    ):
        if t is not None and t.shape[0] != rows:
            raise ValueError(f"relational_spmm: {name} has {t.shape[0]} rows, expected {rows}, those of the graph")
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (relation, input, boundary, edge_weight)
    ):
        for owner, name in ((message, "grad"), (aggregate, "share")):
            if getattr(owner, name) is None:
                raise ValueError(
                    f"relational_spmm: a gradient is asked for, but {type(owner).__name__} has no `{name}`, expected a "
                    "function"
                )
    return apply(_Fold, graph, relation, input, boundary, edge_weight, aggregate, message)


def _pick(argument: str, value, kind: type, named: dict):
    if isinstance(value, kind):
        return value
    if value not in named:
        raise ValueError(
            f"relational_spmm: {argument} is {value!r}, expected one of {', '.join(named)} or {kind.__name__} beside a "
            "function"
        )
    return named[value]


_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graph, relation, input, boundary, edge_weight, aggregate, message):
        ctx.rest = graph, aggregate, message
        forward, _ = _compile(aggregate, message, _NUMPY[input.dtype])
        out = torch.empty_like(input, memory_format=torch.contiguous_format)
        common = _arrays(graph, relation, input, boundary, edge_weight)
        _each_query(input, lambda b: forward(*common, b, out.numpy()))
        ctx.save_for_backward(relation, input, boundary, edge_weight, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise NotImplementedError("relational_spmm: second derivatives are not implemented for functions")
        relation, input, boundary, edge_weight, out = ctx.saved_tensors
        graph, aggregate, message = ctx.rest
        _, backward = _compile(aggregate, message, _NUMPY[input.dtype])
        batch = input.shape[1]
        grad_input = torch.zeros_like(input, memory_format=torch.contiguous_format)
        grad_relation = input.new_zeros(relation.shape[0], batch, input.shape[2])
        grad_boundary = torch.zeros_like(grad_input if boundary is not None else input[:0])
        weighted = ctx.needs_input_grad[4]
        grad_weight = input.new_zeros(batch if weighted else 0, graph.num_edges)
        arrays = [
            x.detach().numpy() for x in (grad.contiguous(), out, grad_input, grad_relation, grad_boundary, grad_weight)
        ]
        common = _arrays(graph, relation, input, boundary, edge_weight)
        _each_query(input, lambda b: backward(*common, b, *arrays, weighted))
        return (
            None,
            grad_relation.sum(1) if relation.dim() == 2 else grad_relation,
            grad_input,
            grad_boundary if boundary is not None else None,
            grad_weight.sum(0) if weighted else None,
            None,
            None,
        )


def _arrays(graph, relation, input, boundary, edge_weight) -> list:
    """indptr, src, rel, eid; input (V, B, d), relation (R, 1 or B, d), boundary (V or 0, B, d), weight (E or 0,)."""
    relation = relation.unsqueeze(1) if relation.dim() == 2 else relation
    floats = (input, relation, input[:0] if boundary is None else boundary,
              input.new_empty(0) if edge_weight is None else edge_weight)  # fmt: skip
    ids = (graph.indptr, graph.src, graph.rel, graph.eid)
    # Unsigned: numba would test every signed index for wrapping around.
    return [x.numpy().view(np.uint32) for x in ids] + [x.detach().contiguous().numpy() for x in floats]


def _each_query(input: Tensor, work: Callable[[int], None]) -> None:
    """A query's columns never meet another's: no locks, and the same bits for every number of threads."""
    batch, threads = input.shape[1], torch.get_num_threads()
    if threads == 1 or batch < 2:
        for b in range(batch):
            work(b)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(batch)))


@functools.lru_cache(maxsize=64)
def _compile(aggregate: Aggregate, message: Message, dtype: type) -> tuple[Callable, Callable]:
    try:
        import numba
    except ImportError as error:
        raise ImportError(
            "relational_spmm: a function as sum or mul is compiled by numba, which is not installed: "
            "pip install innerloop[numba]"
        ) from error

    def jit(function: Callable | None, otherwise: Callable) -> Callable:
        function = otherwise if function is None else function
        return function if hasattr(function, "py_func") else numba.njit(function)

    add, combine = jit(aggregate.add, None), jit(message.function, None)
    finish = jit(aggregate.finish, lambda total, n: total)
    share = jit(aggregate.share, _one)
    derivative = jit(message.grad, lambda x, w: (0.0, 0.0))
    zero, only_first = float(aggregate.zero), aggregate._first
    fast = numba.njit(nogil=True, error_model="numpy")

    @fast
    def forward(indptr, src, rel, eid, input, relation, boundary, weight, b, out):
        num_nodes, _, width = input.shape
        of = b if relation.shape[1] > 1 else 0
        total = np.empty(width, input.dtype)
        for v in range(num_nodes):
            total[:] = zero
            count = np.int64(indptr[v + 1]) - np.int64(indptr[v])
            for e in range(indptr[v], indptr[v + 1]):
                x, w = input[src[e], b], relation[rel[e], of]
                if len(weight) > 0:
                    a = weight[eid[e]]
                    for c in range(width):
                        total[c] = add(total[c], dtype(a * combine(x[c], w[c])))
                else:
                    for c in range(width):
                        total[c] = add(total[c], dtype(combine(x[c], w[c])))
            if len(boundary) > 0:
                count += 1
                for c in range(width):
                    total[c] = add(total[c], boundary[v, b, c])
            for c in range(width):
                out[v, b, c] = finish(total[c], count)

    @fast
    def backward(
        indptr, src, rel, eid, input, relation, boundary, weight, b,
        grad, out, grad_input, grad_relation, grad_boundary, grad_weight, weighted,
    ):  # fmt: skip
        num_nodes, _, width = input.shape
        of = b if relation.shape[1] > 1 else 0
        taken = np.empty(width, np.bool_)
        for v in range(num_nodes):
            taken[:] = False
            g, result = grad[v, b], out[v, b]
            count = np.int64(indptr[v + 1]) - np.int64(indptr[v]) + np.int64(len(boundary) > 0)
            for e in range(indptr[v], indptr[v + 1]):
                x, w = input[src[e], b], relation[rel[e], of]
                a = weight[eid[e]] if len(weight) > 0 else dtype(1)
                of_weight = 0.0
                for c in range(width):
                    m = combine(x[c], w[c])
                    am = dtype(a * m)  # as it was added up: a literal in a user's function makes m float64
                    if only_first:
                        if taken[c] or am != result[c]:
                            continue
                        taken[c] = True
                    gm = g[c] * share(am, result[c], count)
                    dx, dw = derivative(x[c], w[c])
                    grad_input[src[e], b, c] += gm * a * dx
                    grad_relation[rel[e], b, c] += gm * a * dw
                    of_weight += gm * m
                if weighted:
                    grad_weight[b, eid[e]] = of_weight
            if len(boundary) > 0:
                for c in range(width):
                    m = boundary[v, b, c]
                    if not only_first or (m == result[c] and not taken[c]):
                        grad_boundary[v, b, c] = g[c] * share(m, result[c], count)

    def reported(loop: Callable) -> Callable:
        def call(*args):
            try:
                loop(*args)
            except numba.core.errors.NumbaError as error:
                raise TypeError(
                    "relational_spmm: numba cannot compile the functions of sum or mul, expected arithmetic on "
                    f"numbers: {str(error).splitlines()[0]}"
                ) from error

        return call

    return reported(forward), reported(backward)
