# SPDX-License-Identifier: Apache-2.0
"""Every op in a few plain lines of torch: the definition, and the fallback without a kernel."""

from innerloop.reference.band_attention import band_attention
from innerloop.reference.bellman_ford import bellman_ford
from innerloop.reference.closeness import closeness
from innerloop.reference.infonce import ckd, infonce, ntxent, siglip, supcon
from innerloop.reference.match import match
from innerloop.reference.motif_grid import motif_grid
from innerloop.reference.nbfnet_layer import nbfnet_layer
from innerloop.reference.node_orbits import edge_orbits, graphlets, node_orbits
from innerloop.reference.pool_kv import pool_kv
from innerloop.reference.relational_spmm import relational_spmm
from innerloop.reference.subgraph_attention import subgraph_attention
from innerloop.reference.triangles import clustering, transitivity, triangles

__all__ = [
    "band_attention",
    "bellman_ford",
    "ckd",
    "closeness",
    "clustering",
    "edge_orbits",
    "graphlets",
    "infonce",
    "match",
    "motif_grid",
    "nbfnet_layer",
    "node_orbits",
    "ntxent",
    "pool_kv",
    "relational_spmm",
    "siglip",
    "subgraph_attention",
    "supcon",
    "transitivity",
    "triangles",
]
