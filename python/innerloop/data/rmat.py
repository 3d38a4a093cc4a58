# SPDX-License-Identifier: Apache-2.0
"""R-MAT graphs: random graphs of any size with the skewed degrees of real networks."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rmat"]

_MAX_SCALE = 30  # a Graph has fewer than 2**31 nodes


def rmat(scale: int, edge_factor: int = 16, a: float = 0.57, b: float = 0.19, c: float = 0.19, seed: int = 0) -> Tensor:
    """A recursive-matrix graph of ``2**scale`` nodes, by default with the probabilities of Graph500.

    ``edge_factor * 2**scale`` cells of the adjacency matrix are drawn, each by choosing a quadrant `scale` times:
    upper left with probability a, upper right with b, lower left with c, else lower right. They are then read as
    undirected edges; loops are dropped and equal edges become one, so there are fewer. Nodes keep their numbers: small
    ids have high degrees.

    Args:
        scale: 1 to 30.
        edge_factor: edges drawn for each node, at least 0.
        a, b, c: probabilities.
        seed: of the generator. The same arguments give the same graph.

    Returns:
        int64 (2, E): each undirected edge once, u < v, in ascending order of (u, v).

    Raises:
        TypeError: a scale, edge_factor or seed that is not an int. ValueError: one out of range, or no probabilities.

    Source: Chakrabarti, Zhan and Faloutsos, R-MAT: a recursive model for graph mining (2004).
    """
    for name, value in (("scale", scale), ("edge_factor", edge_factor), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"rmat: {name} is {type(value).__name__}, expected int")
    if not 1 <= scale <= _MAX_SCALE:
        raise ValueError(f"rmat: scale is {scale}, expected 1 to {_MAX_SCALE}")
    if edge_factor < 0:
        raise ValueError(f"rmat: edge_factor is {edge_factor}, expected at least 0")
    if not (min(a, b, c) >= 0 and a + b + c <= 1 + 1e-6):
        raise ValueError(f"rmat: a, b, c are {a}, {b}, {c}, expected probabilities with a sum of at most 1")
    generator = torch.Generator().manual_seed(seed)
    u = torch.zeros(edge_factor << scale, dtype=torch.int64)
    v = torch.zeros_like(u)
    for _ in range(scale):
        quadrant = torch.rand(len(u), generator=generator)
        lower = quadrant >= a + b
        right = (quadrant >= a) & ~lower | (quadrant >= a + b + c)
        u.mul_(2).add_(lower)
        v.mul_(2).add_(right)
    # One number for each edge, whichever way it was drawn.
    key = (torch.minimum(u, v) << scale) | torch.maximum(u, v)
    key = torch.unique(key[u != v])
    return torch.stack([key >> scale, key & ((1 << scale) - 1)])
