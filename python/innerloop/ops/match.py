# SPDX-License-Identifier: Apache-2.0
"""match: subgraphs that look like a pattern: how many, which, and how often every node and edge is in one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..simple_graph import Graph
from . import _patterns
from ._checks import as_int
from ._match_ops import ALL, Request, Search, match_count, match_list, match_tally
from ._motif_gpu import moved_to_cpu
from ._patterns import MAX_NODES, as_pattern
from ._registry import not_traced
from .triangles import check_per, sum_by_graph

__all__ = ["automorphisms", "k_cliques", "match", "match_batches"]

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
            "diamond", "house", "G17", ...), its edges as "01 12 20", a graph6 string, a list of edges, an `edge_index`,
            or a networkx graph.
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
        node_labels: integers (n,) of at least 0, and pattern_node_labels one for each pattern node, -1 for any: others
            must agree.
        edge_labels: the same (m,), in the order of graph.edges, and pattern_edge_labels one for each pattern edge.
        limit: the list holds at most so many matches, the first of the whole list; the search stops there.
        seeds: nodes (S,) of the graph, the only ones to match pattern node 0; symmetry is then broken among the
            automorphisms that fix it.
        roots: (first, last), a range of ranks (`graph.rank`) for the first node that the search matches: counts of
            disjoint ranges add up to those of all, which is how processes share the work.

    Memory: a list and 8 MB beside it; counts by orbit twice, and once more for each thread; some numbers per node.

    Under `torch.compile(fullgraph=True)` counts work, of a Graph that is built outside, with a pattern that is a string
    or a list of pairs, its labels lists of ints. Others break the graph; so may a list, whose length depends on the
    values.

    Raises:
        TypeError, ValueError, IndexError: arguments that do not fit, a pattern that is not connected or too large, or a
            list that would not fit in half of the memory; the message names the argument. OverflowError: more matches
            than int64 holds.

    Source: plans as in Mawhirter and Wu, AutoMine (2019), and Jamshidi et al., Peregrine (2020); symmetry as in Grochow
        and Kellis (2007).
    """
    if output not in _OUTPUTS:
        raise ValueError(f"match: output is {output!r}, expected one of {', '.join(_OUTPUTS)}")
    graph = Graph.of(graph)
    request = _request(
        "match",
        graph,
        pattern,
        induced=induced,
        symmetry=symmetry,
        node_labels=node_labels,
        pattern_node_labels=pattern_node_labels,
        edge_labels=edge_labels,
        pattern_edge_labels=pattern_edge_labels,
        seeds=seeds,
        roots=roots,
    )
    if output == "list":
        return match_list(*request, _checked_limit("match", limit))
    if limit is not None:
        raise ValueError(f"match: limit is {limit!r} beside counts, expected None: it is for output='list'")
    return _counts(graph, request, output)


def searched(
    op: str, graph: Graph, pattern: Any, roots: tuple[int, int], *, output: str = "count", **options: Any
) -> tuple[Tensor, dict[str, Any]]:
    """The counts of :func:`match` from a range of roots, and what was asked for by name, of tensors a checksum."""
    if output not in _OUTPUTS:
        raise ValueError(f"{op}: output is {output!r}, expected one of {', '.join(_OUTPUTS)}")
    if unknown := options.keys() - {"induced", "symmetry", *_LABELS}:
        raise TypeError(f"{op}: {min(unknown)} is no option of match that counts matches")
    request = _request(op, graph, pattern, roots=roots, **options)
    asked = {"pattern": request.pattern, "output": output, "symmetry": "all" if request.every else "break"}
    for name in ("induced", *_LABELS):
        value = getattr(request, name)
        if isinstance(value, Tensor):
            value = f"labels with the CRC-32 {zlib.crc32(value.long().contiguous().numpy()):08x}"
        asked[name] = value
    return _counts(graph, request, output), asked


