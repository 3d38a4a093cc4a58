# SPDX-License-Identifier: Apache-2.0
"""All runs of a protocol: in order or side by side, each kept as it ends, and what the protocol makes of them."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from innerloop.data.tu import GraphDataset
from innerloop.nn._checkpoint import read_checkpoint
from innerloop.recipes._run import _versions
from innerloop.recipes._settings import UsageError
from innerloop.recipes._task import Interrupted
from innerloop.recipes.ma_gcnn.config import PUBLISHED, Config, known_as
from innerloop.recipes.ma_gcnn.splits import Score, score_best_test_epoch, score_gin, score_honest
from innerloop.recipes.ma_gcnn.tasks import Problem, make_problem
from innerloop.recipes.ma_gcnn.training import Outcome, Run, accuracy, train

__all__ = ["fit_on", "measure"]


def fit_on(
    dataset: GraphDataset,
    config: Config,
    folds: Sequence[Tensor],
    output: Path,
    *,
    data: Path | None = None,
    resume: bool = False,
    workers: int = 1,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """All runs of a protocol on a set that is read, without the printed table; ``fit`` says what the arguments are.

    Args:
        folds: test graphs of each fold, as of ``stratified_folds`` or ``read_folds``.

    Raises:
        UsageError: there are runs in ``output`` and ``resume`` is False.
        ValueError: the runs there are of other settings, data or folds.
    """
    if not resume:
        _refuse_to_overwrite(output)
    problem = make_problem(dataset, config)
    tests = [fold.tolist() for fold in folds]
    identity = _identity(config, problem.digest, tests)
    store = _Store(output, identity)
    first = [Run(fold, lr, config.seeds[0]) for fold in range(len(folds)) for lr in config.lrs]
    count = len(first) + len(folds) * (len(config.seeds) - 1)
    done: dict[Run, Outcome] = {}
    with _bar(count * config.epochs, progress) as bar, _pool(problem, folds, config, device, workers) as trained:

        def go(runs: list[Run]) -> None:
            for run in runs:
                if (outcome := store.read(run)) is not None:
                    done[run] = replace(outcome, model={})
                    bar(config.epochs, run, None)
            for run, outcome in trained([run for run in runs if run not in done], bar):
                store.write(run, outcome)
                done[run] = replace(outcome, model={})  # on the disk only: a model may be large

        try:
            go(first)
            lrs = [max(config.lrs, key=lambda lr, f=fold: _choice(done[Run(f, lr, config.seeds[0])]))
                   for fold in range(len(folds))]  # fmt: skip
            go([Run(fold, lr, seed) for fold, lr in enumerate(lrs) for seed in config.seeds[1:]])
        except KeyboardInterrupt:
            raise Interrupted(output) from None
    outcomes = [[done[Run(fold, lr, seed)] for seed in config.seeds] for fold, lr in enumerate(lrs)]
    if config.protocol == "honest":
        score = score_honest(measure(problem, config, output, tests, lrs, device))
    else:
        score = _score(config, outcomes)
    result = {
        "dataset": problem.name,
        "data_digest": problem.digest,
        "protocol": config.protocol,
        "rule": score.rule,
        "test": {"accuracy %": 100 * score.accuracy, "std": 100 * score.std},
        "per_fold": score.per_fold,
        "majority": float(dataset.labels.bincount().max()) / len(dataset),
        "graphs": len(dataset),
        "untested": len(dataset) - sum(map(len, folds)),
        "folds": tests,
        "chosen": [
            {"lr": lr, "epochs": [outcome.chosen_epoch for outcome in row]}
            for lr, row in zip(lrs, outcomes, strict=True)
        ],
        "published": PUBLISHED.get(known_as(problem.name), {}),
        "config": identity["config"],
        "data": str(data.resolve()) if data else None,
        "device": device,
        "workers": workers,
        "threads": torch.get_num_threads(),
        "training_seconds": sum(outcome.seconds for outcome in done.values()),
        "versions": _versions(),
    }
    store.finish(result)
    return result


def _choice(outcome: Outcome) -> tuple[float, float]:
    """What learning rates are chosen by: the hold-out. Other protocols have one learning rate."""
    return outcome.rank if outcome.holdout_accuracy is not None else (0.0, 0.0)


def _score(config: Config, outcomes: list[list[Outcome]]) -> Score:
    curves = torch.tensor([[[e["test_accuracy"] for e in outcome.epochs] for outcome in row] for row in outcomes])
    return score_gin(curves) if config.protocol == "gin" else score_best_test_epoch(curves)


def measure(
    problem: Problem,
    config: Config,
    folder: Path,
    folds: Sequence[Sequence[int]],
    lrs: Sequence[float],
    device: str = "cpu",
) -> Tensor:
    """Accuracies (folds, seeds) of the runs kept in ``folder`` with the learning rate of each fold, on its test graphs.

    Raises:
        FileNotFoundError: a run is missing.
        ValueError: a run is of other settings, data or folds.
    """
    identity = _identity(config, problem.digest, folds)
    problem, network = problem.to(device), problem.network(config).to(device)
    found = []
    for fold, (test, lr) in enumerate(zip(folds, lrs, strict=True)):
        for seed in config.seeds:
            path = _run_path(folder, Run(fold, lr, seed))
            saved = _read_run(path)
            if changed := _differences(saved, identity):
                raise ValueError(f"{path}: not a run of this experiment: {'; '.join(changed)}")
            network.load_state_dict(saved["outcome"]["model"])
            found.append(accuracy(problem, network, torch.tensor(test))[0])
    return torch.tensor(found).view(len(folds), -1)


def _identity(config: Config, data_digest: str, folds: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What all runs of an experiment have in common."""
    return {
        "config": json.loads(json.dumps(asdict(config))),  # with lists, as it is read again
        "data_digest": data_digest,
        "folds_digest": hashlib.sha256(repr([list(fold) for fold in folds]).encode()).hexdigest()[:16],
    }


