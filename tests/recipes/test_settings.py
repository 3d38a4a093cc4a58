# SPDX-License-Identifier: Apache-2.0
"""Settings out of range, and of another kind than they are, are refused by name in every recipe."""

import math
import re

import pytest
from innerloop.recipes._settings import UsageError
from innerloop.recipes.ckd import config as ckd
from innerloop.recipes.ma_gcnn import config as ma_gcnn
from innerloop.recipes.nbfnet import config as nbfnet
from innerloop.recipes.poolingformer import config as poolingformer

RECIPES = pytest.mark.parametrize("recipe", [ckd, ma_gcnn, nbfnet, poolingformer])


@RECIPES
def test_the_defaults_are_accepted(recipe):
    recipe.Config()


@RECIPES
@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_counts(recipe, name):
    for value in (1.5, "3", None, True, math.nan):
        with pytest.raises(TypeError, match=f"^{name} is {value!r}, expected an int$"):
            recipe.Config(**{name: value})
    for value in (0, -1):
        with pytest.raises(UsageError, match=f"^{name} is {value}, expected at least 1$"):
            recipe.Config(**{name: value})
    recipe.Config(**{name: 2**63 - 1})
    with pytest.raises(UsageError, match=rf"^{name} is {2**63}, expected below 2\*\*63$"):
        recipe.Config(**{name: 2**63})


@pytest.mark.parametrize(
    ("recipe", "name", "positive"),
    [
        (ckd, "kd_weight", False),
        (ckd, "temperature", True),
        (ma_gcnn, "penalty", False),
        (nbfnet, "adversarial_temperature", False),
        (nbfnet, "lr", True),
        (poolingformer, "weight_decay", False),
        (poolingformer, "clip", True),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_numbers(recipe, name, positive):
    recipe.Config(**{name: 1})
    if not positive:
        recipe.Config(**{name: 0.0})
    for value in (math.nan, math.inf, -1e-9, *([0.0] if positive else [])):
        with pytest.raises(UsageError, match=f"^{name} is {value}, expected a finite number"):
            recipe.Config(**{name: value})
    for value in ("0.1", None, True):
        with pytest.raises(TypeError, match=f"^{name} is {value!r}, expected a number$"):
            recipe.Config(**{name: value})


@pytest.mark.parametrize("recipe", [ckd, nbfnet, poolingformer])
def test_limit_may_be_left_out(recipe):
    recipe.Config(limit=None)
    recipe.Config(limit=1)
    with pytest.raises(ValueError, match=r"^limit is 0, expected at least 1$"):
        recipe.Config(limit=0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"holdout": "0.1"}, "holdout is '0.1', expected a number"),
        ({"lrs": 0.01}, "lrs is 0.01, expected a tuple"),
        ({"seeds": 3}, "seeds is 3, expected a tuple"),
        ({"lrs": (True,)}, "lrs is [True], expected at least one finite number"),
        ({"lrs": ("a",)}, "lrs is ['a'], expected at least one finite number"),
        ({"seeds": (2**63,)}, f"seeds is [{2**63}], expected at least one int"),
        ({"replacement": "no"}, "replacement is 'no', expected one of False, True"),
    ],
)
def test_other_kinds(settings, text):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(text)}"):
        ma_gcnn.Config(**settings)


def test_choices():
    with pytest.raises(UsageError, match=r"^variant is 'gin', expected one of m-gcnn, ma-gcnn"):
        ma_gcnn.Config(variant="gin")
    with pytest.raises(ValueError, match=r"^orbit_size is 6, expected one of 3, 4, 5$"):
        ma_gcnn.Config(orbit_size=6)
    with pytest.raises(ValueError, match=r"^task is 'chess', expected one of listops, qa, mlm$"):
        poolingformer.Config(task="chess")
