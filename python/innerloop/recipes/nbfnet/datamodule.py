# SPDX-License-Identifier: Apache-2.0
"""Batches of training facts, of evaluation queries and of sources, for Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from innerloop.data.kg import KnowledgeGraph, Split
from innerloop.data.links import LinkGraph
from innerloop.recipes._batches import TrainingBatches
from innerloop.recipes.nbfnet.config import Config
from innerloop.recipes.nbfnet.tasks import queries_of


class QueryBatches:
    """Both queries of each target; a process takes every world-th one, none is given twice.

    All processes see equally many batches, at the end empty ones if need be. A batch holds ``query`` int64 (B, 3),
    ``position`` int64 (B,) and, where ``negatives`` (T, 2, N) are given, ``negative`` int64 (B, N).
    """

    def __init__(
        self,
        triples: Tensor,
        num_relations: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        negatives: Tensor | None = None,
    ) -> None:
        self.queries = torch.stack(queries_of(triples, num_relations), dim=1).view(-1, 3)
        self.negatives = None if negatives is None else negatives.flatten(0, 1)
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
            batch = {"query": self.queries[position], "position": position}
            if self.negatives is not None:
                batch["negative"] = self.negatives[position].long()
            yield batch


class NBFNetData(LightningDataModule):
    """The three splits of a knowledge graph as loaders.

    Args:
        kg: the graph; here with the ``valid_triples`` of the config.
        config: its ``batch_size``, ``eval_batch_size`` and ``seed`` are used.
    """

    def __init__(self, kg: KnowledgeGraph, config: Config) -> None:
        super().__init__()
        if 0 < config.valid_triples < len(kg.valid.targets):
            kg = replace(kg, valid=_sample(kg.valid, config.valid_triples))
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
            config.limit,
        )

    def val_dataloader(self) -> QueryBatches:
        return self._queries(self.kg.valid)

    def test_dataloader(self) -> QueryBatches:
        return self._queries(self.kg.test)

    def _queries(self, split: Split) -> QueryBatches:
        return QueryBatches(
            split.targets,
            self.kg.num_relations,
            self.config.eval_batch_size,
            self.trainer.global_rank,
            self.trainer.world_size,
            split.negatives,
        )


def _sample(split: Split, count: int) -> Split:
    """Some of the targets, drawn by seed 1024 whatever the seed of the run, as in the official code."""
    order = torch.randperm(len(split.targets), generator=torch.Generator().manual_seed(1024))
    chosen = order[:count].sort().values
    negatives = None if split.negatives is None else split.negatives[chosen]
    return replace(split, targets=split.targets[chosen], negatives=negatives)


class SourceBatches:
    """The distinct ends of some pairs, to run each once; a process takes every world-th batch.

    A batch holds the sources (S,) and the places where pairs need them: pair i is asked at node ``target``, in the
    ``column`` of its source. All processes see equally many batches, at the end empty ones if need be.

    Args:
        pairs: int64 (2, n); a pair (u, v) is asked from u at v, and from v at u.
        batch_size: sources per batch.
        rank, world_size: this process among all.
    """

    def __init__(self, pairs: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.pairs = pairs
        self.sources, self.column = torch.unique(pairs, return_inverse=True)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return -(-len(self.sources) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step in range(len(self)):
            start = (step * self.world_size + self.rank) * self.batch_size
            source = self.sources[start : start + self.batch_size]
            here = (self.column >= start) & (self.column < start + len(source))
            yield {
                "source": source,
                "pair": here.nonzero()[:, 1],
                "target": self.pairs.flip(0)[here],
                "column": self.column[here] - start,
            }


class LinkData(LightningDataModule):
    """The splits of an undirected graph as loaders.

    Args:
        links: the graph.
        config: its ``batch_size``, ``eval_batch_size`` (sources), ``seed`` and ``limit`` are used.
    """

    def __init__(self, links: LinkGraph, config: Config) -> None:
        super().__init__()
        self.links = links
        self.config = config

    def pairs(self, split: str) -> tuple[Tensor, Tensor]:
        """The edges of a split and as many pairs without one, int64 (2, 2n), and their labels, int64 (2n,).

        The same pairs in every epoch and process, and those of ``heuristics`` with this seed.
        """
        positive = getattr(self.links, split)
        n = positive.shape[1]
        negative = self.links.negatives(split, n, torch.Generator().manual_seed(self.config.seed))
        return torch.cat([positive, negative], dim=1), (torch.arange(2 * n) < n).long()

    def train_dataloader(self) -> TrainingBatches:
        trainer, config = self.trainer, self.config
        head, tail = self.links.train
        return TrainingBatches(
            torch.stack([head, torch.zeros_like(head), tail], dim=1),
            config.batch_size,
            config.seed,
            lambda: trainer.current_epoch,
            trainer.global_rank,
            trainer.world_size,
            config.limit,
        )

    def val_dataloader(self) -> SourceBatches:
        return self._sources("valid")

    def test_dataloader(self) -> SourceBatches:
        return self._sources("test")

    def _sources(self, split: str) -> SourceBatches:
        pairs, _ = self.pairs(split)
        return SourceBatches(pairs, self.config.eval_batch_size, self.trainer.global_rank, self.trainer.world_size)
