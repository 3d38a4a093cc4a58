# SPDX-License-Identifier: Apache-2.0
"""``fit`` and ``evaluate``: the recipe from one call, with a table of measured and published."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from innerloop.data.find import choose_dataset, find_dataset
from innerloop.data.kg import KnowledgeGraph
from innerloop.recipes._run import evaluated, load_checkpoint, make_trainer, quiet, run, table
from innerloop.recipes.nbfnet.config import PUBLISHED, Config, make_config

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
        published=PUBLISHED.get(kg.name.lower()),
        resume=resume,
        precision=precision,
        accelerator=accelerator,
        progress=progress,
    )


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
    saved = load_checkpoint(checkpoint, "nbfnet")
    hparams = saved["hyper_parameters"]
    kg = find_dataset(hparams["dataset"], data or hparams["data"], relations=hparams["relations"])
    changes = {"eval_batch_size": eval_batch_size, "hits_samples": hits_samples, "valid_triples": valid_triples}
    config = Config(**hparams["config"] | {key: value for key, value in changes.items() if value is not None})
    task = NBFNetTask(kg.relations, config, inductive=kg.inductive)
    task.load_state_dict(saved["state_dict"])
    with quiet():
        trainer = make_trainer(precision, accelerator, progress, logger=False)
        metrics = evaluated(trainer, task, NBFNetData(kg, config), split)
    if trainer.is_global_zero:
        published = PUBLISHED.get(kg.name.lower()) if split == "test" else None
        print(table(kg.name, split, metrics, published))
    return metrics
