# SPDX-License-Identifier: Apache-2.0
"""Comparison of Poolingformer variants: tables, what is repeated, defaults, errors."""

import json
import os
import signal
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")

import innerloop.recipes.poolingformer.run as recipe
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes._task import Interrupted
from innerloop.recipes.poolingformer import PRESETS, VARIANTS, Config, compare
from innerloop.recipes.poolingformer.module import PoolingformerTask
from recipes.poolingformer.poolingformer_cases import CONFIGS, SMALL, write_xquad


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
