# SPDX-License-Identifier: Apache-2.0
"""Distillation as a LightningModule, its batches, and the teacher."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F

from innerloop.nn.distillation import DKDLoss, cosine_kd, kd, widen
from innerloop.nn.distillation_features import CRDLoss, pkt, rkd, sp
from innerloop.ops.infonce import ckd
from innerloop.recipes._batches import EvaluationBatches, TrainingBatches, step_generator
from innerloop.recipes._task import Task
from innerloop.recipes.ckd.config import ON_FEATURES, Config
from innerloop.recipes.ckd.tasks import Problem, feature_width

_MOST_NEGATIVES = 16384  # of CRD, as published
_CACHED_AT_ONCE = 256  # fixed: what is cached has the same bits whatever the evaluation batch


class Diverged(ValueError):
    """The trained network has no finite logits."""


class Teacher:
    """A trained network that only answers: in evaluation mode, without gradients.

    Args:
        accuracy: on the test split.
    """

    def __init__(self, network: nn.Module, accuracy: float) -> None:
        self.network = network.eval().requires_grad_(False)
        self.accuracy = accuracy
        self.digest = _digest(network)
        self._cached: tuple[Problem, Tensor] | None = None

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Logits (B, C), feature maps and pooled features."""
        with torch.no_grad():
            return self.network(images, features=True)

    def logits(self, images: Tensor) -> Tensor:
        """(B, C)."""
        with torch.no_grad():
            return self.network(images)

    def training_logits(self, problem: Problem, like: Tensor) -> Tensor:
        """(n, C) of all training images of ``problem``, with the dtype and on the device of ``like``; computed once."""
        if self._cached is None or self._cached[0] is not problem:
            items = torch.arange(problem.size("train"))
            batches = (problem.batch("train", some)[0] for some in items.split(_CACHED_AT_ONCE))
            self._cached = problem, torch.cat([self.logits(images.to(like)) for images in batches])
        return self._cached[1].to(like)


def _digest(network: nn.Module) -> str:
    """16 hexadecimal digits of the parameters and buffers."""
    state = hashlib.sha256()
    for name, value in network.state_dict().items():
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()[:16]


