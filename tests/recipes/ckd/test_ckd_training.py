# SPDX-License-Identifier: Apache-2.0
"""Runs of distillation: every method, schedules, resume, evaluation, two processes."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("pytorch_lightning")

from innerloop import reference
from innerloop.data.images import ImageSet
from innerloop.recipes._batches import TrainingBatches, step_generator
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes._task import Interrupted
from innerloop.recipes.ckd import METHODS, Config, Problem, evaluate, fit, tasks, train_on
from innerloop.recipes.ckd import module as implementation
from innerloop.recipes.ckd.module import CKDData, CKDTask, Teacher
from recipes.ckd.ckd_cases import QUIET, TINY, tiny
from tolerances import assert_close, same

# --- runs ---


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(runs, images, method):
    output, result = runs[method]
    stored = json.loads((output / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert stored["config"]["method"] == method
    assert set(stored["test"]) == {"accuracy", "loss"}
    assert stored["dataset"] == "Fashion-MNIST"
    saved = load_checkpoint(output / "last.ckpt", "ckd")["state_dict"]
    assert {name for name in saved if not name.startswith("crd.")} == {
        f"model.layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }
    others = [m for m in METHODS if m != method]
    for other in others:
        theirs = load_checkpoint(runs[other][0] / "last.ckpt", "ckd")["state_dict"]
        assert not torch.equal(saved["model.layers.1.bias"], theirs["model.layers.1.bias"])


def test_metrics_are_those_of_the_saved_student(runs, images):
    output, result = runs["kd"]
    config = Config(**result["config"])
    problem = Problem(images, config)
    network = problem.network(config.student_model)
    state = load_checkpoint(output / "last.ckpt", "ckd")["state_dict"]
    network.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    x, labels = problem.batch("test", torch.arange(37))
    logits = network(x).detach()
    assert result["test"]["accuracy"] == float((logits.argmax(1) == labels).double().mean())
    assert result["test"]["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def learning_rate(schedule: str, step: int, steps: int, epochs: int) -> float:
    epoch = step * epochs // steps
    return {
        "cosine": (1 + np.cos(np.pi * step / steps)) / 2,
        "cosine-epoch": (1 + np.cos(np.pi * epoch / epochs)) / 2,
        "step": 0.1 ** ((epoch >= 5) + (epoch >= 6) + (epoch >= 7)),
    }[schedule]


@pytest.mark.parametrize("schedule", ["cosine", "cosine-epoch", "step"])
def test_training_is_a_plain_loop(train, images, teacher, tmp_path, schedule):
    """SGD with momentum, weight decay and schedule, on fresh crops."""
    epochs = 8
    changes = {"schedule": schedule, "augmentation": "crop-flip", "epochs": epochs, "batch_size": 20, "drop_last": True}
    train(tmp_path, "ckd", changes)
    trained = load_checkpoint(tmp_path / "last.ckpt", "ckd")["state_dict"]
    config = tiny("ckd", **changes)
    task = CKDTask(Problem(images, config), config, teacher)
    optimizer = torch.optim.SGD(task.parameters(), momentum=0.9, weight_decay=5e-4)
    step, steps = 0, 2 * epochs
    for epoch in range(epochs):
        for batch in TrainingBatches(torch.arange(52), 20, config.seed, lambda e=epoch: e, limit=2):
            optimizer.param_groups[0]["lr"] = 0.05 * learning_rate(schedule, step, steps, epochs)
            generator = step_generator(config.seed, epoch, 1 + batch["index"])
            x, labels = task.problem.batch("train", batch["items"], generator)
            logits = task.model(x)
            loss = F.cross_entropy(logits, labels) + 10 * reference.ckd(logits, teacher.logits(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    assert step == steps
    for name, value in task.state_dict().items():
        assert_close(trained[name], value, dtype=torch.float32)


@pytest.mark.parametrize(
    ("drop_last", "limit", "steps"), [(False, None, 7), (True, None, 6), (True, 9, 6), (True, 2, 2), (False, 2, 2)]
)
def test_steps_of_an_epoch(images, drop_last, limit, steps):
    config = tiny(drop_last=drop_last, limit=limit)
    loader = CKDData(Problem(images, config), config)
    loader.trainer = type("Trainer", (), {"world_size": 1, "global_rank": 0, "current_epoch": 0})
    batches = list(loader.train_dataloader())
    assert len(batches) == steps
    assert len(batches[-1]["items"]) == (4 if steps == 7 else 8)


def test_drop_last_needs_a_whole_batch(images):
    with pytest.raises(ValueError, match="batch_size is 64, expected at most 52, the number of training images"):
        Problem(images, tiny(drop_last=True, batch_size=64))


def test_the_last_epoch_is_reported_even_if_an_earlier_one_was_better(train, tmp_path, monkeypatch):
    step = CKDTask.training_step
    monkeypatch.setattr(CKDTask, "training_step", lambda *arguments: -step(*arguments))  # uphill
    result = train(tmp_path, "plain", {"epochs": 3, "schedule": "cosine-epoch"})
    assert (result["chosen_epoch"], result["chosen_by"]) == (3, "last epoch")
    losses = [row["loss"] for row in result["epochs"]]
    assert losses[0] < losses[2]  # recorded before the sign changes
    assert not (tmp_path / "best.ckpt").exists()
    assert evaluate(tmp_path / "last.ckpt", **QUIET) == result["test"]


def test_validation_on_what_is_held_out(data, tmp_path):
    result = fit(method="plain", data=data, holdout=2, output=tmp_path, **TINY, **QUIET)
    assert [set(row) for row in result["epochs"]] == [
        {"epoch", "loss", "train_seconds", "valid_accuracy", "valid_loss"}
    ] * 2
    valid = evaluate(tmp_path / "last.ckpt", split="valid", **QUIET)
    assert {f"valid_{name}": value for name, value in valid.items()}.items() <= result["epochs"][-1].items()


def test_the_student_learns(train, tmp_path):
    result = train(tmp_path, "ckd", {"epochs": 15, "lr": 0.1, "student_model": "mlp-32"})
    assert result["test"]["accuracy"] > 0.5  # by chance 0.1


def test_training_that_diverges_says_so(train, tmp_path):
    message = "plain, mlp-6, seed 0: the cross entropy of the evaluation is nan, training has diverged"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, "plain", {"lr": 1e30})


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions(train, tmp_path, precision):
    for method in ("ckd", "crd"):
        result = train(tmp_path / method, method, {"epochs": 1, "limit": 2}, precision=precision)
        assert result["precision"] == precision
    train(tmp_path / "cached", "ckd", {"epochs": 1, "limit": 2, "cache_teacher_logits": True}, precision=precision)


def test_fused_and_eager_ckd_have_the_same_curve(train, tmp_path, monkeypatch):
    """100 steps of the compiled op and of its definition."""
    losses: list[float] = []
    record = CKDTask._record

    def spy(self, loss, batch_size):
        losses.append(float(loss.detach()))
        return record(self, loss, batch_size)

    monkeypatch.setattr(CKDTask, "_record", spy)
    changes = {"epochs": 10, "batch_size": 20, "augmentation": "pool", "cache_teacher_logits": True, "limit": 10}
    train(tmp_path / "fused", "ckd", changes)
    fused = losses.copy()
    losses.clear()
    monkeypatch.setattr(implementation, "ckd", reference.ckd)
    train(tmp_path / "eager", "ckd", changes)
    assert len(fused) == len(losses) == 100
    assert fused[-1] < fused[0] - 1
    assert max(abs(a - b) for a, b in zip(fused, losses, strict=True)) <= 1e-4


# --- resume ---


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("crd", {"augmentation": "crop-flip"}),
        ("ckd", {"augmentation": "pool", "train_size": 14, "cache_teacher_logits": True, "student_model": "cnn-4"}),
    ],
)
def test_resume_is_exact_to_the_bit(train, tmp_path, monkeypatch, method, changes):
    """Stopped in mid-epoch, and at the last step of an epoch."""
    whole = train(tmp_path / "whole", method, changes)
    stop_at, step = {1, 6, 10}, CKDTask.training_step

    def interrupted_step(self, batch, batch_idx):
        if self.trainer.global_step in stop_at:
            stop_at.remove(self.trainer.global_step)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(CKDTask, "training_step", interrupted_step)
    for _ in range(3):
        with pytest.raises(Interrupted, match=r"continues from .*last\.ckpt"):
            train(tmp_path / "parts", method, changes, resume="auto")
        torch.rand(7)  # nothing depends on the generator's state
    resumed = train(tmp_path / "parts", method, changes, resume="auto")
    assert not stop_at
    assert resumed["test"] == whole["test"]
    a, b = (load_checkpoint(tmp_path / name / "last.ckpt", "ckd") for name in ("whole", "parts"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(a[part], b[part])


def test_resume_with_other_settings_is_refused(runs, train, images, tmp_path):
    last = runs["ckd"][0] / "last.ckpt"
    with pytest.raises(ValueError, match=r"last\.ckpt: cannot resume with other settings: kd_weight was 10 and is 9"):
        train(tmp_path, "ckd", {"epochs": 1, "kd_weight": 9.0}, resume=last)
    other = Teacher(Problem(images, tiny()).network("cnn-4-8"), 0.1)
    config = tiny("ckd", epochs=1)
    with pytest.raises(ValueError, match="cannot resume with other settings: teacher_digest was"):
        train_on(Problem(images, config), config, tmp_path, other, resume=last, **QUIET)


# --- evaluation ---


def test_evaluate_gives_what_fit_gave(runs, data, capsys):
    for method in ("plain", "ckd", "crd"):
        output, result = runs[method]
        assert evaluate(output / "last.ckpt", **QUIET) == result["test"]
        assert "| Fashion-MNIST test, measured | " in capsys.readouterr().out
    other = evaluate(output / "last.ckpt", data=data, eval_batch_size=5, **QUIET)
    assert other == pytest.approx(result["test"], rel=1e-5)


def test_evaluate_errors(runs, tmp_path, monkeypatch):
    last = runs["ckd"][0] / "last.ckpt"
    with pytest.raises(ValueError, match=r"split is 'valid', expected one of train, test \(valid needs a holdout\)"):
        evaluate(last, split="valid", **QUIET)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such checkpoint"):
        evaluate(tmp_path / "none.ckpt", **QUIET)
    torch.save({"model": {}}, tmp_path / "teacher.pt")
    with pytest.raises(ValueError, match=r"teacher\.pt: not a checkpoint of innerloop ckd"):
        evaluate(tmp_path / "teacher.pt", **QUIET)
    two = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"), "two")
    monkeypatch.setattr(tasks, "read_fashion_mnist", lambda path: {"train": two, "test": two})
    monkeypatch.setattr(tasks, "statistics", lambda x: ((0.0,), (1.0,)))
    with pytest.raises(ValueError, match=r"last\.ckpt: mlp-6 has 10 classes there, expected 2, as two has"):
        evaluate(last, **QUIET)


# --- two processes ---


TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch
from innerloop.recipes.ckd import evaluate, fit

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
options = {"accelerator": "cpu", "progress": False, "data": Path(settings.pop("data"))}
result = fit(output=folder / "run", **settings, **options)
measured = evaluate(folder / "run" / "last.ckpt", accelerator="cpu", progress=False)
rank = torch.distributed.get_rank()
(folder / f"rank{rank}.json").write_text(json.dumps([result["test"], measured, result["config"]["teacher_digest"]]))
"""


@pytest.mark.slow
def test_two_processes(data, tmp_path):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = json.dumps({**TINY, "data": str(data), "holdout": 1})
    command += [str(tmp_path / "script.py"), str(tmp_path), settings]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=250)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[0] == first[1]
    alone = evaluate(tmp_path / "run" / "last.ckpt", **QUIET)
    assert alone == pytest.approx(first[0], rel=1e-5)
