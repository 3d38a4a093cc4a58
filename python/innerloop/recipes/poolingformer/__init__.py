# SPDX-License-Identifier: Apache-2.0
"""Poolingformer (Zhang et al., ICML 2021): long documents with windowed and pooled attention.

``innerloop poolingformer fit`` trains on ListOps, XQuAD joined to long documents, or masked bytes; ``compare`` trains
variants with several seeds. ``metrics`` holds those of Natural Questions, TyDi QA and summarisation.
"""

from innerloop.recipes.poolingformer.config import PRESETS, PUBLISHED, Config, make_config
from innerloop.recipes.poolingformer.run import VARIANTS, compare, evaluate, fit, train_on
from innerloop.recipes.poolingformer.tasks import make_problem

__all__ = [
    "PRESETS",
    "PUBLISHED",
    "VARIANTS",
    "Config",
    "compare",
    "evaluate",
    "fit",
    "make_config",
    "make_problem",
    "train_on",
]
