# SPDX-License-Identifier: Apache-2.0
"""Random numbers and batches that a resumed run draws again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["EvaluationBatches", "TrainingBatches", "step_generator"]


def step_generator(seed: int, *stream: int) -> torch.Generator:
    """A CPU generator that is a pure function of (seed, *stream), e.g. (seed, epoch, step).

    No generator state has to be kept in a checkpoint, and a CPU and a GPU run draw alike.
    """
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


class TrainingBatches:
    """Items in the order of (seed, epoch); a process takes every world-th batch.

    An iterable that Lightning can stop and resume at any batch.

    Args:
        items: a tensor (F, ...): facts, or positions of examples.
        batch_size: items per batch; the last batch of an epoch may be smaller.
        seed: of the order.
        epoch: called at the start of an epoch for its number.
        rank, world_size: this process among all. When the batches do not divide among them, the
            first ones of the epoch are given out again, so that all take equally many steps.
        limit: steps of a process in an epoch at most; None for all.
        lengths: (F,) of the items. Batches then hold items of like length: within pools of 50 batches they are sorted,
            and the batches are shuffled again.
    """

    def __init__(
        self,
        items: Tensor,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        self.items = items
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.limit = limit
        self.lengths = lengths
        self._num_batches = -(-len(items) // batch_size)
        self._done = 0

    def __len__(self) -> int:
        steps = -(-self._num_batches // self.world_size)
        return steps if self.limit is None else min(steps, self.limit)

    def __iter__(self) -> Iterator[dict[str, Tensor | int]]:
        epoch = self.epoch()
        generator = step_generator(self.seed, epoch, 0)
        order = torch.randperm(len(self.items), generator=generator)
        order = order[: len(self) * self.world_size * self.batch_size]
        if self.lengths is not None:
            pools = order.split(50 * self.batch_size)
            order = torch.cat([pool[self.lengths[pool].argsort(stable=True)] for pool in pools])
        batches = self.items[order].split(self.batch_size)
        if self.lengths is not None:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator)]
        start = 0 if self._done >= len(self) else self._done
        for step in range(start, len(self)):
            self._done = step + 1
            index = step * self.world_size + self.rank
            yield {"items": batches[index % self._num_batches], "epoch": epoch, "index": index}
        self._done = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self._done, "world_size": self.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["world_size"] != self.world_size:
            raise ValueError(
                f"the checkpoint was written by {state['world_size']} processes, "
                f"this run has {self.world_size}: their batches differ"
            )
        self._done = state["done"]


class EvaluationBatches:
    """Positions of examples in order, as lists; a process takes every world-th, none is given twice.

    All processes see equally many batches, at the end empty ones if need be.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.size, self.batch_size = size, batch_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-self.size // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        mine = list(range(self.rank, self.size, self.world_size))
        for step in range(len(self)):
            yield mine[step * self.batch_size : (step + 1) * self.batch_size]
