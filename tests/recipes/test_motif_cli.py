# SPDX-License-Identifier: Apache-2.0
"""``innerloop motif count``."""

import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from innerloop import compat
from innerloop.cli import main
from innerloop.recipes import motif
from processes import run_python

EDGES = [(0, 1), (1, 2), (2, 0), (3, 2)]
TEXT = "# a triangle with a tail\n" + "".join(f"{u} {v}\n" for u, v in EDGES)


@pytest.fixture
def network(tmp_path) -> Path:
    path = tmp_path / "net.txt.xz"
    with lzma.open(path, "wt") as file:
        file.write(TEXT)
    return path


def rows(text: str) -> list[list[int]]:
    return [[int(cell) for cell in line.split(",")] for line in text.splitlines()]


@pytest.mark.parametrize(("k", "columns"), [(3, 4), (4, 15), (5, 73)])
def test_nodes_are_printed(network, capsys, k, columns):
    assert main(["motif", "count", str(network), "--k", str(k)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    header, table = out.split("\n", 1)
    assert header == ",".join(["node", *(f"o{i}" for i in range(columns))])
    wanted = compat.orca_nodes(EDGES, graphlet_size=k)
    assert rows(table) == np.hstack([np.arange(4)[:, None], wanted]).tolist()


def test_edges_are_printed(network, capsys):
    assert main(["motif", "count", str(network), "--edges"]) == 0
    header, table = capsys.readouterr().out.split("\n", 1)
    assert header.startswith("u,v,o0,o1,")
    assert rows(table) == np.hstack([EDGES, compat.orca_edges(EDGES)]).tolist()


@pytest.mark.parametrize("edges", [False, True])
def test_files(network, tmp_path, capsys, edges):
    wanted = compat.orca_edges(EDGES) if edges else compat.orca_nodes(EDGES)
    option = ["--edges"] if edges else []
    for suffix in (".csv", ".txt", ".npz"):
        output = tmp_path / f"orbits{suffix}"
        assert main(["motif", "count", str(network), *option, "--output", str(output)]) == 0
        assert capsys.readouterr().out == ""
    assert rows((tmp_path / "orbits.csv").read_text().split("\n", 1)[1])[1][-len(wanted[0]) :] == wanted[1].tolist()
    assert np.array_equal(np.loadtxt(tmp_path / "orbits.txt", np.int64), wanted)
    with np.load(tmp_path / "orbits.npz") as stored:
        assert np.array_equal(stored["orbits"], wanted)
        assert stored.files == (["edges", "orbits"] if edges else ["orbits"])
        if edges:
            assert stored["edges"].tolist() == [list(edge) for edge in EDGES]


def test_threads(network):
    threads = torch.get_num_threads()
    try:
        assert motif.count(network, threads=3, output=network.with_suffix(".npz"), progress=False).shape == (4, 15)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, [], "net.txt: no such file"),
        ("0 1\n2\n", [], "net.txt:2: 1 numbers, expected two node ids"),
        ("0 1\n", ["--output", "x.json"], "output is 'x.json', expected a name that ends in one of .csv, .txt, .npz"),
        ("0 1\n", ["--threads", "0"], "threads is 0, expected at least 1"),
        # An output is looked at before the file is read.
        (None, ["--output", "nowhere/x.csv"], "output is 'nowhere/x.csv', expected a file in a folder that is there"),
        (None, ["--output", "folder.csv"], "output is 'folder.csv', a folder, expected a file"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, text, options, message):
    monkeypatch.chdir(tmp_path)
    Path("folder.csv").mkdir()
    if text is not None:
        Path("net.txt").write_text(text)
    assert main(["motif", "count", "net.txt", *options]) == (2 if options else 1)
    error = capsys.readouterr().err
    assert error.startswith("innerloop: ")
    assert message in error
    assert error.count("\n") == 1


def test_folder_as_input(tmp_path, capsys):
    assert main(["motif", "count", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"innerloop: {tmp_path}: is a folder, expected a file\n"


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".npz"])
def test_output_is_whole_or_as_it_was(network, tmp_path, monkeypatch, capsys, suffix):
    output = tmp_path / f"orbits{suffix}"
    output.write_text("old")

    def fail(file, *arguments, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed" if suffix == ".npz" else "savetxt", fail)
    assert main(["motif", "count", str(network), "--output", str(output)]) == 1
    assert capsys.readouterr().err == "innerloop: disk full\n"
    assert output.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {network.name, output.name}


def test_reader_that_has_seen_enough(network):
    script = f"import sys; from innerloop.cli import main; sys.exit(main(['motif', 'count', {str(network)!r}]))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        done.stdout.close()
        error = done.stderr.read()
    assert (error, done.returncode) == (b"", 141)


@pytest.mark.parametrize(
    "arguments", [[], ["count"], ["count", "x", "--k", "6"], ["count", "x", "--progress", "maybe"], ["list"]]
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["motif", *arguments])
    assert stop.value.code == 2
    assert "usage: innerloop motif" in capsys.readouterr().err


def test_progress_is_for_terminals(network, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    motif.count(network, output=network.with_suffix(".csv"))
    shown = capsys.readouterr().err
    assert "[....................] reading" in shown
    assert "[##########..........] counting, 0 s" in shown
    assert shown.endswith("\r\033[K")
    for option in (["--progress", "false"], ["--progress=false"], ["--no-progress"]):
        assert main(["motif", "count", str(network), *option]) == 0
        assert capsys.readouterr().err == ""
    assert main(["motif", "count", str(network), "--progress", "true"]) == 0
    assert "counting" in capsys.readouterr().err


def test_interrupt(network, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(motif, "node_orbits", stop)
    assert main(["motif", "count", str(network)]) == 130
    assert capsys.readouterr().err == "innerloop: interrupted\n"


def test_needs_no_training_packages(network):
    script = f"""
import sys
sys.modules["pytorch_lightning"] = sys.modules["jsonargparse"] = None
from innerloop.cli import main
sys.exit(main(["motif", "count", {str(network)!r}, "--k", "3"]))
"""
    assert run_python(script).splitlines()[0] == "node,o0,o1,o2,o3"
