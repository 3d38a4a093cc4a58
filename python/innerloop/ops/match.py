# SPDX-License-Identifier: Apache-2.0
"""match: subgraphs that look like a pattern: how many, which, and how often every node and edge is in one."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import _cpu
from ..simple_graph import Graph
from ._match_plan import Plan, compile_plan
from ._motif_gpu import count_matches, on_cpu
from ._patterns import MAX_NODES, as_pattern
from ._registry import define
from .triangles import check_per, num_edges, num_nodes, sum_by_graph

__all__ = ["k_cliques", "match", "match_batches"]

Output = Literal["count", "graph_counts", "node_counts", "edge_counts", "orbit_counts", "list"]
_OUTPUTS = ("count", "graph_counts", "node_counts", "edge_counts", "orbit_counts", "list")
_INT_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def match(
    graph: Any,
    pattern: Any,
    *,
    induced: bool = False,
    symmetry: Literal["break", "all"] = "break",
    output: Output = "count",
    node_labels: Tensor | None = None,
    pattern_node_labels: Sequence[int] | None = None,
    edge_labels: Tensor | None = None,
    pattern_edge_labels: Sequence[int] | None = None,
    limit: int | None = None,
    seeds: Tensor | None = None,
    roots: tuple[int, int] | None = None,
) -> Tensor:
    """Subgraphs of `graph` that are isomorphic to `pattern`.

    By default each subgraph counts once, whatever edges its nodes have beside those of the pattern. Others differ:
    networkx `subgraph_isomorphisms_iter` is induced=True, symmetry="all"; networkx monomorphisms, igraph VF2 and LAD,
    graph-tool and grandiso are induced=False, symmetry="all"; Peregrine is symmetry="break".

    Args:
        graph: a :class:`Graph`, or anything that `Graph.of` takes.
        pattern: a connected simple graph of 2 to 8 nodes: a name ("triangle", "4-cycle", "path4", "star4", "K5",
            "diamond", "house", "G17", ...), a graph6 string, a list of edges, an `edge_index`, or a networkx graph.
        induced: nodes that the pattern does not join must not be joined in the graph either.
        symmetry: "break": one match for each class under the automorphisms of the pattern; "all": every one of them.
        output: | "count" | number of matches, int64 () |
            |---|---|
            | "graph_counts" | the same for each graph of the batch, int64 (B,) |
            | "node_counts" | matches that contain each node, int64 (n,) |
            | "edge_counts" | matches with a pattern edge on each edge, int64 (m,), in the order of graph.edges |
            | "orbit_counts" | matches with each node in each orbit of the pattern, int64 (n, orbits) |
            | "list" | the matches, int64 (matches, q): the node for each pattern node |
            Orbits are ordered by their smallest pattern node.
        node_labels: integers (n,), and pattern_node_labels one for each pattern node: -1 for any, else they must agree.
        edge_labels: integers (m,), in the order of graph.edges, and pattern_edge_labels one for each pattern edge.
        limit: the list holds at most so many matches; which ones does not depend on threads. All are counted first.
        seeds: nodes (S,) of the graph, the only ones to match pattern node 0; symmetry is then broken among the
            automorphisms that fix it.
        roots: (first, last), a range of ranks (`graph.rank`) for the first node that the search matches: counts of
            disjoint ranges add up to those of all, which is how processes share the work.

    Raises:
        TypeError, ValueError, IndexError: arguments that do not fit, a pattern that is not connected or too large, or a
            list that would not fit in half of the memory; the message names the argument. OverflowError: more matches
            than int64 holds.

    Source: plans as in Mawhirter and Wu, AutoMine (2019), and Jamshidi et al., Peregrine (2020); symmetry as in Grochow
        and Kellis (2007).
    """
    if output not in _OUTPUTS:
        raise ValueError(f"match: output is {output!r}, expected one of {', '.join(_OUTPUTS)}")
    search = _Search("match", graph, pattern, induced, symmetry, seeds, limit, roots, output == "list")
    search.label(node_labels, pattern_node_labels, edge_labels, pattern_edge_labels)
    return search.run(output)


def searched(
    op: str,
    graph: Any,
    pattern: Any,
    roots: tuple[int, int],
    *,
    induced: bool = False,
    symmetry: str = "break",
    output: str = "count",
    **labels: Any,
) -> tuple[Tensor, int]:
    """The count of :func:`match` from a range of roots, and a checksum of what was asked for."""
    if output not in _OUTPUTS:
        raise ValueError(f"{op}: output is {output!r}, expected one of {', '.join(_OUTPUTS)}")
    search = _Search(op, graph, pattern, induced, symmetry, None, None, roots)
    search.label(**dict.fromkeys(_LABELS) | labels)
    asked = [output.encode(), str(search.plan.multiplier).encode(), search.tensors.code.numpy().tobytes()]
    asked += [b"" if t is None else t.cpu().numpy().tobytes() for t in search.tensors[3:5]]
    return search.run(output), zlib.crc32(b"|".join(asked))


def match_batches(graph: Any, pattern: Any, *, size: int = 1 << 16, **options: Any) -> Iterator[Tensor]:
    """The list of :func:`match` in parts of at most `size` matches, in bounded memory.

    Args:
        graph, pattern, options: as for :func:`match`, without `output`.
        size: matches in one part.

    Yields:
        int64 (at most size, q), in the order of the whole list.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"match_batches: size is {size!r}, expected an int of at least 1")
    labels = {name: options.pop(name, None) for name in _LABELS}
    given = {"induced": False, "symmetry": "break", "seeds": None, "limit": None}
    given = {name: options.pop(name, default) for name, default in given.items()}
    search = _Search("match_batches", graph, pattern, **given)
    if options:
        raise TypeError(f"match_batches: {next(iter(options))} is no option of match that lists matches")
    search.label(**labels)
    return search.parts(size)


