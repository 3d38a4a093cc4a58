# SPDX-License-Identifier: Apache-2.0
"""Graph classification by motif grids: MA-GCNN and M-GCNN (Peng et al., AAAI 2020), with the protocol always named.

``innerloop ma-gcnn fit`` trains on all folds of a set; ``compare`` trains several variants on the same folds.
"""

from innerloop.recipes.ma_gcnn.config import PROTOCOLS, PUBLISHED, VARIANTS, Config, make_config
from innerloop.recipes.ma_gcnn.experiment import fit_on
from innerloop.recipes.ma_gcnn.run import compare, evaluate, fit
from innerloop.recipes.ma_gcnn.splits import read_folds, split_holdout, stratified_folds
from innerloop.recipes.ma_gcnn.tasks import Problem, make_problem, read_dataset

__all__ = [
    "PROTOCOLS",
    "PUBLISHED",
    "VARIANTS",
    "Config",
    "Problem",
    "compare",
    "evaluate",
    "fit",
    "fit_on",
    "make_config",
    "make_problem",
    "read_dataset",
    "read_folds",
    "split_holdout",
    "stratified_folds",
]