@not_traced
def match_batches(graph: Any, pattern: Any, *, size: int = 1 << 16, **options: Any) -> Iterator[Tensor]:
    """The list of :func:`match` in parts of at most `size` matches, in bounded memory.

    Args:
        graph, pattern, options: as for :func:`match`, without `output` and `roots`.
        size: matches in one part.

    Yields:
        int64 (at most size, q), in the order of the whole list. Before the first, all matches are counted, as far as
        `limit`; then each part goes on where the last one ended, in time that does not depend on what came before.
    """
    most = as_int(size)
    if most is None or most < 1:
        raise ValueError(f"match_batches: size is {size!r}, expected an int of at least 1")
    limit = _checked_limit("match_batches", options.pop("limit", None))
    if unknown := options.keys() - {"induced", "symmetry", "seeds", *_LABELS}:
        raise TypeError(f"match_batches: {min(unknown)} is no option of match that lists matches")
    request = _request("match_batches", Graph.of(graph), pattern, **options)
    most = min(most, ALL // 2)  # Tensor.split adds to it
    device = request.index.device
    if device.type == "cpu":
        return Search(*request).parts(most, limit)
    return (part.to(device) for part in Search(*moved_to_cpu(match_list, request)).parts(most, limit))


def k_cliques(graph: Any, k: int, per: Literal["node", "edge", "graph"] = "node") -> Tensor:
    """Number of k-cliques at every node, on every edge, or in every graph of a batch.

    Args:
        graph: a :class:`Graph`, or anything that `Graph.of` takes.
        k: 2 to 8.
        per: "node", "edge" or "graph".

    Returns:
        int64 (n,), (m,) in the order of `graph.edges`, or (B,).
    """
    size = as_int(k)
    if size is None or not 2 <= size <= MAX_NODES:
        raise ValueError(f"k_cliques: k is {k!r}, expected 2 to {MAX_NODES}")
    check_per("k_cliques", per)
    return match(graph, _CLIQUES[size], output=_PER[per])


def automorphisms(
    pattern: Any,
    *,
    pattern_node_labels: Sequence[int] | None = None,
    pattern_edge_labels: Sequence[int] | None = None,
) -> list[tuple[int, ...]]:
    """Permutations of a pattern's nodes that keep its edges and labels.

    `match(..., symmetry="all")` finds each subgraph once for every one of them, `symmetry="break"` once.

    Args:
        pattern, pattern_node_labels, pattern_edge_labels: as for :func:`match`.

    Returns:
        Tuples of the image of nodes 0, 1, ..; the identity is the first.

    Raises:
        ValueError, TypeError: the pattern is none that :func:`match` takes.

    Example:
        >>> automorphisms("01 12")
        [(0, 1, 2), (2, 1, 0)]
    """
    return list(_patterns.automorphisms(as_pattern(pattern, "automorphisms", pattern_node_labels, pattern_edge_labels)))


# Looked up: text that is made from a number stops Dynamo where it takes the number for a variable.
_CLIQUES = tuple(f"K{k}" for k in range(MAX_NODES + 1))
_PER: dict[str, Output] = {"node": "node_counts", "edge": "edge_counts", "graph": "graph_counts"}
_DIGITS = tuple("01234567")
_LABELS = ("node_labels", "pattern_node_labels", "edge_labels", "pattern_edge_labels")


def _request(
    op: str,
    graph: Graph,
    pattern: Any,
    *,
    induced: bool = False,
    symmetry: str = "break",
    node_labels: Tensor | None = None,
    pattern_node_labels: Sequence[int] | None = None,
    edge_labels: Tensor | None = None,
    pattern_edge_labels: Sequence[int] | None = None,
    seeds: Tensor | None = None,
    roots: tuple[int, int] | None = None,
) -> Request:
    if not isinstance(induced, bool):
        raise TypeError(f"{op}: induced is {induced!r}, expected a bool")
    if symmetry not in ("break", "all"):
        raise ValueError(f"{op}: symmetry is {symmetry!r}, expected 'break' or 'all'")
    if seeds is not None and not _is_integer(seeds):
        raise TypeError(f"{op}: seeds is {_kind(seeds)}, expected an integer tensor (S,)")
    ranks = None if roots is None else _checked_roots(op, roots, seeds, graph.num_nodes)
    text, wanted_nodes, wanted_edges = _spelled(op, pattern, pattern_node_labels, pattern_edge_labels)
    _check_labels(op, "node_labels", node_labels, wanted_nodes, graph.num_nodes, "node")
    _check_labels(op, "edge_labels", edge_labels, wanted_edges, graph.num_edges, "edge")
    node_labels, edge_labels, seeds = (
        None if t is None else t.to(graph.device) for t in (node_labels, edge_labels, seeds)
    )
    return Request(
        graph.index,
        graph.adjacency,
        text,
        wanted_nodes,
        wanted_edges,
        induced,
        symmetry == "all",
        node_labels,
        edge_labels,
        seeds,
        ranks,
        op,
    )


def _spelled(
    op: str, pattern: Any, node_labels: Sequence[int] | None, edge_labels: Sequence[int] | None
) -> tuple[str, list[int] | None, list[int] | None]:
    """The pattern as text and its labels as lists."""
    if torch.compiler.is_compiling() and _is_traceable(pattern, node_labels, edge_labels):
        _check_traced(op, pattern)
    else:
        given = _as_pattern(pattern, op, node_labels, edge_labels)  # breaks a compiled graph: give text, lists of ints
        pattern, node_labels, edge_labels = given.edges, given.node_labels, given.edge_labels
    text = pattern if isinstance(pattern, str) else " ".join([_DIGITS[u] + _DIGITS[v] for u, v in pattern])
    return text, None if node_labels is None else list(node_labels), None if edge_labels is None else list(edge_labels)


_as_pattern = not_traced(as_pattern)  # NumPy, networkx, values of a tensor


def _is_traceable(pattern: Any, *labels: Any) -> bool:
    """Whether Dynamo follows what makes text of it: a string or a list of pairs of ints, and lists of labels."""
    if not all(x is None or (isinstance(x, list | tuple) and all(type(i) is int for i in x)) for x in labels):
        return False
    return isinstance(pattern, str) or (isinstance(pattern, list | tuple) and all(map(_is_pair, pattern)))


def _is_pair(x: object) -> bool:
    return isinstance(x, list | tuple) and len(x) == 2 and all(isinstance(i, int) for i in x)


def _check_traced(op: str, pattern: Any) -> None:
    """The part of `as_pattern` that what becomes text would hide from it."""
    for pair in [] if isinstance(pattern, str) else pattern:
        if not all(type(u) is int and 0 <= u < MAX_NODES for u in pair):
            raise ValueError(
                f"{op}: pattern has the entry {pair!r} under torch.compile, expected pairs of nodes 0 to 7"
            )


def _is_integer(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype in _INT_DTYPES


def _kind(x: object) -> object:
    return x.dtype if isinstance(x, Tensor) else type(x).__name__


def _checked_roots(op: str, roots: tuple[int, int], seeds: Tensor | None, n: int) -> list[int]:
    if seeds is not None:
        raise ValueError(f"{op}: roots is given beside seeds, expected one of them")
    ranks = [as_int(r) for r in roots] if isinstance(roots, tuple) else []
    if len(ranks) != 2 or None in ranks:
        raise TypeError(f"{op}: roots is {roots!r}, expected two ints (first, last)")
    first, last = ranks
    if not 0 <= first <= last <= n:
        raise ValueError(f"{op}: roots is {(first, last)}, expected a range of [0, {n}]")
    return ranks


def _check_labels(op: str, name: str, labels: Tensor | None, wanted: list[int] | None, count: int, what: str) -> None:
    if (labels is None) != (wanted is None):
        given, missing = (f"pattern_{name}", name) if labels is None else (name, f"pattern_{name}")
        raise ValueError(f"{op}: {missing} is None beside {given}, expected both or neither")
    if labels is None:
        return
    if not _is_integer(labels):
        raise TypeError(f"{op}: {name} is {_kind(labels)}, expected an integer tensor ({count},)")
    if labels.shape != (count,):
        raise ValueError(
            f"{op}: {name} has shape {tuple(labels.shape)}, expected ({count},), one label for each {what}"
        )


def _checked_limit(op: str, limit: int | None) -> int | None:
    if limit is None:
        return None
    most = as_int(limit)
    if most is None or most < 0:
        raise ValueError(f"{op}: limit is {limit!r}, expected an int of at least 0, or None")
    return min(most, ALL)


def _counts(graph: Graph, request: Request, output: str) -> Tensor:
    if output in ("count", "graph_counts"):
        found = match_count(*request)
        if output == "graph_counts":
            return sum_by_graph(request.op, found, graph.ptr)
        return sum_by_graph(request.op, found, torch.stack([graph.ptr[0], graph.ptr[-1]]))[0]
    counts = match_tally(*request, output == "edge_counts")
    return counts if output == "orbit_counts" else counts.sum(1)
