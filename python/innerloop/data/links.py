# SPDX-License-Identifier: Apache-2.0
"""Undirected graphs with one kind of edge, split for link prediction as NBFNet does."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..graph import RelGraph

__all__ = ["LinkGraph", "read_links"]


@dataclass(frozen=True)
class LinkGraph:
    """An undirected graph whose edges are split at random.

    Attributes:
        name: of the data set (the file's, without its suffixes).
        nodes: node names; node id = position, in order of first appearance.
        train, valid, test: int64 (2, n), the edges of each split, in one direction, as in the file.
    """

    name: str
    nodes: list[str]
    train: Tensor
    valid: Tensor
    test: Tensor

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    def message_graph(self, self_loops: bool = False) -> RelGraph:
        """The training edges in both directions, one relation; messages pass over these only, in every split."""
        edges = torch.cat([self.train, self.train.flip(0)], dim=1)
        if self_loops:
            edges = torch.cat([edges, torch.arange(self.num_nodes).expand(2, -1)], dim=1)
        return RelGraph(edges, torch.zeros(edges.shape[1], dtype=torch.int64), self.num_nodes, 1)

    def known(self, split: str) -> Tensor:
        """Edges of the split's own graph, int64 (2, n): train; train and valid; all, for the test split."""
        parts = {"train": [self.train], "valid": [self.train, self.valid], "test": [self.train, self.valid, self.test]}
        return torch.cat(parts[split], dim=1)

    def negatives(self, split: str, count: int, generator: torch.Generator) -> Tensor:
        """int64 (2, count): ordered pairs of distinct nodes without an edge of `known(split)`, uniform, repeatable.

        The same distribution as the official one: a head ∝ |V| − degree − 1, then a tail uniform among the rest.

        Raises:
            ValueError: every pair has an edge.
        """
        V, edges = self.num_nodes, self.known(split)
        taken = torch.unique(torch.cat([edges[0] * V + edges[1], edges[1] * V + edges[0], torch.arange(V) * (V + 1)]))
        if count and len(taken) == V * V:
            raise ValueError(f"LinkGraph.negatives: every pair of the {V} nodes has an edge, expected one without")
        found = torch.empty(0, dtype=torch.int64)
        while len(found) < count:
            keys = torch.randint(0, V * V, (2 * count + 64,), generator=generator)
            found = torch.cat([found, keys[~torch.isin(keys, taken)]])
        return torch.stack([found[:count] // V, found[:count] % V])


def read_links(path: str | Path, *, seed: int = 0) -> LinkGraph:
    """Reads two tab-separated node names a line (.xz allowed) and splits the lines 85 : 5 : 10 at random.

    The split is that of the official NBFNet code (torchdrug): `random_split` with a generator of this seed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line without two names; the message has its number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    ids: dict[str, int] = {}
    rows = []
    with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as file:
        for number, line in enumerate(file, 1):
            names = line.rstrip("\r\n").split("\t")
            if len(names) != 2 or not all(names):
                raise ValueError(f"{path}:{number}: {line.strip()[:60]!r}, expected two names with a tab between")
            rows.append([ids.setdefault(name, len(ids)) for name in names])
    n = len(rows)
    edges = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).T
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    train, valid, test = order.split([int(0.85 * n), int(0.05 * n), n - int(0.85 * n) - int(0.05 * n)])
    return LinkGraph(path.name.split(".")[0], list(ids), edges[:, train], edges[:, valid], edges[:, test])
