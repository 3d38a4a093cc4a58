# SPDX-License-Identifier: Apache-2.0
"""A toy data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# The fixtures import the package: a conftest is loaded before --isa is set, and must not need Lightning.
if TYPE_CHECKING:
    from innerloop.data.tu import GraphDataset


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    from recipes.ma_gcnn.ma_gcnn_cases import write_toy

    return write_toy(tmp_path_factory.mktemp("data") / "TOY.txt")


@pytest.fixture(scope="module")
def dataset(toy) -> GraphDataset:
    from innerloop.data.tu import read_tu

    return read_tu(toy)
