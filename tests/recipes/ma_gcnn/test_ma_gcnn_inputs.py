# SPDX-License-Identifier: Apache-2.0
"""Inputs of the motif classifier: grids, blocks, orbit statistics, histograms, and the networks for them."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("pytorch_lightning")

import innerloop.recipes.ma_gcnn.tasks as tasks
import innerloop.recipes.ma_gcnn.training as training
from innerloop.data.tu import GraphDataset, load_mutag, read_tu
from innerloop.recipes.ma_gcnn import VARIANTS, Problem, make_config, make_problem, stratified_folds
from innerloop.recipes.ma_gcnn.blocks import number_blocks
from innerloop.recipes.ma_gcnn.tasks import histogram, orbit_statistics
from innerloop.recipes.ma_gcnn.training import Run, accuracy, train
from recipes.ma_gcnn.ma_gcnn_cases import SMALL, write_toy
from tolerances import assert_close


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
