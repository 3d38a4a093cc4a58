# SPDX-License-Identifier: Apache-2.0
"""``fit``, ``evaluate`` and ``compare``: the recipe from one call."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from innerloop.data.tu import GraphDataset
from innerloop.recipes._run import table
from innerloop.recipes._settings import UsageError
from innerloop.recipes._statistics import paired
from innerloop.recipes.ma_gcnn.config import (
    Config,
    Content,
    Optimizer,
    Protocol,
    Tie,
    Variant,
    make_config,
    stored_config,
)
from innerloop.recipes.ma_gcnn.experiment import fit_on, measure
from innerloop.recipes.ma_gcnn.splits import read_folds, score_honest, stratified_folds
from innerloop.recipes.ma_gcnn.tasks import make_problem, read_dataset

_SETTINGS = frozenset(field.name for field in fields(Config))


def fit(
    *,
    data: Path | None = None,
    variant: Variant = "ma-gcnn",
    protocol: Protocol = "honest",
    folds: Path | None = None,
    grid_nodes: int | None = None,
    slots: int | None = None,
    content: Content | None = None,
    tie: Tie | None = None,
    orbit_size: int | None = None,
    bins: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lrs: list[float] | None = None,
    optimizer: Optimizer | None = None,
    momentum: float | None = None,
    penalty: float | None = None,
    replacement: bool | None = None,
    num_folds: int | None = None,
    fold_seed: int | None = None,
    holdout: float | None = None,
    seeds: list[int] | None = None,
    hidden: int | None = None,
    output: Path | None = None,
    resume: str | None = None,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train a graph classifier on all folds of a set and report its accuracy under a named protocol.

    Without arguments: MA-GCNN on the embedded MUTAG, ten folds, three seeds.

    Args:
        data: a graph classification set: the folder with NAME_A.txt, or the packed file NAME.txt (.gz, .xz).
        variant: ma-gcnn, m-gcnn (dense layers instead of attention), ma-gcnn+orbits (ours, with statistics of the
            orbit counts of all nodes) or structure-free (a histogram of node labels and an MLP).
        protocol: honest (a hold-out chooses epoch and learning rate, every graph is tested once), gin (best epoch of
            the mean test curve) or best-test-epoch (best test epoch of each fold, as the released code).
        folds: fixed test folds, a JSON file {"test": [[graph, ...], ...]}; default stratified folds.
        grid_nodes: central nodes of a graph; by default those of the published settings, or the mean size.
        slots: motif instances of a central node.
        content: of the grid, value (of the label) or onehot.
        tie: order of nodes of equal closeness, degree, official or canonical.
        orbit_size: 3, 4 or 5, size of the orbits of ma-gcnn+orbits.
        bins: of each of its statistics, between quantiles of the graphs trained on; 0 takes the values themselves.
        epochs: of each run.
        batch_size: graphs of a step.
        lrs: learning rates as a list, such as [0.01] or [0.001, 0.01]; the honest protocol chooses one for each fold.
        optimizer: sgd, adam or adamw.
        momentum: of sgd.
        penalty: weight of half the squared norm of all parameters, or weight decay of adamw.
        replacement: draw batches with replacement, as the released code.
        num_folds: stratified folds.
        fold_seed: of the stratified folds.
        holdout: share of a training part that the honest protocol chooses by.
        seeds: a run for each, on every fold; a list, such as [0] or [0, 1, 2].
        hidden: units of the layers of structure-free, and of the perceptron of ma-gcnn+orbits.
        output: folder for runs and metrics.json, without a run in it unless that is resumed; default
            runs/ma-gcnn/<set>-<variant>-<protocol>.
        resume: "auto" takes the runs that are finished in the output folder, if they have these settings.
        workers: processes that train runs side by side, with equal results if each has as many threads.
        threads: CPU threads, of all workers together.
        device: cpu or cuda.
        progress: show a progress bar on a terminal; otherwise one line per run is printed.

    Returns:
        What metrics.json holds.
    """
    settings = {name: value for name, value in locals().items() if name in _SETTINGS}
    if resume not in (None, "auto"):
        raise UsageError(f"resume is {resume!r}, expected auto: it takes the finished runs of the output folder")
    _check_machine(device, workers)
    if threads is not None:
        torch.set_num_threads(threads)
    config = make_config(**settings)
    dataset = read_dataset(data)
    parts = _parts(dataset, config, folds)
    place = output or Path("runs") / "ma-gcnn" / f"{dataset.name}-{variant}-{protocol}"
    options = {"resume": resume is not None, "workers": workers, "device": device, "progress": progress}
    result = fit_on(dataset, config, parts, place, data=data, **options)
    print(_report(result))
    return result


