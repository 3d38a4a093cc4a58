# SPDX-License-Identifier: Apache-2.0
"""The motif classifier: settings, folds and protocols, inputs, one run, resume, evaluation, comparison."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")

import innerloop.recipes.ma_gcnn.experiment as experiment
import innerloop.recipes.ma_gcnn.tasks as tasks
import innerloop.recipes.ma_gcnn.training as training
from innerloop.cli import main
from innerloop.data.tu import GraphDataset, load_mutag, read_tu
from innerloop.recipes._task import Interrupted
from innerloop.recipes.ma_gcnn import (
    PROTOCOLS,
    PUBLISHED,
    VARIANTS,
    Problem,
    compare,
    evaluate,
    fit,
    fit_on,
    make_config,
    make_problem,
    read_folds,
    split_holdout,
    stratified_folds,
)
from innerloop.recipes.ma_gcnn.blocks import number_blocks
from innerloop.recipes.ma_gcnn.splits import check_folds, score_best_test_epoch, score_gin, score_honest
from innerloop.recipes.ma_gcnn.tasks import histogram, orbit_statistics
from innerloop.recipes.ma_gcnn.training import Run, accuracy, train
from tolerances import assert_close

QUIET = {"progress": False}
SMALL = {"grid_nodes": 4, "slots": 3, "epochs": 3, "batch_size": 8, "num_folds": 3, "seeds": [0, 1], "lrs": [0.01, 0.1]}


def write_toy(path: Path, count: int = 40) -> Path:
    """Even graphs are cycles, odd ones stars; tags tell them apart a little; sorted by class, as TU files are."""
    graphs = []
    for i in range(count):
        label, n = i * 2 // count, 4 + i % 3
        edges = [(0, j) for j in range(1, n)] if label else [(j, (j + 1) % n) for j in range(n)]
        near = [[b if a == v else a for a, b in edges if v in (a, b)] for v in range(n)]
        rows = [f"{(v + i) % 2 + label * (i % 4 == 0)} {len(near[v])} {' '.join(map(str, near[v]))}" for v in range(n)]
        graphs.append("\n".join([f"{n} {label}", *rows]))
    path.write_text(f"{count}\n" + "\n".join(graphs) + "\n")
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data") / "TOY.txt")


@pytest.fixture(scope="module")
def dataset(toy) -> GraphDataset:
    return read_tu(toy)


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """{protocol: (folder, result)} of structure-free runs."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"honest": SMALL, "gin": SMALL | {"lrs": [0.1]}, "best-test-epoch": SMALL | {"lrs": [0.1]}}
    return {
        protocol: (
            folder / protocol,
            fit(data=toy, variant="structure-free", protocol=protocol, output=folder / protocol, **own, **QUIET),
        )
        for protocol, own in settings.items()
    }


# --- settings ---


