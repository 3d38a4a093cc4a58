# SPDX-License-Identifier: Apache-2.0
"""NBFNet (Zhu et al., NeurIPS 2021): link prediction by learned Bellman-Ford iteration.

``innerloop nbfnet fit`` trains it; ``fit``, ``evaluate`` and ``explain`` do the same from Python.
"""

from innerloop.recipes.nbfnet.config import PRESETS, PUBLISHED, Config, make_config
from innerloop.recipes.nbfnet.explain import explain
from innerloop.recipes.nbfnet.heuristics import heuristics
from innerloop.recipes.nbfnet.run import evaluate, fit, train

__all__ = ["PRESETS", "PUBLISHED", "Config", "evaluate", "explain", "fit", "heuristics", "make_config", "train"]
