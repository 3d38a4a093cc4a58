# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on the command line of the motif classifier: exit status and one line; interrupts; help for lists."""

import json
import multiprocessing
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")
pytest.importorskip("jsonargparse")

from innerloop.cli import main
from innerloop.data.tu import load_mutag
from innerloop.recipes import ma_gcnn
from innerloop.recipes.ma_gcnn import experiment, make_config, make_problem, stratified_folds


def error_of(capsys, arguments: list[str], status: int) -> str:
    """The one line on standard error, without the name of the program."""
    assert main(["ma-gcnn", *arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("innerloop: ")
    assert error.count("\n") == 1
    return error.removeprefix("innerloop: ").rstrip("\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("fit --epochs 0", "epochs is 0, expected at least 1"),
        ("fit --lrs []", "lrs is [], expected at least one finite number above 0, and none twice"),
        ("fit --seeds [-1]", "seeds is [-1], expected at least one int, none negative and none twice"),
        ("fit --holdout 0", "holdout is 0.0, expected above 0 and at most 0.5"),
        ("fit --resume yes", "resume is 'yes', expected auto: it takes the finished runs of the output folder"),
        ("fit --workers 0", "workers is 0, expected at least 1"),
        ("compare --workers 0", "workers is 0, expected at least 1"),
        ("fit --num_folds 1000", "num_folds is 1000, expected 2 to 188, the number of graphs"),
        ("compare --num_folds 189", "num_folds is 189, expected 2 to 188, the number of graphs"),
        ("fit --fold_seed 9223372036854775808", "fold_seed is 9223372036854775808, expected below 2**63"),
        ("fit --threads 99999999999999", "threads is 99999999999999, expected at most "),
        ("compare --variants []", "variants is [], expected at least one, and none twice"),
        ('compare --variants ["gin"]', "variant is 'gin', expected one of m-gcnn, "),
    ],
)
def test_wrong_usage(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert error_of(capsys, options.split(), 2).startswith(message)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["foo", "cuda:x", "cuda:99", "meta", ""])
def test_devices_that_there_are_not(toy, tmp_path, capsys, device):
    for arguments in (["fit", "--data", str(toy)], ["compare", "--data", str(toy)], ["evaluate", str(tmp_path)]):
        assert main(["ma-gcnn", *arguments, "--device", device]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"innerloop: device is {device!r}, expected")
        assert error.count("\n") == 1


def test_folds_that_are_missing(toy, tmp_path, capsys):
    assert main(["ma-gcnn", "fit", "--data", str(toy), "--folds", str(tmp_path / "nofile.json")]) == 1
    assert capsys.readouterr().err == f"innerloop: {tmp_path / 'nofile.json'}: no such file\n"


WHOLE = {
    "dataset": "MUTAG",
    "data": None,
    "data_digest": "0",
    "protocol": "honest",
    "rule": "",
    "test": {"accuracy %": 1.0, "std": 1.0},
    "per_fold": [0.5, 0.5],
    "majority": 0.5,
    "graphs": 4,
    "untested": 1,
    "folds": [[0, 1], [2, 3]],
    "chosen": [{"lr": 0.1}, {"lr": 0.1}],
    "published": {},
    "config": {"variant": "structure-free", "seeds": [0]},
    "training_seconds": 1.0,
}


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ("{", "Expecting property name"),
        ([], "list indices"),
        ({}, "no 'config'"),
        ({"config": {"foo": 1}}, "make_config() got unknown settings ['foo']"),
        (WHOLE | {"config": {"epochs": 0}}, "epochs is 0, expected at least 1"),
        (WHOLE | {"chosen": [{"lr": 0.1}]}, "zip() argument 2 is shorter"),
        (WHOLE | {"folds": 3}, "'int' object is not iterable"),
        (WHOLE | {"published": [1]}, "'list' object has no attribute"),
        *(({key: value for key, value in WHOLE.items() if key != name}, f"no '{name}'") for name in WHOLE),
    ],
)
def test_evaluate_of_what_fit_did_not_write(stored, reason, tmp_path, capsys):
    path = tmp_path / "metrics.json"
    path.write_text(stored if isinstance(stored, str) else json.dumps(stored))
    error = error_of(capsys, ["evaluate", str(tmp_path)], 1)
    assert error.startswith(f"{path}: not written by innerloop ma-gcnn fit, or by another version: {reason}")


def test_evaluate_of_another_set(tmp_path, capsys):
    """The file of the last test is a whole one."""
    (tmp_path / "metrics.json").write_text(json.dumps(WHOLE))
    assert error_of(capsys, ["evaluate", str(tmp_path)], 1) == f"{tmp_path}: was trained on another set than MUTAG"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4096 bytes. Error code 12 (Cannot allocate memory)",
            "not enough memory for 4096 bytes",
        ),
        ("[...] DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes.", "not enough memory for 40"),
        ("Storage size calculation overflowed with sizes=[1099511627776, 1099511627776]", "not enough memory"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total", "not enough memory for 2.00 GiB"),
        ("a kernel failed", None),
    ],
)
def test_memory_that_is_not_there(text, message, monkeypatch, tmp_path, capsys):
    def fail(*arguments, **options):
        raise RuntimeError(text)

    monkeypatch.setattr(ma_gcnn.run, "fit_on", fail)
    arguments = ["fit", "--output", str(tmp_path)]
    if message is None:
        with pytest.raises(RuntimeError, match=text):
            main(["ma-gcnn", *arguments])
    else:
        assert error_of(capsys, arguments, 1).startswith(message)


def test_grids_beyond_the_memory(monkeypatch, tmp_path, capsys):
    """What torch itself says."""
    monkeypatch.setattr(ma_gcnn.run, "fit_on", lambda *arguments, **options: torch.empty(1 << 50))
    error = error_of(capsys, ["fit", "--output", str(tmp_path)], 1)
    assert error == f"not enough memory for {4 << 50} bytes"


def test_interrupt_before_the_first_run(monkeypatch, tmp_path, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ma_gcnn.run, "fit_on", stop)
    assert error_of(capsys, ["fit", "--output", str(tmp_path)], 130) == "interrupted"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_workers_never_see_an_interrupt():
    """From their first moment: they are looked at while they import."""
    config = make_config("structure-free")
    problem = make_problem(load_mutag(), config)
    with experiment._pool(problem, stratified_folds(problem.labels), config, "cpu", 2):
        children = multiprocessing.active_children()
        assert len(children) == 2
        for child in children:
            mask = re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{child.pid}/status").read_text())[1]
            assert int(mask, 16) >> (signal.SIGINT - 1) & 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.parametrize(
    ("command", "shown"), [("fit", ["[0.001, 0.01]", "[0, 1, 2]"]), ("compare", ["[structure-free, m-gcnn,"])]
)
def test_help_shows_how_lists_are_written(command, shown, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        main(["ma-gcnn", command, "--help"])
    out = capsys.readouterr().out
    assert all(text in out for text in shown)
