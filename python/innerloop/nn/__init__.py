# SPDX-License-Identifier: Apache-2.0
"""torch.nn modules on the ops."""

from .astarnet import AStarNet, AStarSearch, AStarSelection
from .nbfnet import ExplainedPath, GeneralizedRelationalConv, NBFNet, pna_scalers
from .ultra import Ultra, relation_graph

__all__ = [
    "AStarNet",
    "AStarSearch",
    "AStarSelection",
    "ExplainedPath",
    "GeneralizedRelationalConv",
    "NBFNet",
    "Ultra",
    "pna_scalers",
    "relation_graph",
]
