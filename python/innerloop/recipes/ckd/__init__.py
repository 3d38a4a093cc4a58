# SPDX-License-Identifier: Apache-2.0
"""Distillation of image classifiers: CKD (Zhu et al., arXiv 2404.14109) beside KD, DKD, RKD, SP, PKT and CRD.

``innerloop ckd fit`` trains a teacher, unless it has one, and then a student; ``compare`` trains students by several
methods with several seeds, all from one teacher.
"""

from innerloop.recipes._statistics import paired
from innerloop.recipes.ckd.config import METHODS, PRESETS, PUBLISHED, Config, make_config
from innerloop.recipes.ckd.run import compare, evaluate, fit, train_on
from innerloop.recipes.ckd.tasks import Problem, read_images

__all__ = [
    "METHODS",
    "PRESETS",
    "PUBLISHED",
    "Config",
    "Problem",
    "compare",
    "evaluate",
    "fit",
    "make_config",
    "paired",
    "read_images",
    "train_on",
]
