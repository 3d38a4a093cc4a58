# SPDX-License-Identifier: Apache-2.0
"""Batches of training facts and of evaluation queries, for Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from innerloop.data.kg import KnowledgeGraph
from innerloop.recipes.nbfnet.config import Config
from innerloop.recipes.nbfnet.tasks import queries_of, step_generator


class TrainingBatches:
    """The facts in the order of (seed, epoch); a process takes every world-th batch.

    An iterable that Lightning can stop and resume at any batch.

    Args:
        triples: int64 (F, 3).
        batch_size: triples per batch; the last batch of an epoch may be smaller.
        seed: of the order.
        epoch: called at the start of an epoch for its number.
        rank, world_size: this process among all. When the batches do not divide among them, the
            first ones of the epoch are given out again, so that all take equally many steps.
    """

    def __init__(
        self,
        triples: Tensor,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.triples = triples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self._num_batches = -(-len(triples) // batch_size)
        self._done = 0

    def __len__(self) -> int:
        return -(-self._num_batches // self.world_size)

    def __iter__(self) -> Iterator[dict[str, Tensor | int]]:
        epoch = self.epoch()
        generator = step_generator(self.seed, epoch, 0)
        batches = self.triples[torch.randperm(len(self.triples), generator=generator)].split(self.batch_size)
        start = 0 if self._done >= len(self) else self._done
        for step in range(start, len(self)):
            self._done = step + 1
            index = step * self.world_size + self.rank
            yield {"triples": batches[index % self._num_batches], "epoch": epoch, "index": index}
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


class QueryBatches:
    """Both queries of each target; a process takes every world-th one, none is given twice.

    All processes see equally many batches, at the end empty ones if need be.
    """

    def __init__(
        self,
        triples: Tensor,
        num_relations: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.queries = torch.stack(queries_of(triples, num_relations), dim=1).view(-1, 3)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        longest = -(-len(self.queries) // self.world_size)
        return -(-longest // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        mine = torch.arange(len(self.queries))[self.rank :: self.world_size]
        for step in range(len(self)):
            position = mine[step * self.batch_size : (step + 1) * self.batch_size]
            yield {"query": self.queries[position], "position": position}


class NBFNetData(LightningDataModule):
    """The three splits of a knowledge graph as loaders.

    Args:
        kg: the graph.
        config: its ``batch_size``, ``eval_batch_size`` and ``seed`` are used.
    """

    def __init__(self, kg: KnowledgeGraph, config: Config) -> None:
        super().__init__()
        self.kg = kg
        self.config = config

    def train_dataloader(self) -> TrainingBatches:
        trainer, config = self.trainer, self.config
        return TrainingBatches(
            self.kg.train.targets,
            config.batch_size,
            config.seed,
            lambda: trainer.current_epoch,
            trainer.global_rank,
            trainer.world_size,
        )

    def val_dataloader(self) -> QueryBatches:
        return self._queries(self.kg.valid.targets)

    def test_dataloader(self) -> QueryBatches:
        return self._queries(self.kg.test.targets)

    def _queries(self, targets: Tensor) -> QueryBatches:
        return QueryBatches(
            targets,
            self.kg.num_relations,
            self.config.eval_batch_size,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