def test_settings_of_the_paper():
    config = make_config("ma-gcnn", "best-test-epoch")
    assert (config.optimizer, config.momentum, config.lrs, config.batch_size) == ("sgd", 0.9, (1e-3,), 18)
    assert (config.epochs, config.replacement, config.penalty, config.slots) == (1000, True, 0.01, 15)
    assert make_config("m-gcnn").penalty == 0
    ours = {protocol: make_config("ma-gcnn+orbits", protocol) for protocol in PROTOCOLS}
    assert {(config.optimizer, config.lrs) for config in ours.values()} == {("adam", (3e-3,))}
    honest = make_config()
    assert (honest.protocol, honest.num_folds, honest.holdout, honest.seeds) == ("honest", 10, 0.1, (0, 1, 2))
    assert honest.lrs == (1e-3, 1e-2)
    assert make_config(epochs=5, lrs=None).epochs == 5
    assert PUBLISHED["MUTAG"]["MA-GCNN (recalled and not checked, test epoch chosen on the test folds)"] == {
        "accuracy %": 93.89,
        "std": 5.24,
    }
    assert {source for source in PUBLISHED["MUTAG"] if "MA-GCNN" not in source} == {
        "PATCHY-SAN (recalled, protocol not checked)",
        "DGCNN (recalled, protocol not checked)",
        "GIN-0 (recalled, gin protocol)",
    }
    assert PUBLISHED["COLLAB"]["GIN (honest, README of diningphil/gnn-comparison)"]["accuracy %"] == 75.6
    assert not any("honest" in source for source in PUBLISHED["MUTAG"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "gin"}, r"variant is 'gin', expected one of m-gcnn, ma-gcnn, ma-gcnn\+orbits, structure-free"),
        ({"protocol": "unshuffled"}, "protocol is 'unshuffled', expected one of honest, gin, best-test-epoch"),
        ({"tie": "random"}, "tie is 'random', expected one of degree"),
        ({"content": "x"}, "content is 'x', expected one of value, onehot"),
        ({"orbit_size": 6}, "orbit_size is 6, expected one of 3, 4, 5"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"num_folds": 1}, "num_folds is 1, expected at least 2"),
        ({"holdout": 0.6}, "holdout is 0.6, expected above 0 and at most 0.5"),
        ({"lrs": []}, r"lrs is \[\], expected at least one"),
        ({"lrs": [float("nan")]}, r"lrs is \[nan\], expected at least one"),
        ({"lrs": [0.1, 0.1]}, r"lrs is \[0.1, 0.1\], expected at least one finite number above 0, and none twice"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\], expected at least one int, none negative and none twice"),
        ({"momentum": -1.0}, "momentum is -1.0, expected a finite number"),
        ({"protocol": "gin", "lrs": [0.1, 0.2]}, r"lrs is \[0.1, 0.2\], expected one with protocol gin"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(**settings)


def test_unknown_setting():
    with pytest.raises(TypeError, match=r"make_config\(\) got unknown settings \['rate'\]"):
        make_config(rate=1)


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


# --- inputs ---


@pytest.fixture
def as_grids(monkeypatch):
    """Blocks are not numbered."""
    monkeypatch.setattr(tasks, "number_blocks", lambda x, most: None)


def test_grid_of_mutag(as_grids):
    x, statistics = make_problem(load_mutag(), make_config("ma-gcnn+orbits")).inputs
    assert x.shape == (188, 1, 45, 54)
    assert float((x != 0).float().mean()) == pytest.approx(0.2357, abs=5e-5)
    assert statistics.shape == (188, 3 * 15 + 2 + (2 + 15) * 7)
    assert make_problem(load_mutag(), make_config("ma-gcnn+orbits", orbit_size=3)).inputs[1].shape == (188, 56)


@pytest.mark.parametrize("tagged", [True, False])
def test_statistics_of_orbits(dataset, tagged):
    data = dataset if tagged else replace(dataset, node_tags=None, tags=())
    counts = torch.randint(5, (data.num_nodes, 4), generator=torch.Generator().manual_seed(0))
    rows = []
    for graph, n in enumerate(data.sizes.tolist()):
        inside = data.batch == graph
        c = counts[inside].double().log1p()
        edges = int(inside[data.edge_index[0]].sum()) // 2
        row = [c.mean(0), c.std(0, correction=0), c.amax(0), torch.tensor([n, edges]).double().log1p()]
        if tagged:
            of_label = [data.node_tags[inside] == tag for tag in range(len(data.tags))]
            having = torch.stack([own.sum() for own in of_label]).double()
            row += [having / n, having.log1p(), *(c[own].mean(0).nan_to_num() for own in of_label)]
        rows.append(torch.cat(row))
    assert_close(orbit_statistics(data, counts), torch.stack(rows).float())
    assert not tagged or (having == 0).any()


def test_statistics_of_empty_graphs():
    nothing = GraphDataset(
        "X", torch.empty(2, 0, dtype=torch.int64), torch.tensor([0, 0, 1]), torch.tensor([0, 1]), (0, 1)
    )
    statistics = orbit_statistics(nothing, torch.zeros(1, 15, dtype=torch.int64))
    assert statistics.nonzero().tolist() == [[1, 45]]  # one node


def test_only_training_graphs_are_normalised_by(dataset):
    """A feature that is not a number in a test or hold-out graph reaches no parameter and no running statistic."""
    config = make_config("ma-gcnn+orbits", **SMALL | {"epochs": 1})
    problem = make_problem(dataset, config)
    test = stratified_folds(problem.labels, 3)[0]
    run = Run(0, 0.1, 0)
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_one_epoch", lambda p, network, o, items, *rest: trained.append(items) or 0.0)
        train(problem, test, config, run)
    statistics = torch.full_like(problem.inputs[1], torch.nan)
    statistics[trained[0]] = problem.inputs[1][trained[0]]
    outcome = train(replace(problem, inputs=(problem.inputs[0], statistics)), test, config, run)
    assert all(value.isfinite().all() for value in outcome.model.values())
    assert outcome.model["graph_head.norm.running_mean"].any()
    ordered = problem.inputs[1][trained[0]].sort(0).values
    edges = outcome.model["graph_head.bins.edges"]
    assert torch.equal(edges[:, [0, -1]], ordered[[0, -1]].T)
    assert edges.shape == (problem.inputs[1].shape[1], 16 + 1)


def test_every_epoch_trains_with_dropout_and_statistics(dataset):
    config = make_config("ma-gcnn+orbits", "gin", **SMALL | {"lrs": [0.1]})
    problem = make_problem(dataset, config)
    outcome = train(problem, stratified_folds(problem.labels, 3)[0], config, Run(0, 0.1, 0))
    assert outcome.model["graph_head.norm.num_batches_tracked"] == 3 * 4  # epochs, steps


def test_accuracy_is_without_dropout(dataset):
    config = make_config("ma-gcnn+orbits", **SMALL)
    problem = make_problem(dataset, config)
    network = problem.network(config, torch.arange(40))
    items = torch.arange(40)
    assert accuracy(problem, network, items) == accuracy(problem, network, items)
    alone = sum(accuracy(problem, network, item)[1] for item in items.split(1)) / 40
    assert alone == pytest.approx(accuracy(problem, network, items)[1], rel=1e-5)


@pytest.mark.parametrize("content", ["value", "onehot"])
def test_numbered_blocks_are_the_grid(content):
    x = motif_grid_of(load_mutag(), content)
    blocks, code = number_blocks(x, 1000)
    count = blocks.shape[3] // 3
    assert code.shape == (188, 18, 15)
    assert int(code.max()) == count - 1
    assert count < 100
    tiles = blocks[0].view(-1, 3, count, 3)[:, :, code]  # (F, 3, B, N, S, 3)
    assert torch.equal(tiles.permute(2, 0, 4, 1, 3, 5).reshape(x.shape), x)
    assert number_blocks(x, count - 1) is None


def in_double(problem: Problem) -> Problem:
    inputs = tuple(x.double() if x.is_floating_point() else x for x in problem.inputs)
    return replace(problem, inputs=inputs, blocks=None if problem.blocks is None else problem.blocks.double())


def motif_grid_of(data: GraphDataset, content: str) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "number_blocks", lambda x, most: None)
        return make_problem(data, make_config(content=content)).inputs[0]


