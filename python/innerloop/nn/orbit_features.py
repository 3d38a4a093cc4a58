# SPDX-License-Identifier: Apache-2.0
"""Pattern counts as features of nodes and edges: transforms for graph objects in the style of PyG, which needs not be
installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ..ops._checks import as_int
from ..ops._patterns import Pattern, as_pattern
from ..ops.match import match
from ..ops.node_orbits import node_orbits
from ..simple_graph import Graph

__all__ = ["AddOrbitCounts", "AddSubstructureCounts"]

GraphLike = TypeVar("GraphLike")


class AddOrbitCounts:
    """Appends the graphlet orbit counts of each node to an attribute.

    Args:
        k: nodes of the largest graphlets, 3, 4 or 5: 4, 15 or 73 columns.
        log: takes log(1 + count), in float32; else counts: int64, or the dtype of a floating-point attribute,
            which turns float64 where that would round them.
        attr: name of the attribute; counts go behind its columns, or make a new one.

    Call:
        graph: any object with ``edge_index`` (2, E), such as ``torch_geometric.data.Data``, and ``num_nodes``, if the
        greatest id is not the last node and no attribute ``attr`` has rows to count. It is changed and returned.

    Raises:
        ValueError: another k, or an attribute that is not (n,) or (n, F). TypeError: an object without ``edge_index``,
        an attribute that is no tensor, arguments of another kind.
    """

    def __init__(self, k: int = 4, log: bool = True, attr: str = "x") -> None:
        size = as_int(k)
        if size not in (3, 4, 5):
            raise ValueError(f"AddOrbitCounts: k is {k!r}, expected 3, 4 or 5")
        _check_options("AddOrbitCounts", attr, log=log)
        self.k, self.log, self.attr = size, log, attr

    def __call__(self, graph: GraphLike) -> GraphLike:
        counts = node_orbits(_graph_of(graph, "AddOrbitCounts", self.attr), self.k)
        return _append(graph, "AddOrbitCounts", self.attr, counts, self.log)

    def __repr__(self) -> str:
        return f"AddOrbitCounts(k={self.k}, log={self.log}, attr={self.attr!r})"


class AddSubstructureCounts:
    """Appends, for each pattern and each of its orbits, in how many matches a node, or edge, takes that place: the
    features of graph substructure networks (Bouritsas et al., TPAMI 2022).

    Args:
        patterns: whatever :func:`innerloop.match` takes: names, edge lists, graph6, networkx graphs; or one of these.
        scope: "node" appends to ``attr``, by default ``x``; "edge" gives a row to each column of ``edge_index``, equal
            in both directions, 0 for self loops, by default in ``edge_attr``.
        induced: whether matches are induced subgraphs.
        log: takes log(1 + count), in float32; else counts: int64, or the dtype of a floating-point attribute,
            which turns float64 where that would round them.

    Call:
        graph: as for :class:`AddOrbitCounts`.

    Raises:
        ValueError, TypeError: no pattern, or one that ``match`` does not take; another scope; an object without
        ``edge_index``.
    """

    def __init__(
        self,
        patterns: Sequence[Any],
        scope: Literal["node", "edge"] = "node",
        induced: bool = False,
        log: bool = False,
        attr: str | None = None,
    ) -> None:
        if not _is_pattern(patterns) and not isinstance(patterns, Iterable):
            raise TypeError(
                f"AddSubstructureCounts: patterns is {type(patterns).__name__}, expected a list of patterns"
            )
        patterns = [patterns] if _is_pattern(patterns) else list(patterns)
        if not patterns:
            raise ValueError("AddSubstructureCounts: patterns is empty, expected at least one")
        if scope not in ("node", "edge"):
            raise ValueError(f"AddSubstructureCounts: scope is {scope!r}, expected node or edge")
        self.patterns, self.scope, self.induced, self.log = patterns, scope, induced, log
        self._checked = [as_pattern(pattern, "AddSubstructureCounts") for pattern in patterns]
        self.attr = {"node": "x", "edge": "edge_attr"}[scope] if attr is None else attr
        _check_options("AddSubstructureCounts", self.attr, induced=induced, log=log)

    def __call__(self, graph: GraphLike) -> GraphLike:
        simple = _graph_of(graph, "AddSubstructureCounts", self.attr if self.scope == "node" else None)
        output = "orbit_counts" if self.scope == "node" else "edge_counts"
        columns = [match(simple, pattern, induced=self.induced, output=output) for pattern in self._checked]
        counts = torch.cat([c if c.dim() == 2 else c[:, None] for c in columns], dim=1)
        if self.scope == "edge":
            counts = _by_column(counts, simple, _get(graph, "edge_index"))
        return _append(graph, "AddSubstructureCounts", self.attr, counts, self.log)

    def __repr__(self) -> str:
        return f"AddSubstructureCounts({self.patterns!r}, scope={self.scope!r}, induced={self.induced})"


def _is_pattern(x: Any) -> bool:
    """Whether it is one pattern: unlike a list of them, a list of edges has numbers on its second level."""
    if isinstance(x, list | tuple):
        return bool(x) and all(isinstance(e, list | tuple) and all(as_int(u) is not None for u in e) for e in x)
    return isinstance(x, str | Pattern) or getattr(x, "ndim", None) == 2 or hasattr(x, "is_directed")


def _check_options(owner: str, attr: str, **flags: bool) -> None:
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{owner}: {name} is {flag!r}, expected a bool")
    if not isinstance(attr, str) or not attr:
        raise TypeError(f"{owner}: attr is {attr!r}, expected the name of an attribute")


def _graph_of(graph: Any, owner: str, attr: str | None) -> Graph:
    """The edges of any object, with as many nodes as it says, or as `attr` has rows."""
    edge_index = _get(graph, "edge_index")
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"{owner}: {type(graph).__name__} has no edge_index, expected an object with a tensor (2, E)")
    n, rows = _get(graph, "num_nodes"), None if attr is None else _get(graph, attr)
    if n is None and isinstance(rows, Tensor) and rows.dim():
        n = len(rows)
    return Graph(edge_index, n)


def _get(graph: Any, name: str) -> Any:
    return graph.get(name) if isinstance(graph, Mapping) else getattr(graph, name, None)


def _by_column(counts: Tensor, simple: Graph, edge_index: Tensor) -> Tensor:
    """Counts (m, K) of the distinct edges to rows (E, K) for the columns of ``edge_index``; 0 for self loops."""
    n = simple.num_nodes
    low, high = edge_index.cpu().long().aminmax(dim=0)
    known = simple.edges.aminmax(dim=1)
    keys, order = (known.min * n + known.max).sort()
    place = torch.searchsorted(keys, low * n + high).clamp(max=max(len(keys) - 1, 0))
    rows = counts[order[place]] if len(keys) else counts.new_zeros(len(low), counts.shape[1])
    return rows.masked_fill((low == high)[:, None], 0)


def _dtype_for(counts: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype of an attribute, or a wider one, that holds int64 counts as they are."""
    if not dtype.is_floating_point:
        return counts.dtype
    return dtype if torch.equal(counts.to(dtype).double(), counts.double()) else torch.float64


def _append(graph: GraphLike, owner: str, attr: str, counts: Tensor, log: bool) -> GraphLike:
    if log:
        counts = counts.double().log1p().float()  # counts beyond 2²⁴ keep their digits until the logarithm is taken
    counts, before = counts.to(_get(graph, "edge_index").device), _get(graph, attr)
    if before is not None:
        if not isinstance(before, Tensor):
            raise TypeError(f"{owner}: {attr} is {type(before).__name__}, expected a tensor")
        rows = len(counts)
        if before.dim() not in (1, 2) or len(before) != rows:
            raise ValueError(f"{owner}: {attr} has shape {tuple(before.shape)}, expected ({rows},) or ({rows}, F)")
        before = before[:, None] if before.dim() == 1 else before
        dtype = torch.promote_types(before.dtype, counts.dtype) if log else _dtype_for(counts, before.dtype)
        counts = torch.cat([before.to(dtype), counts.to(dtype)], dim=1)
    if isinstance(graph, Mapping):
        graph[attr] = counts
    else:
        setattr(graph, attr, counts)
    return graph
