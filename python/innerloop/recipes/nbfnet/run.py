# SPDX-License-Identifier: Apache-2.0
"""``fit`` and ``evaluate``: the recipe from one call, with a table of measured and published."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from innerloop.data.find import choose_dataset, find_dataset
from innerloop.data.kg import KnowledgeGraph
from innerloop.nn._checkpoint import read_checkpoint
from innerloop.recipes.nbfnet.config import PUBLISHED, Config, make_config

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule

    from innerloop.recipes.nbfnet.module import Task

Message = Literal["distmult", "transe", "rotate"]
Aggregate = Literal["pna", "sum", "mean", "max", "min"]


def fit(
    *,
    dataset: str | None = None,
    data: Path | None = None,
    preset: Literal["quick", "published"] = "quick",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    num_negative: int | None = None,
    adversarial_temperature: float | None = None,
    remove_one_hop: bool | None = None,
    dim: int | None = None,
    num_layers: int | None = None,
    message: Message | None = None,
    aggregate: Aggregate | None = None,
    dependent: bool | None = None,
    layer_norm: bool | None = None,
    short_cut: bool | None = None,
    concat_hidden: bool | None = None,
    seed: int | None = None,
    eval_batch_size: int | None = None,
    hits_samples: int | None = None,
    limit: int | None = None,
    valid_triples: int | None = None,
    checkpoint: bool | None = None,
    output: Path | None = None,
    resume: str | None = None,
    threads: int | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train NBFNet, keep the best epoch by validation MRR, and report it on the test split.

    Without arguments: fb237_v1, which ships with the package, in a few minutes on two CPU cores.
    Settings that are not given come from the paper's setting for the data set.

    Args:
        dataset: an embedded data set: fb237_v1 (the default) or wn18rr_v1; not with data.
        data: folder of another data set (train, valid, test; .txt or .txt.xz). A sibling folder
            with the suffix _ind makes it an inductive pair. Or the folder of ogbl-biokg as OGB distributes it.
        preset: quick trains a few epochs, published the paper's full schedule.
        epochs: passes over the training facts.
        batch_size: triples per step and process.
        lr: learning rate of Adam.
        num_negative: negatives per positive.
        adversarial_temperature: of the negative weights; 0 weights all alike.
        remove_one_hop: drop every edge between the ends of each pair of the batch.
        dim: width of the hidden states.
        num_layers: steps of the Bellman-Ford iteration.
        message: how a message is made of a node state and a relation.
        aggregate: how messages are put together.
        dependent: relation vectors depend on the query.
        layer_norm: normalise after each layer.
        short_cut: add each layer's input to its output.
        concat_hidden: read out all layers instead of the last.
        seed: of parameters, order and negatives.
        eval_batch_size: queries scored together in evaluation.
        hits_samples: one more n for HITS@10_n on inductive data, beside 50 and 49.
        limit: steps of an epoch at most.
        valid_triples: validate on so many triples; 0 takes all.
        checkpoint: less memory for one more forward pass: keep only the input of each layer for the backward pass.
        output: folder for checkpoints, logs and metrics.json; default runs/nbfnet/<data set>.
        resume: "auto" goes on from last.ckpt in the output folder if there is one; or a checkpoint.
        threads: CPU threads of this process.
        precision: Lightning's name, e.g. 32-true, bf16-mixed.
        accelerator: Lightning's name: cpu, gpu or auto. Without a CUDA kernel for nbfnet_layer, cpu is the fast one.
        progress: show progress bars on a terminal; otherwise one line per epoch is printed.

    Returns:
        What metrics.json holds.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    kg = choose_dataset(dataset, data)
    config = make_config(
        kg.name,
        preset,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        num_negative=num_negative,
        adversarial_temperature=adversarial_temperature,
        remove_one_hop=remove_one_hop,
        dim=dim,
        num_layers=num_layers,
        message=message,
        aggregate=aggregate,
        dependent=dependent,
        layer_norm=layer_norm,
        short_cut=short_cut,
        concat_hidden=concat_hidden,
        seed=seed,
        eval_batch_size=eval_batch_size,
        hits_samples=hits_samples,
        limit=limit,
        valid_triples=valid_triples,
        checkpoint=checkpoint,
    )
    output = output or Path("runs") / "nbfnet" / kg.name.lower()
    return train(
        kg,
        config,
        output,
        data=data,
        resume=resume,
        precision=precision,
        accelerator=accelerator,
        progress=progress,
    )


def train(
    kg: KnowledgeGraph,
    config: Config,
    output: Path,
    *,
    data: Path | None = None,
    resume: str | Path | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
    model: torch.nn.Module | None = None,
) -> dict[str, Any]:
    """Trains on ``kg`` and tests the best checkpoint; ``fit`` with the data already read.

    ``model`` takes the place of the NBFNet of ``config``; it is called like ``innerloop.nn.NBFNet``.
    """
    from innerloop.recipes.nbfnet.datamodule import NBFNetData
    from innerloop.recipes.nbfnet.module import NBFNetTask

    folder = str(data.resolve()) if data else None
    return run(
        NBFNetTask(list(kg.relations), config, kg.name, folder, kg.inductive, model),
        NBFNetData(kg, config),
        output,
        resume=resume,
        precision=precision,
        accelerator=accelerator,
        progress=progress,
    )


def run(
    task: Task,
    datamodule: LightningDataModule,
    output: Path,
    *,
    resume: str | Path | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Trains ``task``, keeps the best epoch by its metric ``monitor``, tests it, and writes and prints the result."""
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.loggers import CSVLogger

    from innerloop.recipes.nbfnet.module import Resumable

    config, dataset = task.config, task.hparams["dataset"]
    output.mkdir(parents=True, exist_ok=True)
    last = output / "last.ckpt"
    checkpoint = _resume_from(resume, last, task)
    best = ModelCheckpoint(output, "best", monitor=f"valid_{task.monitor}", mode="max", enable_version_counter=False)
    with _quiet():
        trainer = _trainer(
            precision,
            accelerator,
            progress,
            max_epochs=config.epochs,
            logger=CSVLogger(output, name="logs"),
            callbacks=[best, Resumable(last)],
            log_every_n_steps=10,
        )
        trainer.fit(task, datamodule, ckpt_path=checkpoint, weights_only=True)
        best_path = Path(best.best_model_path)
        if not best_path.is_file():  # the folder was moved between two sessions
            best_path = output / "best.ckpt"
        saved = load_checkpoint(best_path, task.command)
        task.load_state_dict(saved["state_dict"])
        test = _tested(trainer, task, datamodule, "test")
    result = {
        "dataset": dataset,
        "test": test,
        "best_epoch": saved["epoch"] + 1,
        "published": PUBLISHED.get(dataset.lower(), {}),
        "config": asdict(config),
        "precision": precision,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "epochs": task.history,
        "wall_seconds": task.wall_seconds,
        "versions": _versions(),
        "checkpoint": str(best_path),
    }
    if trainer.is_global_zero:
        partial = output / "metrics.json.partial"
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(output / "metrics.json")
        print(_report(result))
    return result


