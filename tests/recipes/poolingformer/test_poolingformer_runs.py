# SPDX-License-Identifier: Apache-2.0
"""Runs of Poolingformer: what they write and report, settings of fit, resume."""

import json
import os
import shutil
import signal
from dataclasses import fields
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")

import innerloop.recipes.poolingformer.run as recipe
from innerloop.cli import main
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes._task import Interrupted
from innerloop.recipes.poolingformer import PRESETS, Config, evaluate, fit, make_config, make_problem, train_on
from innerloop.recipes.poolingformer.module import PoolingformerTask
from innerloop.recipes.poolingformer.tasks import ListOpsProblem
from recipes.poolingformer.poolingformer_cases import (
    CONFIGS,
    METRICS,
    QUIET,
    SMALL,
    TASKS,
    saved_task,
    write_xquad,
)
from tolerances import same

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
