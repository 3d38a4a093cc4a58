# SPDX-License-Identifier: Apache-2.0
"""Training of Poolingformer: batches, optimizer, resume, evaluation, comparison, the command line, two processes."""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")

import innerloop.recipes.poolingformer.run as recipe
from innerloop.cli import main
from innerloop.data import read_kg
from innerloop.recipes import nbfnet
from innerloop.recipes._batches import EvaluationBatches, TrainingBatches
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes._task import Interrupted
from innerloop.recipes.poolingformer import (
    PRESETS,
    VARIANTS,
    Config,
    compare,
    evaluate,
    fit,
    make_config,
    make_problem,
    train_on,
)
from innerloop.recipes.poolingformer.module import PoolingformerTask
from innerloop.recipes.poolingformer.tasks import ListOpsProblem
from tolerances import assert_close

TASKS = ("listops", "qa", "mlm")
MODEL = {"dim": 8, "num_layers": 2, "heads": 2, "window": 2, "two_level": 1, "pool_window": 4, "kernel": 3, "stride": 2}
SMALL = MODEL | {"epochs": 2, "batch_size": 8, "eval_batch_size": 5, "lr": 0.01}
CONFIGS = {
    "listops": Config(length=16, min_length=3, train=40, valid=12, test=13, **SMALL),
    "qa": Config(task="qa", length=64, **SMALL),
    "mlm": Config(task="mlm", length=32, **SMALL),
}
METRICS = {
    "listops": {"accuracy", "loss"},
    "qa": {"passage_accuracy", "span_f1", "span_exact", "passage_loss", "span_loss"},
    "mlm": {"accuracy", "bits_per_byte"},
}
QUIET = {"accelerator": "cpu", "progress": False}


