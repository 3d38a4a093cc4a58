# SPDX-License-Identifier: Apache-2.0
"""Shared material of the orbit tests: graphlets, random, complete and stored graphs."""

import functools
from pathlib import Path

import torch
from innerloop import Graph
from innerloop.data.tu import read_edge_list
from innerloop.reference.node_orbits import GRAPHLETS, overlap_matrix
from torch import Tensor

NUM_GRAPHLETS = {3: 3, 4: 9, 5: 30}
AUTOMORPHISMS = [
    2, 2, 6, 2, 6, 8, 2, 4, 24, 2, 2, 24, 2, 2, 4, 10, 2, 2, 8, 2, 12, 2, 12, 6, 2, 4, 4, 8, 12, 120,
]  # fmt: skip


def graphlet(i: int) -> tuple[Tensor, int]:
    """Edges (m, 2) and number of nodes of G_i."""
    text, orbit, _ = GRAPHLETS[i]
    return torch.tensor([[int(u), int(v)] for u, v in text.split()]), len(orbit)


def random_edges(n: int, density: float) -> Tensor:
    """Distinct undirected edges, (m, 2), in random order and direction."""
    pairs = torch.triu_indices(n, n, 1).T
    pairs = pairs[torch.rand(len(pairs)) < density]
    pairs = pairs[torch.randperm(len(pairs))]
    return torch.where(torch.rand(len(pairs), 1) < 0.5, pairs, pairs.flip(1))


def complete(n: int) -> Graph:
    return Graph(torch.triu_indices(n, n, 1), n)


def network(folder: Path, name: str) -> Graph:
    return Graph(*read_edge_list(folder / "net" / f"{name}.txt.xz"))


overlaps = functools.cache(overlap_matrix)
