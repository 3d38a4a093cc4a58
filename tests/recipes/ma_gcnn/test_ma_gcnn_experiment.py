# SPDX-License-Identifier: Apache-2.0
"""All runs of the motif classifier: metrics, choice, resume, evaluation, comparison, workers."""

import json
import shutil

import pytest
import torch

pytest.importorskip("pytorch_lightning")

import innerloop.recipes.ma_gcnn.experiment as experiment
from innerloop.cli import main
from innerloop.recipes._task import Interrupted
from innerloop.recipes.ma_gcnn import compare, evaluate, fit, fit_on, make_config, stratified_folds
from innerloop.recipes.ma_gcnn.training import Run, accuracy, train
from recipes.ma_gcnn.ma_gcnn_cases import QUIET, SMALL, write_toy


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """{protocol: (folder, result)} of structure-free runs."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"honest": SMALL, "gin": SMALL | {"lrs": [0.1]}, "best-test-epoch": SMALL | {"lrs": [0.1]}}
    return {
        protocol: (
            folder / protocol,
            fit(data=toy, variant="structure-free", protocol=protocol, output=folder / protocol, **own, **QUIET),
        )
        for protocol, own in settings.items()
    }


@pytest.mark.parametrize("protocol", ["honest", "gin", "best-test-epoch"])
def test_metrics(finished, protocol, dataset):
    folder, result = finished[protocol]
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(result))
    assert (result["dataset"], result["protocol"], result["untested"]) == ("TOY", protocol, 0)
    assert sorted(graph for fold in result["folds"] for graph in fold) == list(range(40))
    assert len(result["per_fold"]) == 3
    assert result["test"]["accuracy %"] == pytest.approx(100 * sum(result["per_fold"]) / 3)
    assert result["majority"] == 0.5
    assert result["config"]["variant"] == "structure-free"
    # honest: two learning rates with the first seed, then the better one with the second.
    assert len(list((folder / "runs").glob("*.pt"))) == (9 if protocol == "honest" else 6)


def test_learning_rate_is_chosen_by_the_holdout(finished):
    folder, result = finished["honest"]
    for fold, chosen in enumerate(result["chosen"]):
        ranks = {}
        for lr in (0.01, 0.1):
            outcome = torch.load(folder / "runs" / f"fold{fold}-lr{lr:g}-seed0.pt", weights_only=True)["outcome"]
            ranks[lr] = outcome["holdout_accuracy"], -outcome["holdout_loss"]
        assert chosen["lr"] == max(ranks, key=ranks.get)


def test_only_the_chosen_runs_are_tested(dataset, tmp_path, monkeypatch, capsys):
    tested = []

    def once(problem, network, items):
        tested.append(tuple(items.tolist()))
        return accuracy(problem, network, items)

    monkeypatch.setattr(experiment, "accuracy", once)
    folds = stratified_folds(dataset.labels, 3)
    fit_on(dataset, make_config("structure-free", **SMALL), folds, tmp_path, **QUIET)
    assert tested == [tuple(fold.tolist()) for fold in folds for _ in range(2)]  # two seeds
    for path in (tmp_path / "runs").glob("*.pt"):
        assert torch.load(path, weights_only=True)["outcome"]["test_accuracy"] is None
    out = capsys.readouterr().out
    assert out.count("hold-out accuracy") == 9
    assert "test accuracy" not in out


def test_learning_rates_have_a_file_each():
    assert Run(0, 0.1, 0).name == "fold0-lr0.1-seed0"
    assert Run(0, 0.1, 0).name != Run(0, 0.1000000001, 0).name
    assert Run(0, 1, 0).name == Run(0, 1.0, 0).name


def test_training_time_is_that_of_all_runs(finished):
    folder, result = finished["honest"]
    seconds = [torch.load(p, weights_only=True)["outcome"]["seconds"] for p in (folder / "runs").glob("*.pt")]
    assert min(seconds) > 0
    assert result["training_seconds"] == pytest.approx(sum(seconds))


def test_printed_result_names_the_protocol(toy, tmp_path, capsys):
    settings = SMALL | {"lrs": [0.1], "epochs": 1}
    fit(data=toy, variant="structure-free", protocol="best-test-epoch", output=tmp_path, **settings, **QUIET)
    out = capsys.readouterr().out
    assert "TOY structure-free, protocol best-test-epoch, measured" in out
    assert "best-test-epoch: best test epoch of each fold, an optimistic rule" in out
    assert out.count("test accuracy") == 6  # a line for each run


def test_fixed_folds_and_graphs_that_are_never_tested(toy, tmp_path, capsys):
    path = tmp_path / "folds.json"
    path.write_text(json.dumps({"test": [[0, 1, 38, 39], [2, 3, 36, 37]]}))
    result = fit(data=toy, folds=path, variant="structure-free", output=tmp_path / "run", **SMALL, **QUIET)
    assert (result["untested"], len(result["per_fold"])) == (32, 2)
    assert "32 of 40 graphs are in no test fold" in capsys.readouterr().out
    path.write_text(json.dumps({"test": [[0, 1], [2, 39]]}))
    with pytest.raises(ValueError, match="folds 0 hold a single class each"):
        fit(data=toy, folds=path, variant="structure-free", output=tmp_path / "other", **SMALL, **QUIET)


def test_resume(toy, finished, tmp_path, monkeypatch):
    """Stopped in its fourth run, the experiment goes on with the fourth and ends as one that was never stopped."""
    _, wanted = finished["honest"]
    arguments = {"data": toy, "variant": "structure-free", "output": tmp_path, **SMALL, **QUIET}
    started = []

    def train_until(problem, test, config, run, *rest):
        started.append(run)
        if len(started) == 4:
            raise KeyboardInterrupt
        return train(problem, test, config, run, *rest)

    monkeypatch.setattr(experiment, "train", train_until)
    with pytest.raises(Interrupted, match="interrupted; the run continues from"):
        fit(**arguments)
    assert not (tmp_path / "metrics.json").exists()
    result = fit(**arguments, resume="auto")
    assert len(started) == 4 + 6
    assert started[4] == started[3]
    for name in ("test", "per_fold", "chosen", "config", "data_digest"):
        assert result[name] == wanted[name]
    started.clear()
    fit(**arguments, resume="auto")
    assert started == []
    with pytest.raises(ValueError, match=r"fold0-lr0\.01-seed0\.pt: cannot resume with other settings: epochs"):
        fit(**arguments | {"epochs": 2}, resume="auto")
    with pytest.raises(ValueError, match="cannot resume with other settings: fold_seed was 0 and is 1; other folds"):
        fit(**arguments, fold_seed=1, resume="auto")
    with pytest.raises(ValueError, match="cannot resume with other settings: other data; other folds"):
        fit(**arguments | {"data": write_toy(tmp_path / "TOY.txt", 44)}, resume="auto")
    with pytest.raises(ValueError, match=r"resume is 'last\.ckpt', expected auto"):
        fit(**arguments, resume="last.ckpt")
    with pytest.raises(ValueError, match=r"lrs was .*name another --output"):  # its runs would stand beside the others
        fit(**arguments | {"lrs": [1.0]}, resume="auto")
    assert started == []


@pytest.mark.parametrize("left", ["metrics.json", "runs/fold0-lr0.01-seed0.pt"])
def test_fit_does_not_overwrite(toy, tmp_path, capsys, left):
    path = tmp_path / left
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    assert main(["ma-gcnn", "fit", "--data", str(toy), "--output", str(tmp_path)]) == 2
    expected = f"holds the {left} of a run, expected another output, or --resume auto to go on\n"
    assert capsys.readouterr().err == f"innerloop: {tmp_path}: {expected}"
    assert path.read_text() == "precious"


@pytest.mark.parametrize("protocol", ["honest", "best-test-epoch"])
def test_evaluate_measures_what_fit_kept(finished, protocol, tmp_path, capsys):
    folder, result = finished[protocol]
    assert evaluate(folder) == pytest.approx(result["test"])
    assert f"protocol {protocol}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was trained on another set"):
        evaluate(folder, data=write_toy(tmp_path / "TOY.txt", 42))


def test_evaluate_errors(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a finished innerloop ma-gcnn fit"):
        evaluate(tmp_path)
    with pytest.raises(ValueError, match="of protocol gin, expected another"):
        evaluate(finished["gin"][0])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("config", {"epochs": 9}, "epochs was 9 and is 3"),
        ("data_digest", "0", "other data"),
        ("folds_digest", "0", "other folds"),
    ],
)
def test_evaluate_refuses_runs_of_another_experiment(finished, tmp_path, name, value, message):
    folder = shutil.copytree(finished["honest"][0], tmp_path / "run")
    (path, *_) = (p for p in folder.glob("runs/*.pt") if "seed1" in p.name)  # of seed 1 only the chosen ones are there
    saved = torch.load(path, weights_only=True)
    saved[name] = saved[name] | value if isinstance(value, dict) else value
    torch.save(saved, path)
    with pytest.raises(ValueError, match=rf"{path.name}: not a run of this experiment: {message}"):
        evaluate(folder)


@pytest.mark.parametrize(("variant", "bins"), [("structure-free", None), ("ma-gcnn+orbits", 0)])
def test_runs_from_before_there_were_bins(toy, tmp_path, variant, bins):
    own = SMALL | {"epochs": 1, "lrs": [0.1], "seeds": [0], "bins": bins}
    result = fit(data=toy, variant=variant, output=tmp_path, **own, **QUIET)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    del kept["config"]["bins"]
    (tmp_path / "metrics.json").write_text(json.dumps(kept))
    for path in tmp_path.glob("runs/*.pt"):
        saved = torch.load(path, weights_only=True)
        del saved["config"]["bins"]
        torch.save(saved, path)
    assert evaluate(tmp_path) == pytest.approx(result["test"])
    again = fit(data=toy, variant=variant, output=tmp_path, resume="auto", **own, **QUIET)
    assert (again["test"], again["training_seconds"]) == (result["test"], result["training_seconds"])


def test_compare(toy, tmp_path, capsys):
    variants = ["structure-free", "ma-gcnn"]
    settings = {"epochs": 1, "num_folds": 3, "seeds": [0], "lrs": [0.1], "batch_size": 8}
    result = compare(variants=variants, data=toy, output=tmp_path, **settings, **QUIET)
    assert list(result["variants"]) == variants
    assert result["variants"]["structure-free"]["difference"] is None
    own, base = (result["variants"][name]["per_fold"] for name in ("ma-gcnn", "structure-free"))
    mean = sum(a - b for a, b in zip(own, base, strict=True)) / 3
    assert result["variants"]["ma-gcnn"]["difference"]["mean"] == pytest.approx(mean)
    assert json.loads((tmp_path / "compare.json").read_text()) == json.loads(json.dumps(result))
    out = capsys.readouterr().out
    assert "TOY, protocol honest" in out
    assert "| ma-gcnn, measured | " in out
    again = compare(variants=variants, data=toy, output=tmp_path, **settings, **QUIET)
    assert again == result
    assert "hold-out accuracy" not in capsys.readouterr().out  # nothing was trained again
    with pytest.raises(ValueError, match="batch_size was 8 and is 9; name another --output"):
        compare(variants=variants, data=toy, output=tmp_path, **settings | {"batch_size": 9}, **QUIET)
    with pytest.raises(ValueError, match="expected at least one, and none twice"):
        compare(variants=["ma-gcnn", "ma-gcnn"], data=toy, output=tmp_path)


@pytest.mark.slow
def test_workers_give_the_same_result(toy, finished, tmp_path):
    _, wanted = finished["honest"]
    result = fit(data=toy, variant="structure-free", output=tmp_path, workers=2, **SMALL, **QUIET)
    for name in ("test", "per_fold", "chosen"):
        assert result[name] == wanted[name]
