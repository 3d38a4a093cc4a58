# SPDX-License-Identifier: Apache-2.0
"""Distillation: presets, data, losses of the step, resume, the teacher, evaluation, comparison."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("pytorch_lightning")

import innerloop.recipes.ckd.run as recipe
from innerloop import reference
from innerloop.data.images import ImageSet, standardise
from innerloop.data.images import statistics as image_statistics
from innerloop.nn.cifar import create
from innerloop.nn.distillation_features import pkt, rkd, sp
from innerloop.recipes._batches import TrainingBatches, step_generator
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes._task import Interrupted
from innerloop.recipes.ckd import (
    METHODS,
    PRESETS,
    PUBLISHED,
    Config,
    Problem,
    compare,
    evaluate,
    fit,
    make_config,
    paired,
    read_images,
    tasks,
    train_on,
)
from innerloop.recipes.ckd import module as implementation
from innerloop.recipes.ckd.module import CKDData, CKDTask, Teacher
from innerloop.recipes.ckd.run import make_teacher
from innerloop.recipes.ckd.tasks import MLP, Images, feature_width
from tolerances import assert_close

QUIET = {"accelerator": "cpu", "progress": False}
TINY = {
    "dataset": "fashion-mnist",
    "student_model": "mlp-6",
    "teacher_model": "cnn-4-8",
    "epochs": 2,
    "teacher_epochs": 1,
    "batch_size": 8,
    "teacher_batch_size": 16,
    "eval_batch_size": 16,
    "cache_teacher_logits": False,
}
# Smaller than the published ones, so that every method learns in a few steps.
WEIGHTS = {"sp": 10.0, "pkt": 10.0, "rkd": 0.1}


def tiny(method: str = "ckd", **changes) -> Config:
    weight = {"kd_weight": WEIGHTS[method]} if method in WEIGHTS else {}
    return make_config("digits", method, **{"warmup_epochs": 4.0, "beta": 2.0, **TINY, **weight, **changes})


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_fashion(folder: Path, seed: int = 0) -> Path:
    """52 training and 37 test images, 8×8 and noisy; the class is a bright row or column."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for split, n in (("train", 52), ("t10k", 37)):
        labels = np.arange(n) % 10
        images = rng.integers(0, 100, (n, 8, 8))
        for image, label in zip(images, labels, strict=True):
            (image if label < 5 else image.T)[label % 5 + 1] += 150
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels)
    return folder


