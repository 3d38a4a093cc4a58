# SPDX-License-Identifier: Apache-2.0
"""ogbl-biokg through the recipe: negatives of the true answer's type, ranks among the given negatives."""

import pytest
import torch

pytest.importorskip("pytorch_lightning")

from biokg import write_biokg
from innerloop.data import read_biokg, read_kg
from innerloop.graph import RelGraph
from innerloop.recipes._batches import TrainingBatches
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes.nbfnet import Config, evaluate, fit, module
from innerloop.recipes.nbfnet.datamodule import NBFNetData, QueryBatches
from innerloop.recipes.nbfnet.tasks import FactIndex

QUIET = {"accelerator": "cpu", "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_biokg(tmp_path_factory.mktemp("data") / "ogbl_biokg")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """Two steps by the preset: (output folder, result, negatives drawn, indices built)."""
    output = tmp_path_factory.mktemp("run")
    drawn, built = [], []

    class Watched(FactIndex):
        def __init__(self, *args):
            super().__init__(*args)
            built.append(self)

        def sample_negatives(self, source, relation, n, generator, **options):
            negative = super().sample_negatives(source, relation, n, generator, **options)
            drawn.append((options["answer"], negative))
            return negative

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FactIndex", Watched)
        small = {"epochs": 2, "limit": 1, "dim": 4, "num_layers": 2, "valid_triples": 5}
        result = fit(data=folder, output=output, **small, **QUIET)
    return output, result, drawn, built


def test_the_preset_is_taken(run):
    config = run[1]["config"]
    assert run[1]["dataset"] == "ogbl-biokg"
    assert (config["batch_size"], config["lr"], config["remove_one_hop"]) == (8, 2e-4, True)
    assert run[1]["published"]["official"]["hits@10"] == 0.946


def test_negatives_of_training_have_the_type_of_the_answer(run, folder):
    types = read_biokg(folder).train.types
    assert [negative.shape for _, negative in run[2]] == [(8, 32), (8, 32)]
    for answer, negative in run[2]:
        assert torch.equal(types[negative], types[answer][:, None].expand(8, 32))


def test_the_splits_share_one_graph_and_one_index(run):
    assert len(run[3]) == 1


def test_metrics_are_those_of_the_plain_protocol(run, folder):
    """Scores query by query; rank = mean of the ranks with ties for and against the answer."""
    output, result, *_ = run
    kg = read_biokg(folder)
    saved = load_checkpoint(output / "best.ckpt", "nbfnet")
    task = module.NBFNetTask(kg.relations, saved["hyper_parameters"]["config"]).eval()
    task.load_state_dict(saved["state_dict"])
    h, r, t = kg.train.facts.unbind(1)
    graph = RelGraph(torch.stack([h, t]), r, kg.train.num_entities, 3).with_inverse()
    ranks = []
    for (h, r, t), (tails, heads) in zip(kg.test.targets.tolist(), kg.test.negatives.tolist(), strict=True):
        for source, relation, answer, others in ((h, r, t, tails), (t, r + 3, h, heads)):
            with torch.no_grad():
                score = task(graph, torch.tensor([[source, relation, answer]]))[0].tolist()
            best = 1 + sum(score[v] > score[answer] for v in others)
            worst = 1 + sum(score[v] >= score[answer] for v in others)
            ranks.append((best + worst) / 2)
    expected = {"mr": sum(ranks) / 14, "mrr": sum(1 / r for r in ranks) / 14}
    expected |= {f"hits@{k}": sum(r <= k for r in ranks) / 14 for k in (1, 3, 10)}
    assert result["test"] == pytest.approx(expected)
    assert max(ranks) <= 7  # six negatives


def test_evaluate_reads_the_folder_of_the_checkpoint(run):
    output, result, *_ = run
    assert evaluate(output / "best.ckpt", **QUIET) == result["test"]
    five = evaluate(output / "best.ckpt", split="valid", **QUIET)
    history = {row["epoch"]: row for row in result["epochs"]}[result["chosen_epoch"]]
    assert {f"valid_{name}": value for name, value in five.items()}.items() <= history.items()
    assert evaluate(output / "best.ckpt", split="valid", valid_triples=0, **QUIET) != five


def test_validation_triples_keep_their_negatives(folder):
    kg = read_biokg(folder)
    part = NBFNetData(kg, Config(valid_triples=4, seed=3)).kg.valid
    assert part.targets.shape == (4, 3)
    rows = [kg.valid.targets.tolist().index(row) for row in part.targets.tolist()]
    assert rows == sorted(set(rows)) != [0, 1, 2, 3]
    assert torch.equal(part.negatives, kg.valid.negatives[rows])
    assert torch.equal(NBFNetData(kg, Config(valid_triples=4, seed=7)).kg.valid.targets, part.targets)
    for config in (Config(), Config(valid_triples=100)):
        assert NBFNetData(kg, config).kg is kg


def test_validation_triples_of_other_data(tiny):
    part = NBFNetData(read_kg(tiny), Config(valid_triples=2)).kg.valid
    assert len(part.targets) == 2
    assert part.negatives is None


@pytest.mark.parametrize("world_size", [1, 3])
def test_query_batches_hold_the_negatives_of_their_queries(folder, world_size):
    valid = read_biokg(folder).valid
    seen = {}
    for rank in range(world_size):
        for batch in QueryBatches(valid.targets, 3, 4, rank, world_size, valid.negatives):
            assert batch["negative"].dtype == torch.int64
            for position, negative in zip(batch["position"].tolist(), batch["negative"].tolist(), strict=True):
                seen[position] = negative
    assert sorted(seen) == list(range(18))
    for position, negative in seen.items():
        assert negative == valid.negatives[position // 2, position % 2].tolist()


@pytest.mark.parametrize("world_size", [1, 2])
def test_limited_epochs_take_the_first_batches_of_a_new_order(world_size):
    triples = torch.arange(3 * 50).view(50, 3)

    def batches(epoch, limit):
        ranks = [TrainingBatches(triples, 4, 7, lambda: epoch, k, world_size, limit) for k in range(world_size)]
        assert {len(list(rank)) for rank in ranks} == {len(ranks[0])}
        given = sorted((b for rank in ranks for b in rank), key=lambda b: b["index"])
        return [b["items"].tolist() for b in given]

    first = batches(0, 3)
    assert len(first) == 3 * world_size
    assert first == batches(0, None)[: len(first)]
    assert sorted(first) != sorted(batches(1, 3))
