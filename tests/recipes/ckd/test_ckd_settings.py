# SPDX-License-Identifier: Apache-2.0
"""Settings of distillation: presets, errors, whole presets, the command line."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")

import innerloop.recipes.ckd.run as recipe
from innerloop.data.images import ImageSet
from innerloop.recipes.ckd import PRESETS, PUBLISHED, Config, compare, evaluate, fit, make_config, tasks
from recipes.ckd.ckd_cases import QUIET, TINY

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