class CKDTask(Task):
    """Trains a student on a ``Problem`` by SGD; the last epoch is reported.

    The student starts from the same weights and sees the same batches whatever the method: runs of one seed are pairs.

    Args:
        problem: data. config: settings.
        teacher: for every method but plain.
        data: path of the data, for evaluation from a checkpoint; None for digits.
    """

    recipe = "ckd"
    monitor = None
    identity = ("dataset",)
    may_change = ("eval_batch_size",)  # the schedule depends on the epochs

    def __init__(
        self, problem: Problem, config: Config, teacher: Teacher | None = None, data: str | None = None
    ) -> None:
        super().__init__(config)
        if teacher is None and config.method != "plain":
            raise ValueError(f"CKDTask: teacher is None, expected one for the method {config.method}")
        self.problem, self.teacher = problem, teacher
        self.save_hyperparameters(
            {"recipe": self.recipe, "config": asdict(config), "dataset": problem.name, "data": data}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = problem.network(config.student_model)
            if config.method == "crd":
                n = problem.size("train")
                self.crd = CRDLoss(
                    feature_width(self.model),
                    feature_width(teacher.network),
                    n,
                    num_negatives=min(_MOST_NEGATIVES, n),
                    temperature=config.temperature,
                )
        if config.method == "dkd":
            self.dkd = DKDLoss(beta=config.beta, temperature=config.temperature, warmup_epochs=config.warmup_epochs)

    def remarks(self) -> list[str]:
        count = sum(p.numel() for p in self.model.parameters())
        count = sum(p.numel() for p in self.model.parameters())
        remarks = [f"{self.config.method}, {self.config.student_model}, {count:,} parameters"]
        if self.teacher is not None:
            remarks.append(f"teacher {self.config.teacher_model}, test accuracy {self.teacher.accuracy:.4g}")
        return remarks

    def configure_optimizers(self) -> dict[str, Any]:
        config = self.config
        # Not trainer.estimated_stepping_batches: it makes the loader before a checkpoint's position is read into it.
        per_epoch = len(self.trainer.datamodule.train_dataloader())
        steps = config.epochs * per_epoch

        def factor(step: int) -> float:
            if config.schedule == "cosine":
                return (1 + math.cos(math.pi * step / steps)) / 2
            done = step // per_epoch / config.epochs
            if config.schedule == "cosine-epoch":
                return (1 + math.cos(math.pi * done)) / 2
            return 0.1 ** sum(done >= eighths / 8 for eighths in (5, 6, 7))

        optimizer = torch.optim.SGD(
            self.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        config = self.config
        if config.method == "crd" and self.trainer.world_size > 1:
            raise ValueError("method is 'crd', expected another in several processes: each would have its own banks")
        if self.teacher is not None:
            like = next(self.model.parameters())
            self.teacher.network.to(like)
            self._teacher_logits = None
            if config.cache_teacher_logits and config.method not in ON_FEATURES:
                self._teacher_logits = self.teacher.training_logits(self.problem, like)
        super().on_train_start()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # Crops and negatives are a function of (seed, epoch, step): a resumed run draws them again.
        generator = step_generator(self.config.seed, batch["epoch"], 1 + batch["index"])
        images, labels = self._images("train", batch["items"], generator)
        if self.config.method in ON_FEATURES:
            logits, maps, pooled = self.model(images, features=True)
            distilled = self._loss_on_features(maps, pooled, images, batch["items"], generator)
        else:
            logits = self.model(images)
            distilled = self._loss_on_logits(logits, images, labels, batch)
        loss = self.config.ce_weight * F.cross_entropy(logits, labels) + self.config.kd_weight * distilled
        return self._record(loss, len(labels))

    def _loss_on_logits(self, logits: Tensor, images: Tensor, labels: Tensor, batch: dict[str, Any]) -> Tensor | float:
        method, temperature = self.config.method, self.config.temperature
        if method == "plain":
            return 0.0
        if self._teacher_logits is None:
            teacher = self.teacher.logits(images)
        else:
            teacher = self._teacher_logits[batch["items"].to(self.device)]
        student = widen(logits)
        teacher = teacher.to(student.dtype)
        if method == "kd":
            return kd(student, teacher, temperature=temperature)
        if method == "dkd":
            return self.dkd(student, teacher, labels, epoch=batch["epoch"] + 1)
        if method == "cosine":
            return cosine_kd(student, teacher)
        return ckd(
            student,
            teacher,
            temperature=temperature,
            labels=labels if method == "ckd-masked" else None,
            symmetric=method == "ckd-symmetric",
        )

    def _loss_on_features(
        self, maps: list[Tensor], pooled: Tensor, images: Tensor, items: Tensor, generator: torch.Generator
    ) -> Tensor:
        _, teacher_maps, teacher_pooled = self.teacher.features(images)
        method = self.config.method
        if method == "sp":
            return sp(maps[-1], teacher_maps[-1])
        if method == "crd":
            contrast = self.crd.sample(items, generator)
            return self.crd(pooled, teacher_pooled, items.to(self.device), contrast.to(self.device))
        return {"rkd": rkd, "pkt": pkt}[method](pooled, teacher_pooled)

    def on_validation_epoch_start(self) -> None:
        self._totals = torch.zeros(3, dtype=torch.float64)  # images, right ones, cross entropy

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: list[int], batch_idx: int) -> None:
        self._add("valid", batch)

    def test_step(self, batch: list[int], batch_idx: int) -> None:
        self._add("test", batch)

    def _add(self, split: str, items: list[int]) -> None:
        if not items:
            return
        images, labels = self._images(split, torch.tensor(items))
        logits = self.model(images).float()
        right = (logits.argmax(1) == labels).sum()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        self._totals += torch.tensor([len(labels), float(right), float(loss)], dtype=torch.float64)

    def _measure(self) -> dict[str, float]:
        totals = self._totals.to(self.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(totals)
        count, right, loss = totals.tolist()
        if not math.isfinite(loss):
            config = self.config
            raise Diverged(
                f"{config.method}, {config.student_model}, seed {config.seed}: the cross entropy of the evaluation is "
                f"{loss}, training has diverged"
            )
        return {"accuracy": right / count, "loss": loss / count}

    def _images(self, split: str, items: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        images, labels = self.problem.batch(split, items.cpu(), generator)
        return images.to(next(self.model.parameters())), labels.to(self.device)


class CKDData(LightningDataModule):
    """The splits of a ``Problem`` as loaders of positions; the images are made where they are used."""

    def __init__(self, problem: Problem, config: Config) -> None:
        super().__init__()
        self.problem, self.config = problem, config

    def train_dataloader(self) -> TrainingBatches:
        trainer, config = self.trainer, self.config
        size, limit = self.problem.size("train"), config.limit
        if config.drop_last:
            whole = max(1, size // (config.batch_size * trainer.world_size))
            limit = whole if limit is None else min(limit, whole)
        return TrainingBatches(
            torch.arange(size),
            config.batch_size,
            config.seed,
            lambda: trainer.current_epoch,
            trainer.global_rank,
            trainer.world_size,
            limit,
        )

    def val_dataloader(self) -> EvaluationBatches:
        return self._evaluation("valid")

    def test_dataloader(self) -> EvaluationBatches:
        return self._evaluation("test")

    def _evaluation(self, split: str) -> EvaluationBatches:
        trainer, size = self.trainer, self.problem.size(split)
        return EvaluationBatches(size, self.config.eval_batch_size, trainer.global_rank, trainer.world_size)
