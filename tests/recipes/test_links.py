# SPDX-License-Identifier: Apache-2.0
"""NBFNet on undirected graphs: what a step sees, what is reported, and resuming."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")
pytest.importorskip("torchmetrics")

from innerloop.cli import main
from innerloop.data import LinkGraph, read_links
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes._task import Interrupted
from innerloop.recipes.nbfnet import evaluate, make_link_config, train_links
from innerloop.recipes.nbfnet.datamodule import LinkData, SourceBatches
from innerloop.recipes.nbfnet.module import LinkTask
from tolerances import assert_close

SMALL = make_link_config("", epochs=3, batch_size=24, dim=8, num_layers=2, eval_batch_size=16)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Five communities of 12 nodes: most pairs inside one are edges, and a few between two."""
    rng = random.Random(0)
    pairs = [(u, v) for u in range(60) for v in range(u)]
    pairs = [(u, v) for u, v in pairs if rng.random() < (0.7 if u % 5 == v % 5 else 0.005)]
    rng.shuffle(pairs)
    path = tmp_path_factory.mktemp("links") / "small.cites"
    path.write_text("".join(f"{u}\t{v}\n" for u, v in pairs))
    return path


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """A finished run: (output folder, result)."""
    output = tmp_path_factory.mktemp("run")
    return output, train(file, output)


def train(file: Path, output: Path, config=SMALL, **options):
    return train_links(read_links(file), config, output, progress=False, **options)


def saved_task(checkpoint: Path) -> LinkTask:
    saved = load_checkpoint(checkpoint, "nbfnet", "links")
    hparams = {name: value for name, value in saved["hyper_parameters"].items() if name != "command"}
    task = LinkTask(**hparams).eval()
    task.load_state_dict(saved["state_dict"])
    return task


def plain_metrics(task: LinkTask, data: LinkData, split: str) -> dict[str, float]:
    """Pair by pair: two runs, their mean, the MLP; then AUROC and AP from their definitions, ties in one group."""
    graph, relation = data.links.message_graph(self_loops=True), torch.tensor([0])
    pairs, label = data.pairs(split)
    scores = []
    with torch.no_grad():
        for u, v in pairs.T:
            features = [task.model.node_features(graph, s[None], relation)[0][t, 0] for s, t in ((u, v), (v, u))]
            feature = torch.cat([(features[0] + features[1]) / 2, task.model.query.weight[0]])
            scores.append(task.model.mlp(feature).item())
    positive, negative = ([s for s, one in zip(scores, label, strict=True) if one == k] for k in (1, 0))
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    ap, recalled = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        hits = sum(p >= threshold for p in positive)
        precision = hits / sum(s >= threshold for s in scores)
        ap += precision * (hits - recalled) / len(positive)
        recalled = hits
    return {"auroc": wins / len(positive) / len(negative), "ap": ap}


