# SPDX-License-Identifier: Apache-2.0
"""triangles: their number at every node, on every edge and in every graph; clustering and transitivity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .. import _cpu
from ..simple_graph import Graph
from ._motif_gpu import count
from ._registry import define

__all__ = ["clustering", "transitivity", "triangles"]

Per = Literal["node", "edge", "graph"]


def triangles(graph: Any, per: Per = "node") -> Tensor:
    """Number of triangles at every node, on every edge, or in every graph of a batch.

    Args:
        graph: a :class:`Graph`, or anything that `Graph.of` takes.
        per: "node", "edge" or "graph".

    Returns:
        int64 (n,), (m,) in the order of `graph.edges`, or (B,).

    Raises:
        TypeError: `graph` is no graph. ValueError: another `per`.

    Source: Chiba and Nishizeki, Arboricity and subgraph listing algorithms (1985): O(m^1.5).
    """
    check_per("triangles", per)
    graph = Graph.of(graph)
    counts = _triangles(graph.index, graph.adjacency, per == "edge")
    return sum_by_graph("triangles", counts, graph.ptr, (3,)) if per == "graph" else counts


def clustering(graph: Any) -> Tensor:
    """Local clustering coefficient of every node, 2 t(v) / (d(v) (d(v) - 1)): float64 (n,), 0 where d(v) < 2.

    Source: Watts and Strogatz (1998).
    """
    graph = Graph.of(graph)
    wedges = graph.degree * (graph.degree - 1) // 2
    return triangles(graph).double() / wedges.clamp(min=1)


def transitivity(graph: Any) -> Tensor:
    """Share of closed wedges of every graph, 3 · triangles / Σ_v C(d(v), 2): float64 (B,), 0 without wedges."""
    graph = Graph.of(graph)
    wedges = sum_by_graph("transitivity", graph.degree * (graph.degree - 1) // 2, graph.ptr)
    return 3 * triangles(graph, per="graph").double() / wedges.clamp(min=1)


def sum_by_graph(op: str, counts: Tensor, ptr: Tensor, divisors: Sequence[int] = (1,)) -> Tensor:
    """Sums of int64 node counts (n,) or (n, C), none negative, over the nodes of each graph: (B,) or (B, C).

    Args:
        op: who asks, for messages. ptr: int64 (B + 1,), as of a Graph.
        divisors: of all columns, or of each: sums are divided, and may pass int64 before that.

    Raises:
        OverflowError: the result does not fit int64.
    """
    return _graph_sums(counts, ptr, list(divisors), op)


def check_per(op: str, per: str) -> None:
    if per not in ("node", "edge", "graph"):
        raise ValueError(f"{op}: per is {per!r}, expected 'node', 'edge' or 'graph'")


_triangles = define("triangles(Tensor index, Tensor adjacency, bool by_edge) -> Tensor")


@_triangles.cpu
def _(index, adjacency, by_edge):
    out = torch.empty(int(index[1 if by_edge else 0]), dtype=torch.int64)
    node, edge = (None, out) if by_edge else (out, None)
    _cpu.triangles(node, edge, index, adjacency, torch.get_num_threads())
    return out


@_triangles.cuda
def _(index, adjacency, by_edge):
    return count(_triangles, "triangles", index, adjacency, by_edge)


@_triangles.fake
def _(index, adjacency, by_edge):
    return index.new_empty(num_edges(index, adjacency) if by_edge else num_nodes(index))


_graph_sums = define("graph_sums(Tensor counts, Tensor ptr, int[] divisors, str op) -> Tensor")


def _sums(counts, ptr, divisors, op):
    graphs = ptr.shape[0] - 1
    owner = torch.repeat_interleave(torch.arange(graphs, device=ptr.device), ptr.diff(), output_size=len(counts))
    divisor = torch.tensor(divisors, device=counts.device)
    # By halves of 32 bits, of which the sums fit: n < 2**31. Then as by hand, from the higher half down.
    halves = counts.new_zeros(2, graphs, *counts.shape[1:])
    halves[0].index_add_(0, owner, counts >> 32)
    halves[1].index_add_(0, owner, counts & 0xFFFFFFFF)
    high, low = halves[0] + (halves[1] >> 32), halves[1] & 0xFFFFFFFF
    quotient, rest = high // divisor, high % divisor
    if bool((quotient >= 2**31).any()):
        raise OverflowError(f"{op}: more matches than int64 holds")
    return (quotient << 32) + ((rest << 32) + low) // divisor


_graph_sums.cpu(_sums)
_graph_sums.cuda(_sums)


@_graph_sums.fake
def _(counts, ptr, divisors, op):
    return counts.new_empty(ptr.shape[0] - 1, *counts.shape[1:])


def num_nodes(index: Tensor) -> int:
    """n, from the length of `Graph.index` alone."""
    return (index.shape[0] - 3) // 2


def num_edges(index: Tensor, adjacency: Tensor) -> int:
    """m, from the lengths of `Graph.index` and `Graph.adjacency` alone."""
    return (adjacency.shape[0] - num_nodes(index)) // 4
