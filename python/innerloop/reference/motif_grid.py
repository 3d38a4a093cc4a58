# SPDX-License-Identifier: Apache-2.0
"""Plain definition of the motif grid: dictionaries, sets and permutations."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from itertools import combinations, permutations, product

import torch
from torch import Tensor

from innerloop.reference.closeness import Adjacent, adjacency, closeness


def motif_grid(
    edges: Tensor,
    ptr: Tensor,
    value: Tensor,
    num_nodes: int,
    slots: int,
    *,
    k: int = 3,
    edge_value: Tensor | None = None,
    centrality: Tensor | None = None,
    planes: int = 1,
    tie: str = "degree",
    per_type: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The motifs around the most central nodes of each graph as a grid; see ``ops.motif_grid``.

    Args:
        edges: int64 (m, 2), each undirected edge once. ptr: int64 (B + 1,), the graphs' first nodes.
        value: int64 (n,), label from 1 or degree of each node.
        num_nodes, slots: N and S.
        edge_value: float (m,), or None for 1.
        centrality: (n,), the largest first, or None for closeness.
        planes: F; 1 puts `value` on the diagonals, more put a 1 into plane `value - 1` and edges into the last.

    Returns:
        x float32 (B, F, kS, kN), index int32 (B, N, S, k), mask bool (B, N, S).
    """
    types, graphs = _types(k), len(ptr) - 1
    central = (closeness(edges, len(value)) if centrality is None else centrality).tolist()
    x = torch.zeros(graphs, planes, slots, k, num_nodes, k)
    index = torch.full((graphs, num_nodes, slots, k), -1, dtype=torch.int32)
    owner = torch.bucketize(edges[:, 0].contiguous(), ptr, right=True) - 1
    for b in range(graphs):
        own = owner == b
        nodes = range(int(ptr[b]), int(ptr[b + 1]))
        adjacent = adjacency(nodes, edges[own], None if edge_value is None else edge_value[own])
        order = _order(adjacent, central, value.tolist(), tie)
        rank = {v: i for i, v in enumerate(order)}
        adjacent = {rank[v]: {rank[w]: e for w, e in near.items()} for v, near in adjacent.items()}
        for i in range(min(len(order), num_nodes)):
            instances = sorted(_instance(s, i, adjacent, types) for s in _connected(adjacent, i, k))
            for slot, (_, *members) in _place(instances, slots, len(types), per_type):
                for p, r in enumerate(members):
                    index[b, i, slot, p] = order[r]
                    diagonal = int(value[order[r]])
                    x[b, 0 if planes == 1 else diagonal - 1, slot, p, i, p] = diagonal if planes == 1 else 1
                    for q, other in enumerate(members):
                        if other in adjacent[r]:
                            x[b, -1, slot, p, i, q] = adjacent[r][other]
    return x.reshape(graphs, planes, slots * k, num_nodes * k), index, index[..., 0] >= 0


def _order(adjacent: Adjacent, central: list[float], value: list[int], tie: str) -> list[int]:
    """The nodes from the most central one on."""
    if tie == "official":
        return sorted(adjacent, key=lambda v: (-central[v], v))
    key = {v: (-central[v], -len(adjacent[v])) for v in adjacent}
    if tie == "degree":
        return sorted(adjacent, key=lambda v: (key[v], v))
    color = _dense({v: (*key[v], value[v]) for v in adjacent})
    while True:  # colour refinement (1-WL)
        near = {v: sorted((color[w], e) for w, e in adjacent[v].items()) for v in adjacent}
        finer = _dense({v: (color[v], near[v]) for v in adjacent})
        if finer == color:
            return sorted(adjacent, key=lambda v: (color[v], v))
        color = finer


def _dense(key: dict[int, object]) -> dict[int, int]:
    distinct: list[object] = []
    for one in sorted(key.values()):
        if not distinct or distinct[-1] != one:
            distinct.append(one)
    return {v: distinct.index(one) for v, one in key.items()}


def _connected(adjacent: Adjacent, root: int, k: int) -> set[frozenset[int]]:
    """All sets of k nodes that hold `root` and induce a connected graph."""
    sets = {frozenset([root])}
    for _ in range(k - 1):
        sets = {s | {w} for s in sets for v in s for w in adjacent[v] if w not in s}
    return sets


def _code(members: tuple[int, ...], adjacent: Adjacent) -> int:
    """Adjacency of the pairs (0, 1), (0, 2), … as a binary number, the first pair its highest digit."""
    return int("".join("01"[b in adjacent[a]] for a, b in combinations(members, 2)), 2)


def _instance(members: frozenset[int], root: int, adjacent: Adjacent, types: list[int]) -> tuple[int, ...]:
    """(type, nodes): the root first, the others so that the code is largest, then so that ranks ascend."""
    arrangements = ((root, *others) for others in permutations(sorted(members - {root})))
    best = max(arrangements, key=lambda nodes: _code(nodes, adjacent))  # the first of equal ones
    return types.index(_code(best, adjacent)), *best


@functools.cache
def _types(k: int) -> list[int]:
    """Codes of the connected graphs of k nodes with a root: those of more edges first, then by code."""
    pairs, codes = list(combinations(range(k), 2)), set()
    for edges in product([0, 1], repeat=len(pairs)):
        chosen = torch.tensor([p for p, there in zip(pairs, edges, strict=True) if there]).reshape(-1, 2)
        adjacent = adjacency(range(k), chosen, None)
        if _connected(adjacent, 0, k):
            codes.add(max(_code((0, *others), adjacent) for others in permutations(range(1, k))))
    return sorted(codes, key=lambda code: (-code.bit_count(), code))


def _place(
    instances: list[tuple[int, ...]], slots: int, types: int, per_type: bool
) -> Iterable[tuple[int, tuple[int, ...]]]:
    """(slot, instance) of those that have a place: the first ones, or the first ones of each type."""
    if not per_type:
        return list(enumerate(instances[:slots]))
    placed, begin = [], 0
    for t in range(types):
        room = slots // types + (t < slots % types)
        placed += enumerate([one for one in instances if one[0] == t][:room], begin)
        begin += room
    return placed
