# SPDX-License-Identifier: Apache-2.0
"""Public ops. Each lives in the module of its name, beside its registration, fake, autograd and vmap rules."""

from .bellman_ford import Semiring, bellman_ford
from .nbfnet_layer import nbfnet_layer
from .relational_spmm import relational_spmm

__all__ = ["Semiring", "bellman_ford", "nbfnet_layer", "relational_spmm"]