def k_cliques(graph: Any, k: int, per: Literal["node", "edge", "graph"] = "node") -> Tensor:
    """Number of k-cliques at every node, on every edge, or in every graph of a batch.

    Args:
        graph: a :class:`Graph`, or anything that `Graph.of` takes.
        k: 2 to 8.
        per: "node", "edge" or "graph".

    Returns:
        int64 (n,), (m,) in the order of `graph.edges`, or (B,).
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 2 <= k <= MAX_NODES:
        raise ValueError(f"k_cliques: k is {k!r}, expected 2 to {MAX_NODES}")
    check_per("k_cliques", per)
    return match(graph, f"K{k}", output=f"{per}_counts")


_LABELS = ("node_labels", "pattern_node_labels", "edge_labels", "pattern_edge_labels")


class _Tensors(NamedTuple):
    """What every op of a search takes."""

    index: Tensor
    adjacency: Tensor
    code: Tensor
    node_labels: Tensor | None
    edge_labels: Tensor | None
    roots: Tensor | None


class _Search:
    """One call of match: checks, plan, and what to run."""

    def __init__(self, op, graph, pattern, induced, symmetry, seeds, limit, roots=None, lists=True) -> None:
        self.op, self.graph, self.pattern = op, Graph.of(graph), pattern
        if limit is not None and not lists:
            raise ValueError(f"{op}: limit is {limit!r} beside counts, expected None: it is for output='list'")
        if not isinstance(induced, bool):
            raise TypeError(f"{op}: induced is {induced!r}, expected a bool")
        if symmetry not in ("break", "all"):
            raise ValueError(f"{op}: symmetry is {symmetry!r}, expected 'break' or 'all'")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ValueError(f"{op}: limit is {limit!r}, expected an int of at least 0, or None")
        self.induced, self.symmetry, self.limit = induced, symmetry, limit
        self.offsets: Tensor | None = None
        self.rooted = seeds is not None
        self.seeds = None if seeds is None else self._seeds(seeds)
        if roots is not None:
            self.seeds = self._range(roots)

    def _range(self, roots: tuple[int, int]) -> Tensor:
        if self.rooted:
            raise ValueError(f"{self.op}: roots is given beside seeds, expected one of them")
        if not (isinstance(roots, tuple) and len(roots) == 2 and all(isinstance(r, int) for r in roots)):
            raise TypeError(f"{self.op}: roots is {roots!r}, expected two ints (first, last)")
        first, last = roots
        if not 0 <= first <= last <= self.graph.num_nodes:
            raise ValueError(f"{self.op}: roots is {(first, last)}, expected a range of [0, {self.graph.num_nodes}]")
        return torch.arange(first, last, dtype=torch.int32, device=self.graph.device)

    def _seeds(self, seeds: Tensor) -> Tensor:
        if not isinstance(seeds, Tensor) or seeds.dtype not in _INT_DTYPES:
            kind = seeds.dtype if isinstance(seeds, Tensor) else type(seeds).__name__
            raise TypeError(f"{self.op}: seeds is {kind}, expected an integer tensor (S,)")
        bad = seeds[(seeds < 0) | (seeds >= self.graph.num_nodes)]
        if bad.numel():
            raise IndexError(f"{self.op}: seeds holds {int(bad[0])}, expected nodes in [0, {self.graph.num_nodes})")
        return self.graph.rank[seeds.flatten().long().unique().to(self.graph.device)].sort().values.int()

    def label(self, node_labels, pattern_node_labels, edge_labels, pattern_edge_labels) -> None:
        graph = self.graph
        pattern = as_pattern(self.pattern, self.op, pattern_node_labels, pattern_edge_labels)
        nodes = self._labels("node_labels", node_labels, pattern.node_labels, graph.num_nodes, "node")
        edges = self._labels("edge_labels", edge_labels, pattern.edge_labels, graph.num_edges, "edge")
        degree = int(graph.degree.max()) if graph.num_nodes else 0
        self.plan: Plan = compile_plan(
            pattern,
            self.induced,
            self.symmetry,
            root=0 if self.rooted else None,
            n=graph.num_nodes,
            m=graph.num_edges,
            max_degree=degree,
        )
        code = torch.tensor(self.plan.code, dtype=torch.int32)
        nodes = None if nodes is None else nodes[graph.order.long()]
        self.tensors = _Tensors(graph.index, graph.adjacency, code, nodes, edges, self.seeds)

    def _labels(self, name: str, labels: Tensor | None, wanted: object, count: int, what: str) -> Tensor | None:
        if (labels is None) != (wanted is None):
            given, missing = (f"pattern_{name}", name) if labels is None else (name, f"pattern_{name}")
            raise ValueError(f"{self.op}: {missing} is None beside {given}, expected both or neither")
        if labels is None:
            return None
        if not isinstance(labels, Tensor) or labels.dtype not in _INT_DTYPES:
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"{self.op}: {name} is {kind}, expected an integer tensor ({count},)")
        if labels.shape != (count,):
            raise ValueError(
                f"{self.op}: {name} has shape {tuple(labels.shape)}, expected ({count},), one label for each {what}"
            )
        if count and not (int(labels.min()) >= 0 and int(labels.max()) < 2**31):
            bad = labels[(labels < 0) | (labels >= 2**31)]
            raise ValueError(f"{self.op}: {name} holds {int(bad[0])}, expected labels in [0, 2**31)")
        return labels.to(self.graph.device, torch.int32)

    def run(self, output: str) -> Tensor:
        plan, graph = self.plan, self.graph
        if output == "list":
            total = self.total()
            self._check_fit(total)
            group = plan.multiplier
            parts = list(self.parts(max(-(-total // group), 1) * group))  # one part
            return parts[0] if parts else torch.empty(0, plan.pattern.num_nodes, dtype=torch.int64)
        if output in ("count", "graph_counts"):
            found = self.count() * plan.multiplier
            if output == "count":
                return found.sum()
            ranks = slice(None) if self.seeds is None else self.seeds.long()
            by_node = found.new_zeros(graph.num_nodes)
            by_node[graph.order.long()[ranks]] = found
            return sum_by_graph(by_node, graph)
        node, edge = _tally(
            *self.tensors,
            plan.num_node_orbits if output != "edge_counts" else 0,
            plan.num_edge_orbits if output == "edge_counts" else 0,
        )
        if output == "edge_counts":
            return edge.sum(1) * plan.multiplier
        counts = torch.empty_like(node)
        counts[graph.order.long()] = node * plan.multiplier
        return counts.sum(1) if output == "node_counts" else counts

    def count(self) -> Tensor:
        """Classes of matches by root; the number of all matches fits int64."""
        found = _by_root(*self.tensors)
        if float(found.sum(dtype=torch.float64)) * self.plan.multiplier > 9.2e18:
            raise OverflowError(f"{self.op}: more matches than int64 holds")
        return found

    def total(self) -> int:
        """Length of the list."""
        if self.offsets is None:
            found = self.count()
            self.offsets = torch.cat([found.new_zeros(1), found.cumsum(0)])
        total = int(self.offsets[-1]) * self.plan.multiplier
        return total if self.limit is None else min(total, self.limit)

    def parts(self, size: int) -> Iterator[Tensor]:
        plan, total, group = self.plan, self.total(), self.plan.multiplier
        # Whole classes at a time, unless one alone is larger than a part.
        step = max(size // group, 1)
        given = 0
        for start in range(0, -(-total // group), step):
            found = _list(*self.tensors, self.offsets, start, min(step, int(self.offsets[-1]) - start))
            if group > 1:
                found = torch.stack([found[:, list(p)] for p in plan.group], 1).flatten(0, 1)
            found = found[: total - given]
            given += len(found)
            yield from found.split(size)

    def _check_fit(self, total: int) -> None:
        size = 8 * total * self.plan.pattern.num_nodes
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if size > memory // 2:
            raise ValueError(
                f"{self.op}: output is 'list' of {total} matches, {size / 2**30:.1f} GiB, which is more than half of "
                "the memory; expected a limit, or match_batches"
            )


_SCHEMA = "Tensor index, Tensor adjacency, Tensor code, Tensor? node_labels, Tensor? edge_labels, Tensor? roots"
_by_root = define(f"match_count({_SCHEMA}) -> Tensor")
_tally = define(f"match_tally({_SCHEMA}, int node_orbits, int edge_orbits) -> (Tensor, Tensor)")
_list = define(f"match_list({_SCHEMA}, Tensor offsets, int skip, int take) -> Tensor")


@_by_root.cpu
def _(index, adjacency, code, node_labels, edge_labels, roots):
    found = torch.zeros(num_nodes(index) if roots is None else roots.shape[0], dtype=torch.int64)
    labels = node_labels, edge_labels
    _cpu.match(found, None, None, None, None, index, adjacency, code, *labels, roots, 0, torch.get_num_threads())
    return found


@_by_root.cuda
def _(*args):
    return count_matches(_by_root, *args)


@_by_root.fake
def _(index, adjacency, code, node_labels, edge_labels, roots):
    return index.new_empty(num_nodes(index) if roots is None else roots.shape[0])


@_tally.cpu
def _(index, adjacency, code, node_labels, edge_labels, roots, node_orbits, edge_orbits):
    node = torch.zeros(num_nodes(index), node_orbits, dtype=torch.int64)
    edge = torch.zeros(num_edges(index, adjacency), edge_orbits, dtype=torch.int64)
    found = torch.zeros(num_nodes(index) if roots is None else roots.shape[0], dtype=torch.int64)
    outputs = found, node if node_orbits else None, edge if edge_orbits else None, None, None
    _cpu.match(*outputs, index, adjacency, code, node_labels, edge_labels, roots, 0, torch.get_num_threads())
    if float(found.sum(dtype=torch.float64)) * 8 > 9.2e18:  # a node has one of eight places at most
        raise OverflowError("match: more matches than int64 holds")
    return node, edge


@_tally.cuda
def _(*args):
    return on_cpu(_tally, *args)


@_tally.fake
def _(index, adjacency, code, node_labels, edge_labels, roots, node_orbits, edge_orbits):
    n, m = num_nodes(index), num_edges(index, adjacency)
    return index.new_empty(n, node_orbits), index.new_empty(m, edge_orbits)


@_list.cpu
def _(index, adjacency, code, node_labels, edge_labels, roots, offsets, skip, take):
    found = torch.empty(take, int(code[0]), dtype=torch.int64)
    labels = node_labels, edge_labels
    _cpu.match(None, None, None, found, offsets, index, adjacency, code, *labels, roots, skip, torch.get_num_threads())
    return found


@_list.cuda
def _(*args):
    return on_cpu(_list, *args)


@_list.fake
def _(index, adjacency, code, node_labels, edge_labels, roots, offsets, skip, take):
    return index.new_empty(take, torch.library.get_ctx().new_dynamic_size())
