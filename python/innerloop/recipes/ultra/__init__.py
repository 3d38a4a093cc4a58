# SPDX-License-Identifier: Apache-2.0
"""ULTRA (Galkin et al., ICLR 2024): one checkpoint for any knowledge graph.

``innerloop ultra predict`` answers a query on a folder of triples that the checkpoint has never seen; ``evaluate``
ranks its test split, ``fit`` fine-tunes it.
"""

from innerloop.recipes.ultra.run import evaluate, fit, predict

__all__ = ["evaluate", "fit", "predict"]
