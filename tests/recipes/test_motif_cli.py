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
        ("0 30000000\n", [], "net.txt: Graph: num_nodes is None and edge_index has the node 30000000 in 1 edges"),
        ("# Nodes: 9 Edges: 1\n0 30000000\n", [], "net.txt: Graph: num_nodes is None and edge_index has the node 3"),
        ("0 1\n2\n", [], "net.txt:2: 1 numbers, expected two node ids"),
        ("0 1\n", ["--output", "x.json"], "output is 'x.json', expected a name that ends in one of .csv, .txt, .npz"),
        ("0 1\n", ["--threads", "0"], "threads is 0, expected at least 1"),
        ("0 1\n", ["--threads", "99999999999999"], "threads is 99999999999999, expected at most"),
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


@pytest.mark.parametrize(
    ("text", "nodes", "edges"),
    [
        ("7 4\n0 1\n1 2\n2 0\n2 3\n", 7, 4),
        ("# from orca\n4,4\n0,1\n1,2\n2,0\n\n2,3\n", 4, 4),
    ],
)
def test_header_of_orca(tmp_path, capsys, text, nodes, edges):
    path = tmp_path / "net.txt"
    path.write_text(text)
    assert main(["motif", "count", str(path), "--k", "3"]) == 0
    out, err = capsys.readouterr()
    degree = [row[1] for row in rows(out.split("\n", 1)[1])]
    assert (len(degree), sum(degree)) == (nodes, 2 * edges)
    assert err == (
        f"innerloop: {path}: the first line, {nodes} {edges}, is taken for orca's header ({nodes} nodes, {edges} "
        f"edges); an edge can be written as {edges} {nodes}\n"
    )


@pytest.mark.parametrize(
    ("text", "named", "edges"),
    [
        ("7 9\n0 1\n1 2\n2 0\n2 3\n", None, 5),  # not so many lines
        ("3 4\n0 1\n1 2\n2 0\n2 3\n", None, 5),  # an id beyond
        ("4 7\n0 1\n1 2\n2 0\n2 3\n", None, 5),  # the edge 7 4
        ("0 1\n7 1\n2 3\n", None, 3),  # not the first line
        ("5 0\n", None, 1),  # no line at all
        ("# Nodes: 5 Edges: 3\n4 2\n0 1\n1 2\n", 5, 3),  # a size of its own
        ("# Nodes: 30000001 Edges: 1\n0 30000000\n", 30000001, 1),
        ("# Nodes: 30000000 Edges: 1\n0 30000000\n", None, 1),
    ],
)
def test_other_first_lines_are_edges(tmp_path, monkeypatch, capsys, text, named, edges):
    path = tmp_path / "net.txt"
    path.write_text(text)
    built = []
    monkeypatch.setattr(motif, "Graph", lambda edge_index, num_nodes: built.append((num_nodes, edge_index.shape[1])))
    monkeypatch.setattr(motif, "node_orbits", lambda graph, k: torch.zeros(1, 1))
    assert main(["motif", "count", str(path)]) == 0
    assert capsys.readouterr().err == ""
    assert built == [(named, edges)]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError("innerloop: no memory for 64 bytes of scratch"), "not enough memory for 64 bytes"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. E"), "not enough m"),
        (OverflowError("node_orbits: too many"), "node_orbits: too many"),
    ],
)
def test_errors_while_counting(network, monkeypatch, capsys, error, text):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(motif, "node_orbits", fail)
    assert main(["motif", "count", str(network)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"innerloop: {text}")
    assert shown.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_output_is_named_as_it_was_given(network, capsys):
    assert main(["motif", "count", str(network), "--output", "/proc/x.csv"]) == 1
    assert capsys.readouterr().err == "innerloop: /proc/x.csv: No such file or directory\n"


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
    assert capsys.readouterr().err == f"innerloop: {output}: disk full\n"
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
