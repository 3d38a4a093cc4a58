# SPDX-License-Identifier: Apache-2.0
"""A run of any recipe from one call: training with checkpoints, the test split, a table of measured and published."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from innerloop.nn._checkpoint import read_checkpoint
from innerloop.recipes._settings import UsageError

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule

    from innerloop.recipes._task import Task

#: {source: {metric: value}}
Published = Mapping[str, Mapping[str, float]]


def run(
    task: Task,
    datamodule: LightningDataModule,
    output: Path,
    *,
    published: Published | None = None,
    resume: str | Path | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
    **trainer_options: Any,
) -> dict[str, Any]:
    """Trains ``task`` and tests it: the best epoch by its metric ``monitor``, or the last one where that is None.

    Args:
        output: folder for checkpoints, logs and metrics.json.
        published: rows for the table, below the measured one.
        resume: "auto" goes on from last.ckpt in ``output`` if there is one; or a checkpoint.
        precision, accelerator, trainer_options: of Lightning's Trainer.

    Returns:
        What metrics.json holds.

    Raises:
        UsageError: an accelerator or a precision that there is not.
        FileNotFoundError: no checkpoint to resume.
        ValueError: the checkpoint is of another run: other data, settings or precision.
    """
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.loggers import CSVLogger

    from innerloop.recipes._task import Resumable

    config, dataset, output = task.config, task.hparams["dataset"], Path(output)
    output.mkdir(parents=True, exist_ok=True)
    last = output / "last.ckpt"
    resumable = Resumable(last)
    callbacks: list[Any] = [resumable]
    if task.monitor is not None:
        monitor = f"valid_{task.monitor}"
        callbacks.insert(0, ModelCheckpoint(output, "best", monitor=monitor, mode="max", enable_version_counter=False))
    with quiet():
        trainer = make_trainer(
            precision,
            accelerator,
            progress,
            max_epochs=config.epochs,
            logger=CSVLogger(output, name="logs"),
            callbacks=callbacks,
            log_every_n_steps=10,
            **trainer_options,
        )
        start = _resume_from(resume, last, task, trainer.precision)
        trainer.fit(task, datamodule, ckpt_path=start, weights_only=True)
        if task.monitor is None:
            chosen = last if resumable.written else start  # nothing was left to train
        else:
            chosen = Path(callbacks[0].best_model_path)
            if not chosen.is_file():  # the folder was moved between two sessions
                chosen = output / "best.ckpt"
        saved = load_checkpoint(chosen, task.recipe, task.command)
        task.load_state_dict(saved["state_dict"])
        test = evaluated(trainer, task, datamodule, "test")
    result = {
        "dataset": dataset,
        "data_digest": task.hparams.get("data_digest"),
        "test": test,
        "chosen_epoch": saved["epoch"] + 1,
        "chosen_by": "last epoch" if task.monitor is None else f"best validation {task.monitor}",
        "published": {source: dict(row) for source, row in (published or {}).items()},
        "config": asdict(config),
        "precision": trainer.precision,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "epochs": task.history,
        "wall_seconds": task.wall_seconds,
        "versions": _versions(),
        "checkpoint": str(chosen),
    }
    if trainer.is_global_zero:
        partial = output / "metrics.json.partial"
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(output / "metrics.json")
        facts = [
            *task.remarks(),
            f"epochs {config.epochs} ({result['chosen_by']}: {result['chosen_epoch']})",
            f"seed {config.seed}",
            f"wall time {result['wall_seconds']:.0f} s",
        ]
        print(f"{table(dataset, 'test', test, published)}\n{'; '.join(facts)}")
    return result


def load_checkpoint(path: str | Path, recipe: str, command: str = "fit") -> dict[str, Any]:
    """Reads a checkpoint of ``innerloop <recipe> <command>``; no code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or something else.
    """
    saved = read_checkpoint(path)
    if not isinstance(saved, dict) or "progress" not in saved:
        raise ValueError(f"{path}: not a checkpoint of innerloop {recipe}")
    hparams = saved["hyper_parameters"]
    writer = hparams.get("recipe", "nbfnet"), hparams.get("command", "fit")
    if writer != (recipe, command):
        raise ValueError(f"{path}: a checkpoint of innerloop {' '.join(writer)}, expected one of {recipe} {command}")
    return saved


def _resume_from(resume: str | Path | None, last: Path, task: Task, precision: str) -> Path | None:
    if resume is None or (str(resume) == "auto" and not last.is_file()):
        return None
    path = last if str(resume) == "auto" else Path(resume)
    saved = load_checkpoint(path, task.recipe, task.command)
    hparams = saved["hyper_parameters"]
    if missing := [name for name in task.identity if name not in hparams]:
        raise ValueError(
            f"{path}: cannot resume, an earlier version of innerloop wrote it, without {', '.join(missing)}; train "
            "anew in another folder (evaluate reads the checkpoint as it is)"
        )
    if any(hparams[name] != task.hparams[name] for name in task.identity):
        raise ValueError(f"{path}: cannot resume, it was trained on {hparams['dataset']}")
    # Earlier versions stored fewer settings, and no precision.
    defaults = {field.name: field.default for field in fields(task.config)}
    before = defaults | hparams["config"] | {"precision": saved["progress"].get("precision", precision)}
    changed = [
        f"{name} was {before[name]} and is {value}"
        for name, value in (asdict(task.config) | {"precision": precision}).items()
        if name not in task.may_change and before[name] != value
    ]
    if changed:
        raise ValueError(f"{path}: cannot resume with other settings: {'; '.join(changed)}")
    return path


def make_trainer(precision: str, accelerator: str, progress: bool, **options: Any) -> Any:
    """Lightning's Trainer, for one process or those of torchrun.

    Raises:
        UsageError: an accelerator or a precision that Lightning does not know, or that this machine does not have.
    """
    from pytorch_lightning import Trainer
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        return Trainer(
            accelerator=accelerator,
            devices=processes,
            num_nodes=max(1, world // processes),
            strategy="ddp" if world > 1 else "auto",
            precision=precision,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=progress and sys.stderr.isatty(),
            enable_checkpointing="callbacks" in options,
            **options,
        )
    except (ModuleNotFoundError, ValueError, MisconfigurationException) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"accelerator is {accelerator!r} and precision {precision!r}: {reason}") from error


def trainer_options(precision: str, accelerator: str, progress: bool) -> dict[str, Any]:
    """Options of ``run``, checked; the precision as metrics.json names it, bf16-mixed for bf16."""
    with quiet():
        trainer = make_trainer(precision, accelerator, progress, logger=False)
    return {"precision": trainer.precision, "accelerator": accelerator, "progress": progress}


def evaluated(trainer: Any, task: Any, data: Any, split: str) -> dict[str, float]:
    """Metrics of one split, "test" or "valid"."""
    run = trainer.test if split == "test" else trainer.validate
    run(task, datamodule=data, verbose=False)
    return dict(task.metrics)


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back Lightning's notes on hardware and its advice, which do not apply here."""
    names = (
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric.utilities.rank_zero",
        "lightning_fabric.utilities.distributed",
        "pytorch_lightning.accelerators.cuda",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*does not have many workers")
            warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists")
            warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
            warnings.filterwarnings("ignore", message=r".*recommended to use `self.log")
            warnings.filterwarnings("ignore", message=r".*smaller than the logging interval")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("innerloop", "torch", "pytorch-lightning", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def table(dataset: str, title: str, metrics: Mapping[str, float], published: Published | None = None) -> str:
    """Markdown table: the measured row, and the published ones below it."""
    published = published or {}
    columns = list(metrics)
    columns += [c for row in published.values() for c in row if c not in columns]

    def cell(row: Mapping[str, float], name: str) -> str:
        if name not in row:
            return "-"
        return f"{row[name]:.1f}" if name == "mr" else f"{row[name]:.4g}"

    rows = [["", *columns], [f"{dataset} {title}, measured", *(cell(metrics, c) for c in columns)]]
    rows += [[f"published, {s}", *(cell(row, c) for c in columns)] for s, row in published.items()]
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, width, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in width) + "|")
    return "\n".join(lines)
