# SPDX-License-Identifier: Apache-2.0
"""``innerloop motif count``: the orbits of every node, or edge, of a network in a file."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch

from innerloop.data.tu import read_network
from innerloop.ops.node_orbits import edge_orbits, node_orbits
from innerloop.recipes._memory import shortage
from innerloop.recipes._settings import UsageError, check_threads
from innerloop.simple_graph import Graph

__all__ = ["count", "main"]

_SUFFIXES = (".csv", ".txt", ".npz")
_STAGES = ("reading", "building the graph", "counting", "writing")


def main(arguments: Sequence[str]) -> int:
    """Runs ``innerloop motif``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="innerloop motif", description="Graph patterns of a network.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "count",
        help="orbits of every node, or edge",
        description="Counts in how many connected induced subgraphs on up to k nodes each node, or edge, takes each "
        "place (graphlet orbits, numbered as by Pržulj).",
    )
    command.add_argument(
        "file",
        type=Path,
        help="edge list: two node ids a line, # comments, of which '# Nodes: N Edges: M' before all edges gives the "
        "number of nodes; .gz and .xz allowed. A first line 'n m', exactly m lines with ids below n behind it, is the "
        "header of orca's input",
    )
    command.add_argument("--k", type=int, default=4, choices=(3, 4, 5), help="nodes of the largest subgraphs (4)")
    command.add_argument("--edges", action="store_true", help="orbits of edges instead of nodes")
    command.add_argument("--output", type=Path, help="a .csv, .txt (the layout of orca) or .npz; default: print as csv")
    command.add_argument("--threads", type=int, help="CPU threads")
    command.add_argument(
        "--progress", type=_truth, default=True, metavar="true|false", help="a bar on a terminal (true)"
    )
    command.add_argument("--no-progress", dest="progress", action="store_false", help="the same as --progress false")
    given = parser.parse_args(list(arguments))
    try:
        count(given.file, given.k, given.edges, given.output, given.threads, given.progress)
    except BrokenPipeError:
        raise  # innerloop.cli ends quietly
    except (MemoryError, OSError, OverflowError, RuntimeError, ValueError) as error:
        short = shortage(error)
        if short is None and isinstance(error, RuntimeError):
            raise
        print(f"innerloop: {short or error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _truth(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r}, expected true or false")
    return word.lower() == "true"


def count(
    file: Path,
    k: int = 4,
    edges: bool = False,
    output: Path | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Counts the orbits of a network and writes them.

    Args:
        file: an edge list, or the input of the program orca, see ``read_network``.
        k: 3, 4 or 5.
        edges: of edges instead of nodes.
        output: .csv (with a header and the node, or both ends, before the counts), .txt (counts alone, as orca writes
            them) or .npz (arrays orbits and, with ``edges``, edges); None prints the csv.
        progress: show a progress bar on a terminal.

    Returns:
        int64, (n, 4 | 15 | 73), or (m, 2 | 12 | 68) in the order of the edges' first appearance.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: an output of another kind, or one that cannot be written; fewer than 1 thread, or too many.
        ValueError: a malformed file, or ids with large gaps.
        OSError: the output cannot be written.
    """
    if output is not None:
        _check_output(output)
    check_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)
    with _bar(progress) as stage:
        stage("reading")
        edge_index, num_nodes, header = read_network(file)
        if header is not None:
            stage(None)
            n, m = header
            print(
                f"innerloop: {file}: the first line, {n} {m}, is taken for orca's header ({n} nodes, {m} edges); an "
                f"edge can be written as {m} {n}",
                file=sys.stderr,
            )
        stage("building the graph")
        try:
            graph = Graph(edge_index, num_nodes)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        stage("counting")
        orbits = (edge_orbits(graph, k) if edges else node_orbits(graph, k)).numpy()
        stage("writing" if output is not None else None)
        ends = graph.edges.numpy() if edges else None
        if output is None:
            _write(orbits, ends, sys.stdout, ".csv")
        else:
            _replace(output, lambda file: _write(orbits, ends, file, output.suffix))
    return orbits


def _check_output(output: Path) -> None:
    if output.suffix not in _SUFFIXES:
        raise UsageError(f"output is {str(output)!r}, expected a name that ends in one of {', '.join(_SUFFIXES)}")
    if output.is_dir():
        raise UsageError(f"output is {str(output)!r}, a folder, expected a file")
    if not output.parent.is_dir():
        raise UsageError(f"output is {str(output)!r}, expected a file in a folder that is there")


def _replace(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Writes a file that is there in whole, or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
        partial.replace(path)
    except OSError as error:
        raise OSError(f"{path}: {error.strerror or error}") from error  # not the name of the partial file
    finally:
        partial.unlink(missing_ok=True)


def _write(orbits: np.ndarray, edges: np.ndarray | None, file: IO, kind: str) -> None:
    if kind == ".npz":
        np.savez_compressed(file, **({} if edges is None else {"edges": edges}), orbits=orbits)
        return
    if kind == ".txt":
        np.savetxt(file, orbits, "%d")
        return
    keys, names = (edges, ["u", "v"]) if edges is not None else (np.arange(len(orbits))[:, None], ["node"])
    header = ",".join([*names, *(f"o{i}" for i in range(orbits.shape[1]))])
    np.savetxt(file, np.hstack([keys, orbits]), "%d", ",", header=header, comments="")


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[[str | None], None]]:
    """A bar over the stages with the time since the start, kept up by a thread: counting is one call.

    Without a terminal nothing is shown.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda stage: None
        return
    started, current, ended = time.perf_counter(), [_STAGES[0]], threading.Event()

    def draw() -> None:
        if current[0] is None:
            return
        done = _STAGES.index(current[0])
        bar = "#" * 5 * done + "." * 5 * (len(_STAGES) - done)
        print(
            f"\r[{bar}] {current[0]}, {time.perf_counter() - started:.0f} s \033[K", end="", file=sys.stderr, flush=True
        )

    def keep_up() -> None:
        while not ended.wait(0.5):
            draw()

    def stage(name: str | None) -> None:
        current[0] = name
        draw() if name else clear()

    def clear() -> None:
        print("\r\033[K", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=keep_up, daemon=True)
    thread.start()
    try:
        yield stage
    finally:
        ended.set()
        thread.join()
        clear()
