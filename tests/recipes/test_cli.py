# SPDX-License-Identifier: Apache-2.0
"""The command line: what a user types, and what is printed."""

import subprocess
import sys

import pytest
import torch
from innerloop.cli import main
from innerloop.data import read_kg

pytest.importorskip("pytorch_lightning")
pytest.importorskip("jsonargparse")

SMALL = ["--epochs", "1", "--batch-size=12", "--num-negative", "4", "--dim", "8"]
SMALL += ["--num-layers", "2", "--accelerator", "cpu"]


def test_help(capsys):
    assert main([]) == 0
    assert main(["--help"]) == 0
    assert "innerloop nbfnet fit" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["nbfnet", "fit", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "folder of another data set" in out
    assert "fb237_v1 (the default)" in out


def test_unknown_command(capsys):
    assert main(["nbfnot"]) == 2
    assert "unknown command 'nbfnot'" in capsys.readouterr().err


def test_fit_then_evaluate_print_the_same_row(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["nbfnet", "fit", "--data", str(tiny), *SMALL]) == 0
    fit = capfd.readouterr()
    assert fit.err == ""
    row = next(line for line in fit.out.splitlines() if "tiny test, measured" in line)
    assert "seed 1024" in fit.out
    checkpoint = tmp_path / "runs" / "nbfnet" / "tiny" / "best.ckpt"
    assert main(["nbfnet", "evaluate", str(checkpoint), "--accelerator", "cpu"]) == 0
    again = capfd.readouterr()
    assert again.err == ""
    assert row in again.out


def test_explain_prints_paths_with_names(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["nbfnet", "fit", "--data", str(tiny), *SMALL]) == 0
    capfd.readouterr()
    kg = read_kg(tiny)
    h, r, t = kg.test.targets[0].tolist()
    triple = kg.test.entities[h], kg.relations[r], kg.test.entities[t]
    checkpoint = ["--checkpoint", "runs/nbfnet/tiny/best.ckpt"]
    assert main(["nbfnet", "explain", *triple, *checkpoint]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith(f"({', '.join(triple)}): score")
    assert f" {triple[0]} -[" in lines[3]
    assert all(line.endswith(f"]-> {triple[2]}") for line in lines[3:] if line)
    assert main(["nbfnet", "explain", "nobody", *triple[1:], *checkpoint]) == 1
    assert "head is 'nobody', expected one of the data set's" in capfd.readouterr().err


def test_published_numbers_stand_below_the_measured_ones(tmp_path, monkeypatch, capfd):
    """The embedded data set, no network, no path."""
    monkeypatch.chdir(tmp_path)
    small = ["--epochs", "1", "--dim", "4", "--num-layers", "1", "--batch-size", "512"]
    assert main(["nbfnet", "fit", *small, "--accelerator", "cpu"]) == 0
    table = capfd.readouterr().out.splitlines()
    assert any("fb237_v1 test, measured" in line for line in table)
    official = next(line for line in table if "published, official" in line)
    assert "0.834" in official
    assert (tmp_path / "runs" / "nbfnet" / "fb237_v1" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--dataset", "fb15k"], "dataset 'fb15k' does not ship with innerloop"),
        (["fit", "--data", "nowhere"], "nowhere: no such folder"),
        (
            ["fit", "--data", "x", "--dataset", "fb237_v1"],
            "dataset is 'fb237_v1' and data 'x': expected one of the two",
        ),
        (["fit", "--resume", "no.ckpt"], "no.ckpt: no such checkpoint"),
        (["evaluate", "no.ckpt"], "no.ckpt: no such checkpoint"),
    ],
)
def test_errors_of_the_user_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["nbfnet", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("innerloop: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nbfnet", "fit", "--threads", "0"], "threads is 0, expected at least 1"),
        (["ultra", "predict", "no.ckpt", "a", "b", "--threads=-1"], "threads is -1, expected at least 1"),
        (["poolingformer", "evaluate", "no.ckpt", "--threads", "0"], "threads is 0, expected at least 1"),
        (["nbfnet", "fit", "--threads", "99999999999999"], "threads is 99999999999999, expected at most"),
        (["nbfnet", "fit", "--epochs", "0"], "epochs is 0, expected at least 1"),
        (["nbfnet", "fit", "--seed", "9223372036854775808"], "seed is 9223372036854775808, expected below 2**63"),
        (["poolingformer", "fit", "--task", "mlm", "--preset", "lra", "--data", "x"], "preset is 'lra', expected one"),
        (["ckd", "fit", "--batch-size", "0"], "batch_size is 0, expected at least 1"),
        (["nbfnet", "fit", "--output", "file"], "output is 'file', a file, expected a folder"),
        (["poolingformer", "compare", "--output", "file"], "output is 'file', a file, expected a folder"),
        (
            ["nbfnet", "fit", *SMALL[:-1], "foo"],
            "accelerator is 'foo' and precision '32-true': You selected an invalid",
        ),
        (
            ["nbfnet", "fit", *SMALL, "--precision", "31"],
            "accelerator is 'cpu' and precision '31': Precision '31' is inv",
        ),
    ],
)
def test_options_without_sense_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"innerloop: {message}")
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["nbfnet", "fit", *SMALL[:-1], "gpu"]) == 2
    error = capsys.readouterr().err
    assert error == "innerloop: accelerator is 'gpu' and precision '32-true': No supported gpu backend found!\n"


def test_missing_lightning_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    assert main(["nbfnet", "fit"]) == 1
    error = capsys.readouterr().err
    assert "pytorch_lightning is missing" in error
    assert 'pip install "innerloop[train]"' in error


def test_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "innerloop", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: innerloop")
    assert done.stderr == ""
