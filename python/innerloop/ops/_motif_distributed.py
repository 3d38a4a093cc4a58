# SPDX-License-Identifier: Apache-2.0
"""Triangles, orbits and matches counted by the processes of a torch.distributed group, each from its own root nodes.

A pattern is found from one root, a node of lowest or highest rank in it, so that disjoint ranges of ranks find disjoint
patterns and their counts add up. Every process holds the whole graph and gets the whole result.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .. import _cpu
from ..simple_graph import Graph
from ._checks import as_int
from ._infonce_distributed import _exchange
from ._registry import define
from .triangles import Per, check_per, num_edges, num_nodes, sum_by_graph

__all__ = ["edge_orbits_distributed", "match_distributed", "node_orbits_distributed", "triangles_distributed"]


def triangles_distributed(graph: Any, per: Per = "node", *, group: dist.ProcessGroup | None = None) -> Tensor:
    """:func:`triangles`, each process of the group counting those of its share of the nodes; one all-reduce.

    Args:
        graph, per: as for :func:`triangles`, the same on all processes.
        group: of torch.distributed, with a backend for CPU tensors such as gloo; default: all processes.

    Returns:
        What :func:`triangles` returns, on every process.

    Raises:
        RuntimeError: torch.distributed is not initialised, or another process failed. ValueError, TypeError: what
        :func:`triangles` raises, or arguments that differ between the processes.
    """
    op = "triangles_distributed"

    def count() -> tuple[Tensor, dict[str, Any]]:
        check_per(op, per)
        whole = _on_cpu(op, graph)
        sums = _motif_sums(whole.index, whole.adjacency, *_my_roots(_work(whole, 1, 0), group), 3, False)
        # Linear in these sums, unlike the other orbits: no need to add up the sums themselves.
        orbits = _orbits_from_sums(whole.index, whole.adjacency, sums.int(), sums.new_empty(0), 3, True, per == "edge")
        counts = orbits[:, -1].contiguous()
        counts = sum_by_graph(op, counts, whole.ptr, (3,)) if per == "graph" else counts
        return counts, {"graph": _checksum(whole), "per": per}

    return _summed(op, count, group)


def node_orbits_distributed(
    graph: Any, k: int = 4, *, induced: bool = True, group: dist.ProcessGroup | None = None
) -> Tensor:
    """:func:`node_orbits` for k = 3 or 4, each process of the group counting from its share of the nodes.

    Two all-reduces, of m + 2n and n numbers (one of m for k = 3): sums over triangles need the triangles of all.

    Args:
        graph, k, induced: as for :func:`node_orbits`, k up to 4, the same on all processes.
        group: as for :func:`triangles_distributed`.

    Returns:
        What :func:`node_orbits` returns, on every process.

    Raises:
        As :func:`triangles_distributed`.
    """
    return _orbits("node_orbits_distributed", graph, k, induced, False, group)


def edge_orbits_distributed(
    graph: Any, k: int = 4, *, induced: bool = True, group: dist.ProcessGroup | None = None
) -> Tensor:
    """:func:`edge_orbits` for k = 3 or 4, as :func:`node_orbits_distributed`; all-reduces of 3m and 2m numbers."""
    return _orbits("edge_orbits_distributed", graph, k, induced, True, group)


def match_distributed(graph: Any, pattern: Any, *, group: dist.ProcessGroup | None = None, **options: Any) -> Tensor:
    """:func:`match`, each process of the group matching the first node of the plan to its share; one all-reduce.

    Args:
        graph, pattern: as for :func:`match`, the same on all processes.
        group: as for :func:`triangles_distributed`.
        options: those of :func:`match` but `seeds` and `limit`; `output` is one of the counts, not "list".

    Returns:
        What :func:`match` returns, on every process.

    Raises:
        As :func:`triangles_distributed` and :func:`match`.
    """
    op = "match_distributed"

    def count() -> tuple[Tensor, dict[str, Any]]:
        from .match import searched

        if options.get("output", "count") == "list":
            raise ValueError(f"{op}: output is 'list', expected one of the counts")
        others = dict(options)
        for name in ("limit", "roots", "seeds"):
            if others.pop(name, None) is not None:
                raise ValueError(f"{op}: {name} is given, expected none")
        whole = _on_cpu(op, graph)
        counts, asked = searched(op, whole, pattern, _my_roots(_work(whole, 1, 1), group), **others)
        return counts, {"graph": _checksum(whole), **asked}

    return _summed(op, count, group)


def _orbits(op: str, graph: Any, k: int, induced: bool, by_edge: bool, group: dist.ProcessGroup | None) -> Tensor:
    size = as_int(k)
    whole: Graph
    roots: tuple[int, int]

    def first() -> tuple[Tensor, dict[str, Any]]:
        nonlocal whole, roots
        if size not in (3, 4):
            raise ValueError(f"{op}: k is {k!r}, expected 3 or 4")
        if not isinstance(induced, bool):
            raise TypeError(f"{op}: induced is {induced!r}, expected a bool")
        whole = _on_cpu(op, graph)
        roots = _my_roots(_work(whole, 2, 3) if size == 4 else _work(whole, 1, 0), group)
        sums = _motif_sums(whole.index, whole.adjacency, *roots, size, by_edge)
        return sums, {"graph": _checksum(whole), "k": size, "induced": induced}

    def second() -> tuple[Tensor, dict[str, Any]]:
        return _fan_sums(whole.index, whole.adjacency, t, *roots, by_edge), {}

    sums = _summed(op, first, group)
    t, sums = sums[: whole.num_edges].int(), sums[whole.num_edges :]
    if size == 4:
        sums = torch.cat([sums, _summed(op, second, group)])
    return _orbits_from_sums(whole.index, whole.adjacency, t, sums, size, induced, by_edge)


def _on_cpu(op: str, graph: Any) -> Graph:
    graph = Graph.of(graph)
    if graph.index.device.type != "cpu":
        raise ValueError(f"{op}: graph is on {graph.index.device}, expected one on the CPU")
    return graph


def _summed(op: str, count: Callable[[], tuple[Tensor, dict[str, Any]]], group: dist.ProcessGroup | None) -> Tensor:
    """Sum over the processes of what `count` returns, beside what has to be the same on all of them."""
    counts = None

    def describe() -> dict[str, Any]:
        nonlocal counts
        counts, same = count()
        return {"same": same}

    _exchange(op, describe, group)
    # No sum is beyond that of the greatest, and no process may leave the others alone.
    greatest = counts.amax().double() if counts.numel() else torch.zeros((), dtype=torch.float64)
    dist.all_reduce(greatest, group=group)
    if float(greatest) > 9.2e18:
        raise OverflowError(f"{op}: more matches than int64 holds")
    dist.all_reduce(counts, group=group)
    return counts


def _my_roots(work: Tensor, group: dist.ProcessGroup | None) -> tuple[int, int]:
    bounds = _ranges(work, dist.get_world_size(group))
    rank = dist.get_rank(group)
    return bounds[rank], bounds[rank + 1]


def _ranges(work: Tensor, parts: int) -> list[int]:
    """Where to cut ranks with positive `work`, int64 (n,), into neighbouring ranges of about equal work: parts + 1."""
    total = work.cumsum(0)
    share = work.sum() * torch.arange(parts + 1) // parts
    return torch.searchsorted(total, share, right=True).tolist()


def _work(graph: Graph, up: int, down: int) -> Tensor:
    """Estimate for each rank as a root, int64 (n,).

    Args:
        up: for each path of two edges to higher and still higher ranks. down: for each that ends below the root, past
            a lower neighbour.
    """
    n, m = graph.num_nodes, graph.num_edges
    rowptr, split = graph.index[2 : n + 3], graph.index[n + 3 :]
    degree = rowptr.diff()
    row = torch.arange(n).repeat_interleave(degree, output_size=2 * m)
    entry = (graph.adjacency[: 2 * m] > row).nonzero().flatten()
    low, high = row[entry], graph.adjacency[entry].long()
    work = 1 + degree
    work.index_add_(0, low, up * (rowptr[1:] - split)[high])
    return work.index_add_(0, high, down * (entry - rowptr[low]))


def _checksum(graph: Graph) -> int:
    return zlib.crc32(graph.adjacency.numpy(), zlib.crc32(graph.ptr.numpy()))


_motif_sums = define("motif_sums(Tensor index, Tensor adjacency, int first, int last, int k, bool by_edge) -> Tensor")
_fan_sums = define("fan_sums(Tensor index, Tensor adjacency, Tensor t, int first, int last, bool by_edge) -> Tensor")
_orbits_from_sums = define(
    "orbits_from_sums(Tensor index, Tensor adjacency, Tensor t, Tensor sums, int k, bool induced, bool by_edge) "
    "-> Tensor"
)


@_motif_sums.cpu
def _(index, adjacency, first, last, k, by_edge):
    """Of the roots [first, last): triangles t (m,), and for k = 4 by node or edge 4-cliques and 4-cycles, flat."""
    n, m = num_nodes(index), num_edges(index, adjacency)
    t = torch.zeros(m, dtype=torch.int32)
    node = index.new_zeros(2, n) if k == 4 else None
    edge = index.new_zeros(2, m) if k == 4 and by_edge else None
    _cpu.motif_sums(t, node, edge, index, adjacency, first, last, torch.get_num_threads())
    return t.long() if k == 3 else torch.cat([t.long(), (edge if by_edge else node).flatten()])


@_motif_sums.fake
def _(index, adjacency, first, last, k, by_edge):
    m = num_edges(index, adjacency)
    return index.new_empty(m + (2 * (m if by_edge else num_nodes(index)) if k == 4 else 0))


@_fan_sums.cpu
def _(index, adjacency, t, first, last, by_edge):
    """Of the roots [first, last), from the triangles on every edge: sums over triangles (n,), or by edge (2 m,)."""
    node = index.new_zeros(num_nodes(index))
    edge = index.new_zeros(2, num_edges(index, adjacency)) if by_edge else None
    _cpu.fan_sums(node, edge, t, index, adjacency, first, last, torch.get_num_threads())
    return edge.flatten() if by_edge else node


@_fan_sums.fake
def _(index, adjacency, t, first, last, by_edge):
    return index.new_empty(2 * num_edges(index, adjacency) if by_edge else num_nodes(index))


@_orbits_from_sums.cpu
def _(index, adjacency, t, sums, k, induced, by_edge):
    """From those of all roots: `sums` is, for k = 4, what comes after t in motif_sums and then fan_sums."""
    rows = num_edges(index, adjacency) if by_edge else num_nodes(index)
    out = index.new_empty(rows, _columns(k, by_edge))
    sums = sums.view(4 if by_edge else 3, rows) if k == 4 else None
    arguments = (None, out, t, None, sums) if by_edge else (out, None, t, sums, None)
    _cpu.orbits_from_sums(*arguments, index, adjacency, k, induced, torch.get_num_threads())
    return out


@_orbits_from_sums.fake
def _(index, adjacency, t, sums, k, induced, by_edge):
    rows = num_edges(index, adjacency) if by_edge else num_nodes(index)
    return index.new_empty(rows, _columns(k, by_edge))


def _columns(k: int, by_edge: bool) -> int:
    return {3: 2, 4: 12}[k] if by_edge else {3: 4, 4: 15}[k]
