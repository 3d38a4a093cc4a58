# SPDX-License-Identifier: Apache-2.0
"""Plain definition of graphlet and orbit counts: every connected set of up to k nodes, looked up in a table.

Orbits are those of Pržulj (Bioinformatics 2007) for nodes, of Hočevar and Demšar (JSS 2016) for edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations, permutations

import torch
from torch import Tensor

# G0 .. G29, one labelled graph each: its edges, the orbits of its nodes 0, 1, ..., the orbits of its edges.
GRAPHLETS = (
    ("01", (0, 0), ()),
    ("01 02", (2, 1, 1), (0, 0)),
    ("01 02 12", (3, 3, 3), (1, 1, 1)),
    ("01 03 12", (5, 5, 4, 4), (3, 2, 2)),
    ("01 02 03", (7, 6, 6, 6), (4, 4, 4)),
    ("02 03 12 13", (8, 8, 8, 8), (5, 5, 5, 5)),
    ("01 02 03 12", (11, 10, 10, 9), (8, 8, 6, 7)),
    ("01 02 03 12 13", (13, 13, 12, 12), (10, 9, 9, 9, 9)),
    ("01 02 03 12 13 23", (14, 14, 14, 14), (11, 11, 11, 11, 11, 11)),
    ("02 04 12 13", (16, 16, 17, 15, 15), (13, 12, 13, 12)),
    ("01 03 04 12", (21, 20, 18, 19, 19), (16, 15, 15, 14)),
    ("01 02 03 04", (23, 22, 22, 22, 22), (17, 17, 17, 17)),
    ("01 02 04 12 13", (26, 26, 25, 24, 24), (20, 19, 18, 19, 18)),
    ("01 04 12 13 23", (28, 30, 29, 29, 27), (22, 21, 24, 24, 23)),
    ("01 02 03 04 12", (33, 32, 32, 31, 31), (27, 27, 25, 25, 26)),
    ("03 04 12 14 23", (34, 34, 34, 34, 34), (28, 28, 28, 28, 28)),
    ("02 03 04 12 13", (38, 36, 37, 37, 35), (31, 31, 29, 30, 30)),
    ("01 02 03 04 12 13", (42, 41, 40, 40, 39), (35, 34, 34, 32, 33, 33)),
    ("01 02 03 04 14 23", (44, 43, 43, 43, 43), (37, 37, 37, 37, 36, 36)),
    ("01 02 04 12 13 23", (47, 48, 48, 46, 45), (40, 40, 38, 41, 39, 39)),
    ("02 03 04 12 13 14", (50, 50, 49, 49, 49), (42, 42, 42, 42, 42, 42)),
    ("01 03 04 12 14 23", (53, 53, 51, 51, 52), (46, 44, 45, 44, 45, 43)),
    ("01 02 03 04 12 13 14", (55, 55, 54, 54, 54), (48, 47, 47, 47, 47, 47, 47)),
    ("01 02 03 04 12 13 23", (58, 57, 57, 57, 56), (51, 51, 51, 49, 50, 50, 50)),
    ("01 02 03 04 12 14 23", (61, 60, 60, 59, 59), (55, 55, 53, 53, 54, 52, 52)),
    ("02 03 04 12 13 14 23", (63, 63, 64, 64, 62), (57, 57, 56, 57, 57, 56, 58)),
    ("01 02 03 04 12 13 14 23", (67, 67, 66, 66, 65), (62, 61, 61, 59, 61, 61, 59, 60)),
    ("01 02 03 04 13 14 23 24", (69, 68, 68, 68, 68), (64, 64, 64, 64, 63, 63, 63, 63)),
    ("01 02 03 04 12 13 14 23 24", (71, 71, 71, 70, 70), (66, 66, 65, 65, 66, 65, 65, 65, 65)),
    ("01 02 03 04 12 13 14 23 24 34", (72, 72, 72, 72, 72), (67, 67, 67, 67, 67, 67, 67, 67, 67, 67)),
)

NUM_ORBITS = {"node": {2: 1, 3: 4, 4: 15, 5: 73}, "edge": {2: 0, 3: 2, 4: 12, 5: 68}}  # up to k nodes


def node_orbits(edge_index: Tensor, num_nodes: int, k: int = 4, induced: bool = True) -> Tensor:
    """How often each node takes each place of each connected graph on 2 to k nodes.

    Args:
        edge_index: int64 (2, E), in one or both directions; self loops and duplicates do not matter.
        k: 3, 4 or 5.
        induced: count sets of nodes by the graph they induce, or else every subgraph on them.

    Returns:
        int64 (num_nodes, 4 | 15 | 73).
    """
    adjacent = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    adjacent[edge_index[0], edge_index[1]] = adjacent[edge_index[1], edge_index[0]] = True
    counts = torch.zeros(num_nodes, NUM_ORBITS["node"][k], dtype=torch.int64)
    for nodes, code in _connected_sets(adjacent.fill_diagonal_(False), k):
        table = _table(nodes.shape[1], "node", induced)
        for place, node in enumerate(nodes.T):
            counts[:, : table.shape[2]] += _tally(node, code, table[:, place], num_nodes)
    return counts


def edge_orbits(edges: Tensor, num_nodes: int, k: int = 4, induced: bool = True) -> Tensor:
    """The same for edges: int64 (m, 2 | 12 | 68), for the distinct undirected `edges`, int64 (m, 2) without loops."""
    row = torch.full((num_nodes, num_nodes), -1)
    row[edges[:, 0], edges[:, 1]] = row[edges[:, 1], edges[:, 0]] = torch.arange(len(edges))
    counts = torch.zeros(len(edges), NUM_ORBITS["edge"][k], dtype=torch.int64)
    for nodes, code in _connected_sets(row >= 0, k):
        table = _table(nodes.shape[1], "edge", induced)
        for place, (u, v) in enumerate(combinations(nodes.T, 2)):
            edge = row[u, v]
            there = edge >= 0
            counts[:, : table.shape[2]] += _tally(edge[there], code[there], table[:, place], len(edges))
    return counts


def graphlets(edge_index: Tensor, num_nodes: int, k: int = 4, induced: bool = True) -> Tensor:
    """How often the graph holds each of G0, G1, ...: int64 (3 | 9 | 30,)."""
    total = node_orbits(edge_index, num_nodes, k, induced).sum(0)
    orbits = [orbit for _, orbit, _ in GRAPHLETS if len(orbit) <= k]
    return torch.stack([total[orbit[0]] // orbit.count(orbit[0]) for orbit in orbits])


def overlap_matrix(k: int = 4, per: str = "node") -> Tensor:
    """M, int64 square, with non-induced = induced @ M.T: how often each orbit lies in a graphlet at each of its orbits.

    Args:
        per: "node" or "edge".
    """
    matrix = torch.zeros(NUM_ORBITS[per][k], NUM_ORBITS[per][k], dtype=torch.int64)
    for text, node_orbit, edge_orbit in GRAPHLETS:
        size, edges = len(node_orbit), torch.tensor(_edges(text))
        if size > k or (per == "edge" and size == 2):
            continue
        if per == "node":
            counts, orbit = node_orbits(edges.T, size, size, induced=False), node_orbit
        else:
            counts, orbit = edge_orbits(edges, size, size, induced=False), edge_orbit
        smaller = NUM_ORBITS[per].get(size - 1, 0)
        matrix[smaller : counts.shape[1], list(orbit)] = counts[:, smaller:].T
    return matrix


def _edges(text: str) -> list[tuple[int, int]]:
    return [(int(u), int(v)) for u, v in text.split()]


def _connected_sets(adjacent: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For s = 2 .. k all connected sets of s nodes, int64 (S, s), and their edges, (S,): bit i for the i-th pair."""
    nodes = torch.arange(len(adjacent))[:, None]
    for _ in range(2, k + 1):
        near = adjacent[nodes].any(1).scatter(1, nodes, False)
        grown, node = near.nonzero(as_tuple=True)
        nodes = torch.cat([nodes[grown], node[:, None]], 1).sort(1).values.unique(dim=0)
        code = torch.zeros(len(nodes), dtype=torch.int64)
        for i, (u, v) in enumerate(combinations(nodes.T, 2)):
            code += adjacent[u, v].long() << i
        yield nodes, code


