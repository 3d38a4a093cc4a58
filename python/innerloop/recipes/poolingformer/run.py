# SPDX-License-Identifier: Apache-2.0
"""``fit``, ``evaluate`` and ``compare``: the recipe from one call."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from innerloop.recipes._run import (
    UsageError,
    evaluated,
    load_checkpoint,
    make_trainer,
    quiet,
    run,
    table,
    trainer_options,
)
from innerloop.recipes.poolingformer.config import PUBLISHED, Config, make_config
from innerloop.recipes.poolingformer.tasks import GENERATED, Problem, make_problem

TaskName = Literal["listops", "qa", "mlm"]
Pooling = Literal["ldconv", "mean", "max", "none"]

_SETTINGS = frozenset(field.name for field in fields(Config))

#: Name of a row of ``compare`` -> what it changes.
VARIANTS: dict[str, dict[str, Any]] = {
    "one-level": {"two_level": 0},
    "ldconv": {},
    "mean": {"pooling": "mean"},
    "max": {"pooling": "max"},
    "none": {"pooling": "none"},
    "mix": {"level2_input": "input"},
    "weight-sharing": {"share_weights": True},
}


def fit(
    *,
    task: TaskName = "listops",
    data: Path | None = None,
    preset: Literal["quick", "study", "lra"] = "quick",
    length: int | None = None,
    min_length: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    warmup: float | None = None,
    clip: float | None = None,
    dim: int | None = None,
    num_layers: int | None = None,
    heads: int | None = None,
    ffn_dim: int | None = None,
    window: int | None = None,
    two_level: int | None = None,
    pool_window: int | None = None,
    kernel: int | None = None,
    stride: int | None = None,
    pooling: Pooling | None = None,
    level2_input: Literal["output", "input"] | None = None,
    share_weights: bool | None = None,
    zero_value: bool | None = None,
    relative_bias: bool | None = None,
    dropout: float | None = None,
    train: int | None = None,
    valid: int | None = None,
    test: int | None = None,
    seed: int | None = None,
    eval_batch_size: int | None = None,
    eval_examples: int | None = None,
    limit: int | None = None,
    checkpoint: bool | None = None,
    output: Path | None = None,
    resume: str | None = None,
    threads: int | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train a Poolingformer and report the last epoch on the test split.

    Without arguments: ListOps of up to 512 tokens, generated, in a few minutes on two CPU cores.

    Args:
        task: listops (generated), qa (XQuAD joined to long documents) or mlm (masked bytes of a text).
        data: for qa an XQuAD file or a folder of them; for mlm State of the Union (.jsonl) or wikitext.
        preset: quick takes minutes; study is that of docs/poolingformer.md; lra is the ListOps of Long Range Arena.
        length: tokens of the longest sequence; bytes for qa and mlm.
        min_length: ListOps have more tokens than this.
        epochs: passes over the training examples.
        batch_size: sequences per step and process.
        lr: largest learning rate of AdamW.
        weight_decay: of AdamW, for matrices and embeddings.
        warmup: share of the steps in which the learning rate rises, before it falls to 0.
        clip: largest norm of a gradient.
        dim: width of the model.
        num_layers: of the encoder.
        heads: of the attention.
        ffn_dim: width inside the feed-forward part of a layer; 0 stands for 4 dim.
        window: tokens on each side that level 1 sees.
        two_level: how many layers, the last ones, have the pooled second level; 0 for none.
        pool_window: tokens on each side that level 2 sees.
        kernel: tokens of a pooled key.
        stride: tokens between pooled keys.
        pooling: how keys are pooled; none is a plain window of pool_window.
        level2_input: level 2 reads level 1's output, or the layer's input (the paper's ablation "mix").
        share_weights: level 2 uses the projections of level 1 (ablation).
        zero_value: level 2 adds nothing at first.
        relative_bias: learn a number for each head and distance, added to the scores of both levels.
        dropout: of embeddings, attention and layers.
        train: ListOps to draw for training.
        valid: ListOps to draw for validation.
        test: ListOps to draw for testing.
        seed: of parameters, order, dropout and masks.
        eval_batch_size: sequences evaluated together.
        eval_examples: validate and test on so many examples at most; 0 takes all.
        limit: training steps in an epoch at most, for a try.
        checkpoint: less memory for one more forward pass: keep only the input of each layer for the backward pass.
        output: folder for checkpoints, logs and metrics.json, without a run in it unless that is resumed; default
            runs/poolingformer/<data>.
        resume: "auto" goes on from last.ckpt in the output folder if there is one; or a checkpoint.
        threads: CPU threads of this process.
        precision: Lightning's name, e.g. 32-true, bf16-mixed.
        accelerator: Lightning's name: cpu, gpu or auto.
        progress: show progress bars on a terminal; otherwise one line per epoch is printed.

    Returns:
        What metrics.json holds.
    """
    settings = {name: value for name, value in locals().items() if name in _SETTINGS}
    if threads is not None:
        torch.set_num_threads(threads)
    config = make_config(preset=preset, **settings)
    problem = make_problem(config, data)
    folder = output or Path("runs") / "poolingformer" / problem.name
    if resume is None:
        _refuse_to_overwrite(folder)
    return train_on(
        problem,
        config,
        folder,
        data=None if data is None else Path(data),
        published=PUBLISHED.get((task, preset)) if _same_task(config, make_config(task, preset)) else None,
        resume=resume,
        precision=precision,
        accelerator=accelerator,
        progress=progress,
    )


