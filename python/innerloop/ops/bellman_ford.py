# SPDX-License-Identifier: Apache-2.0
"""bellman_ford: classical path measures of a graph as one op, for any semiring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import _cpu
from ..graph import RelGraph
from ..reference.bellman_ford import bellman_ford as _reference
from ._checks import batched, differentiated
from ._registry import define, warn_no_kernel
from .relational_spmm import loop_over_batch

__all__ = ["PathResult", "Semiring", "bellman_ford"]

# Codes of csrc/cpu/bellman_ford.h.
_PLUS = {"sum": 0, "min": 1, "max": 2, "logsumexp": 3}
_TIMES = {"mul": 0, "add": 1, "min": 2, "max": 3}
# The products that distribute over each sum and that its identity annihilates.
_SEMIRINGS = {
    "sum": ("mul",),
    "logsumexp": ("add",),
    "min": ("mul", "add", "max"),
    "max": ("mul", "add", "min"),
}
# Weights with which going round a cycle may improve a value, and the same path twice is not the same value.
_MAY_CYCLE = {
    ("min", "add"): lambda w: w < 0,
    ("max", "add"): lambda w: w > 0,
    ("max", "mul"): lambda w: w > 1,
    ("min", "mul"): lambda w: w < 1,
}
_MAX_STEPS = 10_000


@dataclass(frozen=True)
class Semiring:
    """⊕, ⊗ and their identities, for :func:`bellman_ford`.

    Args:
        add: ⊕: "sum", "min", "max" or "logsumexp"; or a function of two numbers, compiled into the loop by numba
            (`pip install innerloop[numba]`). It must be associative and commutative.
        mul: ⊗: "mul", "add", "min" or "max" ("sum" goes with "mul", "logsumexp" with "add",
            "min" not with "min" and "max" not with "max"); or a function
            of a path's value and an edge's weight. Both are names, or both are functions.
        zero: ⓪, the value of a node that no path reaches: a ⊕ ⓪ = a, ⓪ ⊗ w = ⓪.
        one: ①, the value of the empty path, at the source.
        idempotent: for functions: whether a ⊕ a = a and ⊕ picks one of its arguments, as min and max do. Only then
            may rows be computed in place and from changed neighbours alone.
        prepare: makes the weights of the recursion from the graph and the given ones, as `alpha · w / Σ w` for
            personalized PageRank.
        name: for messages.

    Raises:
        ValueError: unknown names, a pair that is no semiring, or a name with a function.

    Example:
        >>> minimax = Semiring("min", "max", zero=float("inf"), one=float("-inf"))
    """

    add: str | Callable[[float, float], float]
    mul: str | Callable[[float, float], float]
    zero: float
    one: float
    idempotent: bool = False
    prepare: Callable[[RelGraph, Tensor], Tensor] | None = field(default=None, repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        if callable(self.add) and callable(self.mul):
            return
        for name, value, known in (("add", self.add, _PLUS), ("mul", self.mul, _TIMES)):
            if callable(value):
                raise ValueError("Semiring: add and mul are a name and a function, expected two of one kind")
            if value not in known:
                raise ValueError(f"Semiring: {name} is {value!r}, expected one of {', '.join(known)}, or a function")
        if self.mul not in _SEMIRINGS[self.add]:
            known = " or ".join(map(repr, _SEMIRINGS[self.add]))
            raise ValueError(f"Semiring: mul is {self.mul!r}, expected {known} with add={self.add!r}")
        object.__setattr__(self, "idempotent", self.add in ("min", "max"))

    @property
    def compiled(self) -> bool:
        """Whether add and mul are names of built-in operations."""
        return not callable(self.add)

    @staticmethod
    def katz(beta: float = 0.005) -> Semiring:
        """Σ over paths of the product of beta · w: the Katz index, the empty path included."""
        return Semiring("sum", "mul", 0.0, 1.0, prepare=lambda graph, w: beta * w, name=f"katz({beta})")

    @staticmethod
    def ppr(alpha: float = 0.85) -> Semiring:
        """Σ over l of alpha^l · P^l, P the random walk: personalized PageRank, up to the factor 1 − alpha."""

        def prepare(graph: RelGraph, weight: Tensor) -> Tensor:
            source = graph.edge_index[0]
            out = weight.new_zeros(graph.num_nodes).index_add(0, source, weight)
            return alpha * weight / out.where(out != 0, 1)[source]

        return Semiring("sum", "mul", 0.0, 1.0, prepare=prepare, name=f"ppr({alpha})")


_NAMED = {
    "katz": Semiring.katz(),
    "ppr": Semiring.ppr(),
    "distance": Semiring("min", "add", math.inf, 0.0, name="distance"),
    "widest": Semiring("max", "min", -math.inf, math.inf, name="widest"),
    "reliable": Semiring("max", "mul", 0.0, 1.0, name="reliable"),
    "reachability": Semiring("max", "min", 0.0, 1.0, prepare=lambda graph, w: torch.ones_like(w), name="reachability"),
    "logsumexp": Semiring("logsumexp", "add", -math.inf, 0.0, name="logsumexp"),
}


@dataclass(frozen=True)
class PathResult:
    """What :func:`bellman_ford` returns.

    Attributes:
        value: (V, S), value[v, s] = ⊕ over paths from sources[s] to v of the ⊗ of their weights.
        predecessor: int64 (V, S), position in `graph.edge_index` of the last edge of a best path, -1 where there is
            none (the source itself, unreached nodes); None unless asked for.
        steps: steps done; in-place sweeps where rows are relaxed in place.
        converged: whether another step would change nothing (sum, logsumexp: nothing beyond `tol`).
    """

    value: Tensor
    predecessor: Tensor | None
    steps: int
    converged: bool
    graph: RelGraph = field(repr=False)
    sources: Tensor = field(repr=False)

    def path(self, target: int, column: int = 0) -> list[int]:
        """Edges of a best path from sources[column] to `target`, first to last, as positions in `graph.edge_index`.

        Empty for the source itself and for a node without a path.

        Raises:
            ValueError: no predecessors were asked for. IndexError: `target` or `column` out of range.
        """
        if self.predecessor is None:
            raise ValueError("PathResult.path: predecessor is None, expected bellman_ford(..., predecessors=True)")
        for name, value, limit in (("target", target, len(self.value)), ("column", column, self.value.shape[1])):
            if not 0 <= value < limit:
                raise IndexError(f"PathResult.path: {name} is {value}, expected one in [0, {limit})")
        edges: list[int] = []
        last, source = self.predecessor[:, column], self.graph.edge_index[0]
        while (edge := int(last[target])) >= 0:
            edges.append(edge)
            target = int(source[edge])
        return edges[::-1]


def bellman_ford(
    graph: RelGraph,
    sources: Tensor | Sequence[int] | int,
    semiring: str | Semiring = "distance",
    *,
    edge_weight: Tensor | None = None,
    steps: int | None = None,
    tol: float | None = None,
    predecessors: bool = False,
) -> PathResult:
    """Generalized Bellman-Ford: a path measure from several sources to every node.

    h_0(v) = ① at the source, ⓪ elsewhere;  h_t(v) = ⊕ over in-edges (x, v) of h_{t-1}(x) ⊗ w,  ⊕ h_0(v)

    | semiring | ⊕ | ⊗ | result |
    |---|---|---|---|
    | "katz", `Semiring.katz(beta)` | sum | × | Katz index, Σ_l beta^l (A^l), l = 0 included |
    | "ppr", `Semiring.ppr(alpha)` | sum | × | personalized PageRank / (1 − alpha) |
    | "distance" | min | + | length of a shortest path; inf without one |
    | "widest" | max | min | largest smallest weight on a path; -inf without one |
    | "reliable" | max | × | largest product of weights (none negative); 0 without a path |
    | "reachability" | max | min | 1 where there is a path, else 0 |
    | "logsumexp" | logsumexp | + | log Σ exp of the weight of every path |

    Values do not depend on the number of threads. Columns are the sources; no tensor with a row per edge is formed.

    Args:
        graph: V nodes, E edges; relations are not looked at.
        sources: int64 (S,), or one node.
        semiring: a name of the table, or a :class:`Semiring`.
        edge_weight: float32 or float64 (E,) in the order of `graph.edge_index`; sets the dtype of the result.
            Default: `graph.edge_weight`, or 1 in float32.
        steps: exactly this many steps: paths of at most so many edges. Default: to the fixpoint.
        tol: sum and logsumexp without `steps`: stop when no value moves by more, relative to max(1, |value|).
            Default: 1e-6 for float32, 1e-12 for float64.
        predecessors: keep the last edge of a best path (min and max, to the fixpoint); see :meth:`PathResult.path`.
            Of equally good edges the one found first stays.

    Raises:
        TypeError: `graph` is not a RelGraph, or ids are not integers.
        ValueError: an unknown semiring; weights with NaN, negative ones for "reliable", or infinite ones for a sum;
            a cycle that improves a value for ever (for "distance": a negative cycle), with its edges; weights that
            require grad: this op is not differentiable, `relational_spmm` is; weights or sources that
            `torch.func.vmap` maps.
        IndexError: a source out of range.
        RuntimeError: no convergence.

    Source: Zhu et al., Neural Bellman-Ford Networks (NeurIPS 2021), section 3.1 and table 1.

    Example:
        >>> import torch, innerloop
        >>> graph = innerloop.RelGraph(torch.tensor([[0, 1, 0], [1, 2, 2]]), torch.zeros(3, dtype=torch.int64))
        >>> hops = innerloop.bellman_ford(graph, 0, edge_weight=torch.tensor([1.0, 1.0, 5.0]), predecessors=True)
        >>> hops.value.flatten(), hops.path(2)
        (tensor([0., 1., 2.]), [0, 1])
    """
    ring = _semiring(semiring)
    sources = _sources(graph, sources)
    weight = _weight(graph, edge_weight)
    fixpoint = steps is None
    _check_options(ring, steps, tol, predecessors)
    if ring.prepare is not None:
        weight = ring.prepare(graph, weight)
    check_cycles = _check_weights(ring, weight) and fixpoint
    if steps is None:
        steps = max(graph.num_nodes, 1) if ring.idempotent else _MAX_STEPS
    if tol is None:
        tol = 1e-12 if weight.dtype == torch.float64 else 1e-6
    if not ring.compiled:
        from ._semiring_numba import run

        value, last, done, converged = run(
            graph, weight, sources, ring.add, ring.mul, ring.zero, ring.one, ring.idempotent, steps, fixpoint, tol,
            predecessors,
        )  # fmt: skip
    elif graph.device.type != "cpu":
        warn_no_kernel("bellman_ford", graph.device.type)
        value, last, done, converged = _reference(
            graph.edge_index, weight, graph.num_nodes, sources, ring.add, ring.mul, ring.zero, ring.one, steps,
            fixpoint=fixpoint, tol=tol, predecessors=predecessors or check_cycles,
        )  # fmt: skip
    else:
        value, last, info = _op(
            graph.csr, graph.num_nodes, weight, sources, _PLUS[ring.add], _TIMES[ring.mul], ring.zero, ring.one,
            steps, fixpoint, tol, check_cycles, predecessors or check_cycles,
        )  # fmt: skip
        done, converged = int(info[0]), bool(info[1])
        last = last if last.numel() or not value.numel() else None
    if fixpoint and not converged:
        _explain_no_fixpoint(ring, graph, last if check_cycles else None, done)
    return PathResult(value, last if predecessors else None, done, converged, graph, sources)


_op = define(
    "bellman_ford(Tensor csr, int num_nodes, Tensor edge_weight, Tensor sources, int plus, int times, float zero, "
    "float one, int steps, bool fixpoint, float tol, bool check_cycles, bool predecessors) -> (Tensor, Tensor, Tensor)"
)


@_op.cpu
def _(csr, num_nodes, edge_weight, sources, plus, times, zero, one, steps, fixpoint, tol, check_cycles, predecessors):
    value = edge_weight.new_empty(num_nodes, len(sources))
    last = csr.new_empty(value.shape if predecessors else 0, dtype=torch.int64)
    info = _cpu.bellman_ford(
        value, last if predecessors else None, csr, edge_weight.contiguous(), sources.contiguous(), plus, times, zero,
        one, steps, fixpoint, tol, check_cycles, torch.get_num_threads(),
    )  # fmt: skip
    return value, last, torch.tensor(info, device="cpu")


@_op.fake
def _(csr, num_nodes, edge_weight, sources, plus, times, zero, one, steps, fixpoint, tol, check_cycles, predecessors):
    value = edge_weight.new_empty(num_nodes, len(sources))
    last = csr.new_empty(value.shape if predecessors else 0, dtype=torch.int64)
    return value, last, csr.new_empty(2, dtype=torch.int64)


@_op.vmap
def _(info, in_dims, *args):
    return loop_over_batch(_op, info, in_dims, args)


def _semiring(semiring: str | Semiring) -> Semiring:
    if isinstance(semiring, Semiring):
        return semiring
    if semiring not in _NAMED:
        raise ValueError(f"bellman_ford: semiring is {semiring!r}, expected one of {', '.join(_NAMED)}, or a Semiring")
    return _NAMED[semiring]


def _sources(graph: RelGraph, sources: Tensor | Sequence[int] | int) -> Tensor:
    if not isinstance(graph, RelGraph):
        raise TypeError(f"bellman_ford: graph is {type(graph).__name__}, expected RelGraph")
    if not isinstance(sources, Tensor):
        sources = [sources] if isinstance(sources, int) else list(sources)
        sources = torch.tensor(sources, dtype=None if sources else torch.int64)
    sources = sources.to(graph.device)
    if sources.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"bellman_ford: sources has dtype {sources.dtype}, expected an integer dtype")
    if batched(sources):
        raise ValueError("bellman_ford: sources is a sample of torch.func.vmap, expected (S,): the sources of one call")
    if sources.dim() > 1:
        raise ValueError(f"bellman_ford: sources has shape {tuple(sources.shape)}, expected (S,)")
    sources = sources.to(torch.int64).reshape(-1)
    bad = (sources < 0) | (sources >= graph.num_nodes)
    if bad.any():
        raise IndexError(f"bellman_ford: sources holds {int(sources[bad][0])}, expected ids in [0, {graph.num_nodes})")
    return sources


def _weight(graph: RelGraph, weight: Tensor | None) -> Tensor:
    if weight is None:
        weight = graph.edge_weight
    if weight is None:
        return torch.ones(graph.num_edges, device=graph.device)
    if not isinstance(weight, Tensor):
        raise TypeError(f"bellman_ford: edge_weight is {type(weight).__name__}, expected a tensor")
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"bellman_ford: edge_weight has dtype {weight.dtype}, expected float32 or float64")
    if weight.shape != (graph.num_edges,):
        raise ValueError(f"bellman_ford: edge_weight has shape {tuple(weight.shape)}, expected ({graph.num_edges},)")
    if weight.device != graph.device:
        raise ValueError(f"bellman_ford: edge_weight is on {weight.device}, expected {graph.device} like graph")
    if differentiated(weight) and torch.is_grad_enabled():
        raise ValueError(
            "bellman_ford: edge_weight requires grad, expected constants (detach it); relational_spmm, one step, is "
            "differentiable"
        )
    if batched(weight):
        raise ValueError(
            "bellman_ford: edge_weight is a sample of torch.func.vmap, expected one tensor; call it for each sample"
        )
    return weight.detach()


def _check_options(ring: Semiring, steps: int | None, tol: float | None, predecessors: bool) -> None:
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
        raise ValueError(f"bellman_ford: steps is {steps!r}, expected an int of at least 0, or None")
    if tol is not None and (steps is not None or ring.idempotent):
        raise ValueError("bellman_ford: tol is for a sum without steps; expected None")
    if tol is not None and not tol >= 0:
        raise ValueError(f"bellman_ford: tol is {tol}, expected at least 0")
    if predecessors and not ring.idempotent:
        raise ValueError("bellman_ford: predecessors=True, expected False: a sum has no best path")
    if predecessors and steps is not None:
        raise ValueError("bellman_ford: predecessors=True with steps, expected steps=None (the fixpoint)")


def _check_weights(ring: Semiring, weight: Tensor) -> bool:
    """Raises for weights that the semiring does not take; whether a cycle may improve a value."""
    if weight.isnan().any():
        edge = int(weight.isnan().nonzero()[0])
        raise ValueError(f"bellman_ford: edge_weight is NaN at edge {edge}, expected numbers")
    if not ring.compiled:
        return False
    if ring.add in ("sum", "logsumexp") and weight.isinf().any():
        raise ValueError(f"bellman_ford: edge_weight holds an infinity, expected finite weights for {ring.add!r}")
    if ring.mul == "mul" and ring.add != "sum" and (weight < 0).any():
        edge = int((weight < 0).nonzero()[0])
        raise ValueError(
            f"bellman_ford: edge_weight is {float(weight[edge])} at edge {edge}, expected none negative: "
            f"{ring.add} and mul are no semiring then"
        )
    risky = _MAY_CYCLE.get((ring.add, ring.mul))
    return risky is not None and bool(risky(weight).any())


def _explain_no_fixpoint(ring: Semiring, graph: RelGraph, last: Tensor | None, steps: int) -> None:
    cycle = None if last is None else _find_cycle(graph, last)
    if cycle is not None:
        kind = "negative cycle" if (ring.add, ring.mul) == ("min", "add") else "cycle that improves every path"
        raise ValueError(f"bellman_ford: edge_weight has a {kind}, expected none: edges {cycle}")
    raise RuntimeError(
        f"bellman_ford: no fixpoint after {steps} steps; a sum has none where the weights' spectral radius is ≥ 1"
    )


def _find_cycle(graph: RelGraph, last: Tensor) -> list[int] | None:
    source = graph.edge_index[0]
    for column in last.unbind(1):
        previous = torch.where(column >= 0, source[column.clamp(min=0)], -1).tolist()
        seen = [-1] * len(previous)
        for start in range(len(previous)):
            v = start
            while v >= 0 and seen[v] < 0:
                seen[v] = start
                v = previous[v]
            if v < 0 or seen[v] != start:
                continue
            edges, u = [], v
            while not edges or u != v:
                edges.append(int(column[u]))
                u = previous[u]
            return edges[::-1]
    return None
