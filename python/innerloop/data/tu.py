# SPDX-License-Identifier: Apache-2.0
"""Graph classification sets of the TU collection (Morris et al., 2020), and edge lists of single networks.

Two layouts of a set are read. The *official* one is a folder of ``NAME_A.txt`` (``u, v``, 1-based),
``NAME_graph_indicator.txt``, ``NAME_graph_labels.txt`` and, where there are any, ``NAME_node_labels.txt``,
``NAME_edge_labels.txt``, ``NAME_node_attributes.txt`` and ``NAME_edge_attributes.txt``. The *packed* one is a file
``NAME.txt``: the number of graphs; then for each a line ``n label`` and n lines ``tag degree neighbour …`` (0-based).
Text may be compressed, with ``.gz`` or ``.xz`` at the end of its name.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["GraphDataset", "load_mutag", "read_edge_list", "read_tu"]

_EMBEDDED = Path(__file__).with_name("embedded")
_MOST_NODES = 2**31  # of a Graph
_MOST_COMMENTS = 100
#: "# Nodes: N Edges: M" of SNAP, or "# name … nodes N edges M".
_HEADER = re.compile(rb"#\s*(?:Nodes:|\S.*\snodes)\s+(\d{1,18})\s+(?:Edges:|edges)\s+\d+\s*")
_SEPARATORS = np.isin(np.arange(256), np.frombuffer(b" \t\r\n,", np.uint8))


@dataclass(frozen=True, eq=False)
class GraphDataset:
    """B undirected simple graphs with a class each, as one disjoint union of n nodes.

    Attributes:
        name: of the set.
        edge_index: int64 (2, E), every edge in both directions, sorted, without self loops and duplicates.
        ptr: int64 (B + 1,); graph i has the nodes ptr[i] to ptr[i + 1] − 1.
        labels: int64 (B,), positions in ``classes``.
        classes: the label values of the file, sorted.
        node_tags: int64 (n,), positions in ``tags``; None where all nodes have the same or none.
        tags: the node label values of the file, sorted.
        edge_labels: int64 (E,) as in the file, or None.
        node_attributes, edge_attributes: float32 (n, d) and (E, d), or None.
    """

    name: str
    edge_index: Tensor
    ptr: Tensor
    labels: Tensor
    classes: tuple[int, ...]
    node_tags: Tensor | None = None
    tags: tuple[int, ...] = ()
    edge_labels: Tensor | None = None
    node_attributes: Tensor | None = None
    edge_attributes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_nodes(self) -> int:
        return int(self.ptr[-1])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def sizes(self) -> Tensor:
        """Number of nodes of each graph, int64 (B,)."""
        return self.ptr.diff()

    @property
    def batch(self) -> Tensor:
        """Graph of each node, int64 (n,)."""
        return torch.arange(len(self)).repeat_interleave(self.sizes)

    @property
    def degree(self) -> Tensor:
        """int64 (n,)."""
        return torch.bincount(self.edge_index[0], minlength=self.num_nodes)


def read_tu(path: str | Path) -> GraphDataset:
    """Reads a graph classification set: an official folder, or a packed file.

    Args:
        path: the folder that holds ``NAME_A.txt``, or the file ``NAME.txt`` (``.gz`` and ``.xz`` allowed).

    Raises:
        FileNotFoundError: the path or a file of the folder is missing.
        ValueError: a file is malformed; the message starts with ``file:line``.
    """
    path = Path(path)
    if path.is_dir():
        return _read_official(path)
    return _read_packed(path)


def load_mutag() -> GraphDataset:
    """MUTAG (Debnath et al., 1991), which ships with the package: 188 molecules of 7 elements, 2 classes."""
    return _read_packed(_EMBEDDED / "MUTAG.txt.xz")


def read_edge_list(path: str | Path) -> tuple[Tensor, int]:
    """Reads a network: two node ids a line, with blanks or a comma between; lines that start with # or % are comments.

    The first line of the input of the program orca, "n m", is an edge here; ``read_network`` tells it apart.

    Args:
        path: of the text; ``.gz`` and ``.xz`` allowed.

    Returns:
        int64 (2, E), one column a line, as in the file; and the number of nodes: the greatest id + 1, or that of a
        header if it is greater: ``# Nodes: N Edges: M`` (SNAP) or ``# name … nodes N edges M``, in the comments before
        the first edge.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder; a line that is not two ids ≥ 0; the message starts with ``file:line``.
    """
    edges, named = _edges(Path(path))
    return _columns(edges), max(int(edges.max(initial=-1)) + 1, named)


def read_network(path: str | Path) -> tuple[Tensor, int | None, tuple[int, int] | None]:
    """``read_edge_list`` with the number of nodes that the file gives itself, and with the input of the program orca.

    Returns:
        int64 (2, E); the number of nodes of a header, None where there is none or ids go further; and (n, m) where the
        first line is orca's header: exactly m lines follow, and all their ids are below n.

    Raises:
        As ``read_edge_list``.
    """
    edges, named = _edges(Path(path))
    # A file that names its size in a comment is no such input.
    if not named and len(edges) > 1 and edges[0, 1] == len(edges) - 1 and edges[1:].max(initial=-1) < edges[0, 0]:
        n, m = edges[0].tolist()
        return _columns(edges[1:]), n, (n, m)
    return _columns(edges), named if named > edges.max(initial=-1) else None, None


def _edges(path: Path) -> tuple[np.ndarray, int]:
    """The lines (E, 2), and the number of nodes that a comment before them names, or 0."""
    numbers = _Numbers(path)
    numbers.expect(np.flatnonzero(numbers.counts), 2, "two node ids")
    numbers.check(numbers.values >= 0, "node ids of at least 0")
    headers = filter(None, map(_HEADER.fullmatch, numbers.comments))
    return numbers.values.reshape(-1, 2), next((n for header in headers if (n := int(header[1])) < _MOST_NODES), 0)


def _columns(edges: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(edges.T))


class _Numbers:
    """The integers of a text, and where they stand; no Python loop runs over them.

    Attributes:
        values: int64 (T,), in order of the text. line: (T,), of each, from 0.
        counts: (L,), integers in each line. start: (L,), position of the first one of each line in ``values``.
        comments: the lines before any other that start with # or %, 100 at most. All such lines hold no numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = np.frombuffer(bytearray(_read(path)), np.uint8)
        ends = np.flatnonzero(data == ord("\n"))
        if len(data) and data[-1] != ord("\n"):
            ends = np.append(ends, len(data))
        begins = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        self.comments: list[bytes] = []
        for place, line in enumerate(np.flatnonzero(np.isin(data[begins], [ord("#"), ord("%")]))):
            text = data[begins[line] : ends[line]]
            if place == line < _MOST_COMMENTS:
                self.comments.append(text.tobytes())
            text[:] = ord(" ")
        inside = np.concatenate([[False], ~_SEPARATORS[data], [False]])
        first, stop = np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2).T
        self.line = np.searchsorted(ends, first)
        self.counts = np.bincount(self.line, minlength=len(ends))
        self.start = np.cumsum(self.counts) - self.counts
        self.values = self._parse(data, first, stop)

    def _parse(self, data: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
        negative = data[first] == ord("-")
        begin = first + negative
        length = stop - begin
        good, value = (length > 0) & (length <= 18), np.zeros(len(first), np.int64)  # 18 digits fit into int64
        for place in range(int(length[good].max(initial=0))):
            longer = np.flatnonzero(good & (length > place))
            digit = data[begin[longer] + place].astype(np.int64) - ord("0")
            good[longer] = (digit >= 0) & (digit <= 9)
            value[longer] = 10 * value[longer] + digit
        if not good.all():
            bad = int(np.flatnonzero(~good)[0])
            word = data[first[bad] : stop[bad]].tobytes()[:40].decode("utf-8", "replace")
            raise ValueError(f"{self.path}:{self.line[bad] + 1}: {word!r}, expected an integer of at most 18 digits")
        return np.where(negative, -value, value)

    def expect(self, lines: np.ndarray, count: int, what: str) -> None:
        """Raises unless each of ``lines`` holds ``count`` integers."""
        wrong = lines[self.counts[lines] != count]
        if len(wrong):
            raise ValueError(f"{self.path}:{wrong[0] + 1}: {self.counts[wrong[0]]} numbers, expected {what}")

    def check(self, good: np.ndarray, what: str) -> None:
        """Raises unless all of ``good``, one for each value, are true."""
        if not good.all():
            bad = int(np.flatnonzero(~good)[0])
            raise ValueError(f"{self.path}:{self.line[bad] + 1}: {self.values[bad]}, expected {what}")

    def column(self, what: str, length: int | None = None) -> np.ndarray:
        """The values of a text with one integer a line, ``length`` in all; blank lines only at the end."""
        return self.table(1, what, length)[:, 0]

    def table(self, width: int, what: str, length: int | None = None) -> np.ndarray:
        """The values (length, width) of a text with ``width`` integers a line; blank lines only at the end."""
        filled = np.flatnonzero(self.counts)
        self.expect(np.arange(filled[-1] + 1 if len(filled) else 0), width, what)
        if length is not None and len(filled) != length:
            raise ValueError(f"{self.path}: {len(filled)} lines, expected {length}, {what} in each")
        return self.values.reshape(-1, width)


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, Path.open)
    try:
        with opener(path, "rb") as file:
            return file.read().removeprefix(codecs.BOM_UTF8)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be decompressed: {error}") from error