def evaluate(
    checkpoint: Path,
    *,
    data: Path | None = None,
    split: Literal["test", "valid"] = "test",
    eval_batch_size: int | None = None,
    hits_samples: int | None = None,
    valid_triples: int | None = None,
    threads: int | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, float]:
    """Rank one split with a trained model.

    Args:
        checkpoint: a file that fit wrote, e.g. runs/nbfnet/fb237_v1/best.ckpt.
        data: folder of the data set; default the one the model was trained on.
        split: test or valid.
        eval_batch_size: queries scored together.
        hits_samples: one more n for HITS@10_n on inductive data, beside 50 and 49.
        valid_triples: with split valid, rank so many triples; 0 takes all.
        threads: CPU threads of this process.
        precision: Lightning's name, e.g. 32-true, bf16-mixed.
        accelerator: Lightning's name: cpu, gpu or auto. Without a CUDA kernel for nbfnet_layer, cpu is the fast one.
        progress: show a progress bar.

    Returns:
        Metric name -> value.
    """
    from innerloop.recipes.nbfnet.datamodule import NBFNetData
    from innerloop.recipes.nbfnet.module import NBFNetTask

    if threads is not None:
        torch.set_num_threads(threads)
    saved = load_checkpoint(checkpoint)
    hparams = saved["hyper_parameters"]
    kg = find_dataset(hparams["dataset"], data or hparams["data"], relations=hparams["relations"])
    changes = {"eval_batch_size": eval_batch_size, "hits_samples": hits_samples, "valid_triples": valid_triples}
    config = Config(**hparams["config"] | {key: value for key, value in changes.items() if value is not None})
    task = NBFNetTask(kg.relations, config, inductive=kg.inductive)
    task.load_state_dict(saved["state_dict"])
    with _quiet():
        trainer = _trainer(precision, accelerator, progress, logger=False)
        metrics = _tested(trainer, task, NBFNetData(kg, config), split)
    if trainer.is_global_zero:
        print(_table(kg.name, split, metrics))
    return metrics


