# SPDX-License-Identifier: Apache-2.0
"""Every op in a few plain lines of torch: the definition, and the fallback without a kernel."""

from innerloop.reference.band_attention import band_attention
from innerloop.reference.bellman_ford import bellman_ford
from innerloop.reference.infonce import ckd, infonce, ntxent, siglip, supcon
from innerloop.reference.nbfnet_layer import nbfnet_layer
from innerloop.reference.pool_kv import pool_kv
from innerloop.reference.relational_spmm import relational_spmm

__all__ = [
    "band_attention",
    "bellman_ford",
    "ckd",
    "infonce",
    "nbfnet_layer",
    "ntxent",
    "pool_kv",
    "relational_spmm",
    "siglip",
    "supcon",
]
