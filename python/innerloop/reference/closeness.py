# SPDX-License-Identifier: Apache-2.0
"""Plain definition of closeness: dictionaries and one breadth-first search a source."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Adjacent = dict[int, dict[int, float]]  # node: {neighbour: value of the edge}


def closeness(edges: Tensor, num_nodes: int, samples: int | None = None, order: Tensor | None = None) -> Tensor:
    """|P \\ {v}| / Σ_u d(v, u) over the nodes u of P, 0 where there is no other; P is the component of v.

    Args:
        edges: int64 (m, 2), each undirected edge once.
        samples: P is the first `samples` nodes of the component in `order`, int64 (n,), all nodes of the graph.

    Returns:
        float64 (num_nodes,).
    """
    adjacent = adjacency(range(num_nodes), edges, None)
    reached, total = [0] * num_nodes, [0] * num_nodes
    for source in range(num_nodes) if samples is None else order.tolist():
        if samples is not None and reached[source] == samples:  # the component has that many already
            continue
        for v, distance in _distances(adjacent, source).items():
            reached[v] += v != source
            total[v] += distance
    return torch.tensor([r / max(t, 1) for r, t in zip(reached, total, strict=True)], dtype=torch.float64)


def adjacency(nodes: Iterable[int], edges: Tensor, edge_value: Tensor | None) -> Adjacent:
    adjacent: Adjacent = {v: {} for v in nodes}
    values = [1.0] * len(edges) if edge_value is None else edge_value.tolist()
    for (u, v), value in zip(edges.tolist(), values, strict=True):
        adjacent[u][v] = adjacent[v][u] = value
    return adjacent


def _distances(adjacent: Adjacent, source: int) -> dict[int, int]:
    distance, frontier = {source: 0}, [source]
    for v in frontier:
        for w in adjacent[v]:
            if w not in distance:
                distance[w] = distance[v] + 1
                frontier.append(w)
    return distance
