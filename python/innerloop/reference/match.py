# SPDX-License-Identifier: Apache-2.0
"""Plain definition of subgraph matching: try every vertex for every pattern node, keep what fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor


def match(
    edge_index: Tensor,
    num_nodes: int,
    pattern_edges: Sequence[tuple[int, int]],
    pattern_size: int,
    induced: bool = False,
    symmetry: Literal["break", "all"] = "break",
    *,
    node_labels: Tensor | None = None,
    pattern_node_labels: Sequence[int] | None = None,
    edge_labels: Tensor | None = None,
    pattern_edge_labels: Sequence[int] | None = None,
    seeds: Tensor | None = None,
) -> tuple[int, Tensor]:
    """Injective maps f of the pattern's nodes to vertices that send edges to edges, see ``ops.match``.

    Args:
        edge_index: int64 (2, E), undirected; self loops and repetitions are of no account.
        pattern_edges: pairs of nodes below pattern_size.
        induced: also send nodes that are not adjacent to vertices that are not.
        symmetry: "all" maps, or the lexicographically least of those that differ by an automorphism of the (labelled)
            pattern, by one that fixes node 0 with `seeds`.
        node_labels: (num_nodes,), pattern_node_labels: (pattern_size,), edge_labels: (E,), of equal edges equal,
            pattern_edge_labels: one per pattern edge. In the pattern -1 fits every label.
        seeds: vertices that f[0] may be.

    Returns:
        Their number, and int64 (number, pattern_size): f, in lexicographic order.
    """
    label = [0] * num_nodes if node_labels is None else node_labels.tolist()
    wanted = [-1] * pattern_size if pattern_node_labels is None else list(pattern_node_labels)
    edge = _both_ways(edge_index.t().tolist(), None if edge_labels is None else edge_labels.tolist())
    pattern = _both_ways(pattern_edges, [-1] * len(pattern_edges) if edge_labels is None else pattern_edge_labels)
    allowed = set(range(num_nodes) if seeds is None else seeds.tolist())

    def fits(f: tuple[int, ...], x: int) -> bool:
        i = len(f)
        if x in f or wanted[i] not in (-1, label[x]) or (i == 0 and x not in allowed):
            return False
        for j, y in enumerate(f):
            if (i, j) not in pattern:
                if induced and (x, y) in edge:
                    return False
            elif (x, y) not in edge or pattern[i, j] not in (-1, edge[x, y]):
                return False
        return True

    def extend(f: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(f) == pattern_size:
            yield f
            return
        for x in range(num_nodes):
            if fits(f, x):
                yield from extend((*f, x))

    found = list(extend(()))
    if symmetry == "break":
        group = [
            p
            for p in permutations(range(pattern_size))
            if {(p[i], p[j]): value for (i, j), value in pattern.items()} == pattern
            and all(wanted[p[i]] == wanted[i] for i in range(pattern_size))
            and (seeds is None or p[0] == 0)
        ]
        found = [f for f in found if f == min(tuple(f[i] for i in p) for p in group)]
    return len(found), torch.tensor(found, dtype=torch.int64).reshape(-1, pattern_size)


def _both_ways(edges: Sequence[Sequence[int]], labels: Sequence[int] | None) -> dict[tuple[int, int], int]:
    labels = [0] * len(edges) if labels is None else labels
    pairs = [((u, v), x) for (u, v), x in zip(edges, labels, strict=True) if u != v]
    return {pair: x for (u, v), x in pairs for pair in ((u, v), (v, u))}