@pytest.mark.parametrize("variant", ["m-gcnn", "ma-gcnn", "ma-gcnn+orbits"])
def test_numbered_blocks_make_no_difference(dataset, variant, monkeypatch):
    config = make_config(variant, grid_nodes=4, slots=3)
    numbered = make_problem(dataset, config)
    monkeypatch.setattr(tasks, "number_blocks", lambda x, most: None)
    plain = make_problem(dataset, config)
    assert (numbered.blocks is None, plain.blocks is None) == (False, True)
    torch.manual_seed(0)
    network, items = plain.network(config, torch.arange(40)).double().eval(), torch.arange(40)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    gradients = []
    for problem in (in_double(plain), in_double(numbered)):
        network.zero_grad()
        logits = problem.logits(network, items)
        torch.nn.functional.cross_entropy(logits, problem.labels).backward()
        gradients.append([logits.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b)


def test_histogram(dataset):
    counts = histogram(dataset)
    assert counts.sum(1).tolist() == dataset.sizes.tolist()
    assert counts[5].tolist() == dataset.node_tags[dataset.batch == 5].bincount(minlength=len(dataset.tags)).tolist()
    untagged = GraphDataset("X", dataset.edge_index, dataset.ptr, dataset.labels, dataset.classes)
    degrees = histogram(untagged)
    assert degrees.shape == (40, 128)
    assert degrees[0, 2] == 4
    assert make_problem(untagged, make_config(content="onehot", grid_nodes=4)).grid == (129, 15, 4)
    assert make_problem(untagged, make_config()).grid == (1, 15, 5)  # the mean size, 4.975, rounded up
    assert make_problem(replace(untagged, name="IMDB-MULTI"), make_config()).grid == (1, 15, 13)


def test_sets_of_one_name_are_told_apart(dataset, tmp_path):
    config = make_config("structure-free")
    other = read_tu(write_toy(tmp_path / "TOY.txt", 42))
    assert make_problem(dataset, config).digest == make_problem(dataset, make_config()).digest
    assert make_problem(dataset, config).digest != make_problem(other, config).digest
    one = GraphDataset("X", dataset.edge_index, dataset.ptr, torch.zeros(40, dtype=torch.int64), (0,))
    with pytest.raises(ValueError, match="X: 1 classes, expected graphs of at least 2"):
        make_problem(one, config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_networks(dataset, variant):
    config = make_config(variant, grid_nodes=4, slots=3)
    problem = make_problem(dataset, config)
    assert problem.logits(problem.network(config, torch.arange(9)), torch.arange(5)).shape == (5, 2)


# --- one run ---


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


# --- all runs ---


@pytest.mark.parametrize("protocol", ["honest", "gin", "best-test-epoch"])
def test_metrics(finished, protocol, dataset):
    folder, result = finished[protocol]
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(result))
    assert (result["dataset"], result["protocol"], result["untested"]) == ("TOY", protocol, 0)
    assert sorted(graph for fold in result["folds"] for graph in fold) == list(range(40))
    assert len(result["per_fold"]) == 3
    assert result["test"]["accuracy %"] == pytest.approx(100 * sum(result["per_fold"]) / 3)
    assert result["majority"] == 0.5
    assert result["config"]["variant"] == "structure-free"
    # honest: two learning rates with the first seed, then the better one with the second.
    assert len(list((folder / "runs").glob("*.pt"))) == (9 if protocol == "honest" else 6)


def test_learning_rate_is_chosen_by_the_holdout(finished):
    folder, result = finished["honest"]
    for fold, chosen in enumerate(result["chosen"]):
        ranks = {}
        for lr in (0.01, 0.1):
            outcome = torch.load(folder / "runs" / f"fold{fold}-lr{lr:g}-seed0.pt", weights_only=True)["outcome"]
            ranks[lr] = outcome["holdout_accuracy"], -outcome["holdout_loss"]
        assert chosen["lr"] == max(ranks, key=ranks.get)


def test_only_the_chosen_runs_are_tested(dataset, tmp_path, monkeypatch, capsys):
    tested = []

    def once(problem, network, items):
        tested.append(tuple(items.tolist()))
        return accuracy(problem, network, items)

    monkeypatch.setattr(experiment, "accuracy", once)
    folds = stratified_folds(dataset.labels, 3)
    fit_on(dataset, make_config("structure-free", **SMALL), folds, tmp_path, **QUIET)
    assert tested == [tuple(fold.tolist()) for fold in folds for _ in range(2)]  # two seeds
    for path in (tmp_path / "runs").glob("*.pt"):
        assert torch.load(path, weights_only=True)["outcome"]["test_accuracy"] is None
    out = capsys.readouterr().out
    assert out.count("hold-out accuracy") == 9
    assert "test accuracy" not in out


def test_learning_rates_have_a_file_each():
    assert Run(0, 0.1, 0).name == "fold0-lr0.1-seed0"
    assert Run(0, 0.1, 0).name != Run(0, 0.1000000001, 0).name
    assert Run(0, 1, 0).name == Run(0, 1.0, 0).name


def test_training_time_is_that_of_all_runs(finished):
    folder, result = finished["honest"]
    seconds = [torch.load(p, weights_only=True)["outcome"]["seconds"] for p in (folder / "runs").glob("*.pt")]
    assert min(seconds) > 0
    assert result["training_seconds"] == pytest.approx(sum(seconds))


def test_printed_result_names_the_protocol(toy, tmp_path, capsys):
    settings = SMALL | {"lrs": [0.1], "epochs": 1}
    fit(data=toy, variant="structure-free", protocol="best-test-epoch", output=tmp_path, **settings, **QUIET)
    out = capsys.readouterr().out
    assert "TOY structure-free, protocol best-test-epoch, measured" in out
    assert "best-test-epoch: best test epoch of each fold, an optimistic rule" in out
    assert out.count("test accuracy") == 6  # a line for each run


def test_fixed_folds_and_graphs_that_are_never_tested(toy, tmp_path, capsys):
    path = tmp_path / "folds.json"
    path.write_text(json.dumps({"test": [[0, 1, 38, 39], [2, 3, 36, 37]]}))
    result = fit(data=toy, folds=path, variant="structure-free", output=tmp_path / "run", **SMALL, **QUIET)
    assert (result["untested"], len(result["per_fold"])) == (32, 2)
    assert "32 of 40 graphs are in no test fold" in capsys.readouterr().out
    path.write_text(json.dumps({"test": [[0, 1], [2, 39]]}))
    with pytest.raises(ValueError, match="folds 0 hold a single class each"):
        fit(data=toy, folds=path, variant="structure-free", output=tmp_path / "other", **SMALL, **QUIET)


def test_resume(toy, finished, tmp_path, monkeypatch):
    """Stopped in its fourth run, the experiment goes on with the fourth and ends as one that was never stopped."""
    _, wanted = finished["honest"]
    arguments = {"data": toy, "variant": "structure-free", "output": tmp_path, **SMALL, **QUIET}
    started = []

    def train_until(problem, test, config, run, *rest):
        started.append(run)
        if len(started) == 4:
            raise KeyboardInterrupt
        return train(problem, test, config, run, *rest)

    monkeypatch.setattr(experiment, "train", train_until)
    with pytest.raises(Interrupted, match="interrupted; the run continues from"):
        fit(**arguments)
    assert not (tmp_path / "metrics.json").exists()
    result = fit(**arguments, resume="auto")
    assert len(started) == 4 + 6
    assert started[4] == started[3]
    for name in ("test", "per_fold", "chosen", "config", "data_digest"):
        assert result[name] == wanted[name]
    started.clear()
    fit(**arguments, resume="auto")
    assert started == []
    with pytest.raises(ValueError, match=r"fold0-lr0\.01-seed0\.pt: cannot resume with other settings: epochs"):
        fit(**arguments | {"epochs": 2}, resume="auto")
    with pytest.raises(ValueError, match="cannot resume with other settings: fold_seed was 0 and is 1; other folds"):
        fit(**arguments, fold_seed=1, resume="auto")
    with pytest.raises(ValueError, match="cannot resume with other settings: other data; other folds"):
        fit(**arguments | {"data": write_toy(tmp_path / "TOY.txt", 44)}, resume="auto")
    with pytest.raises(ValueError, match=r"resume is 'last\.ckpt', expected auto"):
        fit(**arguments, resume="last.ckpt")
    with pytest.raises(ValueError, match=r"lrs was .*name another --output"):  # its runs would stand beside the others
        fit(**arguments | {"lrs": [1.0]}, resume="auto")
    assert started == []


@pytest.mark.parametrize("left", ["metrics.json", "runs/fold0-lr0.01-seed0.pt"])
def test_fit_does_not_overwrite(toy, tmp_path, capsys, left):
    path = tmp_path / left
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    assert main(["ma-gcnn", "fit", "--data", str(toy), "--output", str(tmp_path)]) == 2
    expected = f"holds the {left} of a run, expected another output, or --resume auto to go on\n"
    assert capsys.readouterr().err == f"innerloop: {tmp_path}: {expected}"
    assert path.read_text() == "precious"


@pytest.mark.parametrize("protocol", ["honest", "best-test-epoch"])
def test_evaluate_measures_what_fit_kept(finished, protocol, tmp_path, capsys):
    folder, result = finished[protocol]
    assert evaluate(folder) == pytest.approx(result["test"])
    assert f"protocol {protocol}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was trained on another set"):
        evaluate(folder, data=write_toy(tmp_path / "TOY.txt", 42))


