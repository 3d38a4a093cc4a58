# SPDX-License-Identifier: Apache-2.0
"""Data and trained models of the three tasks."""

from dataclasses import replace
from pathlib import Path

import pytest

# The fixtures import the package: a conftest is loaded before --isa is set, and must not need Lightning.


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path | None]:
    """A file for each task."""
    from recipes.poolingformer.poolingformer_cases import write_xquad

    folder = tmp_path_factory.mktemp("data")
    text = folder / "letters.txt"
    text.write_text("".join(f" = Title {i} = \n {chr(65 + i) * (60 + 9 * (i % 3))} \n" for i in range(20)))
    return {"listops": None, "qa": write_xquad(folder / "xquad.xx.json"), "mlm": text}


@pytest.fixture(scope="module")
def train(data):
    """Trains on a task, with other settings if wanted."""
    from innerloop.recipes.poolingformer import make_problem, train_on
    from recipes.poolingformer.poolingformer_cases import CONFIGS, QUIET

    def train(task: str, output: Path, changes: dict | None = None, **options):
        config = replace(CONFIGS[task], **changes or {})
        return train_on(make_problem(config, data[task]), config, output, data=data[task], **QUIET, **options)

    return train


@pytest.fixture(scope="module")
def runs(train, tmp_path_factory):
    """Finished runs: task -> (output folder, result)."""
    from recipes.poolingformer.poolingformer_cases import TASKS

    folder = tmp_path_factory.mktemp("runs")
    return {task: (folder / task, train(task, folder / task)) for task in TASKS}


@pytest.fixture
def study(monkeypatch):
    """The preset of compare made small: 40 sequences, two epochs."""
    from innerloop.recipes.poolingformer import PRESETS
    from recipes.poolingformer.poolingformer_cases import CONFIGS, SMALL

    settings = {name: getattr(CONFIGS["listops"], name) for name in ("length", "min_length", "train", "valid", "test")}
    monkeypatch.setitem(PRESETS, ("listops", "study"), settings | SMALL)