def _check_machine(device: str, workers: int = 1) -> None:
    """Raises a UsageError unless there is this device, and at least one worker."""
    if workers < 1:
        raise UsageError(f"workers is {workers}, expected at least 1")
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UsageError(f"device is {device!r}, expected cpu or cuda")
    if kind == "cuda" and int(number or 0) >= (count := torch.cuda.device_count()):
        raise UsageError(f"device is {device!r}, expected another: {count} CUDA devices are there")


def _parts(dataset: GraphDataset, config: Config, folds: Path | None) -> list[Tensor]:
    if folds is not None:
        return read_folds(folds, dataset.labels)
    if config.num_folds > len(dataset):
        raise UsageError(f"num_folds is {config.num_folds}, expected 2 to {len(dataset)}, the number of graphs")
    return stratified_folds(dataset.labels, config.num_folds, config.fold_seed)


def _report(result: dict[str, Any]) -> str:
    config = result["config"]
    title = f"{config['variant']}, protocol {result['protocol']}"
    facts = [
        f"{result['protocol']}: {result['rule']}",
        f"mean and deviation over {len(result['per_fold'])} folds, seeds {', '.join(map(str, config['seeds']))}",
        f"greatest class {100 * result['majority']:.1f} %",
        f"training time {result['training_seconds']:.0f} s, all runs",
    ]
    if result["untested"]:
        facts.insert(2, f"{result['untested']} of {result['graphs']} graphs are in no test fold")
    return f"{table(result['dataset'], title, result['test'], result['published'])}\n{'; '.join(facts)}"


