# SPDX-License-Identifier: Apache-2.0
"""``innerloop motif count``: the orbits of every node, or edge, of a network in a file."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from innerloop.data.tu import read_edge_list
from innerloop.ops.node_orbits import edge_orbits, node_orbits
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
    command.add_argument("file", type=Path, help="edge list: two node ids a line, # comments; .gz and .xz allowed")
    command.add_argument("--k", type=int, default=4, choices=(3, 4, 5), help="nodes of the largest subgraphs (4)")
    command.add_argument("--edges", action="store_true", help="orbits of edges instead of nodes")
    command.add_argument("--output", type=Path, help="a .csv, .txt (the layout of orca) or .npz; default: print as csv")
    command.add_argument("--threads", type=int, help="CPU threads")
    command.add_argument("--no-progress", action="store_true", help="no progress bar on the terminal")
    given = parser.parse_args(list(arguments))
    try:
        count(given.file, given.k, given.edges, given.output, given.threads, not given.no_progress)
    except KeyboardInterrupt:
        print("innerloop: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the printed rows has seen enough
        sys.stdout = None
    except (OSError, ValueError, MemoryError) as error:
        print(f"innerloop: {error}", file=sys.stderr)
        return 1
    return 0


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
        file: an edge list, see ``read_edge_list``.
        k: 3, 4 or 5.
        edges: of edges instead of nodes.
        output: .csv (with a header and the node, or both ends, before the counts), .txt (counts alone, as orca writes
            them) or .npz (arrays orbits and, with ``edges``, edges); None prints the csv.
        progress: show a progress bar on a terminal.

    Returns:
        int64, (n, 4 | 15 | 73), or (m, 2 | 12 | 68) in the order of the edges' first appearance.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a malformed file, or an output of another kind.
    """
    if output is not None and output.suffix not in _SUFFIXES:
        raise ValueError(f"output is {str(output)!r}, expected a name that ends in one of {', '.join(_SUFFIXES)}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}, expected at least 1")
        torch.set_num_threads(threads)
    with _bar(progress) as stage:
        stage("reading")
        edge_index, num_nodes = read_edge_list(file)
        stage("building the graph")
        graph = Graph(edge_index, num_nodes)
        stage("counting")
        orbits = (edge_orbits(graph, k) if edges else node_orbits(graph, k)).numpy()
        stage("writing" if output is not None else None)
        _write(orbits, graph.edges.numpy() if edges else None, output)
    return orbits


def _write(orbits: np.ndarray, edges: np.ndarray | None, output: Path | None) -> None:
    if output is not None and output.suffix == ".npz":
        np.savez_compressed(output, **({} if edges is None else {"edges": edges}), orbits=orbits)
        return
    if output is not None and output.suffix == ".txt":
        np.savetxt(output, orbits, "%d")
        return
    keys, names = (edges, ["u", "v"]) if edges is not None else (np.arange(len(orbits))[:, None], ["node"])
    header = ",".join([*names, *(f"o{i}" for i in range(orbits.shape[1]))])
    np.savetxt(
        sys.stdout if output is None else output, np.hstack([keys, orbits]), "%d", ",", header=header, comments=""
    )


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