@cache
def _table(size: int, per: str, induced: bool) -> Tensor:
    """How often a node or pair of a graph on `size` nodes is in each orbit: (codes, nodes or pairs, orbits)."""
    pairs = list(combinations(range(size), 2))
    places = {"node": size, "edge": len(pairs)}[per]
    table = torch.zeros(2 ** len(pairs), places, NUM_ORBITS[per][size], dtype=torch.float64)
    for text, node_orbit, edge_orbit in GRAPHLETS:
        if len(node_orbit) != size:
            continue
        for label in permutations(range(size)):
            pair = [pairs.index(tuple(sorted((label[u], label[v])))) for u, v in _edges(text)]
            code = sum(1 << i for i in pair)
            at = zip(label, node_orbit, strict=True) if per == "node" else zip(pair, edge_orbit, strict=False)
            for place, orbit in at:
                table[code, place, orbit] = 1
    if not induced:  # a graph holds those whose edges are among its own
        codes = torch.arange(len(table))
        holds = (codes & codes[:, None]) == codes
        table = (holds.double() @ table.flatten(1)).view_as(table)
    return table


def _tally(row: Tensor, code: Tensor, table: Tensor, num_rows: int) -> Tensor:
    """Σ of table[code] by row; float64 is exact for all that can be listed one by one."""
    often = torch.bincount(row * len(table) + code, minlength=num_rows * len(table))
    return (often.view(num_rows, len(table)).double() @ table).long()
