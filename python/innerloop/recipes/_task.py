# SPDX-License-Identifier: Apache-2.0
"""The LightningModule that recipes share, and the callback that makes a run resumable at any step."""

from __future__ import annotations

import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

__all__ = ["Interrupted", "Resumable", "Task"]


class Task(LightningModule):
    """Adam, rounds of validation, and a log of epochs that a resumed run goes on with.

    A subclass trains in ``training_step``, which ends in ``_record``, evaluates in steps that ``_measure`` sums up, and
    saves ``dataset`` and ``config`` among its hyper-parameters.

    Args:
        config: a dataclass with at least ``epochs``, ``lr`` and ``seed``.
    """

    recipe: str  # innerloop <recipe> <command>; stored in checkpoints but for "nbfnet" and "fit"
    command: str = "fit"
    monitor: str | None  # the metric that chooses the best epoch, higher is better; None takes the last epoch
    identity: tuple[str, ...]  # hyper-parameters that name the data; a resumed run must share them
    may_change: tuple[str, ...] = ("epochs", "eval_batch_size")  # settings that may be others in a resumed run

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.history: list[dict[str, float]] = []
        self.metrics: dict[str, float] = {}
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self._num_steps = 0
        self._seconds = 0.0
        self._started = time.perf_counter()

    @property
    def wall_seconds(self) -> float:
        """Time since the start of the run, all sessions of a resumed run together."""
        return time.perf_counter() - self._started

    def remarks(self) -> list[str]:
        """What a reader of the result has to know about its metrics."""
        return []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.config.lr)

    def _measure(self) -> dict[str, float]:
        """Metrics of the evaluation that just ended, alike in all processes."""
        raise NotImplementedError

    def _record(self, loss: Tensor, batch_size: int) -> Tensor:
        self._loss_sum += loss.detach().cpu()
        self._num_steps += 1
        self.log("loss", loss.detach(), prog_bar=True, batch_size=batch_size)
        return loss

    def on_train_epoch_start(self) -> None:
        self._loss_sum.zero_()
        self._num_steps, self._seconds = 0, 0.0
        self._plan_validation()

    def _plan_validation(self) -> None:
        # The last epoch is validated even if it ends a shorter round than the others.
        every = math.ceil(self.config.epochs / 10)
        last = self.current_epoch == self.config.epochs - 1
        self.trainer.check_val_every_n_epoch = 1 if last else every

    def on_train_start(self) -> None:
        self._clock = time.perf_counter()
        self._plan_validation()  # resumed inside an epoch, its start is not seen again

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now

    def on_train_epoch_end(self) -> None:
        loss = self.trainer.strategy.reduce(self._loss_sum.to(self.device), reduce_op="mean")
        row = {
            "epoch": self.current_epoch + 1,
            "loss": float(loss) / max(1, self._num_steps),
            "train_seconds": self._seconds,
        }
        row.update({f"valid_{name}": value for name, value in self.metrics.items()})
        self.metrics = {}
        self.history.append(row)
        if self.trainer.progress_bar_callback is None:
            text = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            rank_zero_only(print)(text, flush=True)

    def on_validation_epoch_end(self) -> None:
        self._report("valid")
        self._clock = time.perf_counter()  # validation is no part of the training time

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        self.metrics = self._measure()
        for name, value in self.metrics.items():
            exact = torch.tensor(value, dtype=torch.float64)
            self.log(f"{stage}_{name}", exact, prog_bar=name == self.monitor)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = {
            "history": self.history,
            "loss_sum": float(self._loss_sum),
            "num_steps": self._num_steps,
            "seconds": self._seconds,
            "wall_seconds": self.wall_seconds,
            "precision": self.trainer.precision,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["progress"]
        self.history = progress["history"]
        self._loss_sum.fill_(progress["loss_sum"])
        self._num_steps, self._seconds = progress["num_steps"], progress["seconds"]
        self._started = time.perf_counter() - progress["wall_seconds"]


class Interrupted(Exception):
    """Training stopped on a signal, after a resumable checkpoint was written to ``path``."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"interrupted; the run continues from {path}")
        self.path = path


class Resumable(Checkpoint):
    """Keeps ``last.ckpt``: after every epoch, every ``minutes``, and on SIGINT or SIGTERM.

    On a signal the running step is finished first (all processes agree on the step), so that the
    resumed run is equal to the bit to one that was never stopped. A second signal stops at once.

    Args:
        path: of the checkpoint; it is replaced in one move.
        minutes: longest time without a checkpoint.

    Attributes:
        written: whether this run has put a checkpoint there.
    """

    def __init__(self, path: Path, minutes: float = 10.0) -> None:
        self.path = path
        self.minutes = minutes
        self.written = False
        self._asked = False
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            return  # on_train_epoch_end is about to come
        late = time.monotonic() - self._saved_at > 60 * self.minutes
        if self._agree(trainer, self._asked or late):
            self._save(trainer, self._agree(trainer, self._asked))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, self._agree(trainer, self._asked))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _on_signal(self, number: int, frame: Any) -> None:
        self._asked = True
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    @staticmethod
    def _agree(trainer: Trainer, flag: bool) -> bool:
        """Whether any process has the flag."""
        if trainer.world_size == 1:
            return flag
        return trainer.strategy.reduce_boolean_decision(flag, all=False)

    def _save(self, trainer: Trainer, stop: bool) -> None:
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            partial.replace(self.path)
        trainer.strategy.barrier()  # the others may read it at once
        self.written = True
        self._saved_at = time.monotonic()
        if stop:
            raise Interrupted(self.path)
