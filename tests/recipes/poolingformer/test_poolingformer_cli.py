# SPDX-License-Identifier: Apache-2.0
"""The command line of Poolingformer."""

import json
import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("pytorch_lightning")

from innerloop.cli import main
from innerloop.recipes.poolingformer import PRESETS
from innerloop.recipes.poolingformer.module import PoolingformerTask
from recipes.poolingformer.poolingformer_cases import CONFIGS, MODEL, TASKS


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
    settings = ("preset", "epochs", "two_level", "train is", "variants")
    assert main(["poolingformer", *arguments]) == (2 if message.startswith(settings) else 1)
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
