# SPDX-License-Identifier: Apache-2.0
"""Data, a teacher, trained students."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# The fixtures import the package: a conftest is loaded before --isa is set, and must not need Lightning.
if TYPE_CHECKING:
    from innerloop.recipes.ckd.module import Teacher
    from innerloop.recipes.ckd.tasks import Images


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from recipes.ckd.ckd_cases import write_fashion

    return write_fashion(tmp_path_factory.mktemp("data") / "fashion")


@pytest.fixture(scope="module")
def images(data) -> Images:
    from innerloop.recipes.ckd import read_images
    from recipes.ckd.ckd_cases import tiny

    return read_images(tiny(), data)


@pytest.fixture(scope="module")
def teacher(images, tmp_path_factory) -> Teacher:
    from innerloop.recipes.ckd.run import make_teacher
    from recipes.ckd.ckd_cases import QUIET, tiny

    return make_teacher(images, tiny(teacher_epochs=3), tmp_path_factory.mktemp("teacher"), **QUIET)


@pytest.fixture(scope="module")
def train(images, teacher, data):
    """Trains a student with a method and other settings if wanted."""
    from innerloop.recipes.ckd import Problem, train_on
    from recipes.ckd.ckd_cases import QUIET, tiny

    def train(output: Path, method: str = "ckd", changes: dict | None = None, **options):
        config = tiny(method, **changes or {})
        own = None if method == "plain" else teacher
        return train_on(Problem(images, config), config, output, own, data=data, **QUIET, **options)

    return train


@pytest.fixture(scope="module")
def runs(train, tmp_path_factory):
    """Finished runs: method -> (output folder, result)."""
    from innerloop.recipes.ckd import METHODS

    folder = tmp_path_factory.mktemp("runs")
    return {method: (folder / method, train(folder / method, method, {"epochs": 1})) for method in METHODS}


@pytest.fixture
def started(monkeypatch):
    """Names of the folders in which a training starts."""
    import innerloop.recipes.ckd.run as recipe

    names, run = [], recipe.run

    def spy(task, datamodule, output, **options):
        names.append(output.name)
        return run(task, datamodule, output, **options)

    monkeypatch.setattr(recipe, "run", spy)
    return names
