# SPDX-License-Identifier: Apache-2.0
"""Every op in a few plain lines of torch: the definition, and the fallback without a kernel."""

from innerloop.reference.bellman_ford import bellman_ford
from innerloop.reference.nbfnet_layer import nbfnet_layer
from innerloop.reference.relational_spmm import relational_spmm

__all__ = ["bellman_ford", "nbfnet_layer", "relational_spmm"]