def test_evaluate_errors(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a finished innerloop ma-gcnn fit"):
        evaluate(tmp_path)
    with pytest.raises(ValueError, match="of protocol gin, expected another"):
        evaluate(finished["gin"][0])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("config", {"epochs": 9}, "epochs was 9 and is 3"),
        ("data_digest", "0", "other data"),
        ("folds_digest", "0", "other folds"),
    ],
)
def test_evaluate_refuses_runs_of_another_experiment(finished, tmp_path, name, value, message):
    folder = shutil.copytree(finished["honest"][0], tmp_path / "run")
    (path, *_) = (p for p in folder.glob("runs/*.pt") if "seed1" in p.name)  # of seed 1 only the chosen ones are there
    saved = torch.load(path, weights_only=True)
    saved[name] = saved[name] | value if isinstance(value, dict) else value
    torch.save(saved, path)
    with pytest.raises(ValueError, match=rf"{path.name}: not a run of this experiment: {message}"):
        evaluate(folder)


def test_compare(toy, tmp_path, capsys):
    variants = ["structure-free", "ma-gcnn"]
    settings = {"epochs": 1, "num_folds": 3, "seeds": [0], "lrs": [0.1], "batch_size": 8}
    result = compare(variants=variants, data=toy, output=tmp_path, **settings, **QUIET)
    assert list(result["variants"]) == variants
    assert result["variants"]["structure-free"]["difference"] is None
    own, base = (result["variants"][name]["per_fold"] for name in ("ma-gcnn", "structure-free"))
    mean = sum(a - b for a, b in zip(own, base, strict=True)) / 3
    assert result["variants"]["ma-gcnn"]["difference"]["mean"] == pytest.approx(mean)
    assert json.loads((tmp_path / "compare.json").read_text()) == json.loads(json.dumps(result))
    out = capsys.readouterr().out
    assert "TOY, protocol honest" in out
    assert "| ma-gcnn, measured | " in out
    again = compare(variants=variants, data=toy, output=tmp_path, **settings, **QUIET)
    assert again == result
    assert "hold-out accuracy" not in capsys.readouterr().out  # nothing was trained again
    with pytest.raises(ValueError, match="batch_size was 8 and is 9; name another --output"):
        compare(variants=variants, data=toy, output=tmp_path, **settings | {"batch_size": 9}, **QUIET)
    with pytest.raises(ValueError, match="expected at least one, and none twice"):
        compare(variants=["ma-gcnn", "ma-gcnn"], data=toy, output=tmp_path)


