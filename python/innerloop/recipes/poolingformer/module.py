# SPDX-License-Identifier: Apache-2.0
"""Poolingformer as a LightningModule, and its batches."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from innerloop.recipes._batches import EvaluationBatches, TrainingBatches, step_generator
from innerloop.recipes._task import Task
from innerloop.recipes.poolingformer.config import Config
from innerloop.recipes.poolingformer.tasks import Problem


class PoolingformerTask(Task):
    """Trains a model on a ``Problem`` by AdamW, with linear warm-up and decay; the last epoch is reported.

    Args:
        problem: data, loss and metrics. config: settings.
        data: path of the data, for evaluation from a checkpoint; None where it is generated.
    """

    recipe = "poolingformer"
    monitor = None
    identity = ("dataset", "data_digest")
    may_change = ("eval_batch_size", "checkpoint", "eval_examples")  # the schedule depends on the epochs

    def __init__(self, problem: Problem, config: Config, data: str | None = None) -> None:
        super().__init__(config)
        self.problem = problem
        self.save_hyperparameters(
            {
                "recipe": self.recipe,
                "config": asdict(config),
                "dataset": problem.name,
                "data_digest": problem.digest(),
                "data": data,
            }
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = problem.model(config)

    def configure_optimizers(self) -> dict[str, Any]:
        config = self.config
        # Biases, LayerNorms and the weights of LDConv, which begin at 0, are not decayed.
        decayed = {
            name
            for name, p in self.model.named_parameters()
            if p.dim() > 1 and not any(part in name for part in ("weight_", "bias"))
        }
        groups = [
            {
                "params": [p for name, p in self.model.named_parameters() if (name in decayed) == decay],
                "weight_decay": config.weight_decay if decay else 0.0,
            }
            for decay in (True, False)
        ]
        # Not trainer.estimated_stepping_batches, which sets the loader up before a checkpoint's state reaches it.
        steps = config.epochs * len(self.trainer.datamodule.train_dataloader())
        warmup = max(1, int(config.warmup * steps))

        def factor(step: int) -> float:
            return min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))

        optimizer = torch.optim.AdamW(groups, lr=config.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # Dropout and masks are a function of (seed, epoch, step): a resumed run draws them again.
        generator = step_generator(self.config.seed, batch["epoch"], 1 + batch["index"])
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        examples = self._examples("train", batch["items"].tolist(), generator)
        return self._record(self.problem.loss(self.model, examples), len(batch["items"]))

    def on_validation_epoch_start(self) -> None:
        self._totals = torch.zeros(len(self.problem.columns), dtype=torch.float64)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: list[int], batch_idx: int) -> None:
        self._add("valid", batch)

    def test_step(self, batch: list[int], batch_idx: int) -> None:
        self._add("test", batch)

    def _add(self, split: str, items: list[int]) -> None:
        if len(items):
            totals = self.problem.totals(self.model, self._examples(split, items))
            self._totals += torch.tensor(totals, dtype=torch.float64)

    def _measure(self) -> dict[str, float]:
        totals = self._totals.to(self.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(totals)
        if not bool(totals.isfinite().all()):
            raise ValueError(
                f"the sums of the evaluation are {dict(zip(self.problem.columns, totals.tolist(), strict=True))}: "
                "the metrics would mean nothing (has training diverged?)"
            )
        return self.problem.metrics(dict(zip(self.problem.columns, totals.tolist(), strict=True)))

    def _examples(self, split: str, items: list[int], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        return {name: t.to(self.device) for name, t in self.problem.batch(split, items, generator).items()}


class PoolingformerData(LightningDataModule):
    """The splits of a ``Problem`` as loaders of positions; the examples are made where they are used."""

    def __init__(self, problem: Problem, config: Config) -> None:
        super().__init__()
        self.problem, self.config = problem, config

    def train_dataloader(self) -> TrainingBatches:
        trainer, config = self.trainer, self.config
        return TrainingBatches(
            torch.arange(self.problem.size("train")),
            config.batch_size,
            config.seed,
            lambda: trainer.current_epoch,
            trainer.global_rank,
            trainer.world_size,
            config.limit,
            self.problem.lengths("train"),
        )

    def val_dataloader(self) -> EvaluationBatches:
        return self._evaluation("valid")

    def test_dataloader(self) -> EvaluationBatches:
        return self._evaluation("test")

    def _evaluation(self, split: str) -> EvaluationBatches:
        size = self.problem.size(split)
        if self.config.eval_examples:
            size = min(size, self.config.eval_examples)
        return EvaluationBatches(size, self.config.eval_batch_size, self.trainer.global_rank, self.trainer.world_size)