def same(a, b) -> bool:
    """Nested equality, of tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def write_xquad(path: Path, articles: int = 16) -> Path:
    """Paragraphs of three words, one of which answers."""
    rng = random.Random(0)
    data = []
    for a in range(articles):
        words = rng.sample(["naïve", "ไทย", "Москва", "blue", "größe", "数学", "x"], 3)
        answer = {"text": words[1], "answer_start": len(words[0]) + 1}
        qas = [{"id": f"{a}-{q}", "question": "?" * (1 + q), "answers": [answer]} for q in range(3)]
        data.append({"title": "", "paragraphs": [{"context": " ".join(words), "qas": qas}]})
    path.write_text(json.dumps({"data": data}))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path | None]:
    """A file for each task."""
    folder = tmp_path_factory.mktemp("data")
    text = folder / "letters.txt"
    text.write_text("".join(f" = Title {i} = \n {chr(65 + i) * (60 + 9 * (i % 3))} \n" for i in range(20)))
    return {"listops": None, "qa": write_xquad(folder / "xquad.xx.json"), "mlm": text}


@pytest.fixture(scope="module")
def train(data):
    """Trains on a task, with other settings if wanted."""

    def train(task: str, output: Path, changes: dict | None = None, **options):
        config = replace(CONFIGS[task], **changes or {})
        return train_on(make_problem(config, data[task]), config, output, data=data[task], **QUIET, **options)

    return train


@pytest.fixture(scope="module")
def runs(train, tmp_path_factory):
    """Finished runs: task -> (output folder, result)."""
    folder = tmp_path_factory.mktemp("runs")
    return {task: (folder / task, train(task, folder / task)) for task in TASKS}


def saved_task(checkpoint: Path, data: Path | None) -> PoolingformerTask:
    saved = load_checkpoint(checkpoint, "poolingformer")
    config = Config(**saved["hyper_parameters"]["config"])
    task = PoolingformerTask(make_problem(config, data), config).eval()
    task.load_state_dict(saved["state_dict"])
    return task.requires_grad_(False)


# --- batches ---


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_batches_hold_items_of_like_length(world_size):
    lengths = torch.randint(1, 1000, (1050,))
    items = torch.arange(1050)
    ranks = [
        list(TrainingBatches(items, 4, 7, lambda: 3, rank, world_size, lengths=lengths)) for rank in range(world_size)
    ]
    steps = -(-263 // world_size)
    assert [len(batches) for batches in ranks] == [steps] * world_size
    batches = sorted((b for batches in ranks for b in batches), key=lambda b: b["index"])
    assert [b["index"] for b in batches] == list(range(steps * world_size))
    assert torch.cat([b["items"] for b in batches[:263]]).sort().values.tolist() == list(range(1050))
    for extra, first in zip(batches[263:], batches, strict=False):
        assert torch.equal(extra["items"], first["items"])
    spread = []
    for b in batches:
        inside = lengths[b["items"]]
        assert torch.equal(inside, inside.sort().values)
        spread.append(int(inside[-1] - inside[0]))
    assert statistics.mean(spread) < 30  # of 1000, in pools of 200; without sorting it would be 600


def test_training_batches_of_like_length_resume_and_reshuffle():
    lengths, items = torch.randint(1, 1000, (50,)), torch.arange(50)
    epoch = 0

    def make(lengths=lengths, **options) -> TrainingBatches:
        return TrainingBatches(items, 4, 7, lambda: epoch, lengths=lengths, **options)

    loader = make()
    whole = list(loader)
    first = [int(lengths[b["items"][0]]) for b in whole]
    assert first != sorted(first)  # short and long ones come mixed
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert same(list(resumed), whole[5:])
    assert same(list(resumed), whole)  # only the first pass is a partial one
    epoch = 1
    other = [b["items"].tolist() for b in make()]
    assert sorted(i for batch in other for i in batch) == list(range(50))
    assert other != [b["items"].tolist() for b in whole]


@pytest.mark.parametrize("world_size", [1, 2])
def test_limited_training_batches_draw_from_all_items(world_size):
    lengths, items = torch.randint(1, 1000, (50,)), torch.arange(50)
    seen = set()
    for epoch in range(10):
        ranks = [
            list(TrainingBatches(items, 4, 7, lambda e=epoch: e, rank, world_size, 3, lengths))
            for rank in range(world_size)
        ]
        assert [len(batches) for batches in ranks] == [3] * world_size
        drawn = torch.cat([b["items"] for batches in ranks for b in batches]).tolist()
        assert len(set(drawn)) == 12 * world_size
        seen |= set(drawn)
    assert len(seen) > 40


@pytest.mark.parametrize("world_size", [1, 2, 3, 50])
@pytest.mark.parametrize("size", [1, 16, 17])
def test_evaluation_batches_hold_every_item_once(world_size, size):
    loaders = [EvaluationBatches(size, 4, rank, world_size) for rank in range(world_size)]
    ranks = [list(loader) for loader in loaders]
    assert {len(batches) for batches in ranks} == {len(loaders[0])}
    assert len(loaders[0]) == -(-size // (4 * world_size))
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(size))
    assert max(len(batch) for batches in ranks for batch in batches) <= 4


# --- parameters and optimizer ---


@pytest.mark.parametrize("task", TASKS)
def test_parameters_depend_on_the_seed_alone(task, data):
    problem = make_problem(CONFIGS[task], data[task])

    def weights(seed, **changes):
        return PoolingformerTask(problem, replace(CONFIGS[task], seed=seed, **changes)).state_dict()

    torch.manual_seed(5)
    first, state = weights(1), torch.get_rng_state()
    torch.rand(3)
    assert same(first, weights(1))
    assert same(first, weights(1, lr=0.5, dropout=0.3, batch_size=3, epochs=7))
    assert not same(first, weights(2))
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())  # the caller's stream is left alone


@pytest.fixture
def watched(train, tmp_path, monkeypatch):
    """Trains, and gives the module, and for each step the learning rates of the groups."""

    def watch(task, **changes):
        step, seen = PoolingformerTask.training_step, []

        def spy(self, batch, batch_idx):
            seen.append((self, [group["lr"] for group in self.trainer.optimizers[0].param_groups]))
            return step(self, batch, batch_idx)

        monkeypatch.setattr(PoolingformerTask, "training_step", spy)
        train(task, tmp_path, {"eval_examples": 1} | changes)
        return seen[0][0], [rates for _, rates in seen]

    return watch


@pytest.mark.parametrize("task", TASKS)
def test_matrices_and_tables_are_decayed_and_nothing_else(watched, task):
    module, _ = watched(task, weight_decay=0.3, limit=1, epochs=1, relative_bias=True)
    model, (optimizer,) = module.model, module.trainer.optimizers
    assert isinstance(optimizer, torch.optim.AdamW)
    expected = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
    }
    (decayed,) = [g["params"] for g in optimizer.param_groups if g["weight_decay"] == 0.3]
    (others,) = [g["params"] for g in optimizer.param_groups if g["weight_decay"] == 0]
    assert {id(p) for p in decayed} == {id(p) for p in expected.values()}
    names = {name for name, p in model.named_parameters() if any(p is other for other in others)}
    assert names == {name for name, _ in model.named_parameters()} - expected.keys()
    last = {"weight_k", "weight_v", "relative_bias", "relative_bias_pool"}
    assert {f"encoder.layers.1.attention.{name}" for name in last} <= names
    assert len(decayed) + len(others) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("warmup", "epochs", "limit", "rising"), [(0.1, 4, 5, 2), (0.5, 2, 3, 3), (0.0, 2, 2, 1), (0.9, 1, 1, 1)]
)
def test_learning_rate_rises_and_falls(watched, warmup, epochs, limit, rising):
    _, rates = watched("listops", warmup=warmup, lr=0.02, epochs=epochs, limit=limit)
    steps = epochs * limit
    up = [0.02 * (k + 1) / rising for k in range(rising)]
    down = [0.02 * (steps - k) / (steps - rising) for k in range(rising, steps)]
    assert [rate for rate, _ in rates] == pytest.approx(up + down)
    assert all(rate == other for rate, other in rates)


def plain_training(config: Config, data: Path | None, world_size: int = 1) -> dict[str, torch.Tensor]:
    """Parameters after all steps of AdamW on the mean gradient of ``world_size`` batches, without a Trainer."""
    task = PoolingformerTask(make_problem(config, data), config)
    task.log = lambda *_, **__: None
    items, lengths = torch.arange(task.problem.size("train")), task.problem.lengths("train")
    steps = []
    for epoch in range(config.epochs):
        arguments = items, config.batch_size, config.seed, lambda e=epoch: e
        of_rank = [TrainingBatches(*arguments, rank, world_size, config.limit, lengths) for rank in range(world_size)]
        steps += zip(*of_rank, strict=True)
    matrices = [m.weight for m in task.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]
    others = [p for p in task.parameters() if not any(p is matrix for matrix in matrices)]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer, rising = torch.optim.AdamW(groups), max(1, int(config.warmup * len(steps)))
    for k, batches in enumerate(steps):
        for group in optimizer.param_groups:
            share = (k + 1) / rising if k < rising else (len(steps) - k) / (len(steps) - rising)
            group["lr"] = config.lr * share
        optimizer.zero_grad()
        for batch in batches:
            (task.training_step(batch, k) / world_size).backward()
        torch.nn.utils.clip_grad_norm_([*matrices, *others], config.clip)
        optimizer.step()
    return task.state_dict()


@pytest.mark.parametrize("task", TASKS)
def test_training_is_a_plain_loop(runs, data, task):
    trained = load_checkpoint(runs[task][0] / "last.ckpt", "poolingformer")["state_dict"]
    for name, value in plain_training(CONFIGS[task], data[task]).items():
        assert_close(trained[name], value)


def test_every_step_draws_anew(data, monkeypatch):
    """Dropout and masks, by seed, epoch and step."""
    problem = make_problem(CONFIGS["mlm"], data["mlm"])
    seen, batch = [], type(problem).batch

    def spy(self, split, items, generator=None):
        seen.append((torch.initial_seed(), generator.initial_seed()))
        return batch(self, split, items, generator)

    monkeypatch.setattr(type(problem), "batch", spy)
    steps = [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1, 2)]
    for again in range(2):
        torch.manual_seed(again)
        for seed, epoch, index in steps:
            task = PoolingformerTask(problem, replace(CONFIGS["mlm"], seed=seed))
            task.log = lambda *_, **__: None
            task.training_step({"items": torch.arange(2), "epoch": epoch, "index": index}, 0)
    first, second = seen[: len(steps)], seen[len(steps) :]
    assert first == second
    for column in zip(*first, strict=True):
        assert len(set(column)) == len(steps)


def test_schedule_has_the_steps_of_the_run(runs, train, tmp_path):
    for output, steps in ((runs["listops"][0], 10), (tmp_path, 6)):
        if steps == 6:
            train("listops", output, {"limit": 3})
        saved = load_checkpoint(output / "last.ckpt", "poolingformer")
        assert saved["global_step"] == saved["lr_schedulers"][0]["last_epoch"] == steps
        assert saved["lr_schedulers"][0]["_last_lr"] == [0, 0]


def test_gradients_are_clipped(train, tmp_path):
    """Gradients far below the ε of Adam change nothing."""
    changes = {"weight_decay": 0.0, "clip": 1e-16}
    train("listops", tmp_path, changes)
    after = load_checkpoint(tmp_path / "last.ckpt", "poolingformer")["state_dict"]
    config = replace(CONFIGS["listops"], **changes)
    before = PoolingformerTask(make_problem(config), config).state_dict()
    for name, value in before.items():
        assert_close(after[name], value)


# --- runs ---


@pytest.mark.parametrize("task", TASKS)
def test_run_writes_its_result(runs, task):
    output, result = runs[task]
    assert {"last.ckpt", "metrics.json", "logs"} == {p.name for p in output.iterdir()}
    stored = json.loads((output / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert Config(**stored["config"]) == CONFIGS[task]
    assert stored["dataset"] == {"listops": "listops-16", "qa": "xquad.xx-64", "mlm": "letters-32"}[task]
    assert set(stored["test"]) == METRICS[task]
    assert [row["epoch"] for row in stored["epochs"]] == [1, 2]
    for row in stored["epochs"]:
        assert set(row) == {"epoch", "loss", "train_seconds"} | {f"valid_{name}" for name in METRICS[task]}
    assert (stored["chosen_epoch"], stored["chosen_by"]) == (2, "last epoch")
    assert (stored["published"], stored["precision"], stored["processes"]) == ({}, "32-true", 1)
    assert stored["checkpoint"] == str(output / "last.ckpt")
    assert stored["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("task", TASKS)
def test_metrics_are_those_of_the_saved_model_item_by_item(runs, data, task):
    output, result = runs[task]
    saved = saved_task(output / "last.ckpt", data[task])
    for split, row in (("test", result["test"]), ("valid", result["epochs"][-1])):
        totals = torch.zeros(len(saved.problem.columns), dtype=torch.float64)
        for i in range(saved.problem.size(split)):
            totals += torch.tensor(saved.problem.totals(saved.model, saved.problem.batch(split, [i])))
        assert saved.problem.size(split) == (totals[0] if task != "mlm" else saved.problem.size(split))
        metrics = saved.problem.metrics(dict(zip(saved.problem.columns, totals.tolist(), strict=True)))
        prefix = "" if split == "test" else "valid_"
        assert {name: row[prefix + name] for name in metrics} == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_run_is_a_function_of_its_settings(runs, train, tmp_path, task):
    """The same bits again from another state of the generator, with layers run twice, and another evaluation batch."""
    torch.rand(3)
    again = train(task, tmp_path, {"checkpoint": True, "eval_batch_size": 3})
    state, before = (
        load_checkpoint(folder / "last.ckpt", "poolingformer")["state_dict"] for folder in (tmp_path, runs[task][0])
    )
    assert same(state, before)
    assert again["test"] == pytest.approx(runs[task][1]["test"], rel=1e-5)
    assert [row["loss"] for row in again["epochs"]] == [row["loss"] for row in runs[task][1]["epochs"]]


def test_another_seed_is_another_run(runs, train, tmp_path):
    other = train("listops", tmp_path, {"seed": 1})
    assert other["epochs"][0]["loss"] != runs["listops"][1]["epochs"][0]["loss"]


def test_the_last_epoch_is_reported_even_if_an_earlier_one_was_better(train, tmp_path, monkeypatch):
    loss = ListOpsProblem.loss
    monkeypatch.setattr(ListOpsProblem, "loss", lambda *arguments: -loss(*arguments))  # uphill
    result = train("listops", tmp_path, {"epochs": 3, "dropout": 0.0, "lr": 0.05})
    losses = [row["valid_loss"] for row in result["epochs"]]
    assert losses[0] < losses[2]
    assert result["chosen_epoch"] == 3
    task = saved_task(tmp_path / "last.ckpt", None)
    count, _, total = task.problem.totals(task.model, task.problem.batch("test", range(13)))
    assert result["test"]["loss"] == pytest.approx(total / count, rel=1e-5)
    assert not (tmp_path / "best.ckpt").exists()


def test_learns_short_listops(train, tmp_path):
    """Two to five digits below one operator; the commonest value has a share of 0.16."""
    data = {"length": 8, "train": 640, "valid": 20, "test": 200, "eval_batch_size": 100}
    model = {"dim": 32, "heads": 4, "num_layers": 1, "dropout": 0.0}
    result = train("listops", tmp_path, {**data, **model, "epochs": 6, "batch_size": 16, "lr": 0.003})
    losses = [row["loss"] for row in result["epochs"]]
    assert losses[-1] < 0.87 * losses[0]
    assert result["test"]["accuracy"] > 0.22
    assert result["test"]["loss"] < 2.1


@pytest.mark.parametrize("task", TASKS)
def test_half_precision(train, tmp_path, task):
    result = train(task, tmp_path, {"epochs": 1, "limit": 2}, precision="bf16-mixed")
    assert result["precision"] == "bf16-mixed"
    assert set(result["test"]) == METRICS[task]


def test_eval_examples_are_the_first_ones(runs, train, tmp_path):
    result = train("listops", tmp_path, {"eval_examples": 4})
    task = saved_task(runs["listops"][0] / "last.ckpt", None)
    for split, loss in (("test", result["test"]["loss"]), ("valid", result["epochs"][-1]["valid_loss"])):
        totals = task.problem.totals(task.model, task.problem.batch(split, range(4)))
        assert loss == pytest.approx(totals[2] / 4, rel=1e-5)
    many = evaluate(tmp_path / "last.ckpt", eval_examples=10**6, **QUIET)
    assert many == pytest.approx(runs["listops"][1]["test"])


def test_fit_takes_every_setting(monkeypatch, tmp_path):
    settings = {"dim": 12, "num_layers": 3, "heads": 3, "window": 5, "two_level": 1, "pool_window": 9, "kernel": 7}
    settings |= {"stride": 3, "pooling": "max", "level2_input": "input", "share_weights": True, "dropout": 0.25}
    settings |= {"length": 40, "epochs": 9, "batch_size": 6, "lr": 0.5, "train": 11, "valid": 12, "test": 13, "seed": 2}
    settings |= {"eval_batch_size": 14, "eval_examples": 15, "limit": 16, "checkpoint": True, "min_length": 5}
    settings |= {"ffn_dim": 20, "weight_decay": 0.5, "warmup": 0.25, "clip": 2.0, "zero_value": True}
    settings |= {"relative_bias": True}
    assert settings.keys() | {"task"} == {field.name for field in fields(Config)}
    started = []
    monkeypatch.setattr(recipe, "train_on", lambda *arguments, **options: started.append((arguments, options)))
    monkeypatch.chdir(tmp_path)
    fit(**settings, resume="auto", precision="bf16-mixed", accelerator="auto", progress=False)
    ((problem, config, output), options) = started[0]
    assert config == make_config("listops", **settings)
    assert config != make_config("listops")
    assert {name: getattr(config, name) for name in settings} == settings
    assert output == Path("runs") / "poolingformer" / "listops-40"
    assert problem.size("train") == 11
    assert {name: options[name] for name in ("resume", "precision", "accelerator", "progress")} == {
        "resume": "auto",
        "precision": "bf16-mixed",
        "accelerator": "auto",
        "progress": False,
    }


def test_fit_reads_its_preset(monkeypatch, tmp_path):
    """Arguments win over the preset; the published rows of the preset are stored."""
    counts = {"train": 8, "valid": 3, "test": 3}
    monkeypatch.setitem(PRESETS, ("listops", "lra"), {**SMALL, "length": 16, "min_length": 3, **counts})
    result = fit(preset="lra", epochs=1, dim=4, **counts, output=tmp_path, **QUIET)
    config = Config(**SMALL | {"length": 16, "min_length": 3, "epochs": 1, "dim": 4} | counts)
    assert Config(**result["config"]) == config
    assert result["published"]["Longformer (as recalled)"] == {"accuracy": 0.3563}
    result = fit(preset="lra", epochs=1, dim=4, **counts | {"test": 2}, output=tmp_path / "other", **QUIET)
    assert result["published"] == {}  # of another test set


def test_fit_does_not_overwrite_a_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PRESETS, ("listops", "quick"), {**SMALL, "length": 16, "min_length": 3, "epochs": 1})
    monkeypatch.chdir(tmp_path)
    counts = {"train": 8, "valid": 3, "test": 3}
    first = fit(**counts, **QUIET)
    for output in (None, Path("runs/poolingformer/listops-16")):
        with pytest.raises(
            ValueError, match=r"listops-16: holds the metrics\.json of a run, expected another output, or"
        ):
            fit(**counts, seed=1, output=output, **QUIET)
    (tmp_path / "runs" / "poolingformer" / "listops-16" / "metrics.json").unlink()
    capsys.readouterr()
    options = [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    assert main(["poolingformer", "fit", *options]) == 2
    expected = "listops-16: holds the last.ckpt of a run, expected another output, or --resume auto to go on\n"
    assert capsys.readouterr().err.endswith(expected)
    assert fit(**counts, resume="auto", **QUIET)["test"] == first["test"]


# --- resume ---


@pytest.mark.parametrize("task", TASKS)
def test_resume_is_exact_to_the_bit(runs, train, tmp_path, monkeypatch, task):
    """With dropout and masks; stopped in mid-epoch, and at the last step of an epoch. Memory may be saved meanwhile."""
    whole, result = runs[task]
    assert result["config"]["dropout"] > 0
    steps = load_checkpoint(whole / "last.ckpt", "poolingformer")["global_step"] // 2
    assert steps > 3
    stop_at = {1, steps - 1, steps + 2}
    step = PoolingformerTask.training_step

    def interrupted_step(self, batch, batch_idx):
        if self.trainer.global_step in stop_at:
            stop_at.remove(self.trainer.global_step)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PoolingformerTask, "training_step", interrupted_step)
    for done in (2, steps, steps + 3):
        with pytest.raises(Interrupted, match=r"continues from .*last\.ckpt"):
            train(task, tmp_path, resume="auto")
        assert load_checkpoint(tmp_path / "last.ckpt", "poolingformer")["global_step"] == done
        torch.rand(7)  # nothing depends on the generator's state
    resumed = train(task, tmp_path, {"checkpoint": True}, resume=tmp_path / "last.ckpt")
    assert not stop_at
    assert resumed["test"] == result["test"]
    assert [{**row, "train_seconds": 0} for row in resumed["epochs"]] == [
        {**row, "train_seconds": 0} for row in result["epochs"]
    ]
    a, b = (load_checkpoint(folder / "last.ckpt", "poolingformer") for folder in (whole, tmp_path))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(a[part], b[part])


def test_resume_of_a_finished_run_measures_it_again(runs, train, tmp_path):
    for task, (output, result) in runs.items():
        (tmp_path / task).mkdir()
        copy = Path(shutil.copy(output / "last.ckpt", tmp_path / task))
        assert train(task, copy.parent, resume="auto")["test"] == result["test"]
        few = {"eval_batch_size": 2, "eval_examples": 3}
        assert train(task, copy.parent, few, resume="auto")["test"] == evaluate(copy, **few, **QUIET)


def test_resume_of_a_finished_run_in_another_folder(runs, train, tmp_path):
    output, result = runs["listops"]
    assert train("listops", tmp_path, resume=output / "last.ckpt")["test"] == result["test"]


@pytest.mark.parametrize(
    ("setting", "value", "old"),
    [
        ("epochs", 3, 2),
        ("batch_size", 9, 8),
        ("lr", 0.5, 0.01),
        ("seed", 1, 1024),
        ("two_level", 0, 1),
        ("dropout", 0.0, 0.1),
        ("train", 41, 40),
        ("limit", 2, None),
    ],
)
def test_resume_with_other_settings_is_refused(runs, train, tmp_path, setting, value, old):
    last = runs["listops"][0] / "last.ckpt"
    with pytest.raises(ValueError, match=f"last.ckpt: cannot resume with other settings: {setting} was {old} and is"):
        train("listops", tmp_path, {setting: value}, resume=last)
    assert not (tmp_path / "metrics.json").exists()


def test_resume_with_another_precision_is_refused(runs, train, tmp_path):
    last = runs["listops"][0] / "last.ckpt"
    message = "last.ckpt: cannot resume with other settings: precision was 32-true and is bf16-mixed"
    with pytest.raises(ValueError, match=message):
        train("listops", tmp_path, resume=last, precision="bf16-mixed")
    assert train("listops", tmp_path, resume=last, precision="32")["precision"] == "32-true"  # another name of it


def test_resume_from_an_earlier_version(runs, train, tmp_path):
    """Checkpoints did not always hold a digest of the data, the precision, and every setting."""
    saved = load_checkpoint(runs["listops"][0] / "last.ckpt", "poolingformer")
    del saved["progress"]["precision"], saved["hyper_parameters"]["config"]["relative_bias"]
    torch.save(saved, tmp_path / "old.ckpt")
    assert train("listops", tmp_path, resume=tmp_path / "old.ckpt")["test"] == runs["listops"][1]["test"]
    with pytest.raises(ValueError, match="cannot resume with other settings: relative_bias was False and is True"):
        train("listops", tmp_path, {"relative_bias": True}, resume=tmp_path / "old.ckpt")
    del saved["hyper_parameters"]["data_digest"]
    torch.save(saved, tmp_path / "older.ckpt")
    message = (
        r"older\.ckpt: cannot resume, an earlier version of innerloop wrote it, without data_digest; train anew in "
    )
    with pytest.raises(ValueError, match=message):
        train("listops", tmp_path, resume=tmp_path / "older.ckpt")
    assert evaluate(tmp_path / "older.ckpt", **QUIET) == runs["listops"][1]["test"]


def test_resume_on_other_data_is_refused(runs, train, tmp_path):
    with pytest.raises(ValueError, match="cannot resume, it was trained on listops-16"):
        train("listops", tmp_path, {"length": 24}, resume=runs["listops"][0] / "last.ckpt")
    other = write_xquad(tmp_path / "xquad.yy.json")
    with pytest.raises(ValueError, match=r"cannot resume, it was trained on xquad\.xx-64"):
        train_on(
            make_problem(CONFIGS["qa"], other),
            CONFIGS["qa"],
            tmp_path,
            data=other,
            resume=runs["qa"][0] / "last.ckpt",
            **QUIET,
        )


def test_resume_errors(train, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such checkpoint"):
        train("listops", tmp_path, resume=tmp_path / "none.ckpt")
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt: not a checkpoint of innerloop poolingformer"):
        train("listops", tmp_path, resume=tmp_path / "other.ckpt")


# --- evaluation ---


@pytest.mark.parametrize("task", TASKS)
def test_evaluate_gives_what_fit_gave(runs, data, task, capsys, tmp_path):
    output, result = runs[task]
    assert evaluate(output / "last.ckpt", **QUIET) == result["test"]
    assert f"| {result['dataset']} test, measured | " in capsys.readouterr().out
    valid = evaluate(output / "last.ckpt", split="valid", eval_batch_size=2, **QUIET)
    assert {f"valid_{name}" for name in valid} <= set(result["epochs"][-1])
    assert valid == pytest.approx({name: result["epochs"][-1][f"valid_{name}"] for name in valid}, rel=1e-5)
    if data[task] is not None:
        moved = tmp_path / f"moved{data[task].suffix}"
        moved.write_bytes(data[task].read_bytes())
        assert evaluate(output / "last.ckpt", data=moved, **QUIET) == result["test"]
        assert f"| {moved.stem}-" in capsys.readouterr().out


def test_evaluate_errors(runs, tmp_path):
    last = runs["listops"][0] / "last.ckpt"
    with pytest.raises(ValueError, match="data is 'x', expected none: listops is generated"):
        evaluate(last, data=Path("x"), **QUIET)
    with pytest.raises(ValueError, match="eval_batch_size is 0, expected at least 1"):
        evaluate(last, eval_batch_size=0, **QUIET)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such checkpoint"):
        evaluate(tmp_path / "none.ckpt", **QUIET)
    saved = load_checkpoint(runs["mlm"][0] / "last.ckpt", "poolingformer")
    saved["hyper_parameters"]["data"] = str(tmp_path / "gone.txt")
    torch.save(saved, tmp_path / "moved.ckpt")
    with pytest.raises(FileNotFoundError, match=r"gone\.txt: no such file"):
        evaluate(tmp_path / "moved.ckpt", **QUIET)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("listops", "score.bias"),
        ("mlm", "bias"),
        ("qa", "encoder.norm.bias"),
        ("qa", "passage_score.bias"),
        ("qa", "span.bias"),
    ],
)
def test_parameters_of_nan_stop_the_evaluation(runs, tmp_path, task, name):
    saved = load_checkpoint(runs[task][0] / "last.ckpt", "poolingformer")
    saved["state_dict"][f"model.{name}"].fill_(torch.nan)
    torch.save(saved, tmp_path / "nan.ckpt")
    with pytest.raises(ValueError, match=r"sums of the evaluation are .*loss': nan.*\(has training diverged\?\)"):
        evaluate(tmp_path / "nan.ckpt", **QUIET)


def test_training_that_diverges_says_so(train, tmp_path):
    with pytest.raises(ValueError, match=r"has training diverged\?"):
        train("listops", tmp_path, {"lr": 1e30, "weight_decay": 0.0, "warmup": 0.0})


def test_checkpoints_of_other_recipes_are_refused(runs, tiny, tmp_path):
    config = nbfnet.Config(epochs=1, batch_size=64, num_negative=2, dim=4, num_layers=1)
    nbfnet.train(read_kg(tiny), config, tmp_path, data=tiny, **QUIET)
    theirs, ours = tmp_path / "last.ckpt", runs["listops"][0] / "last.ckpt"
    with pytest.raises(ValueError, match=r"last\.ckpt: a checkpoint of innerloop nbfnet fit, expected one of poolingf"):
        evaluate(theirs, **QUIET)
    with pytest.raises(ValueError, match=r"a checkpoint of innerloop poolingformer fit, expected one of nbfnet fit"):
        nbfnet.evaluate(ours, **QUIET)


@pytest.mark.parametrize("world_size", [2, 3, 13])
@pytest.mark.parametrize("task", TASKS)
def test_processes_share_the_examples(runs, data, monkeypatch, task, world_size):
    """Each process adds up its own examples; the sum has the metrics of one process."""
    output, result = runs[task]
    saved = saved_task(output / "last.ckpt", data[task])
    parts = []
    for rank in range(world_size):
        saved.on_test_epoch_start()
        for batch in EvaluationBatches(saved.problem.size("test"), 2, rank, world_size):
            saved.test_step(batch, 0)
        parts.append(saved._totals)
    saved.trainer = type("Trainer", (), {"world_size": world_size})
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.copy_(sum(parts)))
    assert saved._measure() == pytest.approx(result["test"], rel=1e-5)


# --- comparison ---


@pytest.fixture
def study(monkeypatch):
    """The preset of compare made small: 40 sequences, two epochs."""
    settings = {name: getattr(CONFIGS["listops"], name) for name in ("length", "min_length", "train", "valid", "test")}
    monkeypatch.setitem(PRESETS, ("listops", "study"), settings | SMALL)


def test_compare(study, monkeypatch, tmp_path, capsys):
    arguments = {"variants": ["one-level", "mean"], "seeds": [3, 4], "output": tmp_path, "progress": False}
    results = compare(**arguments)
    lines = capsys.readouterr().out.splitlines()
    assert list(results) == ["one-level", "mean"]
    folders = {(v, s): tmp_path / f"{v}-{s}" for v in results for s in (3, 4)}
    rows = {key: json.loads((folder / "metrics.json").read_text()) for key, folder in folders.items()}
    for variant, columns in results.items():
        assert columns == {name: [rows[variant, s]["test"][name] for s in (3, 4)] for name in ("accuracy", "loss")}
        for seed in (3, 4):
            changes = {"one-level": {"two_level": 0}, "mean": {"pooling": "mean"}}[variant]
            assert Config(**rows[variant, seed]["config"]) == replace(CONFIGS["listops"], seed=seed, **changes)
    assert json.loads((tmp_path / "compare.json").read_text()) == {"seeds": [3, 4], "test": results}
    assert "listops-16, test, last epoch, mean ± standard deviation over seeds 3, 4" in lines
    assert "| variant | accuracy | loss |" in lines
    for variant, columns in results.items():
        cells = [f"{statistics.mean(pair):.4f} ± {abs(pair[0] - pair[1]) / 2**0.5:.4f}" for pair in columns.values()]
        assert f"| {variant} | {' | '.join(cells)} |" in lines

    # Finished runs are not repeated, one without a result is.
    started, train = [], recipe.train_on

    def spy(problem, config, output, **options):
        started.append(output.name)
        return train(problem, config, output, **options)

    monkeypatch.setattr(recipe, "train_on", spy)
    assert compare(**arguments) == results
    assert started == []
    (folders["mean", 3] / "metrics.json").write_text("{")
    (folders["one-level", 4] / "metrics.json").unlink()
    assert compare(**arguments) == results
    assert started == ["mean-3", "one-level-4"]
    capsys.readouterr()
    compare(**arguments | {"seeds": [4], "variants": ["mean"]})
    assert "± nan" in capsys.readouterr().out  # one value has no deviation
    assert compare(**arguments, eval_batch_size=3) == results  # which changes no metric
    assert compare(**arguments, precision="32") == results  # another name of the same
    assert len(started) == 2
    with pytest.raises(ValueError, match="cannot resume with other settings: limit was None and is 1"):
        compare(**arguments, limit=1)
    with pytest.raises(ValueError, match="cannot resume with other settings: precision was 32-true and is bf16-mixed"):
        compare(**arguments, precision="bf16-mixed")
    assert len(started) == 4
    # So are those of a version that stored no digest of generated data.
    for folder in folders.values():
        stored = json.loads((folder / "metrics.json").read_text())
        del stored["data_digest"]
        (folder / "metrics.json").write_text(json.dumps(stored))
        (folder / "last.ckpt").unlink()
    assert compare(**arguments) == results
    assert len(started) == 4


def test_compare_goes_on_where_it_was_interrupted(study, monkeypatch, tmp_path):
    arguments = {"variants": ["one-level", "ldconv"], "seeds": [3], "progress": False}
    whole = compare(**arguments, output=tmp_path / "whole")
    step, steps = PoolingformerTask.training_step, []

    def interrupted_step(self, batch, batch_idx):
        steps.append(self.trainer.global_step)
        if len(steps) == 16:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PoolingformerTask, "training_step", interrupted_step)
    with pytest.raises(Interrupted, match=r"ldconv-3.last\.ckpt"):
        compare(**arguments, output=tmp_path / "parts")
    assert not (tmp_path / "parts" / "compare.json").exists()
    assert compare(**arguments, output=tmp_path / "parts") == whole
    assert steps == [*range(10), *range(10)]  # no step twice


def test_compare_does_not_take_a_result_on_other_data(monkeypatch, tmp_path):
    """The same folder and settings, another file."""
    monkeypatch.setitem(PRESETS, ("qa", "study"), {**SMALL, "length": 64})
    files = [write_xquad(tmp_path / f"xquad.{name}.json", size) for name, size in (("a", 16), ("b", 8))]
    arguments = {"task": "qa", "variants": ["mean"], "seeds": [0], "output": tmp_path / "out", "progress": False}
    compare(data=files[0], **arguments)
    with pytest.raises(ValueError, match=r"cannot resume, it was trained on xquad\.a-64"):
        compare(data=files[1], **arguments)


def test_compare_defaults(study, monkeypatch, tmp_path):
    """The first four variants and seeds 0 to 2, in a folder named after the data."""
    started = []

    def train(problem, config, output, **options):
        started.append((output, config))
        assert options["precision"] == "bf16-mixed"
        return {"test": {"accuracy": float(config.seed)}}

    monkeypatch.setattr(recipe, "train_on", train)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "poolingformer" / "compare-listops-16").mkdir(parents=True)
    settings = {"length": 16, "train": 20, "valid": 8, "test": 9, "epochs": 3, "limit": 2, "batch_size": 5, "lr": 0.5}
    settings |= {"dim": 12, "num_layers": 3, "heads": 3, "window": 5, "two_level": 2, "pool_window": 9, "kernel": 7}
    settings |= {"stride": 3, "dropout": 0.25, "eval_batch_size": 4, "eval_examples": 7}
    results = compare(**settings, precision="bf16-mixed", progress=False)
    assert results == {name: {"accuracy": [0, 1, 2]} for name in ("one-level", "ldconv", "mean", "max")}
    base = replace(CONFIGS["listops"], **settings)
    folder = Path("runs") / "poolingformer" / "compare-listops-16"
    expected = {folder / f"{name}-{s}": replace(base, seed=s, **VARIANTS[name]) for name in results for s in (0, 1, 2)}
    assert dict(started) == expected
    assert len(started) == 12


def test_every_variant_trains(study, tmp_path):
    results = compare(variants=list(VARIANTS), seeds=[0], limit=2, epochs=1, output=tmp_path, progress=False)
    assert list(results) == list(VARIANTS)
    sizes, words = {}, []
    for name in VARIANTS:
        state = load_checkpoint(tmp_path / f"{name}-0" / "last.ckpt", "poolingformer")["state_dict"]
        sizes[name] = sum(value.numel() for value in state.values())
        words.append(state["model.encoder.words.weight"])
    assert not any(torch.equal(a, b) for i, a in enumerate(words) for b in words[:i])  # each learnt otherwise
    level2, ldconv = 3 * (8 * 8 + 8), 2 * 3 * 4  # three projections; two weights (kernel, dim / heads)
    base = sizes["one-level"]
    assert sizes == {
        "one-level": base,
        "ldconv": base + level2 + ldconv,
        "mean": base + level2,
        "max": base + level2,
        "none": base + level2,
        "mix": base + level2 + ldconv,
        "weight-sharing": base + ldconv,
    }


@pytest.mark.parametrize(("variants", "seeds"), [(["mean", "median"], [0]), ([], [0]), (["mean"], [])])
def test_compare_errors(variants, seeds, tmp_path):
    with pytest.raises(ValueError, match="expected at least one each, of") as error:
        compare(variants=variants, seeds=seeds, output=tmp_path / "out")
    assert str(error.value).startswith(f"variants is {variants} and seeds {seeds}, ")
    assert not (tmp_path / "out").exists()


# --- the command line ---


def arguments_of(task: str, data: Path | None) -> list[str]:
    small = ["task", *MODEL, "epochs", "batch_size", "eval_batch_size", "length"]
    options = [f"--{name.replace('_', '-')}={getattr(CONFIGS[task], name)}" for name in small]
    if task == "listops":
        return [*options, "--train", "20", "--valid", "6", "--test", "7"]
    return [*options, "--data", str(data)]


@pytest.mark.parametrize("task", TASKS)
def test_fit_then_evaluate_print_the_same_row(data, tmp_path, monkeypatch, capfd, task):
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    if task == "listops":
        monkeypatch.setitem(PRESETS, ("listops", "quick"), {"min_length": 3})
    assert main(["poolingformer", "fit", *arguments_of(task, data[task])]) == 0
    fit = capfd.readouterr()
    assert fit.err == ""
    row = next(line for line in fit.out.splitlines() if " test, measured" in line)
    assert "epochs 2 (last epoch: 2); seed 1024" in fit.out
    (folder,) = (tmp_path / "runs" / "poolingformer").iterdir()
    assert row.startswith(f"| {folder.name} test, measured |")
    assert main(["poolingformer", "evaluate", str(folder / "last.ckpt")]) == 0
    again = capfd.readouterr()
    assert again.err == ""
    assert row in again.out


def test_help(capsys):
    pytest.importorskip("jsonargparse")
    assert main([]) == 0
    assert "innerloop poolingformer compare" in capsys.readouterr().out
    for command, words in {
        "fit": ["tokens on each side that level 2 sees", "passes over the training examples"],
        "evaluate": ["so many examples at most; 0 takes all"],
        "compare": ["default 0, 1, 2", "one folder a run"],
    }.items():
        with pytest.raises(SystemExit) as stop:
            main(["poolingformer", command, "--help"])
        assert stop.value.code == 0
        out = " ".join(capsys.readouterr().out.split())
        for word in words:
            assert word in out


def test_compare_command(study, tmp_path, capfd):
    pytest.importorskip("jsonargparse")
    options = ["--variants", '["mean", "none"]', "--seeds", "[0]", "--epochs", "1", "--output", str(tmp_path)]
    assert main(["poolingformer", "compare", *options]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "| none | " in out
    assert json.loads((tmp_path / "compare.json").read_text())["seeds"] == [0]


FEW = ["--train=9", "--valid=9", "--test=9"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--task", "qa"], "data is missing, expected an XQuAD file or a folder of them for task qa"),
        (["fit", "--task", "mlm", "--data", "nowhere.txt"], "nowhere.txt: no such file"),
        (["fit", "--task", "qa", "--data", "."], ".: holds no xquad*.json or xquad*.json.gz file"),
        (["fit", "--data", "x"], "data is 'x', expected none: listops is generated"),
        (["fit", "--task", "mlm", "--preset", "lra", "--data", "x"], "preset is 'lra', expected one of quick, study"),
        (["fit", "--epochs", "0"], "epochs is 0, expected at least 1"),
        (["fit", "--num-layers", "4", "--two-level", "5"], "two_level is 5, expected 0 to num_layers (4)"),
        (["fit", "--train", "0"], "train is 0, expected at least 1"),
        (["fit", *FEW, "--dim", "64", "--heads", "7"], "heads is 7, expected a divisor of dim (64)"),
        (["fit", *FEW, "--stride=2", "--pool-window=7"], "pool_window is 7, expected tokens on each side, a multiple"),
        (["fit", *FEW, "--resume", "no.ckpt"], "no.ckpt: no such checkpoint"),
        (["evaluate", "no.ckpt"], "no.ckpt: no such checkpoint"),
        (["compare", "--variants", '["median"]'], "variants is ['median'] and seeds [0, 1, 2], expected at least one"),
        (["compare", "--task", "qa"], "data is missing, expected an XQuAD file"),
        (["compare", "--two-level", "0"], "two_level is 0, expected at least 1"),
    ],
)
def test_errors_of_the_user_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    assert main(["poolingformer", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("innerloop: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_interrupted_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    pytest.importorskip("jsonargparse")
    monkeypatch.setitem(PRESETS, ("listops", "quick"), {"min_length": 3})
    monkeypatch.setattr(PoolingformerTask, "on_train_epoch_start", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    output = ["--output", str(tmp_path)]
    assert main(["poolingformer", "fit", *arguments_of("listops", None), *output]) == 130
    error = capsys.readouterr().err
    assert error == f"innerloop: interrupted; the run continues from {tmp_path / 'last.ckpt'} with --resume auto\n"


# --- two processes ---

TWO_PROCESSES = """
import json, sys, time
from pathlib import Path
import torch
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes.poolingformer import Config, evaluate, make_problem, train_on

