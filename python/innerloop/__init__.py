# SPDX-License-Identifier: Apache-2.0
"""Compiled inner loops of published methods as drop-in PyTorch ops.

Names are loaded on first use, so importing the package costs milliseconds and never needs a GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import compat, data, distributed, nn, ops, reference
    from .graph import RelGraph
    from .ops._functions import Aggregate, Message
    from .ops._infonce_distributed import infonce_distributed
    from .ops._motif_adjacency import motif_adjacency, triangle_list
    from .ops._motif_distributed import (
        edge_orbits_distributed,
        match_distributed,
        node_orbits_distributed,
        triangles_distributed,
    )
    from .ops.band_attention import band_attention
    from .ops.bellman_ford import Semiring, bellman_ford
    from .ops.closeness import closeness
    from .ops.infonce import ckd, infonce, ntxent, siglip, supcon
    from .ops.match import automorphisms, k_cliques, match, match_batches
    from .ops.motif_grid import gather_grid, motif_grid
    from .ops.nbfnet_layer import nbfnet_layer
    from .ops.node_orbits import edge_orbits, graphlets, node_orbits
    from .ops.pool_kv import pool_kv, pooled_valid, pooling_attention
    from .ops.relational_spmm import relational_spmm
    from .ops.subgraph_attention import subgraph_attention
    from .ops.triangles import clustering, transitivity, triangles
    from .simple_graph import Graph
    from .system import cpu_isa, cpu_isas, has_cuda_kernels

# name -> module that defines it; a module name alone maps to itself.
_EXPORTS = {
    "Aggregate": ".ops._functions",
    "Graph": ".simple_graph",
    "Message": ".ops._functions",
    "RelGraph": ".graph",
    "Semiring": ".ops.bellman_ford",
    "automorphisms": ".ops.match",
    "band_attention": ".ops.band_attention",
    "bellman_ford": ".ops.bellman_ford",
    "ckd": ".ops.infonce",
    "closeness": ".ops.closeness",
    "clustering": ".ops.triangles",
    "edge_orbits": ".ops.node_orbits",
    "edge_orbits_distributed": ".ops._motif_distributed",
    "gather_grid": ".ops.motif_grid",
    "graphlets": ".ops.node_orbits",
    "infonce": ".ops.infonce",
    "infonce_distributed": ".ops._infonce_distributed",
    "k_cliques": ".ops.match",
    "match": ".ops.match",
    "match_batches": ".ops.match",
    "match_distributed": ".ops._motif_distributed",
    "motif_adjacency": ".ops._motif_adjacency",
    "motif_grid": ".ops.motif_grid",
    "nbfnet_layer": ".ops.nbfnet_layer",
    "node_orbits": ".ops.node_orbits",
    "node_orbits_distributed": ".ops._motif_distributed",
    "ntxent": ".ops.infonce",
    "pool_kv": ".ops.pool_kv",
    "pooled_valid": ".ops.pool_kv",
    "pooling_attention": ".ops.pool_kv",
    "relational_spmm": ".ops.relational_spmm",
    "siglip": ".ops.infonce",
    "subgraph_attention": ".ops.subgraph_attention",
    "supcon": ".ops.infonce",
    "transitivity": ".ops.triangles",
    "triangle_list": ".ops._motif_adjacency",
    "triangles": ".ops.triangles",
    "triangles_distributed": ".ops._motif_distributed",
    "cpu_isa": ".system",
    "cpu_isas": ".system",
    "has_cuda_kernels": ".system",
}
_MODULES = ("compat", "data", "distributed", "nn", "ops", "recipes", "reference")

__all__ = [
    "Aggregate",
    "Graph",
    "Message",
    "RelGraph",
    "Semiring",
    "__version__",
    "automorphisms",
    "band_attention",
    "bellman_ford",
    "ckd",
    "closeness",
    "clustering",
    "compat",
    "cpu_isa",
    "cpu_isas",
    "data",
    "distributed",
    "edge_orbits",
    "edge_orbits_distributed",
    "gather_grid",
    "graphlets",
    "has_cuda_kernels",
    "infonce",
    "infonce_distributed",
    "k_cliques",
    "match",
    "match_batches",
    "match_distributed",
    "motif_adjacency",
    "motif_grid",
    "nbfnet_layer",
    "nn",
    "node_orbits",
    "node_orbits_distributed",
    "ntxent",
    "ops",
    "pool_kv",
    "pooled_valid",
    "pooling_attention",
    "reference",
    "relational_spmm",
    "siglip",
    "subgraph_attention",
    "supcon",
    "transitivity",
    "triangle_list",
    "triangles",
    "triangles_distributed",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name], __name__), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