@pytest.mark.parametrize(("name", "batch_size", "epochs"), [("Cora", 64, 20), ("citeseer", 64, 20), ("pubmed", 16, 10)])
def test_published_settings(name, batch_size, epochs):
    config = make_link_config(name, dim=None)
    assert (config.batch_size, config.epochs) == (batch_size, epochs)
    assert (config.lr, config.num_negative, config.adversarial_temperature) == (5e-3, 1, 0)
    assert (config.dim, config.num_layers, config.message, config.aggregate) == (32, 6, "distmult", "pna")
    assert config.short_cut
    assert config.layer_norm
    assert not config.dependent
    count = sum(p.numel() for p in LinkTask(config, name, 3, 3).parameters())
    assert count == 32 + 6 * (416 * 32 + 32 + 32 + 64) + (64 * 64 + 64 + 64 + 1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_source_batches_ask_every_pair_from_both_ends_once(world_size):
    pairs = torch.randint(0, 30, (2, 40))
    ranks = [list(SourceBatches(pairs, 4, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for batches in ranks for batch in batches]
    assert torch.cat([b["source"] for b in batches]).sort().values.tolist() == pairs.unique().tolist()
    assert max(len(b["source"]) for b in batches) == 4
    asked = []
    for b in batches:
        asked += zip(b["pair"].tolist(), b["source"][b["column"]].tolist(), b["target"].tolist(), strict=True)
    u, v = pairs.tolist()
    assert sorted(asked) == sorted([(i, u[i], v[i]) for i in range(40)] + [(i, v[i], u[i]) for i in range(40)])


def with_data(links: LinkGraph, config=SMALL) -> LinkTask:
    task = LinkTask(config, links.name, links.num_nodes, 0)
    task.trainer = type("Trainer", (), {"datamodule": LinkData(links, config)})
    return task


def test_dropping_takes_both_directions_and_leaves_self_loops():
    """An edge twice, in both directions, and an edge from a node to itself."""
    nothing = torch.empty(2, 0, dtype=torch.int64)
    train = torch.tensor([[0, 1, 1, 2, 3, 3], [1, 0, 2, 3, 3, 0]])
    task = with_data(LinkGraph("", list("abcd"), train, nothing, nothing))
    loops = {(v, v) for v in range(4)}

    def edges(head, tail):
        return sorted(task.visible(torch.tensor(head), torch.tensor(tail)).edge_index.T.tolist())

    everything = sorted([*train.T.tolist(), *train.flip(0).T.tolist(), *map(list, loops)])
    assert edges([], []) == everything
    assert edges([0, 0], [2, 2]) == everything  # no edge between them
    for head, tail in ((0, 1), (1, 0)):
        assert edges([head], [tail]) == [e for e in everything if set(e) != {0, 1}]
    kept = [e for e in everything if set(e) not in ({2, 3}, {3})]
    assert edges([3, 3], [3, 2]) == sorted([*kept, [3, 3]])  # the self-loop of node 3, not its edge


def test_a_step_sees_strict_negatives_and_none_of_its_edges(file, monkeypatch):
    links = read_links(file)
    task = with_data(links)
    task.log = lambda *_, **__: None
    seen = []

    def spy(graph, head, tail):
        seen.append((graph, head, tail))
        return type(task.model).pair_scores(task.model, graph, head, tail)

    monkeypatch.setattr(task.model, "pair_scores", spy)
    splits, draw = [], LinkGraph.negatives
    monkeypatch.setattr(
        LinkGraph, "negatives", lambda self, split, *rest: splits.append(split) or draw(self, split, *rest)
    )
    facts = {frozenset(edge) for edge in links.train.T.tolist()}
    for index in range(2):
        edges = links.train[:, 24 * index : 24 * (index + 1)]
        triples = torch.stack([edges[0], torch.zeros(24, dtype=torch.int64), edges[1]], dim=1)
        loss = task.training_step({"items": triples, "epoch": 0, "index": index}, index)
        graph, head, tail = seen[-1]
        pairs = torch.stack([head, tail]).view(2, 24, 2)
        assert torch.equal(pairs[..., 0], edges)
        negative = pairs[..., 1].T.tolist()
        assert not [pair for pair in negative if frozenset(pair) in facts or pair[0] == pair[1]]
        assert pairs[0, :, 0].tolist() != pairs[0, :, 1].tolist()  # heads of their own
        left = {frozenset(edge) for edge in graph.edge_index.T.tolist() if edge[0] != edge[1]}
        assert left == facts - {frozenset(edge) for edge in edges.T.tolist()}

        logits = task.model.pair_scores(graph, head, tail).view(24, 2)
        label = torch.tensor([1.0, 0.0]).expand(24, 2)
        assert_close(loss, torch.nn.functional.binary_cross_entropy_with_logits(logits, label))
    assert not torch.equal(seen[0][1][1::2], seen[2][1][1::2])  # other negatives in the next step
    assert splits == ["train", "train"]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluated_pairs(file, split):
    links = read_links(file)
    pairs, label = LinkData(links, SMALL).pairs(split)
    positive = getattr(links, split)
    n = positive.shape[1]
    assert torch.equal(pairs[:, :n], positive)
    assert label.tolist() == n * [1] + n * [0]
    known = {frozenset(edge) for edge in links.known(split).T.tolist()}
    assert not [pair for pair in pairs[:, n:].T.tolist() if frozenset(pair) in known or pair[0] == pair[1]]
    assert torch.equal(pairs, LinkData(links, SMALL).pairs(split)[0])


def test_run_writes_its_result(run):
    output, result = run
    assert {"best.ckpt", "last.ckpt", "metrics.json", "logs"} == {p.name for p in output.iterdir()}
    assert json.loads((output / "metrics.json").read_text()) == json.loads(json.dumps(result))
    assert result["dataset"] == "small"
    assert [row["epoch"] for row in result["epochs"]] == [1, 2, 3]
    best = max(result["epochs"], key=lambda row: row["valid_auroc"])
    assert result["chosen_epoch"] == best["epoch"]


def test_metrics_are_those_of_the_plain_protocol(run, file):
    output, result = run
    task, data = saved_task(output / "best.ckpt"), LinkData(read_links(file), SMALL)
    assert result["test"] == pytest.approx(plain_metrics(task, data, "test"))
    row = result["epochs"][result["chosen_epoch"] - 1]
    valid = {f"valid_{name}": value for name, value in plain_metrics(task, data, "valid").items()}
    assert {name: row[name] for name in valid} == pytest.approx(valid)


def test_learns_communities(file, tmp_path):
    result = train(file, tmp_path, make_link_config("", epochs=6, batch_size=16, dim=16, num_layers=3))
    assert result["epochs"][-1]["loss"] < 0.8 * result["epochs"][0]["loss"]
    assert result["test"]["auroc"] > 0.8
    assert result["test"]["ap"] > 0.8


def test_resume_is_exact_to_the_bit(run, file, tmp_path, monkeypatch):
    """Stopped in the second epoch, in its middle and at its end."""
    whole, result = run
    step = LinkTask.training_step
    steps = load_checkpoint(whole / "last.ckpt", "nbfnet", "links")["global_step"] // 3
    stop_at = {steps + 1, 2 * steps - 1}

    def interrupted_step(self, batch, batch_idx):
        if self.trainer.global_step in stop_at:
            stop_at.remove(self.trainer.global_step)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LinkTask, "training_step", interrupted_step)
    for _ in range(2):
        with pytest.raises(Interrupted, match=r"continues from .*last\.ckpt"):
            train(file, tmp_path, resume="auto")
    resumed = train(file, tmp_path, resume="auto")
    assert not stop_at
    assert resumed["test"] == result["test"]
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (load_checkpoint(folder / name, "nbfnet", "links")["state_dict"] for folder in (whole, tmp_path))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert train(file, tmp_path, resume="auto")["test"] == result["test"]  # a finished run


def test_limit_is_steps_per_epoch(file, tmp_path):
    result = train(file, tmp_path, make_link_config("", epochs=2, batch_size=8, dim=4, num_layers=1, limit=3))
    assert load_checkpoint(tmp_path / "last.ckpt", "nbfnet", "links")["global_step"] == 6
    assert [row["epoch"] for row in result["epochs"]] == [1, 2]
    with pytest.raises(ValueError, match="other settings: limit was 3 and is None"):
        train(file, tmp_path, make_link_config("", epochs=2, batch_size=8, dim=4, num_layers=1), resume="auto")


def test_checkpoint_errors(run, file, tmp_path):
    last = run[0] / "last.ckpt"
    with pytest.raises(ValueError, match="a checkpoint of innerloop nbfnet links, expected one of nbfnet fit"):
        evaluate(last, progress=False)
    other = tmp_path / "other.cites"
    other.write_text("".join(f"{v}\t{v + 1}\n" for v in range(40)))
    with pytest.raises(ValueError, match="cannot resume, it was trained on small"):
        train(other, tmp_path, resume=last)


def test_scores_of_nan_stop_the_evaluation(run, file):
    task = saved_task(run[0] / "best.ckpt")
    data = LinkData(read_links(file), SMALL)
    task.trainer = type("Trainer", (), {"datamodule": data, "world_size": 1})
    task.on_test_epoch_start()
    task._feature[3] = torch.nan
    with pytest.raises(ValueError, match=r"scored the pair .* with NaN"):
        task.on_test_epoch_end()


def test_too_small_a_graph_is_an_error(tmp_path):
    small = tmp_path / "two.cites"
    small.write_text("a\tb\nb\tc\n")
    with pytest.raises(ValueError, match="two: edges per split are train 1, valid 0, test 1, expected at least one"):
        train(small, tmp_path)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_sources(run, file, monkeypatch, world_size):
    """Each process runs its own sources; their sum has the metrics of one process, to the bit."""
    task, data = saved_task(run[0] / "best.ckpt"), LinkData(read_links(file), SMALL)
    features = []
    for rank in range(world_size):
        data.trainer = type("Trainer", (), {"datamodule": data, "world_size": world_size, "global_rank": rank})
        task.trainer = data.trainer
        task.on_test_epoch_start()
        with torch.no_grad():
            for batch in data.test_dataloader():
                task.test_step(batch, 0)
        features.append(task._feature)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.copy_(sum(features)))
    with torch.no_grad():
        assert task._measure() == run[1]["test"]


def test_command_prints_the_table(file, tmp_path, monkeypatch, capfd):
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    small = ["--epochs", "1", "--dim", "4", "--num-layers", "1"]
    assert main(["nbfnet", "links", str(file), *small]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "| small test, measured | " in out
    assert "seed 1024" in out
    assert (tmp_path / "runs" / "nbfnet" / "small" / "metrics.json").is_file()
    assert main(["nbfnet", "links", "nowhere.cites"]) == 1
    assert capfd.readouterr().err == "innerloop: nowhere.cites: no such file\n"


def test_published_numbers_stand_below_the_measured_ones(shared_data, tmp_path, capfd):
    """Cora, three steps of a small model."""
    pytest.importorskip("jsonargparse")
    small = ["--epochs", "1", "--limit", "3", "--dim", "4", "--num-layers", "2", "--output", str(tmp_path)]
    assert main(["nbfnet", "links", str(shared_data / "planetoid" / "cora.cites.xz"), *small]) == 0
    table = capfd.readouterr().out.splitlines()
    assert any(line.startswith("| cora test, measured | ") for line in table)
    (official,) = (line for line in table if "published, official" in line)
    assert [cell.strip() for cell in official.split("|")[2:4]] == ["0.956", "0.962"]
