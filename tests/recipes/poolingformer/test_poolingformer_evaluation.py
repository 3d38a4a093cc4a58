# SPDX-License-Identifier: Apache-2.0
"""Evaluation of Poolingformer: stored runs, errors, divergence, examples shared by processes."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")

from innerloop.data import read_kg
from innerloop.recipes import nbfnet
from innerloop.recipes._batches import EvaluationBatches
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes.poolingformer import evaluate
from recipes.poolingformer.poolingformer_cases import QUIET, TASKS, saved_task


@pytest.mark.parametrize("task", TASKS)
def test_evaluate_gives_what_fit_gave(runs, data, task, capsys, tmp_path):
    output, result = runs[task]
    assert evaluate(output / "last.ckpt", **QUIET) == result["test"]
    assert f"| {result['dataset']} test, measured | " in capsys.readouterr().out
    valid = evaluate(output / "last.ckpt", split="valid", eval_batch_size=2, **QUIET)
    assert {f"valid_{name}" for name in valid} <= set(result["epochs"][-1])
    assert valid == pytest.approx({name: result["epochs"][-1][f"valid_{name}"] for name in valid}, rel=1e-5)
    if data[task] is not None:
        moved = tmp_path / f"moved{data[task].suffix}"
        moved.write_bytes(data[task].read_bytes())
        assert evaluate(output / "last.ckpt", data=moved, **QUIET) == result["test"]
        assert f"| {moved.stem}-" in capsys.readouterr().out


def test_evaluate_errors(runs, tmp_path):
    last = runs["listops"][0] / "last.ckpt"
    with pytest.raises(ValueError, match="data is 'x', expected none: listops is generated"):
        evaluate(last, data=Path("x"), **QUIET)
    with pytest.raises(ValueError, match="eval_batch_size is 0, expected at least 1"):
        evaluate(last, eval_batch_size=0, **QUIET)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such checkpoint"):
        evaluate(tmp_path / "none.ckpt", **QUIET)
    saved = load_checkpoint(runs["mlm"][0] / "last.ckpt", "poolingformer")
    saved["hyper_parameters"]["data"] = str(tmp_path / "gone.txt")
    torch.save(saved, tmp_path / "moved.ckpt")
    with pytest.raises(FileNotFoundError, match=r"gone\.txt: no such file"):
        evaluate(tmp_path / "moved.ckpt", **QUIET)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("listops", "score.bias"),
        ("mlm", "bias"),
        ("qa", "encoder.norm.bias"),
        ("qa", "passage_score.bias"),
        ("qa", "span.bias"),
    ],
)
def test_parameters_of_nan_stop_the_evaluation(runs, tmp_path, task, name):
    saved = load_checkpoint(runs[task][0] / "last.ckpt", "poolingformer")
    saved["state_dict"][f"model.{name}"].fill_(torch.nan)
    torch.save(saved, tmp_path / "nan.ckpt")
    with pytest.raises(ValueError, match=r"sums of the evaluation are .*loss': nan.*\(has training diverged\?\)"):
        evaluate(tmp_path / "nan.ckpt", **QUIET)


def test_training_that_diverges_says_so(train, tmp_path):
    with pytest.raises(ValueError, match=r"has training diverged\?"):
        train("listops", tmp_path, {"lr": 1e30, "weight_decay": 0.0, "warmup": 0.0})


def test_checkpoints_of_other_recipes_are_refused(runs, tiny, tmp_path):
    config = nbfnet.Config(epochs=1, batch_size=64, num_negative=2, dim=4, num_layers=1)
    nbfnet.train(read_kg(tiny), config, tmp_path, data=tiny, **QUIET)
    theirs, ours = tmp_path / "last.ckpt", runs["listops"][0] / "last.ckpt"
    with pytest.raises(ValueError, match=r"last\.ckpt: a checkpoint of innerloop nbfnet fit, expected one of poolingf"):
        evaluate(theirs, **QUIET)
    with pytest.raises(ValueError, match=r"a checkpoint of innerloop poolingformer fit, expected one of nbfnet fit"):
        nbfnet.evaluate(ours, **QUIET)


@pytest.mark.parametrize("world_size", [2, 3, 13])
@pytest.mark.parametrize("task", TASKS)
def test_processes_share_the_examples(runs, data, monkeypatch, task, world_size):
    """Each process adds up its own examples; the sum has the metrics of one process."""
    output, result = runs[task]
    saved = saved_task(output / "last.ckpt", data[task])
    parts = []
    for rank in range(world_size):
        saved.on_test_epoch_start()
        for batch in EvaluationBatches(saved.problem.size("test"), 2, rank, world_size):
            saved.test_step(batch, 0)
        parts.append(saved._totals)
    saved.trainer = type("Trainer", (), {"world_size": world_size})
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.copy_(sum(parts)))
    assert saved._measure() == pytest.approx(result["test"], rel=1e-5)
