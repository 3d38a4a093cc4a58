# SPDX-License-Identifier: Apache-2.0
"""triangles: their number at every node, on every edge and in every graph; clustering and transitivity."""

from __future__ import annotations

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
    return sum_by_graph(counts, graph) // 3 if per == "graph" else counts


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
    wedges = sum_by_graph(graph.degree * (graph.degree - 1) // 2, graph)
    return 3 * triangles(graph, per="graph").double() / wedges.clamp(min=1)


def sum_by_graph(counts: Tensor, graph: Graph) -> Tensor:
    """Sums of int64 node counts (n, ...) over the nodes of each graph: (B, ...)."""
    if graph.num_graphs == 1:
        return counts.sum(0, keepdim=True)
    return counts.new_zeros(graph.num_graphs, *counts.shape[1:]).index_add_(0, graph.batch, counts)


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


def num_nodes(index: Tensor) -> int:
    """n, from the length of `Graph.index` alone."""
    return (index.shape[0] - 3) // 2


def num_edges(index: Tensor, adjacency: Tensor) -> int:
    """m, from the lengths of `Graph.index` and `Graph.adjacency` alone."""
    return (adjacency.shape[0] - num_nodes(index)) // 4
