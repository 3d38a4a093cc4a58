# SPDX-License-Identifier: Apache-2.0
"""Batches of Poolingformer: items of like length in training, every item once in evaluation."""

import statistics

import pytest
import torch

pytest.importorskip("pytorch_lightning")

from innerloop.recipes._batches import EvaluationBatches, TrainingBatches
from tolerances import same


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_batches_hold_items_of_like_length(world_size):
    lengths = torch.randint(1, 1000, (1050,))
    items = torch.arange(1050)
    ranks = [
        list(TrainingBatches(items, 4, 7, lambda: 3, rank, world_size, lengths=lengths)) for rank in range(world_size)
    ]
    steps = -(-263 // world_size)
    assert [len(batches) for batches in ranks] == [steps] * world_size
    batches = sorted((b for batches in ranks for b in batches), key=lambda b: b["index"])
    assert [b["index"] for b in batches] == list(range(steps * world_size))
    assert torch.cat([b["items"] for b in batches[:263]]).sort().values.tolist() == list(range(1050))
    for extra, first in zip(batches[263:], batches, strict=False):
        assert torch.equal(extra["items"], first["items"])
    spread = []
    for b in batches:
        inside = lengths[b["items"]]
        assert torch.equal(inside, inside.sort().values)
        spread.append(int(inside[-1] - inside[0]))
    assert statistics.mean(spread) < 30  # of 1000, in pools of 200; without sorting it would be 600


def test_training_batches_of_like_length_resume_and_reshuffle():
    lengths, items = torch.randint(1, 1000, (50,)), torch.arange(50)
    epoch = 0

    def make(lengths=lengths, **options) -> TrainingBatches:
        return TrainingBatches(items, 4, 7, lambda: epoch, lengths=lengths, **options)

    loader = make()
    whole = list(loader)
    first = [int(lengths[b["items"][0]]) for b in whole]
    assert first != sorted(first)  # short and long ones come mixed
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert same(list(resumed), whole[5:])
    assert same(list(resumed), whole)  # only the first pass is a partial one
    epoch = 1
    other = [b["items"].tolist() for b in make()]
    assert sorted(i for batch in other for i in batch) == list(range(50))
    assert other != [b["items"].tolist() for b in whole]


@pytest.mark.parametrize("world_size", [1, 2])
def test_limited_training_batches_draw_from_all_items(world_size):
    lengths, items = torch.randint(1, 1000, (50,)), torch.arange(50)
    seen = set()
    for epoch in range(10):
        ranks = [
            list(TrainingBatches(items, 4, 7, lambda e=epoch: e, rank, world_size, 3, lengths))
            for rank in range(world_size)
        ]
        assert [len(batches) for batches in ranks] == [3] * world_size
        drawn = torch.cat([b["items"] for batches in ranks for b in batches]).tolist()
        assert len(set(drawn)) == 12 * world_size
        seen |= set(drawn)
    assert len(seen) > 40


@pytest.mark.parametrize("world_size", [1, 2, 3, 50])
@pytest.mark.parametrize("size", [1, 16, 17])
def test_evaluation_batches_hold_every_item_once(world_size, size):
    loaders = [EvaluationBatches(size, 4, rank, world_size) for rank in range(world_size)]
    ranks = [list(loader) for loader in loaders]
    assert {len(batches) for batches in ranks} == {len(loaders[0])}
    assert len(loaders[0]) == -(-size // (4 * world_size))
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(size))
    assert max(len(batch) for batches in ranks for batch in batches) <= 4
