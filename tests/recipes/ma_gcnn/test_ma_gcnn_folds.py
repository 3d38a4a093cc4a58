# SPDX-License-Identifier: Apache-2.0
"""Folds, hold-outs and fold files of the motif classifier, and the scores of its protocols."""

import json

import pytest
import torch

pytest.importorskip("pytorch_lightning")

from innerloop.data.tu import load_mutag
from innerloop.recipes.ma_gcnn import read_folds, split_holdout, stratified_folds
from innerloop.recipes.ma_gcnn.splits import check_folds, score_best_test_epoch, score_gin, score_honest

# --- folds ---


@pytest.mark.parametrize("sizes", [(63, 125), (20, 21, 9), (5, 95)])
def test_folds_are_stratified_and_hold_every_graph_once(sizes):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    folds = stratified_folds(labels, 10, seed=3)
    assert torch.cat(folds).sort().values.tolist() == list(range(len(labels)))
    for label, size in enumerate(sizes):
        counts = {int((labels[fold] == label).sum()) for fold in folds}
        assert counts <= {size // 10, -(-size // 10)}
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    assert all(torch.equal(a, b) for a, b in zip(folds, stratified_folds(labels, 10, seed=3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(folds, stratified_folds(labels, 10, seed=4), strict=False))
    with pytest.raises(ValueError, match="num_folds is 1, expected 2 to"):
        stratified_folds(labels, 1)


def test_holdout_is_a_tenth_of_each_class():
    labels = torch.arange(2).repeat_interleave(torch.tensor([63, 125]))
    items = torch.cat(stratified_folds(labels, 10)[1:]).sort().values
    rest, held = split_holdout(items, labels, 0.1, seed=1)
    assert torch.equal(torch.cat([rest, held]).sort().values, items)
    assert labels[held].bincount().tolist() in ([6, 11], [5, 12], [6, 12])
    assert not torch.equal(held, split_holdout(items, labels, 0.1, seed=2)[1])
    with pytest.raises(ValueError, match=r"fraction is 0\.7"):
        split_holdout(items, labels, 0.7)
    with pytest.raises(ValueError, match="items has 9 graphs, expected at least 10"):
        split_holdout(items[:9], labels)


@pytest.mark.parametrize(("fraction", "held"), [(0.3, 57), (0.15, 29), (0.5, 94), (0.45, 85), (1 / 3, 63)])
def test_holdout_is_the_share_that_was_asked_for(fraction, held):
    labels = torch.arange(2).repeat_interleave(torch.tensor([63, 125]))
    rest, part = split_holdout(torch.arange(188), labels, fraction)
    assert (len(part), len(rest)) == (held, 188 - held)
    assert torch.cat([rest, part]).sort().values.tolist() == list(range(188))
    counts = labels[part].bincount()
    assert (counts - fraction * torch.tensor([63, 125])).abs().max() <= 1


def test_fixed_folds(tmp_path):
    labels = torch.tensor([0, 1] * 10)
    path = tmp_path / "folds.json"
    path.write_text(json.dumps({"test": [[3, 2], [4, 5]]}))
    assert [fold.tolist() for fold in read_folds(path, labels)] == [[2, 3], [4, 5]]
    for text in ("{", "{}", '{"test": 3}', '{"test": [["a"]]}', '{"test": [[[1]]]}', "[]"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"folds\.json: expected \{\"test\""):
            read_folds(path, labels)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json: no such file"):
        read_folds(tmp_path / "nowhere.json", labels)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([[0, 1]], "1 folds, expected at least 2"),
        ([[0, 1], []], "fold 1 is empty"),
        ([[0, 1], [2, 20]], "fold 1 has graphs from 2 to 20, expected 0 to 19"),
        ([[0, 1], [-1, 2]], "fold 1 has graphs from -1 to 2, expected 0 to 19"),
        ([[0, 1], [1, 2]], "graph 1 is tested 2 times, expected at most once"),
    ],
)
def test_folds_that_are_wrong(folds, message):
    with pytest.raises(ValueError, match=message):
        check_folds([torch.tensor(fold, dtype=torch.int64) for fold in folds], torch.tensor([0, 1] * 10))


def test_contiguous_folds_of_a_sorted_set_are_refused(tmp_path):
    labels = load_mutag().labels
    path = tmp_path / "folds.json"
    path.write_text(json.dumps({"test": [list(range(18 * i, 18 * i + 18)) for i in range(10)]}))
    with pytest.raises(ValueError, match="hold a single class each, expected shuffled, stratified folds: the graphs"):
        read_folds(path, labels)


def test_real_fold_files(shared_data):
    path = shared_data / "graphs" / "tu" / "folds" / "MUTAG.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    folds = read_folds(path, load_mutag().labels)
    assert sum(map(len, folds)) == 180


# --- protocols ---


def test_scores():
    curves = torch.tensor([[[0.5, 0.9, 0.6], [0.7, 0.9, 0.6]], [[0.8, 0.3, 0.6], [0.6, 0.5, 0.8]]])
    best = score_best_test_epoch(curves)
    assert best.per_fold == pytest.approx((0.9, 0.8))
    assert (best.accuracy, best.std) == pytest.approx((0.85, 0.05))
    curves[1, 1, 2] = 1
    gin = score_gin(curves)
    assert gin.per_fold == pytest.approx((0.6, 0.8))
    assert "epoch 3" in gin.rule
    honest = score_honest(torch.tensor([[0.5, 0.7], [0.9, 0.9]]))
    assert honest.per_fold == pytest.approx((0.6, 0.9))
    assert (honest.accuracy, honest.std) == pytest.approx((0.75, 0.15))
