# SPDX-License-Identifier: Apache-2.0
"""Comparison of distillation methods: rows, seeds, what is repeated, intervals of paired differences."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning")

import innerloop.recipes.ckd.run as recipe
from innerloop.recipes.ckd import PRESETS, compare, paired
from recipes.ckd.ckd_cases import TINY


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
