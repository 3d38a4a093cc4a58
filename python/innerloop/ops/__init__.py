# SPDX-License-Identifier: Apache-2.0
"""Public ops. Each lives in the module of its name, beside its registration, fake, autograd and vmap rules."""

from ._motif_adjacency import motif_adjacency, triangle_list
from .band_attention import band_attention
from .bellman_ford import Semiring, bellman_ford
from .closeness import closeness
from .infonce import ckd, infonce, ntxent, siglip, supcon
from .match import automorphisms, k_cliques, match, match_batches
from .motif_grid import gather_grid, motif_grid
from .nbfnet_layer import nbfnet_layer
from .node_orbits import edge_orbits, graphlets, node_orbits
from .pool_kv import pool_kv, pooled_valid, pooling_attention
from .relational_spmm import relational_spmm
from .subgraph_attention import subgraph_attention
from .triangles import clustering, transitivity, triangles

__all__ = [
    "Semiring",
    "automorphisms",
    "band_attention",
    "bellman_ford",
    "ckd",
    "closeness",
    "clustering",
    "edge_orbits",
    "gather_grid",
    "graphlets",
    "infonce",
    "k_cliques",
    "match",
    "match_batches",
    "motif_adjacency",
    "motif_grid",
    "nbfnet_layer",
    "node_orbits",
    "ntxent",
    "pool_kv",
    "pooled_valid",
    "pooling_attention",
    "relational_spmm",
    "siglip",
    "subgraph_attention",
    "supcon",
    "transitivity",
    "triangle_list",
    "triangles",
]
