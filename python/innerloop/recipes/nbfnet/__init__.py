# SPDX-License-Identifier: Apache-2.0
"""NBFNet (Zhu et al., NeurIPS 2021): link prediction by learned Bellman-Ford iteration.

``innerloop nbfnet fit`` trains it on a knowledge graph, ``innerloop nbfnet links`` on an undirected graph; ``fit``,
``evaluate``, ``explain`` and ``links`` do the same from Python.
"""

from innerloop.recipes.nbfnet.config import PRESETS, PUBLISHED, Config, make_config, make_link_config
from innerloop.recipes.nbfnet.explain import explain
from innerloop.recipes.nbfnet.heuristics import heuristics
from innerloop.recipes.nbfnet.links import links, train_links
from innerloop.recipes.nbfnet.run import evaluate, fit, train

__all__ = [
    "PRESETS",
    "PUBLISHED",
    "Config",
    "evaluate",
    "explain",
    "fit",
    "heuristics",
    "links",
    "make_config",
    "make_link_config",
    "train",
    "train_links",
]
