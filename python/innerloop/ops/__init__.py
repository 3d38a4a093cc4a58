# SPDX-License-Identifier: Apache-2.0
"""Public ops. Each lives in the module of its name, beside its registration, fake, autograd and vmap rules."""

from .band_attention import band_attention
from .bellman_ford import Semiring, bellman_ford
from .infonce import ckd, infonce, ntxent, siglip, supcon
from .nbfnet_layer import nbfnet_layer
from .pool_kv import pool_kv, pooled_valid, pooling_attention
from .relational_spmm import relational_spmm

__all__ = [
    "Semiring",
    "band_attention",
    "bellman_ford",
    "ckd",
    "infonce",
    "nbfnet_layer",
    "ntxent",
    "pool_kv",
    "pooled_valid",
    "pooling_attention",
    "relational_spmm",
    "siglip",
    "supcon",
]