def _find(folder: Path, name: str) -> Path | None:
    return next((p for suffix in ("", ".xz", ".gz") if (p := folder / f"{name}.txt{suffix}").is_file()), None)


def _read_official(folder: Path) -> GraphDataset:
    adjacency = sorted(p for p in folder.iterdir() if re.fullmatch(r".+_A\.txt(\.xz|\.gz)?", p.name))
    if len(adjacency) != 1:
        found = ", ".join(p.name for p in adjacency) or "none"
        raise FileNotFoundError(f"{folder}: expected one file NAME_A.txt, found {found}")
    name = adjacency[0].name.partition("_A.txt")[0]

    def part(kind: str) -> Path:
        path = _find(folder, f"{name}_{kind}")
        if path is None:
            raise FileNotFoundError(f"{folder / f'{name}_{kind}.txt'}: no such file")
        return path

    labels = _Numbers(part("graph_labels")).column("the label of a graph")
    indicator = _Numbers(part("graph_indicator"))
    graph = indicator.column("the number of a graph") - 1
    indicator.check((graph >= 0) & (graph < len(labels)), f"a graph from 1 to {len(labels)}")
    indicator.check(np.diff(graph, prepend=0) >= 0, "graphs in ascending order")
    n = len(graph)
    edges = _Numbers(adjacency[0])
    ends = edges.table(2, "two node numbers") - 1
    edges.check(((ends >= 0) & (ends < n)).ravel(), f"a node from 1 to {n}")
    same = graph[ends[:, 0]] == graph[ends[:, 1]]
    edges.check(same.repeat(2), "two nodes of the same graph")
    node_labels = _labels(_find(folder, f"{name}_node_labels"), n)
    edge_labels = _labels(_find(folder, f"{name}_edge_labels"), len(ends))
    node_attributes = _attributes(_find(folder, f"{name}_node_attributes"), n)
    edge_attributes = _attributes(_find(folder, f"{name}_edge_attributes"), len(ends))
    edge_index = _both_directions(ends.T, n)
    if edge_labels is not None or edge_attributes is not None:
        source = _sources(edge_index, ends.T, n)
        edge_labels, edge_attributes = (None if x is None else x[source] for x in (edge_labels, edge_attributes))
    return _dataset(
        name,
        edge_index,
        np.searchsorted(graph, np.arange(len(labels) + 1)),
        labels,
        node_labels,
        edge_labels=edge_labels,
        node_attributes=node_attributes,
        edge_attributes=edge_attributes,
    )