def load_checkpoint(path: str | Path, command: str = "fit") -> dict[str, Any]:
    """Reads a checkpoint of this recipe's ``command``; no code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or something else.
    """
    saved = read_checkpoint(path)
    if not isinstance(saved, dict) or "progress" not in saved:
        raise ValueError(f"{path}: not a checkpoint of innerloop nbfnet")
    writer = saved["hyper_parameters"].get("command", "fit")
    if writer != command:
        raise ValueError(f"{path}: a checkpoint of innerloop nbfnet {writer}, expected one of {command}")
    return saved


def _resume_from(resume: str | Path | None, last: Path, task: Task) -> Path | None:
    if resume is None or (str(resume) == "auto" and not last.is_file()):
        return None
    path = last if str(resume) == "auto" else Path(resume)
    hparams = load_checkpoint(path, task.command)["hyper_parameters"]
    if any(hparams[name] != task.hparams[name] for name in task.identity):
        raise ValueError(f"{path}: cannot resume, it was trained on {hparams['dataset']}")
    free = ("epochs", "eval_batch_size", "hits_samples", "checkpoint")
    config = asdict(task.config)
    changed = [
        f"{name} was {old} and is {config[name]}"
        for name, old in hparams["config"].items()
        if name not in free and old != config[name]
    ]
    if changed:
        raise ValueError(f"{path}: cannot resume with other settings: {'; '.join(changed)}")
    return path


def _trainer(precision: str, accelerator: str, progress: bool, **options: Any) -> Any:
    from pytorch_lightning import Trainer

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    world = int(os.environ.get("WORLD_SIZE", "1"))
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


def _tested(trainer: Any, task: Any, data: Any, split: str) -> dict[str, float]:
    run = trainer.test if split == "test" else trainer.validate
    run(task, datamodule=data, verbose=False)
    return dict(task.metrics)


@contextmanager
def _quiet() -> Iterator[None]:
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


def _table(dataset: str, title: str, metrics: dict[str, float]) -> str:
    """Markdown table: the measured row, and the published ones below it."""
    published = PUBLISHED.get(dataset.lower(), {}) if title == "test" else {}
    columns = list(metrics)
    columns += [c for row in published.values() for c in row if c not in columns]

    def cell(row: dict[str, float], name: str) -> str:
        if name not in row:
            return "-"
        return f"{row[name]:.1f}" if name == "mr" else f"{row[name]:.4g}"

    rows = [["", *columns], [f"{dataset} {title}, measured", *(cell(metrics, c) for c in columns)]]
    rows += [[f"published, {s}", *(cell(row, c) for c in columns)] for s, row in published.items()]
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, width, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in width) + "|")
    return "\n".join(lines)


def _report(result: dict[str, Any]) -> str:
    config = result["config"]
    facts = [
        f"epochs {config['epochs']} (best {result['best_epoch']})",
        f"seed {config['seed']}",
        f"wall time {result['wall_seconds']:.0f} s",
    ]
    if "hits@10_50" in result["test"]:
        facts.insert(0, "hits@10_n: in expectation over n sampled negatives")
    return "\n".join([_table(result["dataset"], "test", result["test"]), "; ".join(facts)])
