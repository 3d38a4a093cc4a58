# SPDX-License-Identifier: Apache-2.0
"""Which graphs a run trains on, selects by and is tested on, and what each protocol makes of the accuracies.

``honest``: every graph is tested once, by a model whose epoch and settings a hold-out of its training part has chosen.
``gin``: the best epoch of the mean of the folds' test curves (Xu et al., ICLR 2019). ``best-test-epoch``: the best test
epoch of each fold, as the released code of MA-GCNN. Only the first says how a model does on graphs it has not seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Score", "check_folds", "read_folds", "score_best_test_epoch", "score_gin", "score_honest", "split_holdout",
           "stratified_folds"]  # fmt: skip


def stratified_folds(labels: Tensor, num_folds: int = 10, seed: int = 0) -> list[Tensor]:
    """Shuffled test folds; sizes, and numbers of each class, differ by at most one between folds.

    Args:
        labels: int64 (n,), the class of each graph.
        num_folds: at least 2, at most n.
        seed: the same seed gives the same folds.

    Returns:
        ``num_folds`` ascending int64 tensors; every graph is in exactly one.

    Raises:
        ValueError: ``num_folds`` is out of range.
    """
    if not 2 <= num_folds <= len(labels):
        raise ValueError(
            f"stratified_folds: num_folds is {num_folds}, expected 2 to {len(labels)}, the number of graphs"
        )
    by_class = _shuffled_by_class(labels, seed)
    return [by_class[fold::num_folds].sort().values for fold in range(num_folds)]


def _shuffled_by_class(labels: Tensor, seed: int) -> Tensor:
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return shuffled[labels[shuffled].argsort(stable=True)]


def split_holdout(items: Tensor, labels: Tensor, fraction: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Splits off a stratified hold-out.

    Args:
        items: int64 (m,), the graphs of a training part.
        labels: int64 (n,), of all graphs.
        fraction: in (0, 1/2]; ⌈fraction · m⌉ graphs are held out, of each class its share to within one.
        seed: the same seed gives the same parts.

    Returns:
        The rest and the hold-out, ascending int64.

    Raises:
        ValueError: ``fraction`` is out of range, or there are fewer than 1 / fraction graphs.
    """
    if not 0 < fraction <= 0.5:
        raise ValueError(f"split_holdout: fraction is {fraction}, expected above 0 and at most 0.5")
    share = Fraction(repr(float(fraction)))  # 0.1 is 1/10, and not the nearest binary number
    if len(items) < 1 / share:
        least = math.ceil(1 / share)
        raise ValueError(f"split_holdout: items has {len(items)} graphs, expected at least {least} for {fraction=}")
    # At even distances in the order by class, so that each class gives its share.
    places = [math.floor(i / share) for i in range(math.ceil(share * len(items)))]
    held = torch.zeros(len(items), dtype=torch.bool)
    held[_shuffled_by_class(labels[items], seed)[places]] = True
    return items[~held], items[held]


def read_folds(path: str | Path, labels: Tensor) -> list[Tensor]:
    """Fixed test folds, a JSON file {"test": [[graph, …], …]} as circulated with DGCNN and GIN.

    Such files hold ⌊n / 10⌋ graphs a fold, so that a few graphs may be in none.

    Args:
        labels: int64 (n,), the class of each graph.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else, or ``check_folds`` refuses its folds.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    wanted = f'{path}: expected {{"test": [[graph, …], …]}}, lists of integers'
    try:
        lists = json.loads(Path(path).read_text("utf-8"))["test"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(wanted) from error
    if not isinstance(lists, list) or not all(isinstance(part, list) for part in lists):
        raise ValueError(wanted)
    if not all(type(graph) is int for part in lists for graph in part):
        raise ValueError(wanted)
    folds = [torch.tensor(part, dtype=torch.int64) for part in lists]
    try:
        check_folds(folds, labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return [fold.sort().values for fold in folds]


def check_folds(folds: Sequence[Tensor], labels: Tensor) -> None:
    """Raises a ValueError unless the folds are disjoint, in range and usable.

    A fold that holds one class only, where there are more, is refused: files of the TU collection are sorted by class,
    so that contiguous blocks give such folds, and a model that always answers this class scores 100 % on them.
    """
    if len(folds) < 2:
        raise ValueError(f"check_folds: {len(folds)} folds, expected at least 2")
    n = len(labels)
    for number, fold in enumerate(folds):
        if not len(fold):
            raise ValueError(f"check_folds: fold {number} is empty")
        if not 0 <= fold.min() <= fold.max() < n:
            raise ValueError(
                f"check_folds: fold {number} has graphs from {fold.min()} to {fold.max()}, expected 0 to {n - 1}"
            )
    times = torch.bincount(torch.cat(list(folds)), minlength=n)
    if times.max() > 1:
        raise ValueError(f"check_folds: graph {times.argmax()} is tested {times.max()} times, expected at most once")
    if len(labels.unique()) > 1:
        single = [number for number, fold in enumerate(folds) if len(labels[fold].unique()) == 1]
        if single:
            raise ValueError(
                f"check_folds: folds {', '.join(map(str, single))} hold a single class each, expected shuffled, "
                "stratified folds: the graphs are sorted by class, and on such a fold a constant answer scores 100 %"
            )


@dataclass(frozen=True)
class Score:
    """What a protocol reports.

    Attributes:
        accuracy, std: mean and population standard deviation over folds.
        per_fold: of each fold, seeds averaged.
        rule: how epochs were chosen, in words.
    """

    accuracy: float
    std: float
    per_fold: tuple[float, ...]
    rule: str


def score_honest(accuracy: Tensor) -> Score:
    """Args: accuracy: (folds, seeds), each tested once, after its epoch was chosen by the hold-out."""
    return _score(accuracy.double().mean(1), "epoch and settings chosen by a hold-out of the training part")


def score_gin(curves: Tensor) -> Score:
    """Args: curves: (folds, seeds, epochs), test accuracies. The epoch whose mean over folds and seeds is greatest."""
    by_fold = curves.double().mean(1)
    best = int(by_fold.mean(0).argmax())
    return _score(by_fold[:, best], f"epoch {best + 1}, the best of the mean test curve")


def score_best_test_epoch(curves: Tensor) -> Score:
    """Args: curves: (folds, seeds, epochs), test accuracies. The greatest of each curve."""
    return _score(curves.double().amax(2).mean(1), "best test epoch of each fold, an optimistic rule")


def _score(per_fold: Tensor, rule: str) -> Score:
    return Score(float(per_fold.mean()), float(per_fold.std(correction=0)), tuple(per_fold.tolist()), rule)