def _labels(path: Path | None, length: int) -> np.ndarray | None:
    return None if path is None else _Numbers(path).column("one label", length)


def _attributes(path: Path | None, length: int) -> np.ndarray | None:
    if path is None:
        return None
    data = _read(path)
    try:
        text = io.StringIO(data.decode())
        # loadtxt warns of an empty text
        rows = np.loadtxt(text, np.float32, None, ",", ndmin=2) if data.strip() else np.empty((0, 0), np.float32)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(rows) != length:
        raise ValueError(f"{path}: {len(rows)} lines, expected {length}, one for each node or edge")
    return rows


def _read_packed(path: Path) -> GraphDataset:
    numbers = _Numbers(path)
    values, start, counts = numbers.values, numbers.start, numbers.counts
    filled = np.flatnonzero(counts)
    num_lines = int(filled[-1]) + 1 if len(filled) else 0
    numbers.expect(np.arange(min(1, num_lines)), 1, "the number of graphs")
    if not num_lines or values[0] < 0:
        raise ValueError(f"{path}:1: expected the number of graphs")
    headers = np.empty(min(values[0], num_lines), np.int64)  # each graph has a line, whatever the first one says
    at = 1
    for i in range(values[0]):
        if at >= num_lines:
            raise ValueError(f"{path}:{at + 1}: the text ends, expected 'n label' of graph {i + 1} of {values[0]}")
        numbers.expect(np.array([at]), 2, "'n label' of a graph")
        headers[i] = at
        if values[start[at]] < 0:
            raise ValueError(f"{path}:{at + 1}: {values[start[at]]} nodes, expected at least 0")
        at += 1 + int(values[start[at]])
    if at != num_lines:
        raise ValueError(
            f"{path}:{min(at, num_lines) + 1}: {num_lines} lines, expected {at} by the sizes of the graphs"
        )
    sizes, labels = values[start[headers]], values[start[headers] + 1]
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    graph = np.repeat(np.arange(len(headers)), sizes)
    lines = np.delete(np.arange(1, num_lines), headers - 1)  # of nodes
    short = lines[counts[lines] < 2]
    if len(short):
        raise ValueError(f"{path}:{short[0] + 1}: expected 'tag degree neighbour …' of a node")
    degree = values[start[lines] + 1]
    wrong = np.flatnonzero(counts[lines] != 2 + degree)
    if len(wrong):
        line = lines[wrong[0]]
        raise ValueError(f"{path}:{line + 1}: {counts[line] - 2} neighbours, expected {degree[wrong[0]]}, the degree")
    node = np.repeat(np.arange(len(lines)), degree)
    place = np.arange(len(node)) - np.repeat(np.cumsum(degree) - degree, degree)
    neighbour = values[start[lines][node] + 2 + place]
    outside = np.flatnonzero((neighbour < 0) | (neighbour >= sizes[graph[node]]))
    if len(outside):
        i = outside[0]
        raise ValueError(
            f"{path}:{lines[node[i]] + 1}: neighbour {neighbour[i]}, expected 0 to {sizes[graph[node[i]]] - 1}"
        )
    edge_index = _both_directions(np.stack([node, neighbour + ptr[graph[node]]]), len(lines))
    return _dataset(path.name.partition(".txt")[0], edge_index, ptr, labels, values[start[lines]])