def same(a, b) -> bool:
    """Nested equality, of tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_fashion(tmp_path_factory.mktemp("data") / "fashion")


@pytest.fixture(scope="module")
def images(data) -> Images:
    return read_images(tiny(), data)


@pytest.fixture(scope="module")
def teacher(images, tmp_path_factory) -> Teacher:
    return make_teacher(images, tiny(teacher_epochs=3), tmp_path_factory.mktemp("teacher"), **QUIET)


@pytest.fixture(scope="module")
def train(images, teacher, data):
    """Trains a student with a method and other settings if wanted."""

    def train(output: Path, method: str = "ckd", changes: dict | None = None, **options):
        config = tiny(method, **changes or {})
        own = None if method == "plain" else teacher
        return train_on(Problem(images, config), config, output, own, data=data, **QUIET, **options)

    return train


@pytest.fixture(scope="module")
def runs(train, tmp_path_factory):
    """Finished runs: method -> (output folder, result)."""
    folder = tmp_path_factory.mktemp("runs")
    return {method: (folder / method, train(folder / method, method, {"epochs": 1})) for method in METHODS}


# --- settings ---


def test_presets_are_the_official_configs():
    official = """
        resnet56 resnet20 64 0.05 10 1
        resnet110 resnet32 64 0.05 10 1
        resnet32x4 resnet8x4 64 0.05 100 1
        wrn_40_2 wrn_16_2 64 0.05 100 1
        wrn_40_2 wrn_40_1 32 0.05 50 2
        vgg13 vgg8 64 0.05 100 1
        resnet32x4 ShuffleV1 32 0.01 100 1
        wrn_40_2 ShuffleV1 32 0.01 100 1
        resnet32x4 ShuffleV2 64 0.01 100 1
        vgg13 MobileNetV2 32 0.01 50 2
        ResNet50 MobileNetV2 32 0.01 100 1
    """
    rows = [line.split() for line in official.split("\n") if line.strip()]
    assert [f"{row[0]}-{row[1]}" for row in rows] == [name for name in PRESETS if PRESETS[name].get("epochs") == 480]
    for teacher, student, *numbers in rows:
        config = make_config(f"{teacher}-{student}")
        assert (config.teacher_model, config.student_model) == (teacher, student)
        assert [config.batch_size, config.lr, config.kd_weight, config.temperature] == [float(n) for n in numbers]
        assert (config.momentum, config.weight_decay, config.epochs, config.ce_weight) == (0.9, 5e-4, 480, 1)
        assert (config.schedule, config.augmentation, config.dataset) == ("cosine-epoch", "crop-flip", "cifar")
        assert not config.drop_last
        beta = 2 if teacher in ("resnet56", "resnet110") else 6 if teacher in ("vgg13", "wrn_40_2") else 8
        dkd = make_config(f"{teacher}-{student}", "dkd")
        assert (dkd.beta, dkd.temperature, dkd.warmup_epochs, dkd.kd_weight) == (beta, 4, 20, 1)
        kd = make_config(f"{teacher}-{student}", "kd")
        assert (kd.ce_weight, kd.kd_weight, kd.temperature) == (0.1, 0.9, 4)
        assert PUBLISHED[f"{teacher}-{student}"].keys() >= {f"{m}, best of 240 epochs" for m in ("plain", "KD", "DKD")}
    assert PUBLISHED["resnet32x4-resnet8x4"]["CRD, best of 240 epochs"] == {"accuracy": pytest.approx(0.7551)}


def test_presets_of_the_studies():
    omniglot, fashion, digits = (make_config(name) for name in ("omniglot-200", "fashion-mnist", "digits"))
    for config in (omniglot, fashion, digits):
        assert (config.batch_size, config.lr, config.schedule, config.kd_weight) == (64, 0.05, "cosine", 10)
        assert config.cache_teacher_logits
    assert (omniglot.epochs, omniglot.teacher_epochs, omniglot.augmentation) == (10, 12, "pool")
    assert (omniglot.teacher_model, omniglot.student_model) == ("cnn-32-64-128", "cnn-8-16-32")
    assert omniglot.drop_last
    assert (fashion.epochs, fashion.teacher_epochs, fashion.augmentation) == (15, 8, "none")
    assert (fashion.teacher_model, fashion.student_model) == ("cnn-32-64-128", "cnn-8-16-16")
    assert (fashion.train_size, fashion.teacher_train_size) == (4000, 20000)
    assert (digits.teacher_model, digits.student_model, digits.epochs) == ("mlp-256-256", "mlp-8", 60)
    assert make_config("omniglot-200", "dkd").beta == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "resnet8"}, "preset is 'resnet8', expected one of digits, omniglot-200, "),
        ({"method": "fitnet"}, "method is 'fitnet', expected one of plain, kd, "),
        ({"dataset": "mnist"}, "dataset is 'mnist', expected one of digits, "),
        ({"schedule": "linear"}, "schedule is 'linear', expected one of cosine, cosine-epoch, step"),
        ({"teacher_schedule": "linear"}, "teacher_schedule is 'linear', expected one of cosine"),
        ({"augmentation": "cutmix"}, "augmentation is 'cutmix', expected one of crop-flip, pool, none"),
        ({"student_model": "resnet9"}, "student_model is 'resnet9', expected widths such as cnn-8-16-32 or mlp-8, or "),
        ({"teacher_model": "cnn-8-0"}, "teacher_model is 'cnn-8-0', expected widths"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"limit": 0}, "limit is 0, expected at least 1"),
        ({"lr": 0.0}, "lr is 0.0, expected a finite number above 0"),
        ({"temperature": float("nan")}, "temperature is nan, expected a finite number above 0"),
        ({"kd_weight": -1.0}, "kd_weight is -1.0, expected a finite number, not negative"),
        ({"holdout": -1}, "holdout is -1, expected at least 0"),
        (
            {"cache_teacher_logits": True, "augmentation": "crop-flip"},
            "cache_teacher_logits is True, expected False with augmentation crop-flip",
        ),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match="expected") as error:
        make_config(**settings)
    assert str(error.value).startswith(message)


def test_unknown_setting():
    with pytest.raises(TypeError, match=r"make_config\(\) got unknown settings \['rate'\]"):
        make_config(rate=1)


# --- data ---


def test_batches_are_standardised_images(images):
    problem = Problem(images, tiny())
    assert (problem.num_classes, problem.size("train"), problem.size("test")) == (10, 52, 37)
    items = torch.tensor([5, 3])
    x, labels = problem.batch("train", items)
    mean, std = image_statistics(images.splits["train"].images)
    assert_close(x, standardise(images.splits["train"].images[items], mean, std))
    assert labels.tolist() == [5, 3]
    everything, _ = problem.batch("train", torch.arange(52))
    assert abs(float(everything.mean())) < 1e-5
    assert abs(float(everything.std()) - 1) < 1e-3


def test_crops_are_drawn_from_the_generator_in_training_only(images):
    problem = Problem(images, tiny(augmentation="crop-flip"))
    items = torch.arange(8)
    first, again, other = (problem.batch("train", items, step_generator(0, epoch))[0] for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(problem.batch("train", items)[0], Problem(images, tiny()).batch("train", items)[0])
    fixed = Problem(images, tiny()).batch("train", items, step_generator(0, 0))[0]
    assert torch.equal(fixed, problem.batch("train", items)[0])


def test_pool_and_train_size(images):
    problem = Problem(images, tiny(augmentation="pool", train_size=6))
    assert problem.size("train") == 24
    assert problem.batch("train", torch.arange(24))[1].tolist() == list(range(6)) * 4
    plain = Problem(images, tiny())
    assert torch.equal(problem.batch("train", torch.arange(6))[0], plain.batch("train", torch.arange(6))[0])
    assert Problem(images, tiny(train_size=1000)).size("train") == 52


def test_holdout_is_taken_from_every_class(data):
    images = read_images(tiny(holdout=2), data)
    assert {split: len(s) for split, s in images.splits.items()} == {"train": 32, "valid": 20, "test": 37}
    assert torch.bincount(images.splits["valid"].labels).tolist() == [2] * 10


def test_holdout_of_omniglot_is_the_last_drawers(monkeypatch):
    n = 3 * 15
    train = ImageSet(torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1), torch.arange(3).repeat_interleave(15),
                     ("a", "b", "c"), "Omniglot-3")  # fmt: skip
    monkeypatch.setattr(tasks, "read_omniglot", lambda path: {"train": train, "test": train})
    images = read_images(tiny(dataset="omniglot-200", holdout=2), Path("x"))
    assert images.splits["valid"].images.flatten().tolist() == [13, 14, 28, 29, 43, 44]
    assert len(images.splits["train"]) == 39
    with pytest.raises(ValueError, match="holdout is 15, expected less than the 15 drawers"):
        read_images(tiny(dataset="omniglot-200", holdout=15), Path("x"))


@pytest.mark.parametrize(
    ("config", "path", "message"),
    [
        (
            {"dataset": "omniglot-200"},
            None,
            "data is missing, expected the file omniglot.npz for data set omniglot-200",
        ),
        ({"dataset": "cifar"}, None, "data is missing, expected the archive or folder of CIFAR-100 or CIFAR-10"),
        ({"dataset": "digits"}, Path("x"), "data is 'x', expected none: digits come with scikit-learn"),
    ],
)
def test_missing_data(config, path, message):
    with pytest.raises(ValueError, match="data is") as error:
        read_images(tiny(**config), path)
    assert str(error.value).startswith(message)


def test_download_is_for_cifar(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="download is True, expected False: only CIFAR-100"):
        read_images(tiny(), tmp_path, download=True)
    monkeypatch.setattr(tasks, "download_cifar100", lambda folder: folder / "archive")
    monkeypatch.setattr(tasks, "read_cifar", lambda path: {"train": path, "test": path})
    assert read_images(tiny(dataset="cifar"), download=True).splits["train"] == Path("data/archive")


def test_image_folder(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(place / f"{i}.png")
    config = tiny(dataset="folder", image_size=16, augmentation="crop-flip", epochs=1, batch_size=3)
    images = read_images(config, tmp_path)
    problem = Problem(images, config)
    x, labels = problem.batch("train", torch.tensor([0, 5]), step_generator(0))
    assert x.shape == (2, 3, 16, 16)
    assert labels.tolist() == [0, 1]
    result = train_on(problem, replace(config, method="plain"), tmp_path / "run", data=tmp_path, **QUIET)
    assert evaluate(tmp_path / "run" / "last.ckpt", **QUIET) == result["test"]
    with pytest.raises(ValueError, match="augmentation is 'pool', expected crop-flip or none for a folder of files"):
        Problem(images, tiny(augmentation="pool"))


def test_networks(images):
    problem = Problem(images, tiny())
    mlp = problem.network("mlp-7-5")
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(7, 64), (5, 7), (10, 5)]
    x = torch.randn(3, 1, 8, 8)
    logits, maps, pooled = mlp(x, features=True)
    assert torch.equal(logits, mlp(x))
    assert [m.shape for m in maps] == [(3, 7), (3, 5)]
    assert torch.equal(pooled, maps[-1])
    for name, width in (("mlp-7-5", 5), ("cnn-4-8", 8), ("resnet8", 64), ("MobileNetV2", 1280)):
        network = problem.network(name)
        assert feature_width(network) == width == network(x, features=True)[2].shape[1]
        assert network(x).shape == (3, 10)


# --- one step ---


def logits_of(task: CKDTask, items: torch.Tensor):
    images, labels = task.problem.batch("train", items)
    student, teacher = task.model(images, features=True), task.teacher.features(images)
    return student, teacher, labels


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p.log() - q.log())).sum(1).mean()


def expected_loss(task: CKDTask, items: torch.Tensor, epoch: int) -> torch.Tensor:
    """The loss of a step from the definitions."""
    (s, maps, pooled), (t, teacher_maps, teacher_pooled), y = logits_of(task, items)
    config, method = task.config, task.config.method
    T = config.temperature
    p, q = (t / T).softmax(1), (s / T).softmax(1)
    other = F.one_hot(y, 10) == 0
    if method == "plain":
        loss = 0
    elif method == "kd":
        loss = T**2 * kl(p, q)
    elif method == "dkd":
        p_y, q_y = p.gather(1, y[:, None]), q.gather(1, y[:, None])
        target = kl(torch.cat([p_y, 1 - p_y], 1), torch.cat([q_y, 1 - q_y], 1))
        rest = kl(p[other].view(-1, 9) / (1 - p_y), q[other].view(-1, 9) / (1 - q_y))
        loss = min((epoch + 1) / config.warmup_epochs, 1) * T**2 * (target + config.beta * rest)
    elif method == "cosine":
        loss = (1 - F.cosine_similarity(s, t)).mean()
    elif method in ("ckd", "ckd-masked", "ckd-symmetric"):
        options = {"labels": y} if method == "ckd-masked" else {"symmetric": method == "ckd-symmetric"}
        loss = reference.ckd(s, t, temperature=T, **options)
    else:
        loss = {
            "rkd": lambda: rkd(pooled, teacher_pooled),
            "sp": lambda: sp(maps[-1], teacher_maps[-1]),
            "pkt": lambda: pkt(pooled, teacher_pooled),
        }[method]()
    return config.ce_weight * F.cross_entropy(s, y) + config.kd_weight * loss


@pytest.mark.parametrize("method", [m for m in METHODS if m != "crd"])
@pytest.mark.parametrize("epoch", [1, 9])
def test_loss_of_a_step(images, teacher, method, epoch):
    config = tiny(method, temperature=1.7, ce_weight=0.7)
    task = CKDTask(Problem(images, config), config, teacher)
    task.log = lambda *_, **__: None
    task._teacher_logits = None
    items = torch.arange(20)
    loss = task.training_step({"items": items, "epoch": epoch, "index": 3}, 0)
    assert_close(loss, expected_loss(task, items, epoch))
    loss.backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in task.parameters())
    assert all(p.grad is None for p in teacher.network.parameters())


def test_crd_has_one_vector_a_training_image_and_is_trained(images, teacher):
    config = tiny("crd")
    task = CKDTask(Problem(images, config), config, teacher)
    task.log = lambda *_, **__: None
    assert task.crd.memory_student.shape == (52, 128)
    assert (task.crd.num_negatives, task.crd.temperature) == (52, 0.07)
    before = task.crd.memory_student.clone()
    items = torch.tensor([4, 50])
    losses = [float(task.training_step({"items": items, "epoch": 0, "index": i}, 0).detach()) for i in (0, 0, 1)]
    moved = (task.crd.memory_student != before).any(1).nonzero().flatten().tolist()
    assert moved == [4, 50]
    assert len(set(losses)) == 3  # the banks move, the negatives are drawn anew
    task.trainer = type("Trainer", (), {"world_size": 2})
    with pytest.raises(ValueError, match="method is 'crd', expected another in several processes"):
        task.on_train_start()


def test_a_method_without_teacher_is_refused(images):
    with pytest.raises(ValueError, match="CKDTask: teacher is None, expected one for the method kd"):
        CKDTask(Problem(images, tiny("kd")), tiny("kd"))


def test_students_of_one_seed_start_alike(images, teacher):
    def student(method, **changes):
        config = tiny(method, **changes)
        return CKDTask(Problem(images, config), config, teacher).model.state_dict()

    torch.manual_seed(5)
    first, state = student("plain"), torch.get_rng_state()
    for method in METHODS:
        assert same(first, student(method))
    assert not same(first, student("ckd", seed=1))
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())  # the caller's stream is left alone


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


# --- the teacher ---


@pytest.fixture
def started(monkeypatch):
    """Names of the folders in which a training starts."""
    names, run = [], recipe.run

    def spy(task, datamodule, output, **options):
        names.append(output.name)
        return run(task, datamodule, output, **options)

    monkeypatch.setattr(recipe, "run", spy)
    return names


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


# --- comparison ---


@pytest.fixture
def study(monkeypatch, data):
    """Arguments of a small comparison."""
    monkeypatch.setitem(PRESETS, "digits", {**TINY, "epochs": 1})
    return {"preset": "digits", "data": data, "limit": 3, "progress": False}


def test_compare(study, tmp_path, capsys, started):
    rows = ["plain", "kd", "ckd:kd_weight=3,temperature=0.5", "ckd-masked"]
    arguments = {**study, "methods": rows, "seeds": [3, 4, 5], "output": tmp_path}
    result = compare(**arguments)
    lines = capsys.readouterr().out.splitlines()
    assert started.count("teacher") == 1
    assert len(started) == 1 + 12
    assert result == json.loads((tmp_path / "compare.json").read_text())
    assert list(result["accuracy"]) == rows
    digests = set()
    for row, values in result["accuracy"].items():
        for seed, value in zip((3, 4, 5), values, strict=True):
            stored = json.loads((tmp_path / f"{row.replace(':', ',')}-{seed}" / "metrics.json").read_text())
            assert stored["test"]["accuracy"] == value
            assert stored["config"]["seed"] == seed
            digests.add(stored["config"]["teacher_digest"])
        mean, deviation = 100 * statistics.mean(values), 100 * statistics.stdev(values)
        (line,) = [line for line in lines if line.startswith(f"| {row} | {mean:.2f} ± {deviation:.2f} | ")]
        for base in ("plain", "kd"):
            if row == base:
                assert base not in result["difference"][base]
                continue
            difference = result["difference"][base][row]
            assert difference == paired(values, result["accuracy"][base])
            mean, low, high = (100 * end for end in difference.values())
            assert f" | {mean:+.2f} [{low:+.2f}, {high:+.2f}] |" in line
    assert digests == {"", result["teacher"]["digest"]}
    changed = result["config"][rows[2]]
    assert (changed["method"], changed["kd_weight"], changed["temperature"]) == ("ckd", 3, 0.5)

    # Finished runs are not repeated, one without a result is.
    started.clear()
    assert compare(**arguments) == result
    assert started == []
    (tmp_path / "kd-4" / "metrics.json").write_text("{")
    assert compare(**arguments) == result
    assert started == ["kd-4"]
    capsys.readouterr()
    compare(**arguments | {"seeds": [4], "methods": ["kd", "plain"]})
    assert "± nan" in capsys.readouterr().out  # one value has no deviation
    started.clear()
    compare(**arguments, precision="32")  # another name of the same
    assert started == []
    with pytest.raises(ValueError, match="cannot resume with other settings: epochs was 1 and is 2"):
        compare(**arguments, epochs=2)
    teacher = (tmp_path / "teacher.pt").read_bytes()
    with pytest.raises(ValueError, match=r"^precision is bf16-mixed, expected 32-true as of the run in "):
        compare(**arguments, precision="bf16-mixed")
    assert (tmp_path / "teacher.pt").read_bytes() == teacher


def test_compare_by_what_is_held_out(study, tmp_path):
    result = compare(**study, methods=["plain"], seeds=[0], holdout=2, split="valid", output=tmp_path)
    stored = json.loads((tmp_path / "plain-0" / "metrics.json").read_text())
    assert result["accuracy"] == {"plain": [stored["epochs"][-1]["valid_accuracy"]]}
    assert result["split"] == "valid"
    with pytest.raises(ValueError, match="split is 'valid', expected one of train, test"):
        compare(**study, methods=["plain"], seeds=[0], split="valid", output=tmp_path)


def test_compare_reports_runs_that_diverged(study, tmp_path, capsys):
    rows = ["plain", "ckd:kd_weight=1e30"]
    result = compare(**study, methods=rows, seeds=[0, 1], output=tmp_path)
    assert result["accuracy"][rows[1]] == [None, None]
    assert result["difference"]["plain"][rows[1]] == {"mean": None, "low": None, "high": None}
    assert f"| {rows[1]} | diverged 2 times of 2 | - |" in capsys.readouterr().out


def test_compare_defaults(study, monkeypatch, tmp_path):
    seen = []

    def train(problem, config, output, teacher, **options):
        seen.append(output.name)
        return {"test": {"accuracy": config.seed / 10}}

    monkeypatch.setattr(recipe, "train_on", train)
    monkeypatch.chdir(tmp_path)
    result = compare(**study)
    assert list(result["accuracy"]) == ["plain", "kd", "ckd", "ckd-masked", "cosine", "dkd"]
    assert result["accuracy"]["dkd"] == [0, 0.1, 0.2, 0.3, 0.4]
    assert len(seen) == 30
    assert Path("runs/ckd/compare-digits/compare.json").is_file()


@pytest.mark.parametrize(
    ("methods", "seeds", "message"),
    [
        ([], [0], r"methods is \[\] and seeds \[0\], expected at least one each, and none twice"),
        (["kd"], [], r"methods is \['kd'\] and seeds \[\], expected"),
        (["kd", "kd"], [0], "and none twice"),
        (["kd"], [1, 1], "and none twice"),
        (["fitnet"], [0], "method is 'fitnet', expected one of plain"),
        (["kd:lr=1"], [0], "methods has 'kd:lr=1', expected a method, or method:setting=number"),
        (["kd:kd_weight=big"], [0], "methods has 'kd:kd_weight=big', expected a method"),
    ],
)
def test_compare_errors(study, tmp_path, methods, seeds, message):
    with pytest.raises(ValueError, match=message):
        compare(**study, methods=methods, seeds=seeds, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("n", [2, 3, 5, 11, 12, 20, 100])
def test_paired_interval(n):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(n)
    values, base = rng.normal(1, 2, n), rng.normal(0, 2, n)
    found = paired(values.tolist(), base.tolist())
    interval = stats.ttest_rel(values, base).confidence_interval(0.95)
    assert found["mean"] == pytest.approx(float(np.mean(values - base)))
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), rel=1e-3, abs=1e-3)


def test_paired_interval_of_one_pair_or_none():
    assert paired([0.5], [0.25]) == {"mean": 0.25, "low": None, "high": None}
    assert paired([0.5, None], [0.25, 0.5]) == {"mean": None, "low": None, "high": None}


# --- whole presets ---


def test_an_official_preset(monkeypatch, tmp_path, capsys):
    """One step on made-up CIFAR-100, and the published rows below the result."""
    n = 8
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
    fake = ImageSet(images, torch.arange(n), tuple(map(str, range(100))), "CIFAR-100")
    monkeypatch.setattr(tasks, "read_cifar", lambda path: {"train": fake, "test": fake})
    preset = "resnet56-resnet20"
    small = {"epochs": 1, "teacher_epochs": 1, "limit": 1, "batch_size": 4, "teacher_batch_size": 4}
    result = fit(preset=preset, data=Path("x"), output=tmp_path, **small, **QUIET)
    assert result["published"] == PUBLISHED[preset]
    assert Config(**result["config"]).schedule == "cosine-epoch"
    out = capsys.readouterr().out
    assert re.search(r"\| published, DKD, best of 240 epochs +\| 0.7197 ", out)
    assert "ckd, resnet20, 278,324 parameters" in out  # of the harness
    other = fit(preset=preset, data=Path("x"), output=tmp_path, student_model="resnet8", **small, **QUIET)
    assert other["published"] == {}


def test_digits_need_nothing_but_scikit_learn(monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    result = fit(epochs=2, teacher_epochs=2, **QUIET)
    assert result["dataset"] == "digits"
    assert result["test"]["accuracy"] > 0.5
    assert Path("runs/ckd/digits-ckd/teacher.pt").is_file()


# --- the command line ---


def test_functions_are_commands(data, tmp_path, capsys):
    jsonargparse = pytest.importorskip("jsonargparse")
    commands = {"fit": fit, "evaluate": evaluate, "compare": compare}
    for command, word in {"fit": "weight of the classes", "compare": "one folder a run"}.items():
        with pytest.raises(SystemExit) as stop:
            jsonargparse.auto_cli(commands, args=[command, "--help"])
        assert stop.value.code == 0
        assert word in " ".join(capsys.readouterr().out.split())
    options = [f"--{name}={value}" for name, value in TINY.items()]
    options += [
        "--data",
        str(data),
        "--limit",
        "1",
        "--method",
        "dkd",
        "--output",
        str(tmp_path),
        "--drop_last",
        "true",
    ]
    result = jsonargparse.auto_cli(commands, args=["fit", *options])
    assert Config(**result["config"]).drop_last
    assert jsonargparse.auto_cli(commands, args=["evaluate", str(tmp_path / "last.ckpt")]) == result["test"]


def test_fit_takes_every_setting(monkeypatch, tmp_path, data):
    settings = {
        "dataset": "fashion-mnist", "train_size": 20, "holdout": 1, "image_size": 9, "augmentation": "pool",
        "student_model": "mlp-3", "ce_weight": 2.0, "kd_weight": 3.0, "temperature": 4.0, "beta": 5.0,
        "warmup_epochs": 6.0, "epochs": 7, "batch_size": 9, "lr": 0.5, "momentum": 0.25, "weight_decay": 0.125,
        "schedule": "step", "drop_last": True, "seed": 11, "cache_teacher_logits": True, "teacher_model": "mlp-4",
        "teacher_train_size": 21, "teacher_epochs": 12, "teacher_batch_size": 13, "teacher_lr": 0.75,
        "teacher_schedule": "cosine-epoch", "teacher_seed": 14, "eval_batch_size": 15, "limit": 16,
    }  # fmt: skip
    seen = []
    monkeypatch.setattr(recipe, "make_teacher", lambda *arguments, **options: seen.append(arguments))
    monkeypatch.setattr(recipe, "train_on", lambda *arguments, **options: seen.append((*arguments, options)))
    fit(method="crd", data=data, output=tmp_path, resume="auto", **settings, **QUIET)
    (_, config, _, _), (_, same_config, output, _, options) = seen
    assert config == same_config == make_config("digits", "crd", **settings)
    assert {name: getattr(config, name) for name in settings} == settings
    assert {"method", "teacher_digest", *settings} == set(Config.__dataclass_fields__)
    assert output == tmp_path
    assert options["resume"] == "auto"
    teacher = recipe.teacher_config(config)
    for name in ("train_size", "epochs", "batch_size", "lr", "schedule", "seed"):
        assert getattr(teacher, name) == settings[f"teacher_{name}"]
    assert (teacher.method, teacher.student_model, teacher.kd_weight, teacher.ce_weight) == ("plain", "mlp-4", 0, 1)
    assert (teacher.augmentation, teacher.momentum, teacher.holdout) == ("pool", 0.25, 1)


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
