# SPDX-License-Identifier: Apache-2.0
"""Training, checkpoints and resume, in one process and in two."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")

from innerloop.data import read_kg
from innerloop.graph import RelGraph
from innerloop.recipes._batches import TrainingBatches
from innerloop.recipes._run import load_checkpoint, make_trainer, quiet
from innerloop.recipes._task import Interrupted
from innerloop.recipes.nbfnet import Config, evaluate, train
from innerloop.recipes.nbfnet.datamodule import NBFNetData, QueryBatches
from innerloop.recipes.nbfnet.module import NBFNetTask
from innerloop.recipes.nbfnet.tasks import metrics_of
from tolerances import assert_close, same

SMALL = Config(epochs=2, batch_size=12, num_negative=4, dim=8, num_layers=2)


def quiet_train(data: Path, output: Path, config: Config = SMALL, **options):
    return train(read_kg(data), config, output, data=data, accelerator="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run: (output folder, result)."""
    output = tmp_path_factory.mktemp("run")
    return output, quiet_train(tiny, output)


@pytest.mark.parametrize(("num_relations", "dependent", "count"), [(9, False, 88_705), (180, True, 2_377_153)])
def test_parameter_counts_of_the_paper(num_relations, dependent, count):
    task = NBFNetTask([str(r) for r in range(num_relations)], Config(dependent=dependent))
    assert sum(p.numel() for p in task.parameters()) == count