folder = Path(sys.argv[1])
options = {"accelerator": "cpu", "progress": False}
rows = {}
for task, checkpoint in json.loads(sys.argv[2]).items():
    measured = evaluate(checkpoint, **options)
    saved = load_checkpoint(checkpoint, "poolingformer")["hyper_parameters"]
    config, data = Config(**saved["config"]), saved["data"] and Path(saved["data"])
    problem = make_problem(config, data)
    result = train_on(problem, config, folder / task, data=data, **options)
    rows[task] = [measured, result["test"], result["processes"]]

replace = Path.replace
Path.replace = lambda *arguments: [time.sleep(0.5), replace(*arguments)][1]  # the first process writes to a slow disk
result = train_on(problem, config, folder / "slow", data=data, **options)
rows["slow"] = [result["test"], result["chosen_epoch"]]
rank = torch.distributed.get_rank()
(folder / f"rank{rank}.json").write_text(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def two_processes(runs, tmp_path_factory):
    """What each of two processes under torchrun got, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(TWO_PROCESSES)
    checkpoints = {task: str(output / "last.ckpt") for task, (output, _) in runs.items()}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(folder / "script.py"), str(folder), json.dumps(checkpoints)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=250)
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes(runs, data, two_processes, task):
    """torchrun: evaluation equals that of one process; training that with summed gradients."""
    folder, ranks = two_processes
    assert ranks[0][task] == ranks[1][task]
    measured, _, processes = ranks[0][task]
    assert measured == pytest.approx(runs[task][1]["test"], rel=1e-5)
    assert processes == 2

    parallel = load_checkpoint(folder / task / "last.ckpt", "poolingformer")["state_dict"]
    for name, value in plain_training(CONFIGS[task], data[task], world_size=2).items():
        assert_close(parallel[name], value, op="two_processes")


@pytest.mark.slow
def test_two_processes_test_the_same_epoch(two_processes):
    """The one that does not write the checkpoint waits for it."""
    ranks = two_processes[1]
    _, test, _ = ranks[0]["mlm"]
    assert [rank["slow"] for rank in ranks] == [[test, 2]] * 2
