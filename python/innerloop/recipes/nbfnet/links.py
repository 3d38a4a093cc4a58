# SPDX-License-Identifier: Apache-2.0
"""`innerloop nbfnet links`: NBFNet on an undirected graph with one kind of edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from innerloop.data.links import LinkGraph, read_links
from innerloop.recipes._run import run
from innerloop.recipes.nbfnet.config import PUBLISHED, Config, make_link_config

__all__ = ["links", "train_links"]


def links(
    data: Path,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    dim: int | None = None,
    num_layers: int | None = None,
    seed: int | None = None,
    eval_batch_size: int | None = None,
    limit: int | None = None,
    checkpoint: bool | None = None,
    output: Path | None = None,
    resume: str | None = None,
    threads: int | None = None,
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train NBFNet on an undirected graph, keep the best epoch by validation AUROC, and report it on the test split.

    Edges are split 85 : 5 : 10 as in the paper; messages pass over the training edges only. Settings that are not
    given are the paper's for Cora, CiteSeer and PubMed, by the name of the file, and those for Cora otherwise.

    Args:
        data: two tab-separated node names a line, e.g. cora.cites.xz.
        epochs: passes over the training edges.
        batch_size: edges per step and process, each with one pair that is no edge.
        lr: learning rate of Adam.
        dim: width of the hidden states.
        num_layers: steps of the Bellman-Ford iteration.
        seed: of parameters, order and pairs without an edge; the split is always the same.
        eval_batch_size: sources run together in evaluation.
        limit: training steps in an epoch at most, for a try.
        checkpoint: less memory for one more forward pass: keep only the input of each layer for the backward pass.
        output: folder for checkpoints, logs and metrics.json; default runs/nbfnet/<data set>.
        resume: "auto" goes on from last.ckpt in the output folder if there is one; or a checkpoint.
        threads: CPU threads of this process.
        accelerator: Lightning's name: cpu, gpu or auto. Without a CUDA kernel for nbfnet_layer, cpu is the fast one.
        progress: show progress bars on a terminal; otherwise one line per epoch is printed.

    Returns:
        What metrics.json holds.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    graph = read_links(data)
    config = make_link_config(
        graph.name,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        dim=dim,
        num_layers=num_layers,
        seed=seed,
        eval_batch_size=eval_batch_size,
        limit=limit,
        checkpoint=checkpoint,
    )
    output = output or Path("runs") / "nbfnet" / graph.name.lower()
    return train_links(graph, config, output, resume=resume, accelerator=accelerator, progress=progress)


def train_links(
    graph: LinkGraph,
    config: Config,
    output: Path,
    *,
    resume: str | Path | None = None,
    accelerator: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Trains on ``graph`` and tests the best checkpoint; ``links`` with the data already read.

    Raises:
        ValueError: a split without edges, which leaves nothing to train on or to choose by.
    """
    from innerloop.recipes.nbfnet.datamodule import LinkData
    from innerloop.recipes.nbfnet.module import LinkTask

    sizes = {split: getattr(graph, split).shape[1] for split in ("train", "valid", "test")}
    if not all(sizes.values()):
        counts = ", ".join(f"{split} {size}" for split, size in sizes.items())
        raise ValueError(f"{graph.name}: edges per split are {counts}, expected at least one in each")
    return run(
        LinkTask(config, graph.name, graph.num_nodes, sum(sizes.values())),
        LinkData(graph, config),
        output,
        published=PUBLISHED.get(graph.name.lower()),
        resume=resume,
        accelerator=accelerator,
        progress=progress,
    )
