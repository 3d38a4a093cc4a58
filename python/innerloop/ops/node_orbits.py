# SPDX-License-Identifier: Apache-2.0
"""node_orbits: how often every node, or edge, takes each place in the connected subgraphs on up to k nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _cpu
from ..simple_graph import Graph
from ._checks import as_int
from ._motif_gpu import count
from ._registry import define
from .triangles import num_edges, num_nodes, sum_by_graph

__all__ = ["edge_orbits", "graphlets", "node_orbits"]

_NODE_ORBITS = {3: 4, 4: 15, 5: 73}
_EDGE_ORBITS = {3: 2, 4: 12, 5: 68}
# Of each graphlet, an orbit and how many nodes it has there: Σ over nodes of that count / size = number of graphlets.
_ORBIT_OF_GRAPHLET = (
    (0, 2), (2, 1), (3, 3),
    (4, 2), (7, 1), (8, 4), (11, 1), (13, 2), (14, 4),
    (17, 1), (21, 1), (23, 1), (25, 1), (30, 1), (33, 1), (34, 5), (38, 1), (42, 1), (44, 1), (47, 1), (50, 2),
    (52, 1), (55, 2), (58, 1), (61, 1), (62, 1), (65, 1), (69, 1), (70, 2), (72, 5),
)  # fmt: skip
_GRAPHLETS = {3: 3, 4: 9, 5: 30}


def node_orbits(graph: Any, k: int = 4, *, induced: bool = True) -> Tensor:
    """Graphlet degree vectors: how often each node takes each of the orbits of the graphlets on 2 to k nodes.

    Args:
        graph: a :class:`Graph`, or anything that `Graph.of` takes.
        k: 3, 4 or 5 nodes.
        induced: count induced subgraphs; else all subgraphs of that shape, once for each set of edges.

    Returns:
        int64 (n, 4 | 15 | 73), exact, in the numbering of Pržulj.

    Memory for k = 5: about 300 bytes for each edge, and 210 more for each thread after the first.

    Raises:
        TypeError: `graph` is no graph. ValueError: another k, or for k = 5 a node of degree 121,900 or more.

    Source: Pržulj, Biological network comparison using graphlet degree distribution (2007).
    """
    k = _check("node_orbits", k, induced)
    graph = Graph.of(graph)
    return _node_orbits(graph.index, graph.adjacency, k, induced)


def edge_orbits(graph: Any, k: int = 4, *, induced: bool = True) -> Tensor:
    """How often each edge takes each of the edge orbits of the graphlets on 3 to k nodes.

    Args:
        graph, k, induced: as for :func:`node_orbits`.

    Returns:
        int64 (m, 2 | 12 | 68), rows in the order of `graph.edges`.

    Source: Hočevar and Demšar, Combinatorial algorithm for counting small induced graphs and orbits (2017).
    """
    k = _check("edge_orbits", k, induced)
    graph = Graph.of(graph)
    return _edge_orbits(graph.index, graph.adjacency, k, induced)


def graphlets(graph: Any, k: int = 4, *, induced: bool = True) -> Tensor:
    """Number of subgraphs of each shape on 2 to k nodes: int64 (B, 3 | 9 | 30), columns G0, G1, … of Pržulj.

    Args:
        graph, k, induced: as for :func:`node_orbits`.
    """
    k = _check("graphlets", k, induced)
    graph = Graph.of(graph)
    orbit, size = zip(*_ORBIT_OF_GRAPHLET[: _GRAPHLETS[k]], strict=True)
    counts = _node_orbits(graph.index, graph.adjacency, k, induced)[:, list(orbit)]
    return sum_by_graph("graphlets", counts, graph.ptr, size)


def _check(op: str, k: int, induced: bool) -> int:
    if not isinstance(induced, bool):
        raise TypeError(f"{op}: induced is {induced!r}, expected a bool")
    size = as_int(k)
    if size is None or size not in _NODE_ORBITS:
        raise ValueError(f"{op}: k is {k!r}, expected 3, 4 or 5")
    return size


_node_orbits = define("node_orbits(Tensor index, Tensor adjacency, int k, bool induced) -> Tensor")
_edge_orbits = define("edge_orbits(Tensor index, Tensor adjacency, int k, bool induced) -> Tensor")


@_node_orbits.cpu
def _(index, adjacency, k, induced):
    out = torch.empty(int(index[0]), _NODE_ORBITS[k], dtype=torch.int64)
    _cpu.node_orbits(out, None, index, adjacency, k, induced, torch.get_num_threads())
    return out


@_node_orbits.cuda
def _(index, adjacency, k, induced):
    return count(_node_orbits, "node_orbits", index, adjacency, k, induced)


@_node_orbits.fake
def _(index, adjacency, k, induced):
    return index.new_empty(num_nodes(index), _NODE_ORBITS[k])


@_edge_orbits.cpu
def _(index, adjacency, k, induced):
    out = torch.empty(int(index[1]), _EDGE_ORBITS[k], dtype=torch.int64)
    _cpu.node_orbits(None, out, index, adjacency, k, induced, torch.get_num_threads())
    return out


@_edge_orbits.cuda
def _(index, adjacency, k, induced):
    return count(_edge_orbits, "edge_orbits", index, adjacency, k, induced)


@_edge_orbits.fake
def _(index, adjacency, k, induced):
    return index.new_empty(num_edges(index, adjacency), _EDGE_ORBITS[k])