def _differences(saved: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    old, new = {"bins": 0, **saved["config"]}, dict(identity["config"])
    if new["variant"] != "ma-gcnn+orbits":  # which alone has bins
        new["bins"] = old["bins"]
    changed = [f"{name} was {old.get(name)} and is {new[name]}" for name in new if old.get(name) != new[name]]
    digests = ("data", "folds")
    return changed + [f"other {name}" for name in digests if saved[f"{name}_digest"] != identity[f"{name}_digest"]]


def _run_path(folder: Path, run: Run) -> Path:
    return folder / "runs" / f"{run.name}.pt"


def _refuse_to_overwrite(folder: Path) -> None:
    held = [path for path in (folder / "metrics.json", *sorted(folder.glob("runs/*.pt"))) if path.exists()]
    if held:
        name = held[0].relative_to(folder)
        raise UsageError(f"{folder}: holds the {name} of a run, expected another output, or --resume auto to go on")


class _Store:
    """The folder of a protocol: a file for each finished run, and metrics.json at the end."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        runs = folder / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        for path in sorted(runs.glob("*.pt"))[:1]:  # also a run that is not asked for: all are of one experiment
            self._read(path)

    def read(self, run: Run) -> Outcome | None:
        path = _run_path(self.folder, run)
        return Outcome(**self._read(path)["outcome"]) if path.is_file() else None

    def _read(self, path: Path) -> dict[str, Any]:
        saved = _read_run(path)
        if changed := _differences(saved, self.identity):
            raise ValueError(
                f"{path}: cannot resume with other settings: {'; '.join(changed)}; name another --output for these"
            )
        return saved

    def write(self, run: Run, outcome: Outcome) -> None:
        path = _run_path(self.folder, run)
        partial = path.with_suffix(".partial")
        torch.save({"recipe": "ma-gcnn", "run": asdict(run), "outcome": outcome.state(), **self.identity}, partial)
        partial.replace(path)

    def finish(self, result: dict[str, Any]) -> None:
        partial = self.folder / "metrics.json.partial"
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(self.folder / "metrics.json")


def _read_run(path: Path) -> dict[str, Any]:
    saved = read_checkpoint(path)
    if not isinstance(saved, dict) or saved.get("recipe") != "ma-gcnn":
        raise ValueError(f"{path}: not a run of innerloop ma-gcnn")
    return saved


#: What a worker process trains on: (problem, folds, config, device).
_work: tuple[Problem, Sequence[Tensor], Config, str]


def _start_worker(threads: int, *work: Any) -> None:
    global _work
    torch.set_num_threads(threads)
    _work = work


def _train_in_worker(run: Run) -> tuple[Run, Outcome]:
    problem, folds, config, device = _work
    return run, train(problem, folds[run.fold], config, run, device)


_Bar = Callable[[int, Run, "Outcome | None"], None]


@contextmanager
def _pool(
    problem: Problem, folds: Sequence[Tensor], config: Config, device: str, workers: int
) -> Iterator[Callable[[list[Run], _Bar], Iterator[tuple[Run, Outcome]]]]:
    """A function that trains runs and gives each as it ends, in this process or in ``workers`` others."""
    if workers == 1:

        def here(runs: list[Run], bar: _Bar) -> Iterator[tuple[Run, Outcome]]:
            for run in runs:
                outcome = train(problem, folds[run.fold], config, run, device, lambda r=run: bar(1, r, None))
                bar(0, run, outcome)
                yield run, outcome

        yield here
        return
    threads = max(1, torch.get_num_threads() // workers)
    arguments = (threads, problem, folds, config, device)
    with ExitStack() as stack:
        # Workers inherit that Ctrl-C does not reach them, also while they import: the parent stops them.
        resource_tracker.ensure_running()  # its start would let SIGINT through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(workers, _start_worker, arguments))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

        def beside(runs: list[Run], bar: _Bar) -> Iterator[tuple[Run, Outcome]]:
            for run, outcome in pool.imap_unordered(_train_in_worker, runs):
                bar(config.epochs, run, outcome)
                yield run, outcome

        yield beside


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[_Bar]:
    """A progress bar over epochs of all runs; without a terminal a line for each run that ends."""
    from tqdm import tqdm

    shown = progress and sys.stderr.isatty()
    with tqdm(total=total, disable=not shown, unit="epoch") as bar:

        def advance(epochs: int, run: Run, outcome: Outcome | None) -> None:
            bar.set_description(run.name, refresh=False)
            bar.update(epochs)
            if outcome is not None and not shown:
                part, right = "test", outcome.test_accuracy
                if right is None:
                    part, right = "hold-out", outcome.holdout_accuracy
                print(f"{run.name}: epoch {outcome.chosen_epoch}, {part} accuracy {right:.4f}", flush=True)

        yield advance
