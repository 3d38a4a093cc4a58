# SPDX-License-Identifier: Apache-2.0
"""One run of the motif classifier: seeds, what it sees, batches, the chosen epoch."""

import pytest
import torch

pytest.importorskip("pytorch_lightning")

import innerloop.recipes.ma_gcnn.training as training
from innerloop.data.tu import GraphDataset
from innerloop.recipes.ma_gcnn import VARIANTS, Problem, make_config, make_problem, stratified_folds
from innerloop.recipes.ma_gcnn.training import Run, accuracy, train
from recipes.ma_gcnn.ma_gcnn_cases import SMALL


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_is_a_function_of_its_seed(dataset, variant):
    config = make_config(variant, **SMALL | {"epochs": 2})
    problem = make_problem(dataset, config)
    test = stratified_folds(problem.labels, 3)[0]
    outcomes = []
    for seed in (0, 0, 1):
        torch.rand(1)  # torch's generator is in another state before each run
        outcomes.append(train(problem, test, config, Run(0, 0.1, seed)))
    first, again, other = outcomes
    assert first.epochs == again.epochs
    assert all(torch.equal(first.model[name], again.model[name]) for name in first.model)
    assert first.epochs != other.epochs
    assert len(first.epochs) == 2
    assert all(map(torch.isfinite, map(torch.tensor, (e["loss"] for e in first.epochs))))


@pytest.mark.parametrize("protocol", ["honest", "gin", "best-test-epoch"])
def test_what_a_run_sees(dataset, monkeypatch, protocol):
    """Training, hold-out and test graphs do not meet, and a run of the honest protocol does not test."""
    config = make_config("structure-free", protocol, **SMALL | {"lrs": [0.1]})
    problem = make_problem(dataset, config)
    test = stratified_folds(problem.labels, 3)[0]
    trained, measured = [], []
    one_epoch = training._one_epoch

    def spy(problem, network, optimizer, items, *rest):
        trained.append(set(items.tolist()))
        return one_epoch(problem, network, optimizer, items, *rest)

    def measure(problem, network, items):
        measured.append(set(items.tolist()))
        return accuracy(problem, network, items)

    monkeypatch.setattr(training, "_one_epoch", spy)
    monkeypatch.setattr(training, "accuracy", measure)
    outcome = train(problem, test, config, Run(0, 0.1, 0))
    everything, tested = set(range(40)), set(test.tolist())
    if protocol == "honest":
        assert outcome.test_accuracy is None
        (holdout,) = {frozenset(items) for items in measured}
        assert trained == [everything - tested - holdout] * 3
        assert not holdout & tested
        ranks = [(e["holdout_accuracy"], -e["holdout_loss"]) for e in outcome.epochs]
        assert outcome.chosen_epoch == 1 + ranks.index(max(ranks))
    else:
        assert trained == [everything - tested] * 3
        assert measured == [tested] * 3
        curve = [e["test_accuracy"] for e in outcome.epochs]
        assert outcome.chosen_epoch == (3 if protocol == "gin" else 1 + curve.index(max(curve)))
        assert outcome.test_accuracy == curve[outcome.chosen_epoch - 1]


def test_a_network_learns(dataset):
    config = make_config("structure-free", "gin", epochs=60, batch_size=8)
    untagged = GraphDataset("X", dataset.edge_index, dataset.ptr, dataset.labels, dataset.classes)
    problem = make_problem(untagged, config)
    outcome = train(problem, stratified_folds(problem.labels, 4)[0], config, Run(0, 0.01, 0))
    assert outcome.test_accuracy == 1  # stars and cycles differ in their degrees
    assert outcome.epochs[-1]["loss"] < outcome.epochs[0]["loss"] / 2


def test_batches_with_and_without_replacement(dataset):
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x):
            seen.append(x[:, 0].tolist())
            return x[:, :1] * 0 + self.weight

    items = torch.arange(3, 23)
    problem = Problem("X", "", (torch.arange(40.0)[:, None],), dataset.labels, 2)
    for replacement in (False, True):
        config = make_config("structure-free", "gin", batch_size=8, replacement=replacement)
        network = Spy()
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        seen.clear()
        training._one_epoch(problem, network, optimizer, items, config, Run(0, 0.1, 0), 0)
        drawn = [x for batch in seen for x in batch]
        assert set(drawn) <= set(range(3, 23))
        assert [len(batch) for batch in seen] == ([8, 8, 8] if replacement else [8, 8, 4])
        assert (len(set(drawn)) == 20) != replacement


def test_a_diverged_network_is_never_chosen(dataset):
    assert training._rank(0.5, float("nan")) < training._rank(0.5, 100.0) < training._rank(0.5, 0.1)
    assert training._rank(0.5, 0.1) < training._rank(0.6, 100.0)