def _both_directions(ends: np.ndarray, n: int) -> np.ndarray:
    """The distinct edges (2, E) in both directions, sorted, without self loops."""
    keys = np.sort(ends.min(0) * n + ends.max(0))
    low, high = np.divmod(keys[np.diff(keys, prepend=-1) != 0], max(n, 1))
    low, high = low[low != high], high[low != high]
    keys = np.sort(np.concatenate([low * n + high, high * n + low]))
    return np.stack(np.divmod(keys, max(n, 1)))


def _sources(edge_index: np.ndarray, ends: np.ndarray, n: int) -> np.ndarray:
    """Column of ``ends`` that gave each edge: the first in its direction, else the first in the other one."""
    u, v = ends
    keys, first = np.unique(np.concatenate([u * n + v, v * n + u]), return_index=True)
    return first[np.searchsorted(keys, edge_index[0] * n + edge_index[1])] % max(len(u), 1)


def _dataset(
    name: str,
    edge_index: np.ndarray,
    ptr: np.ndarray,
    labels: np.ndarray,
    node_labels: np.ndarray | None,
    **optional: np.ndarray | None,
) -> GraphDataset:
    classes, labels = np.unique(labels, return_inverse=True)
    tags, node_tags = (np.empty(0), None) if node_labels is None else np.unique(node_labels, return_inverse=True)
    one = len(tags) < 2
    return GraphDataset(
        name,
        torch.from_numpy(np.ascontiguousarray(edge_index)),
        torch.from_numpy(ptr),
        torch.from_numpy(labels),
        tuple(classes.tolist()),
        None if one else torch.from_numpy(node_tags),
        () if one else tuple(tags.tolist()),
        **{key: None if value is None else torch.from_numpy(value) for key, value in optional.items()},
    )