def test_parameters_depend_on_the_seed_alone():
    def weights(seed):
        return NBFNetTask(["a"], Config(dim=4, num_layers=1, seed=seed)).state_dict()

    torch.manual_seed(5)
    first, state = weights(1), torch.get_rng_state()
    torch.rand(3)
    assert same(first, weights(1))
    assert not same(first, weights(2))
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())  # the caller's stream is left alone


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_batches_cover_every_fact(world_size):
    triples = torch.arange(3 * 50).view(50, 3)
    ranks = [list(TrainingBatches(triples, 8, 7, lambda: 3, rank, world_size)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {-(-7 // world_size)}
    batches = sorted((b for batches in ranks for b in batches), key=lambda b: b["index"])
    assert [b["index"] for b in batches] == list(range(len(batches)))
    rows = torch.cat([b["items"] for b in batches[:7]])
    assert sorted(rows.tolist()) == triples.tolist()
    assert rows.tolist() != triples.tolist()
    for extra, first in zip(batches[7:], batches, strict=False):
        assert torch.equal(extra["items"], first["items"])


def test_training_batches_resume_and_reshuffle():
    triples = torch.arange(3 * 50).view(50, 3)
    epoch = 0
    loader = TrainingBatches(triples, 8, 7, lambda: epoch)
    whole = list(loader)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    resumed = TrainingBatches(triples, 8, 7, lambda: epoch)
    resumed.load_state_dict(loader.state_dict())
    assert same(list(resumed), whole[3:])
    assert same(list(resumed), whole)  # only the first pass is a partial one
    epoch = 1
    assert not same([b["items"] for b in loader], [b["items"] for b in whole])
    other = TrainingBatches(triples, 8, 7, lambda: epoch, 0, 2)
    with pytest.raises(ValueError, match="written by 1 processes, this run has 2"):
        other.load_state_dict(loader.state_dict())


@pytest.mark.parametrize("world_size", [1, 2, 3, 50])
def test_query_batches_hold_every_query_once(world_size):
    triples = torch.randint(0, 9, (17, 3))
    ranks = [list(QueryBatches(triples, 9, 4, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    position = torch.cat([b["position"] for batches in ranks for b in batches])
    assert position.sort().values.tolist() == list(range(34))


def test_run_writes_its_result(run):
    output, result = run
    assert {"best.ckpt", "last.ckpt", "metrics.json", "logs"} == {p.name for p in output.iterdir()}
    stored = json.loads((output / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert [row["epoch"] for row in stored["epochs"]] == [1, 2]
    assert stored["config"]["seed"] == 1024
    assert stored["versions"]["torch"] == torch.__version__
    best = max(stored["epochs"], key=lambda row: row["valid_mrr"])
    assert stored["chosen_epoch"] == best["epoch"]
    assert set(stored["test"]) == {"mr", "mrr", "hits@1", "hits@3", "hits@10"} | {
        "hits@10_50",
        "hits@10_49",
    }


def test_test_metrics_are_those_of_the_plain_protocol(run, tiny):
    """Forward pass query by query on the inference graph, ranks from the definition."""
    output, result = run
    saved = load_checkpoint(output / "best.ckpt", "nbfnet")
    kg = read_kg(tiny)
    task = NBFNetTask(kg.relations, saved["hyper_parameters"]["config"]).eval()
    task.load_state_dict(saved["state_dict"])
    h, r, t = kg.test.facts.unbind(1)
    graph = RelGraph(torch.stack([h, t]), r, kg.test.num_entities, kg.num_relations).with_inverse()
    facts = set(zip(*(row.tolist() for row in (h, r, t)), strict=True))
    facts |= {(t, r + kg.num_relations, h) for h, r, t in facts}
    ranks, negatives = [], []
    for h, r, t in kg.test.targets.tolist():
        for source, relation, answer in ((h, r, t), (t, r + kg.num_relations, h)):
            with torch.no_grad():
                score = task(graph, torch.tensor([[source, relation, answer]]))[0].tolist()
            others = [v for v in range(kg.test.num_entities) if v != answer and (source, relation, v) not in facts]
            ranks.append(1 + sum(score[v] >= score[answer] for v in others))
            negatives.append(len(others))
    expected = metrics_of(torch.tensor(ranks), torch.tensor(negatives), [50, 49])
    assert result["test"] == pytest.approx(expected)


def test_learns_the_rule(tiny, tmp_path):
    """r1 = r0 ∘ r0 on unseen entities."""
    result = quiet_train(tiny, tmp_path, Config(epochs=15, batch_size=12, dim=16, num_layers=3))
    assert result["test"]["mrr"] > 0.8


def test_validates_every_tenth_of_the_epochs_and_after_the_last(tiny, tmp_path):
    config = Config(epochs=12, batch_size=64, num_negative=2, dim=4, num_layers=1)
    result = quiet_train(tiny, tmp_path, config)
    validated = [row["epoch"] for row in result["epochs"] if "valid_mrr" in row]
    assert validated == [2, 4, 6, 8, 10, 12]
    config = Config(epochs=11, batch_size=64, num_negative=2, dim=4, num_layers=1)
    result = quiet_train(tiny, tmp_path / "odd", config)
    validated = [row["epoch"] for row in result["epochs"] if "valid_mrr" in row]
    assert validated == [2, 4, 6, 8, 10, 11]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_resume_is_exact_to_the_bit(run, tiny, tmp_path, monkeypatch, number):
    """Two epochs of seven steps; stopped in mid-epoch and at the last step of an epoch."""
    whole, result = run
    stop_at = {5, 6, 10}
    step = NBFNetTask.training_step
    handler = signal.getsignal(number)

    def interrupted_step(self, batch, batch_idx):
        if self.trainer.global_step in stop_at:
            stop_at.remove(self.trainer.global_step)
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(NBFNetTask, "training_step", interrupted_step)
    for steps in (6, 7, 11):
        with pytest.raises(Interrupted, match=r"continues from .*last\.ckpt"):
            quiet_train(tiny, tmp_path, resume="auto")
        assert load_checkpoint(tmp_path / "last.ckpt", "nbfnet")["global_step"] == steps
        assert signal.getsignal(number) is handler
    resumed = quiet_train(tiny, tmp_path, resume=tmp_path / "last.ckpt")
    assert resumed["test"] == result["test"]
    assert [{**row, "train_seconds": 0} for row in resumed["epochs"]] == [
        {**row, "train_seconds": 0} for row in result["epochs"]
    ]
    for name in ("last.ckpt", "best.ckpt"):
        a, b = load_checkpoint(whole / name, "nbfnet"), load_checkpoint(tmp_path / name, "nbfnet")
        assert same(a["state_dict"], b["state_dict"])
        assert same(a["optimizer_states"], b["optimizer_states"])


def test_resume_keeps_the_validation_rounds(tiny, tmp_path, monkeypatch):
    """Stopped in an epoch without validation: the resumed run validates where the whole run does."""
    config = Config(epochs=12, batch_size=64, num_negative=2, dim=4, num_layers=1)
    step = NBFNetTask.training_step

    def interrupted_step(self, batch, batch_idx):
        if self.current_epoch == 2 and self.trainer.global_step not in seen:
            seen.add(self.trainer.global_step)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    seen = set()
    monkeypatch.setattr(NBFNetTask, "training_step", interrupted_step)
    with pytest.raises(Interrupted):
        quiet_train(tiny, tmp_path, config, resume="auto")
    monkeypatch.setattr(NBFNetTask, "training_step", step)
    result = quiet_train(tiny, tmp_path, config, resume="auto")
    assert seen
    assert [row["epoch"] for row in result["epochs"] if "valid_mrr" in row] == [2, 4, 6, 8, 10, 12]


def test_resume_of_a_finished_run_repeats_its_result(run, tiny):
    output, result = run
    assert quiet_train(tiny, output, resume="auto")["test"] == result["test"]


def test_resume_errors(run, tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such checkpoint"):
        quiet_train(tiny, tmp_path, resume=tmp_path / "none.ckpt")
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((run[0] / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"damaged\.ckpt: not a readable checkpoint"):
        quiet_train(tiny, tmp_path, resume=damaged)
    torch.save({"a": 1}, damaged)
    with pytest.raises(ValueError, match="not a checkpoint of innerloop nbfnet"):
        quiet_train(tiny, tmp_path, resume=damaged)
    other = Config(epochs=2, batch_size=13, num_negative=4, dim=8, num_layers=2)
    with pytest.raises(ValueError, match="other settings: batch_size was 12 and is 13"):
        quiet_train(tiny, tmp_path, other, resume=run[0] / "last.ckpt")


def test_evaluate_on_other_data_keeps_the_relation_ids(run, tiny, tmp_path):
    """The same data with the relations first met in another order."""
    for folder in ("tiny", "tiny_ind"):
        (tmp_path / folder).mkdir()
        for file in (tiny.parent / folder).iterdir():
            lines = file.read_text().splitlines(keepends=True)
            (tmp_path / folder / file.name).write_text("".join(reversed(lines)))
    assert read_kg(tmp_path / "tiny").relations != read_kg(tiny).relations
    checkpoint = run[0] / "best.ckpt"
    options = {"accelerator": "cpu", "progress": False}
    moved = evaluate(checkpoint, data=tmp_path / "tiny", **options)
    assert moved == pytest.approx(run[1]["test"])
    valid = evaluate(checkpoint, split="valid", **options)
    history = {row["epoch"]: row for row in run[1]["epochs"]}[run[1]["chosen_epoch"]]
    assert {f"valid_{name}": value for name, value in valid.items()}.items() <= history.items()


def test_scores_of_nan_stop_the_evaluation(run, tmp_path):
    saved = load_checkpoint(run[0] / "best.ckpt", "nbfnet")
    next(iter(saved["state_dict"].values())).fill_(torch.nan)
    torch.save(saved, tmp_path / "nan.ckpt")
    with pytest.raises(ValueError, match="with NaN"):
        evaluate(tmp_path / "nan.ckpt", accelerator="cpu", progress=False)


TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch
from innerloop.data import read_kg
from innerloop.recipes.nbfnet import Config, evaluate, train

data, checkpoint, output = map(Path, sys.argv[1:])
options = {"accelerator": "cpu", "progress": False}
metrics = evaluate(checkpoint, **options)
config = Config(epochs=2, batch_size=12, num_negative=4, dim=8, num_layers=2)
result = train(read_kg(data), config, output, **options)
rank = torch.distributed.get_rank()
(output / f"rank{rank}.json").write_text(json.dumps([metrics, result["test"]]))
"""


def test_two_processes(run, tiny, tmp_path):
    """torchrun: evaluation equals that of one process; training that with summed gradients."""
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(tiny), str(run[0] / "best.ckpt")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path)], check=True, env=environment, timeout=250)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert ranks[0][0] == run[1]["test"]

    # One process that adds up the gradients of the two processes' batches takes the same steps.
    kg = read_kg(tiny)
    task = NBFNetTask(kg.relations, SMALL)
    data = NBFNetData(kg, SMALL)
    batches = []
    for epoch in range(SMALL.epochs):
        of_rank = [
            TrainingBatches(kg.train.targets, SMALL.batch_size, SMALL.seed, lambda e=epoch: e, k, 2) for k in (0, 1)
        ]
        batches += [batch for pair in zip(*of_rank, strict=True) for batch in pair]
    data.train_dataloader = lambda: torch.utils.data.DataLoader(batches, batch_size=None)
    with quiet():
        trainer = make_trainer("32-true", "cpu", False, max_epochs=1, logger=False, accumulate_grad_batches=2)
        trainer.limit_val_batches = 0
        trainer.fit(task, data)
    parallel = load_checkpoint(tmp_path / "last.ckpt", "nbfnet")["state_dict"]
    for name, value in task.state_dict().items():
        assert_close(parallel[name], value, op="two_processes")