def evaluate(
    folder: Path,
    *,
    data: Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Measure the models that fit has kept, each on its own test fold.

    Args:
        folder: output folder of innerloop ma-gcnn fit, e.g. runs/ma-gcnn/MUTAG-ma-gcnn-honest.
        data: the set, if it has been moved.
        threads: CPU threads.
        device: cpu or cuda.

    Returns:
        Metric name -> value.
    """
    _check_machine(device)
    if threads is not None:
        torch.set_num_threads(threads)
    result, config, moved_from = _read_result(folder)
    if config.protocol == "gin":
        raise ValueError(
            f"{folder}: of protocol gin, expected another: its accuracy is of one epoch of all runs together"
        )
    problem = make_problem(read_dataset(data or moved_from), config)
    if problem.digest != result["data_digest"]:
        raise ValueError(f"{folder}: was trained on another set than {data or moved_from or problem.name}")
    lrs = [chosen["lr"] for chosen in result["chosen"]]
    score = score_honest(measure(problem, config, folder, result["folds"], lrs, device))
    metrics = {"accuracy %": 100 * score.accuracy, "std": 100 * score.std}
    print(_report(result | {"test": metrics}))
    return metrics


def _read_result(folder: Path) -> tuple[dict[str, Any], Config, Path | None]:
    """What metrics.json holds, the settings in it, and where the set was; all that evaluate uses is there."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected the folder of a finished innerloop ma-gcnn fit")
    try:
        result = json.loads(path.read_text("utf-8"))
        config, data, _ = stored_config(result["config"]), result["data"], result["data_digest"]
        for fold, chosen in zip(result["folds"], result["chosen"], strict=True):
            torch.tensor([*fold, chosen["lr"]], dtype=torch.float64)
        _report(result)
        return result, config, None if data is None else Path(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: not written by innerloop ma-gcnn fit, or by another version: {reason}") from error


def compare(
    *,
    variants: list[str] | None = None,
    data: Path | None = None,
    protocol: Protocol = "honest",
    folds: Path | None = None,
    content: Content | None = None,
    tie: Tie | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lrs: list[float] | None = None,
    num_folds: int | None = None,
    seeds: list[int] | None = None,
    output: Path | None = None,
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train several variants on the same folds with the same seeds, and compare their accuracy.

    Prints mean and standard deviation over folds, and the mean difference to the first variant over pairs of folds
    with its 95 % confidence interval (folds share training graphs, so it is a guide, not a test). Runs that are
    finished in the output folder are not repeated.

    Args:
        variants: a list, default [structure-free, m-gcnn, ma-gcnn, ma-gcnn+orbits].
        data, protocol, folds, content, tie, epochs, batch_size, lrs, num_folds, seeds: as for innerloop ma-gcnn fit.
        output: folder with one folder a variant; default runs/ma-gcnn/compare-<set>-<protocol>.
        workers: processes that train runs side by side.
        threads: CPU threads, of all workers together.
        device: cpu or cuda.
        progress: show a progress bar on a terminal; otherwise one line per run is printed.

    Returns:
        What compare.json holds: {variant: {test, per_fold, difference}} under "variants".
    """
    settings = {name: value for name, value in locals().items() if name in _SETTINGS}
    names = ["structure-free", "m-gcnn", "ma-gcnn", "ma-gcnn+orbits"] if variants is None else variants
    if not names or len(set(names)) < len(names):
        raise UsageError(f"variants is {names}, expected at least one, and none twice")
    _check_machine(device, workers)
    if threads is not None:
        torch.set_num_threads(threads)
    configs = {name: make_config(name, **settings) for name in names}
    dataset = read_dataset(data)
    parts = _parts(dataset, configs[names[0]], folds)
    place = output or Path("runs") / "ma-gcnn" / f"compare-{dataset.name}-{protocol}"
    options = {"data": data, "resume": True, "workers": workers, "device": device, "progress": progress}
    results = {name: fit_on(dataset, config, parts, place / name, **options) for name, config in configs.items()}
    base = results[names[0]]
    result = {
        "dataset": dataset.name,
        "protocol": protocol,
        "published": base["published"],
        "variants": {
            name: {
                "test": own["test"],
                "per_fold": own["per_fold"],
                "difference": None if own is base else paired(own["per_fold"], base["per_fold"]),
            }
            for name, own in results.items()
        },
    }
    (place / "compare.json").write_text(json.dumps(result, indent=1) + "\n")
    print(_comparison(result, base))
    return result


def _comparison(result: dict[str, Any], base: dict[str, Any]) -> str:
    """Markdown table of what ``compare`` found, in percent, and the published rows."""
    first, majority = next(iter(result["variants"])), 100 * base["majority"]
    lines = [
        f"{result['dataset']}, protocol {result['protocol']}, accuracy in percent, mean ± standard deviation over "
        f"{len(base['per_fold'])} folds; {base['untested']} graphs untested; the greatest class is {majority:.1f}",
        f"| | accuracy | minus {first} |",
        "|---|---|---|",
    ]
    for name, row in result["variants"].items():
        mean, std = row["test"].values()
        difference = "-"
        if row["difference"] is not None:
            ends = [100 * end for end in row["difference"].values()]
            difference = f"{ends[0]:+.2f} [{ends[1]:+.2f}, {ends[2]:+.2f}]"
        lines.append(f"| {name}, measured | {mean:.2f} ± {std:.2f} | {difference} |")
    for source, row in result["published"].items():
        lines.append(f"| published, {source} | {row['accuracy %']} ± {row['std']} | - |")
    return "\n".join(lines)
