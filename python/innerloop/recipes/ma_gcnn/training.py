# SPDX-License-Identifier: Apache-2.0
"""One run: a network trained on one fold.

A run of a small set takes seconds, and a protocol has dozens. They go through this plain loop instead of a Trainer,
whose start and steps would cost as much as the training; the unit of resume is a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from innerloop.recipes._batches import step_generator
from innerloop.recipes.ma_gcnn.config import Config
from innerloop.recipes.ma_gcnn.splits import split_holdout
from innerloop.recipes.ma_gcnn.tasks import Problem

__all__ = ["Outcome", "Run", "accuracy", "train"]

_EVALUATED_AT_ONCE = 64


@dataclass(frozen=True)
class Run:
    """One training among those of a protocol."""

    fold: int
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"fold{self.fold}-lr{float(self.lr)!r}-seed{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        epochs: for each epoch its training loss, and accuracy and loss on the hold-out (honest), or the test accuracy
            (other protocols).
        chosen_epoch: from 1; by the hold-out, or the best test epoch, or (gin) the last one.
        holdout_accuracy, holdout_loss: at that epoch; None but for the honest protocol.
        test_accuracy: at that epoch; None under the honest protocol, which tests when learning rates are chosen.
        model: parameters of that epoch.
        seconds: that the training took.
    """

    epochs: list[dict[str, float]]
    chosen_epoch: int
    holdout_accuracy: float | None
    holdout_loss: float | None
    test_accuracy: float | None
    model: dict[str, Tensor]
    seconds: float

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better, by the hold-out: accuracy, then loss."""
        return _rank(self.holdout_accuracy, self.holdout_loss)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def train(
    problem: Problem,
    test: Tensor,
    config: Config,
    run: Run,
    device: str = "cpu",
    on_epoch: Callable[[], None] = lambda: None,
) -> Outcome:
    """Trains on all graphs but ``test``, int64, and but a hold-out under the honest protocol.

    All random numbers are a function of (fold, seed, epoch). The test graphs are not looked at under the honest
    protocol, and in every epoch under the others.
    """
    started = time.perf_counter()
    inside = torch.ones(len(problem.labels), dtype=torch.bool)
    inside[test] = False
    items, holdout = inside.nonzero().squeeze(1), None
    if config.protocol == "honest":
        seed = step_generator(run.seed, run.fold, 0).initial_seed()
        items, holdout = split_holdout(items, problem.labels, config.holdout, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_generator(run.seed, run.fold, 1).initial_seed())
        network = problem.network(config, items).to(device)
    optimizer = _optimizer(network, config, run.lr)
    problem = problem.to(device)
    epochs: list[dict[str, float]] = []
    best: tuple[tuple[float, float], int, dict[str, Tensor]] | None = None
    for epoch in range(config.epochs):
        network.train()
        row = {"loss": _one_epoch(problem, network, optimizer, items, config, run, epoch)}
        if holdout is not None:
            row["holdout_accuracy"], row["holdout_loss"] = accuracy(problem, network, holdout)
            rank = _rank(row["holdout_accuracy"], row["holdout_loss"])
        else:
            row["test_accuracy"], _ = accuracy(problem, network, test)
            rank = (row["test_accuracy"] if config.protocol == "best-test-epoch" else epoch, 0.0)
        epochs.append(row)
        if best is None or rank > best[0]:
            best = rank, epoch, {name: value.detach().clone() for name, value in network.state_dict().items()}
        on_epoch()
    _, chosen, parameters = best
    return Outcome(
        epochs,
        chosen + 1,
        epochs[chosen].get("holdout_accuracy"),
        epochs[chosen].get("holdout_loss"),
        epochs[chosen].get("test_accuracy"),
        {name: value.cpu() for name, value in parameters.items()},
        time.perf_counter() - started,
    )


def _rank(right: float, loss: float) -> tuple[float, float]:
    return right, -loss if loss == loss else -torch.inf  # a diverged network comes last


def _optimizer(network: nn.Module, config: Config, lr: float) -> torch.optim.Optimizer:
    # The gradient of penalty · ½‖p‖² is penalty · p, which SGD and Adam call weight decay. That of AdamW is none of
    # the loss.
    options = {"lr": lr, "weight_decay": config.penalty, "fused": True}
    if config.optimizer != "sgd":
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return kind(network.parameters(), **options)
    return torch.optim.SGD(network.parameters(), momentum=config.momentum, **options)


def _one_epoch(
    problem: Problem,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    items: Tensor,
    config: Config,
    run: Run,
    epoch: int,
) -> float:
    """Mean loss of the steps, without the penalty."""
    generator = step_generator(run.seed, run.fold, 2 + epoch)
    if config.replacement:
        steps = -(-len(items) // config.batch_size)
        order = torch.randint(len(items), (steps * config.batch_size,), generator=generator)
    else:
        order = torch.randperm(len(items), generator=generator)
    batches = items[order].to(problem.labels.device).split(config.batch_size)
    total = torch.zeros((), device=problem.labels.device)
    device = total.device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):  # dropout draws from these
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for batch in batches:
            loss = F.cross_entropy(problem.logits(network, batch), problem.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
    return float(total) / len(batches)


@torch.no_grad()
def accuracy(problem: Problem, network: nn.Module, items: Tensor) -> tuple[float, float]:
    """Share of ``items`` that are classified rightly, and their mean cross entropy."""
    network.eval()
    right = torch.zeros((), dtype=torch.int64, device=problem.labels.device)
    loss = torch.zeros((), dtype=torch.float64, device=problem.labels.device)
    for batch in items.to(problem.labels.device).split(_EVALUATED_AT_ONCE):
        logits, labels = problem.logits(network, batch), problem.labels[batch]
        right += (logits.argmax(1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum")
    return int(right) / len(items), float(loss) / len(items)
