# SPDX-License-Identifier: Apache-2.0
"""innerloop ultra: an untrained checkpoint on data it has never seen."""

import pytest
import torch
from innerloop.cli import main
from innerloop.data import read_kg
from innerloop.nn import Ultra
from innerloop.recipes.ultra import evaluate, fit, predict

pytest.importorskip("jsonargparse")


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    torch.save({"model": Ultra(dim=8, num_layers=2).state_dict()}, tmp_path / "ultra.pth")
    return tmp_path / "ultra.pth"


def test_predict(checkpoint, tiny, capfd):
    kg = read_kg(tiny)
    h, r, _ = kg.test.targets[0].tolist()
    head, relation = kg.test.entities[h], kg.relations[r]
    assert main(["ultra", "predict", str(checkpoint), head, relation, "--data", str(tiny), "--k", "3"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"({head}, {relation}, ?)"
    answers = predict(checkpoint, head, relation, data=tiny, k=1000)
    assert [f"{p:.4f}  {name}" for name, p in answers[:3]] == lines[1:]
    probabilities = [p for _, p in answers]
    assert probabilities == sorted(probabilities, reverse=True)
    facts = {(a, b, c) for a, b, c in kg.test.facts.tolist()}
    true_tails = {kg.test.entities[c] for a, b, c in facts if (a, b) == (h, r)}
    assert {name for name, _ in answers} == set(kg.test.entities) - true_tails
    everything = predict(checkpoint, head, relation, data=tiny, k=1000, known=True)
    assert {name for name, _ in everything} == set(kg.test.entities)
    heads = predict(checkpoint, head, relation, data=tiny, inverse=True, known=True, k=1000)
    assert dict(heads) != dict(everything)


def test_evaluate_ranks_both_directions(checkpoint, tiny):
    metrics = evaluate(checkpoint, data=tiny, batch_size=3)
    assert set(metrics) == {"mr", "mrr", "hits@1", "hits@3", "hits@10", "hits@10_50", "hits@10_49"}
    assert metrics == pytest.approx(evaluate(checkpoint, data=tiny, batch_size=1000))


def test_fine_tuning_learns_and_its_checkpoint_loads(checkpoint, tiny, tmp_path):
    before = evaluate(checkpoint, data=tiny)
    options = {"epochs": 6, "num_negative": 8, "lr": 5e-3, "progress": False}
    result = fit(checkpoint, data=tiny, output=tmp_path / "run", **options)
    assert result["test"]["mrr"] > before["mrr"] + 0.1
    assert evaluate(tmp_path / "run" / "best.ckpt", data=tiny) == pytest.approx(result["test"])


def test_errors_are_one_line(checkpoint, tiny, capfd):
    assert main(["ultra", "predict", str(checkpoint), "nobody", "r0", "--data", str(tiny)]) == 1
    assert "head is 'nobody'" in capfd.readouterr().err
    assert main(["ultra", "evaluate", "none.pth"]) == 1
    assert "none.pth: no such checkpoint" in capfd.readouterr().err
