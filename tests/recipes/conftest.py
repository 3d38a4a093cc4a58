# SPDX-License-Identifier: Apache-2.0
"""A small inductive data set, learnable in seconds."""

import random
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Graphs this small gain nothing from a second thread, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an inductive pair: r0 is a ring, r1 = r0 ∘ r0, r2 is noise."""
    root = tmp_path_factory.mktemp("kg")
    rng = random.Random(0)

    def graph(size: int, prefix: str) -> list[str]:
        edges = [(i, "r0", (i + 1) % size) for i in range(size)]
        edges += [(i, "r1", (i + 2) % size) for i in range(size)]
        edges += [(i, "r2", rng.randrange(size)) for i in range(size)]
        rng.shuffle(edges)
        return [f"{prefix}{h}\t{r}\t{prefix}{t}\n" for h, r, t in edges]

    for folder, size, split in (("tiny", 30, "valid"), ("tiny_ind", 20, "test")):
        lines = graph(size, folder)
        held_out = [line for line in lines if "r1" in line][:7]
        (root / folder).mkdir()
        (root / folder / f"{split}.txt").write_text("".join(held_out))
        facts = [line for line in lines if line not in held_out]
        (root / folder / "train.txt").write_text("".join(facts))
    return root / "tiny"