# --- the command line, and processes ---


def test_command_line(toy, tmp_path, capsys):
    folder = tmp_path / "run"
    options = ["--data", str(toy), "--variant", "structure-free", "--epochs", "1", "--num-folds", "3", "--lrs", "[0.1]"]
    assert main(["ma-gcnn", "fit", *options, "--seeds", "[0]", "--output", str(folder)]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "TOY structure-free, protocol honest, measured" in line)
    assert main(["ma-gcnn", "evaluate", str(folder)]) == 0
    assert row in capsys.readouterr().out
    assert main(["ma-gcnn", "fit", "--workers", "0"]) == 1
    assert capsys.readouterr().err == "innerloop: workers is 0, expected at least 1\n"


@pytest.mark.parametrize("device", ["foo", "cuda:x", "cuda:99", "meta", ""])
def test_devices_that_there_are_not(toy, tmp_path, capsys, device):
    for arguments in (["fit", "--data", str(toy)], ["compare", "--data", str(toy)], ["evaluate", str(tmp_path)]):
        assert main(["ma-gcnn", *arguments, "--device", device]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"innerloop: device is {device!r}, expected")
        assert error.count("\n") == 1


def test_folds_that_are_missing(toy, tmp_path, capsys):
    assert main(["ma-gcnn", "fit", "--data", str(toy), "--folds", str(tmp_path / "nofile.json")]) == 1
    assert capsys.readouterr().err == f"innerloop: {tmp_path / 'nofile.json'}: no such file\n"


def test_default_is_the_embedded_set(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    result = fit(variant="structure-free", epochs=1, seeds=[0], lrs=[0.01], **QUIET)
    assert (result["dataset"], result["graphs"], len(result["per_fold"])) == ("MUTAG", 188, 10)
    assert Path("runs/ma-gcnn/MUTAG-structure-free-honest/metrics.json").is_file()
    out = capsys.readouterr().out
    assert "published, MA-GCNN (recalled and not checked" in out
    assert "greatest class 66.5 %" in out


def test_progress_bar_is_for_terminals(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    config = make_config("structure-free", **SMALL | {"epochs": 1})
    fit_on(dataset, config, stratified_folds(dataset.labels, 3), tmp_path)
    shown = capsys.readouterr()
    assert "9/9" in shown.err
    assert shown.out == ""


@pytest.mark.slow
def test_workers_give_the_same_result(toy, finished, tmp_path):
    _, wanted = finished["honest"]
    result = fit(data=toy, variant="structure-free", output=tmp_path, workers=2, **SMALL, **QUIET)
    for name in ("test", "per_fold", "chosen"):
        assert result[name] == wanted[name]
