# SPDX-License-Identifier: Apache-2.0
"""The command line of the motif classifier, its defaults and its progress bar."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("pytorch_lightning")

from innerloop.cli import main
from innerloop.recipes.ma_gcnn import fit, fit_on, make_config, stratified_folds
from recipes.ma_gcnn.ma_gcnn_cases import QUIET, SMALL


def test_command_line(toy, tmp_path, capsys):
    folder = tmp_path / "run"
    options = ["--data", str(toy), "--variant", "structure-free", "--epochs", "1", "--num-folds", "3", "--lrs", "[0.1]"]
    assert main(["ma-gcnn", "fit", *options, "--seeds", "[0]", "--output", str(folder)]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "TOY structure-free, protocol honest, measured" in line)
    assert main(["ma-gcnn", "evaluate", str(folder)]) == 0
    assert row in capsys.readouterr().out


def test_default_is_the_embedded_set(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    result = fit(variant="structure-free", epochs=1, seeds=[0], lrs=[0.01], **QUIET)
    assert (result["dataset"], result["graphs"], len(result["per_fold"])) == ("MUTAG", 188, 10)
    assert Path("runs/ma-gcnn/MUTAG-structure-free-honest/metrics.json").is_file()
    out = capsys.readouterr().out
    assert "published, MA-GCNN (recalled and not checked" in out
    assert "greatest class 66.5 %" in out


def test_progress_bar_is_for_terminals(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    config = make_config("structure-free", **SMALL | {"epochs": 1})
    fit_on(dataset, config, stratified_folds(dataset.labels, 3), tmp_path)
    shown = capsys.readouterr()
    assert "9/9" in shown.err
    assert shown.out == ""
