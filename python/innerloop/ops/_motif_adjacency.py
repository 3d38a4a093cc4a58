# SPDX-License-Identifier: Apache-2.0
"""motif_adjacency: how many instances of a motif hold both nodes of a pair; triangle_list.

A motif of three nodes is listed: a wedge is a pair of entries of one row of the adjacency, a triangle one whose ends
are adjacent and rank above the node between them. Larger motifs are counted by `edge_orbits`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import permutations
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..reference.node_orbits import GRAPHLETS
from ..simple_graph import Graph, networkx_edges
from ._checks import batched
from ._registry import last_derivative, not_traced
from .node_orbits import edge_orbits

__all__ = ["motif_adjacency", "triangle_list"]

Reduce = Literal["product", "mean", "sum"]
Pairs = Literal["all", "edges"]

_CHUNK = 1 << 20  # pairs of entries looked at together, some 80 bytes each

# Benson et al. 2016, figure 1: M1 to M7 are triangles; in M8 to M13 nodes 1 and 2 are not adjacent.
_DIRECTED = {
    "M1": "01 12 20",
    "M2": "01 10 12 20",
    "M3": "01 10 12 21 02",
    "M4": "01 10 02 20 12 21",
    "M5": "01 02 12",
    "M6": "01 02 12 21",
    "M7": "10 20 12 21",
    "M8": "01 02",
    "M9": "01 20",
    "M10": "10 20",
    "M11": "01 10 02",
    "M12": "01 10 20",
    "M13": "01 10 02 20",
}


@not_traced
def motif_adjacency(
    graph: Any,
    motif: str,
    edge_weight: Tensor | None = None,
    reduce: Reduce = "product",
    *,
    induced: bool = True,
    pairs: Pairs = "all",
) -> Tensor:
    """Weighted graph of a motif: w_ij is the number of its instances that hold both i and j.

    Args:
        graph: for a graphlet a :class:`Graph`, or anything that `Graph.of` takes. For a directed motif an `edge_index`
            tensor (2, E), an object with `edge_index` and `num_nodes`, or a `networkx.DiGraph`, whose nodes and edges
            are numbered in its own order; loops and duplicates do not count.
        motif: "G1" to "G29" of Pržulj, or "M1" to "M13", the directed triads of Benson et al.
        edge_weight: floating (m,) in the order of `graph.edges`; for a directed motif (E,), none of whose edges comes
            twice. For motifs of three nodes. An instance then adds, instead of 1, the `reduce` of its edges' weights.
        reduce: "product", "mean" or "sum" of them.
        induced: for graphlets: count induced subgraphs; else all subgraphs of that shape. Directed motifs are induced.
        pairs: "all" pairs of nodes of an instance, or only those that are its "edges". Of more than three nodes, "all"
            is there for the complete graphlets G8 and G29.

    Returns:
        Sparse COO (n, n), coalesced, symmetric, zero on the diagonal: int64, or the dtype of `edge_weight`, in which it
        is differentiable once; a second derivative raises, and so does `torch.func.vmap`. Its entries are the pairs
        that share an instance.

    Time and memory: graphlets without weights are counted, not listed, but for "G1" with "all" pairs. Triangles are
    listed in O(m^1.5), wedges in O(Σ d²). Memory is that of the graph, the result and about 100 MB, and with
    gradients a few numbers per instance. Under `torch.compile` it runs as it is, outside the graph.

    Raises:
        TypeError: `graph` is none of these, weights that are not floating. ValueError: another motif or option, weights
        of another length, or what is not there for this motif.

    Source: Benson, Gleich and Leskovec, Higher-order organization of complex networks (Science 2016); edge orbits as
    motif adjacencies: Lee et al., Graph convolutional networks with motif-based attention (CIKM 2019).
    """
    _check_options(motif, edge_weight, reduce, induced, pairs)
    directed = motif in _DIRECTED
    with torch._C._DisableFuncTorch():  # it would wrap the tensors of a new graph, which then have no data
        graph, edge_index = _with_directions(graph) if directed else (Graph.of(graph), None)
    if edge_weight is not None:
        _check_weight(edge_weight, edge_index.shape[1] if directed else graph.num_edges, graph.index.device)
    if not directed and edge_weight is None and (motif != "G1" or pairs == "edges"):
        _, nodes, orbits = _graphlet(motif)
        counts = edge_orbits(graph, len(nodes), induced=induced)[:, sorted(set(orbits))].sum(1)
        there = counts.nonzero().flatten()
        return _symmetric(graph.num_nodes, graph.edges[there], counts[there])
    rows = _Rows(graph)
    directions = _Directions(rows, edge_index) if directed else None
    value = _Value(rows, directions, edge_weight, reduce)
    return _sum_up(rows, _instances(rows, motif, induced, directions), value, pairs)


@not_traced
def triangle_list(graph: Any) -> Tensor:
    """Every triangle once.

    Args:
        graph: a :class:`Graph`, or anything that `Graph.of` takes.

    Returns:
        int64 (T, 3): the nodes of each in ascending order of (degree, id), rows in that order too. Working memory is
        bounded beyond the m edges; the time is that of Σ outdeg², O(m^1.5), lookups.

    Raises:
        TypeError: `graph` is no graph.
    """
    rows = _Rows(Graph.of(graph))
    return rows.order[torch.cat([nodes for nodes, _ in _triangles(rows)])]


class _Rows:
    """The adjacency of a Graph in rank space: entry p says that `row[p]` has the neighbour `col[p]`, by edge `eid[p]`.

    Entries of a row are neighbours, in ascending order; `end[p]` is where the row ends.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.n, self.m = graph, graph.num_nodes, graph.num_edges
        self.order = graph.order.long()
        self.col, self.eid = graph.adjacency[: 4 * self.m].view(2, -1).long()
        rowptr = graph.index[2 : self.n + 3]
        self.device = graph.index.device
        self.row = torch.arange(self.n, device=self.device).repeat_interleave(rowptr.diff(), output_size=2 * self.m)
        self.end = rowptr[1:][self.row]
        self.up = (self.col > self.row).nonzero().flatten()
        self._keys = (self.row * self.n + self.col)[self.up]

    def edge(self, low: Tensor, high: Tensor) -> Tensor:
        """The edge between ranks low < high, -1 where there is none."""
        if not self.m:
            return torch.full_like(low, -1)
        key = low * self.n + high
        at = torch.searchsorted(self._keys, key).clamp(max=self.m - 1)
        return torch.where(self._keys[at] == key, self.eid[self.up[at]], -1)

    def wedges(self, entries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (p, q) of each of `entries` with each later entry of its row, about _CHUNK at a time."""
        count = self.end[entries] - entries - 1
        total = count.cumsum(0)
        steps = torch.arange(0, int(count.sum()), _CHUNK, device=self.device)[1:]
        cuts = torch.searchsorted(total, steps, right=True).unique_consecutive().tolist()
        for first, last in zip([0, *cuts], [*cuts, len(entries)], strict=True):
            c = count[first:last]
            p = entries[first:last].repeat_interleave(c)
            yield p, p + 1 + torch.arange(len(p), device=self.device) - (c.cumsum(0) - c).repeat_interleave(c)


def _triangles(rows: _Rows) -> Iterator[tuple[Tensor, Tensor]]:
    """(ranks (c, 3), edges (c, 3)) of triangles u < v < w: edges uv, uw, vw."""
    for p, q in rows.wedges(rows.up):
        across = rows.edge(rows.col[p], rows.col[q])
        closed = across >= 0
        p, q, across = p[closed], q[closed], across[closed]
        yield (
            torch.stack([rows.row[p], rows.col[p], rows.col[q]], 1),
            torch.stack([rows.eid[p], rows.eid[q], across], 1),
        )


class _Directions:
    """Which directions of every edge are there: bit 0 from the lower rank to the higher, bit 1 back."""

    def __init__(self, rows: _Rows, edge_index: Tensor) -> None:
        source, target = rows.graph.rank[edge_index]
        edge = rows.edge(torch.minimum(source, target), torch.maximum(source, target))
        self.kept = edge >= 0  # no loop
        self.edge, self.back = edge[self.kept], (source > target).long()[self.kept]
        there = torch.zeros(rows.m, 2, dtype=torch.int64)
        there[self.edge, self.back] = 1
        self.count = there.sum(1)
        self.code = there[:, 0] + 2 * there[:, 1]

    def at(self, rows: _Rows) -> Tensor:
        """Of every entry, as its row sees it: bit 0 out, bit 1 in."""
        code = self.code[rows.eid]
        return torch.where(rows.row < rows.col, code, _REVERSED[code])


_REVERSED = torch.tensor([0, 2, 1, 3])


class _Value:
    """What an instance adds."""

    def __init__(self, rows: _Rows, directions: _Directions | None, edge_weight: Tensor | None, reduce: Reduce) -> None:
        self.reduce = reduce
        self.count = rows.eid.new_ones(rows.m) if directions is None else directions.count
        self.weight = edge_weight
        self.dtype = torch.int64 if edge_weight is None else edge_weight.dtype
        if edge_weight is not None and directions is not None:
            if len(directions.edge) > int(directions.count.sum()):
                raise ValueError("motif_adjacency: graph has an edge twice, expected each once beside edge_weight")
            neutral = edge_weight.new_full((rows.m, 2), 1 if reduce == "product" else 0)
            both = neutral.index_put((directions.edge, directions.back), edge_weight[directions.kept])
            self.weight = both.prod(1) if reduce == "product" else both.sum(1)

    def of(self, edges: Tensor) -> Tensor:
        """(c,) of instances with `edges` (c, 2 | 3)."""
        if self.weight is None:
            return edges.new_ones(len(edges))
        weights = self.weight[edges]
        if self.reduce == "product":
            return weights.prod(1)
        total = weights.sum(1)
        return total if self.reduce == "sum" else total / self.count[edges].sum(1)


class _Instances(NamedTuple):
    edges: Tensor
    """int64 (c, 2 | 3)."""
    ends: tuple[Tensor, Tensor] | None
    """Of wedges: the ranks (c,), lower and higher, of the two nodes that they do not join."""


def _instances(rows: _Rows, motif: str, induced: bool, directions: _Directions | None) -> Iterator[_Instances]:
    """All of a motif of three nodes, chunk by chunk."""
    if _is_triangle(motif):
        for _, edges in _triangles(rows):
            if directions is not None:
                code = (directions.code[edges] * torch.tensor([1, 4, 16])).sum(1)
                edges = edges[_codes(motif)[code]]
            yield _Instances(edges, None)
        return
    seen = None if directions is None else directions.at(rows)
    # By the lower end, so that hardly a pair of ends is in two chunks.
    for p, q in rows.wedges(rows.col.argsort(stable=True)):
        if induced:
            open_ = rows.edge(rows.col[p], rows.col[q]) < 0
            p, q = p[open_], q[open_]
        if seen is not None:
            match = _codes(motif)[seen[p] + 4 * seen[q]]
            p, q = p[match], q[match]
        yield _Instances(torch.stack([rows.eid[p], rows.eid[q]], 1), (rows.col[p], rows.col[q]))


def _is_triangle(motif: str) -> bool:
    return motif == "G2" or not {"12", "21"}.isdisjoint(_DIRECTED.get(motif, "").split())


@functools.cache
def _codes(motif: str) -> Tensor:
    """bool (64,): whether nodes 0, 1, 2 make the motif, by the directions of 01, of 02 and of 12, two bits each."""
    table = torch.zeros(64, dtype=torch.bool)
    shift = {"01": 0, "10": 1, "02": 2, "20": 3, "12": 4, "21": 5}
    for label in permutations("012"):
        edges = _DIRECTED[motif].translate(str.maketrans("012", "".join(label))).split()
        table[sum(1 << shift[edge] for edge in edges)] = True
    return table


def _sum_up(rows: _Rows, instances: Iterator[_Instances], value: _Value, pairs: Pairs) -> Tensor:
    on_edge = torch.zeros(rows.m, dtype=value.dtype, device=rows.device)
    there = torch.zeros_like(on_edge, dtype=torch.bool)
    keys, sums = [], []
    for edges, ends in instances:
        added = value.of(edges)
        there[edges.flatten()] = True
        on_edge.index_add_(0, edges.t().flatten(), added.repeat(edges.shape[1]))
        if ends is not None and pairs == "all":
            low, high = ends
            key, at = (low * rows.n + high).unique(return_inverse=True)
            keys.append(key)
            sums.append(added.new_zeros(len(key)).index_add(0, at, added))
    there = there.nonzero().flatten()
    nodes, total = [rows.graph.edges[there]], [on_edge[there], *sums]
    for key in keys:
        nodes.append(rows.order[torch.stack([key // rows.n, key % rows.n], 1)])
    return _symmetric(rows.n, torch.cat(nodes), torch.cat(total))


def _symmetric(n: int, pairs: Tensor, value: Tensor) -> Tensor:
    """Sparse (n, n) from pairs (P, 2) of different nodes, of which some may come several times."""
    i, j = pairs.t()
    key, at = torch.cat([i * n + j, j * n + i]).unique(return_inverse=True)
    value = value.new_zeros(len(key)).index_add(0, at, value.repeat(2))
    if value.requires_grad:
        value = _Once.apply(value)
    indices = torch.stack([key // max(n, 1), key % max(n, 1)])
    return torch.sparse_coo_tensor(indices, value, (n, n), is_coalesced=True, check_invariants=False)


class _Once(torch.autograd.Function):
    """Identity whose second derivative raises: torch would lose it behind a sparse tensor, without a word."""

    @staticmethod
    def forward(value):
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return _Last.apply(grad, *ctx.saved_tensors) if torch.is_grad_enabled() else grad


_Last = last_derivative("motif_adjacency", lambda grad, value: grad.clone())


def _graphlet(motif: str) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return GRAPHLETS[int(motif[1:])]


def _check_options(motif: str, edge_weight: Tensor | None, reduce: str, induced: bool, pairs: str) -> None:
    op = "motif_adjacency"
    if not isinstance(motif, str) or motif not in {*_DIRECTED} | {f"G{i}" for i in range(1, len(GRAPHLETS))}:
        raise ValueError(f"{op}: motif is {motif!r}, expected 'G1' to 'G29' or 'M1' to 'M13'")
    for name, value, known in (("reduce", reduce, ("product", "mean", "sum")), ("pairs", pairs, ("all", "edges"))):
        if value not in known:
            raise ValueError(f"{op}: {name} is {value!r}, expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
    if not isinstance(induced, bool):
        raise TypeError(f"{op}: induced is {induced!r}, expected a bool")
    if motif in _DIRECTED:
        if not induced:
            raise ValueError(f"{op}: induced is False, expected True with the directed motif {motif}")
        return
    edges, nodes, _ = _graphlet(motif)
    size, complete = len(nodes), len(edges.split()) == len(nodes) * (len(nodes) - 1) // 2
    if size > 3 and edge_weight is not None:
        raise ValueError(f"{op}: edge_weight is given, expected None with {motif}, a motif of {size} nodes")
    if size > 3 and pairs == "all" and not complete:
        raise ValueError(
            f"{op}: pairs is 'all', expected 'edges' with {motif}, which is neither complete nor of 3 nodes"
        )


def _check_weight(edge_weight: Tensor, count: int, device: torch.device) -> None:
    op = "motif_adjacency"
    if not isinstance(edge_weight, Tensor) or not edge_weight.is_floating_point():
        kind = edge_weight.dtype if isinstance(edge_weight, Tensor) else type(edge_weight).__name__
        raise TypeError(f"{op}: edge_weight is {kind}, expected a floating tensor ({count},)")
    if batched(edge_weight):
        raise ValueError(f"{op}: edge_weight is a sample of torch.func.vmap, expected one tensor: results are sparse, "
                         "which vmap has no rule for; call it for each sample")  # fmt: skip
    if edge_weight.shape != (count,):
        raise ValueError(f"{op}: edge_weight has shape {tuple(edge_weight.shape)}, expected ({count},), one per edge")
    if edge_weight.device != device:
        raise ValueError(f"{op}: edge_weight is on {edge_weight.device}, expected {device} like the graph")


def _with_directions(graph: Any) -> tuple[Graph, Tensor]:
    """The graph without its directions, and its directed edges int64 (2, E)."""
    if isinstance(graph, Tensor):
        return Graph(graph), graph.long()
    if isinstance(getattr(graph, "edge_index", None), Tensor) and hasattr(graph, "num_nodes"):
        return Graph.from_pyg(graph), graph.edge_index.cpu().long()
    if hasattr(graph, "adj") and hasattr(graph, "is_directed") and graph.is_directed():
        edge_index, n = networkx_edges(graph)
        return Graph(edge_index, n), edge_index
    raise TypeError(
        f"motif_adjacency: graph is {type(graph).__name__}, expected an edge_index tensor (2, E), an object with "
        "edge_index and num_nodes, or a networkx.DiGraph, for a directed motif"
    )
