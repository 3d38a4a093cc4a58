# SPDX-License-Identifier: Apache-2.0
"""The teacher: trained once, resumed, foreign, refused; its cached logits."""

import json
import os
import signal

import pytest
import torch

pytest.importorskip("pytorch_lightning")

from innerloop.nn.cifar import create
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes._task import Interrupted
from innerloop.recipes.ckd import Problem, fit
from innerloop.recipes.ckd import module as implementation
from innerloop.recipes.ckd.module import CKDTask, Teacher
from innerloop.recipes.ckd.run import make_teacher
from innerloop.recipes.ckd.tasks import MLP
from recipes.ckd.ckd_cases import QUIET, TINY, tiny
from tolerances import assert_close, same


def test_the_teacher_is_trained_once(data, images, tmp_path, started, capsys):
    settings = {**TINY, **QUIET, "data": data, "output": tmp_path, "epochs": 1, "limit": 2}
    first = fit(**settings)
    assert started == ["teacher", tmp_path.name]
    assert "teacher cnn-4-8, test accuracy" in capsys.readouterr().out
    assert (tmp_path / "teacher" / "metrics.json").is_file()
    saved = torch.load(tmp_path / "teacher.pt", weights_only=True)
    stored = json.loads((tmp_path / "teacher" / "metrics.json").read_text())
    assert saved["accuracy"] == stored["test"]["accuracy"]
    assert stored["config"]["student_model"] == "cnn-4-8"

    # The student's settings do not concern the teacher; 32 is another name of 32-true.
    again = fit(**settings, seed=4, method="kd", precision="32")
    assert started[2:] == [tmp_path.name]
    assert first["config"]["teacher_digest"] == again["config"]["teacher_digest"] != ""

    fit(**settings, precision="bf16-mixed")
    assert started[3:] == ["teacher", tmp_path.name]
    fit(**settings | {"teacher_epochs": 2})
    assert started[5:] == ["teacher", tmp_path.name]
    fit(**settings | {"output": tmp_path / "other"}, teacher=tmp_path / "teacher.pt", teacher_seed=9)
    assert started[7:] == ["other"]
    fit(**settings | {"output": tmp_path / "none"}, method="plain")
    assert started[8:] == ["none"]
    assert not (tmp_path / "none" / "teacher.pt").exists()


def test_an_interrupted_teacher_goes_on(data, tmp_path, monkeypatch, started):
    settings = {**TINY, **QUIET, "data": data, "epochs": 1, "limit": 2, "teacher_epochs": 3}
    whole = fit(**settings, output=tmp_path / "whole")
    step, steps = CKDTask.training_step, []

    def interrupted_step(self, batch, batch_idx):
        steps.append(self.trainer.global_step)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(CKDTask, "training_step", interrupted_step)
    with pytest.raises(Interrupted, match=r"teacher.last\.ckpt"):
        fit(**settings, output=tmp_path / "parts")
    resumed = fit(**settings, output=tmp_path / "parts")
    assert steps == [*range(6), *range(2)]  # no step twice
    assert resumed["config"] == whole["config"]  # digest of the teacher included
    assert resumed["test"] == whole["test"]


def test_a_foreign_teacher_is_measured(data, images, tmp_path, capsys):
    """As in RepDistiller's checkpoints: the parameters below "model", and things we do not know."""
    network = create("resnet8", 10, 1)
    torch.save({"epoch": 240, "model": network.state_dict(), "best_acc": torch.tensor(0.7)}, tmp_path / "resnet8.pth")
    problem = Problem(images, tiny())
    x, labels = problem.batch("test", torch.arange(37))
    accuracy = float((network.eval()(x).argmax(1) == labels).double().mean())
    settings = {**TINY, **QUIET, "data": data, "epochs": 1, "limit": 2, "teacher_model": "resnet8"}
    fit(**settings, output=tmp_path / "run", teacher=tmp_path / "resnet8.pth")
    assert f"teacher resnet8, test accuracy {accuracy:.4g}" in capsys.readouterr().out
    assert not (tmp_path / "run" / "teacher.pt").exists()


def test_teachers_that_do_not_fit(images, tmp_path):
    def teacher_of(state, model="cnn-4-8"):
        torch.save(state, tmp_path / "t.pt")
        return make_teacher(images, tiny(teacher_model=model), tmp_path, tmp_path / "t.pt", **QUIET)

    wrong = MLP((64, 6, 7)).state_dict()
    with pytest.raises(ValueError, match=r"t\.pt: mlp-6 has 7 classes there, expected 10, as Fashion-MNIST has"):
        teacher_of({"model": wrong}, "mlp-6")
    with pytest.raises(ValueError, match=r"t\.pt: layers\.0\.weight has shape \(6, 64\), expected \(5, 64\)"):
        teacher_of({"model": MLP((64, 6, 10)).state_dict()}, "mlp-5")
    with pytest.raises(ValueError, match=r"t\.pt: block0\.0\.weight has shape None, expected \(4, 1, 3, 3\)"):
        teacher_of({"model": wrong})
    with pytest.raises(ValueError, match=r"t\.pt: not a teacher, expected the parameters"):
        teacher_of({"state_dict": wrong})
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such checkpoint"):
        make_teacher(images, tiny(), tmp_path, tmp_path / "none.pt", **QUIET)


def test_cached_logits_are_those_of_the_teacher(images, teacher, monkeypatch):
    problem = Problem(images, tiny(augmentation="pool"))
    monkeypatch.setattr(implementation, "_CACHED_AT_ONCE", 100)
    like = torch.zeros(())
    cached = teacher.training_logits(problem, like)
    assert cached.shape == (208, 10)
    for items in torch.randperm(208).split(16):
        assert_close(cached[items], teacher.logits(problem.batch("train", items)[0]))
    assert teacher.training_logits(problem, like).data_ptr() == cached.data_ptr()
    assert teacher.training_logits(Problem(images, tiny()), like).shape == (52, 10)


@pytest.mark.parametrize("method", ["kd", "dkd", "ckd-masked", "cosine"])
def test_training_with_cached_logits(runs, train, tmp_path, monkeypatch, method):
    calls = []
    logits = Teacher.logits
    monkeypatch.setattr(Teacher, "logits", lambda self, x: calls.append(len(x)) or logits(self, x))
    train(tmp_path, method, {"epochs": 1, "cache_teacher_logits": True})
    assert calls == [52]  # once for all steps
    a, b = (load_checkpoint(place / "last.ckpt", "ckd")["state_dict"] for place in (runs[method][0], tmp_path))
    for name in a:
        assert_close(b[name], a[name])


def test_the_teacher_stays_as_it_is(train, teacher, tmp_path):
    """Batch norms in evaluation mode, no gradient."""
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    for method in ("ckd", "crd"):
        train(tmp_path / method, method, {"epochs": 1})
    assert same(before, teacher.network.state_dict())
    assert not teacher.network.training
