# SPDX-License-Identifier: Apache-2.0
"""Plain definition of triangle counts and what is made of them, by powers of the adjacency matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def triangles(edge_index: Tensor, num_nodes: int, per: str = "node") -> Tensor:
    """Triangles through each node, or through each of the columns of `edge_index`, or in all.

    Args:
        edge_index: int64 (2, E), in one or both directions; self loops and duplicates do not matter.
        per: "node", "edge" or "graph".

    Returns:
        int64 (num_nodes,), (E,) or ().
    """
    adjacency = _adjacency(edge_index, num_nodes)
    shared = adjacency @ adjacency * adjacency  # neighbours that the ends of an edge share
    if per == "edge":
        return shared[edge_index[0], edge_index[1]].long()
    node = shared.sum(1).long() // 2
    return node if per == "node" else node.sum() // 3


def clustering(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Share of the pairs of neighbours that are adjacent, 0 for fewer than two: float64 (num_nodes,)."""
    pairs = _pairs(edge_index, num_nodes)
    return triangles(edge_index, num_nodes) / pairs.clamp(min=1)


def transitivity(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Share of the paths of two edges that are closed, 0 without any: float64 ()."""
    wedges = _pairs(edge_index, num_nodes).sum()
    return triangles(edge_index, num_nodes).sum() / wedges.clamp(min=1)


def _adjacency(edge_index: Tensor, num_nodes: int) -> Tensor:
    adjacency = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    adjacency[edge_index[0], edge_index[1]] = adjacency[edge_index[1], edge_index[0]] = 1
    return adjacency.fill_diagonal_(0)


def _pairs(edge_index: Tensor, num_nodes: int) -> Tensor:
    degree = _adjacency(edge_index, num_nodes).sum(1)
    return degree * (degree - 1) / 2