def _refuse_to_overwrite(folder: Path) -> None:
    for name in ("metrics.json", "last.ckpt"):
        if (folder / name).exists():
            raise UsageError(f"{folder}: holds the {name} of a run, expected another output, or --resume auto to go on")


def _same_task(a: Config, b: Config) -> bool:
    names = ("length", "min_length", "train", "valid", "test", "eval_examples", "limit")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def train_on(
    problem: Problem,
    config: Config,
    output: Path,
    *,
    data: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Trains on ``problem`` and tests the last epoch; ``fit`` with the data already read.

    Args:
        options: of ``recipes._run.run``: published, resume, precision, accelerator, progress.
    """
    from innerloop.recipes.poolingformer.module import PoolingformerData, PoolingformerTask

    return run(
        PoolingformerTask(problem, config, str(data.resolve()) if data else None),
        PoolingformerData(problem, config),
        output,
        gradient_clip_val=config.clip,
        **options,
    )


def evaluate(
    checkpoint: Path,
    *,
    data: Path | None = None,
    split: Literal["test", "valid"] = "test",
    eval_batch_size: int | None = None,
    eval_examples: int | None = None,
    threads: int | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, float]:
    """Measure a trained model on one split.

    Args:
        checkpoint: a file that fit wrote, e.g. runs/poolingformer/listops-512/last.ckpt.
        data: file or folder of the data; default the one the model was trained on.
        split: test or valid.
        eval_batch_size: sequences evaluated together.
        eval_examples: so many examples at most; 0 takes all.
        threads: CPU threads of this process.
        precision: Lightning's name, e.g. 32-true, bf16-mixed.
        accelerator: Lightning's name: cpu, gpu or auto.
        progress: show a progress bar.

    Returns:
        Metric name -> value.
    """
    from innerloop.recipes.poolingformer.module import PoolingformerData, PoolingformerTask

    if threads is not None:
        torch.set_num_threads(threads)
    saved = load_checkpoint(checkpoint, "poolingformer")
    hparams = saved["hyper_parameters"]
    changes = {"eval_batch_size": eval_batch_size, "eval_examples": eval_examples}
    config = Config(**hparams["config"] | {key: value for key, value in changes.items() if value is not None})
    stored = Path(hparams["data"]) if hparams["data"] else None
    problem = make_problem(config, data or stored)
    module = PoolingformerTask(problem, config)
    module.load_state_dict(saved["state_dict"])
    with quiet():
        trainer = make_trainer(precision, accelerator, progress, logger=False)
        metrics = evaluated(trainer, module, PoolingformerData(problem, config), split)
    if trainer.is_global_zero:
        print(table(problem.name, split, metrics))
    return metrics


def compare(
    *,
    task: TaskName = "listops",
    data: Path | None = None,
    preset: Literal["quick", "study", "lra"] = "study",
    variants: list[str] | None = None,
    seeds: list[int] | None = None,
    length: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    dim: int | None = None,
    num_layers: int | None = None,
    heads: int | None = None,
    window: int | None = None,
    two_level: int | None = None,
    pool_window: int | None = None,
    kernel: int | None = None,
    stride: int | None = None,
    dropout: float | None = None,
    train: int | None = None,
    valid: int | None = None,
    test: int | None = None,
    eval_batch_size: int | None = None,
    eval_examples: int | None = None,
    limit: int | None = None,
    output: Path | None = None,
    threads: int | None = None,
    precision: str = "32-true",
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train several variants with several seeds, and print the mean and standard deviation of each on the test split.

    All share data, schedule and seeds; the last epoch counts. A run that is already finished in the output folder is
    not repeated, an interrupted one goes on.

    Args:
        task, data, preset, length, epochs, batch_size, lr, dim, num_layers, heads, window, two_level, pool_window,
            kernel, stride, dropout, train, valid, test, eval_batch_size, eval_examples, limit: as for innerloop
            poolingformer fit; a row may change two_level.
        variants: rows of the table, of one-level, ldconv, mean, max, none, mix, weight-sharing; default the first four.
        seeds: default 0, 1, 2.
        output: folder with one folder a run; default runs/poolingformer/compare-<data>.
        threads: CPU threads of this process.
        precision: Lightning's name, e.g. 32-true, bf16-mixed.
        accelerator: Lightning's name: cpu, gpu or auto.
        progress: show progress bars on a terminal; otherwise one line per epoch is printed.

    Returns:
        {variant: {metric: [value of each seed]}}
    """
    settings = {name: value for name, value in locals().items() if name in _SETTINGS}
    variants = list(VARIANTS)[:4] if variants is None else variants
    seeds = [0, 1, 2] if seeds is None else seeds
    unknown = [v for v in variants if v not in VARIANTS]
    if unknown or not variants or not seeds:
        raise UsageError(f"variants is {variants} and seeds {seeds}, expected at least one each, of {list(VARIANTS)}")
    if len({*variants}) < len(variants) or len({*seeds}) < len(seeds):
        raise UsageError(f"variants is {variants} and seeds {seeds}, expected each once")
    if threads is not None:
        torch.set_num_threads(threads)
    base = make_config(preset=preset, **settings)
    if base.two_level == 0:
        raise UsageError("two_level is 0, expected at least 1: the row one-level is the one without")
    problem = make_problem(base, data)
    folder = output or Path("runs") / "poolingformer" / f"compare-{problem.name}"
    options = trainer_options(precision, accelerator, progress)
    results: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        for variant in variants:
            config = replace(base, seed=seed, **VARIANTS[variant])
            place = folder / f"{variant}-{seed}"
            row = _finished(place, problem, config, options["precision"])
            if row is None:
                row = train_on(problem, config, place, data=data, resume="auto", **options)["test"]
            for name, value in row.items():
                results.setdefault(variant, {}).setdefault(name, []).append(value)
    if int(os.environ.get("RANK", "0")):  # of torchrun
        return results
    (folder / "compare.json").write_text(json.dumps({"seeds": seeds, "test": results}, indent=1) + "\n")
    metrics = next(iter(results.values()))
    print(f"{problem.name}, test, last epoch, mean ± standard deviation over seeds {', '.join(map(str, seeds))}")
    print("| variant | " + " | ".join(metrics) + " |")
    print("|---" * (1 + len(metrics)) + "|")
    for variant, columns in results.items():
        cells = [
            f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else float('nan'):.4f}"
            for values in columns.values()
        ]
        print(f"| {variant} | " + " | ".join(cells) + " |")
    return results


def _finished(place: Path, problem: Problem, config: Config, precision: str) -> dict[str, float] | None:
    """The test row of a finished run on this data with these settings."""
    try:
        stored = json.loads((place / "metrics.json").read_text())
        # Earlier versions stored no digest; that of generated data is known.
        data = stored["dataset"], stored.get("data_digest", GENERATED)
        before = Config(**stored["config"])
        same = data == (problem.name, problem.digest()) and stored["precision"] == precision
        # These two change no metric.
        before = replace(before, eval_batch_size=config.eval_batch_size, checkpoint=config.checkpoint)
        return stored["test"] if same and before == config else None
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None
