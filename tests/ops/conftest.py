# SPDX-License-Identifier: Apache-2.0
"""Real graphs."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(shared_data) -> Path:
    if not (shared_data / "graphs").is_dir():
        pytest.skip(f"{shared_data / 'graphs'} is absent")
    return shared_data / "graphs"
