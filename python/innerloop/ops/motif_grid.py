# SPDX-License-Identifier: Apache-2.0
"""motif_grid: the motifs around the most central nodes of each graph as a grid of fixed size."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _cpu
from ..simple_graph import Graph
from ._checks import as_int, differentiated, readable
from ._registry import define, not_traced

__all__ = ["MotifGrid", "gather_grid", "motif_grid"]

_TIES = {"degree": 0, "official": 1, "canonical": 2}  # codes of csrc/cpu/motif_grid.h
_CONTENTS = ("value", "onehot")
_INT_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_LARGEST_MOTIF = 5


class MotifGrid(NamedTuple):
    """What :func:`motif_grid` returns.

    Attributes:
        x: float32 (B, F, kS, kN), the k × k block of instance s around the i-th node at rows ks and columns ki.
        index: int32 (B, N, S, k), nodes of each instance as ids of the disjoint union, -1 where there is none.
        mask: bool (B, N, S), where there is an instance.
    """

    x: Tensor
    index: Tensor
    mask: Tensor


def motif_grid(
    graph: Graph | Tensor,
    num_nodes: int,
    slots: int = 15,
    *,
    k: int = 3,
    node_labels: Tensor | None = None,
    num_labels: int | None = None,
    edge_labels: Tensor | None = None,
    centrality: Tensor | None = None,
    tie: Literal["degree", "official", "canonical"] = "degree",
    per_type: bool = False,
    content: Literal["value", "onehot"] = "value",
) -> MotifGrid:
    """Graphs of any size as grids of one size: S motifs around each of the N most central nodes.

    Nodes are ordered by :func:`closeness`, or by `centrality`, the largest first; the first N are columns, and a
    smaller graph leaves columns empty. The motifs of a node v are the sets of k nodes that hold v and induce a
    connected graph, each once. Their nodes stand in the order (v, x₂, …, x_k) for which the adjacency of the pairs
    (1, 2), (1, 3), …, (k-1, k), read as a binary number, is largest, and among those first in the order of nodes. That
    number is the motif's type; types of more edges come first, then smaller numbers. So for k = 3: triangle, path with
    v at its end (v, u, w), path with v in its middle. Instances are ordered by type, then by the places of x₂, …, x_k;
    the first S are kept.

    | tie | nodes of equal centrality are ordered by |
    |---|---|
    | "degree" | degree, the largest first, then index |
    | "official" | index, as the authors' program does |
    | "canonical" | degree, label, colour refinement (1-WL) with edge labels, then index |

    Refinement takes a round for each step that a difference travels, so it is quadratic on long paths.

    With "canonical" the grid does not depend on how nodes are numbered, but where refinement leaves nodes with one
    colour that a motif tells apart.

    | content | entry (p, q) of a block |
    |---|---|
    | "value" | F = 1. p = q: label of x_p, counted from 1, or its degree; else label of the edge, or 1, or 0 |
    | "onehot" | F = num_labels + 1. A plane for each label with 1 at p = q, and one of edges |

    Args:
        graph: a batch of B graphs; anything that :meth:`Graph.of` takes.
        num_nodes: N. slots: S.
        k: nodes of a motif, 2 to 5. For 4 and 5 all instances are looked at, which grows fast with the degree; for 3
            no more than are kept.
        node_labels: integer (n,); without `num_labels` any integers, which stand for their place among the distinct
            ones of this call.
        num_labels: number of labels, which are then in [0, num_labels). For "onehot" without `node_labels` degrees are
            labels, those beyond num_labels - 1 taken for that. Needed in a graph compiled as a whole.
        edge_labels: (m,), integer or floating, in the order of `graph.edges`; 0 reads like no edge.
        centrality: (n,), integer or floating, in place of closeness, which takes long on graphs above some 10,000
            nodes: `graph.degree`, or `closeness(graph, samples=256)`.
        tie, content: see above.
        per_type: slots are dealt evenly to the types, the first ones get one more where it does not come out even;
            each type starts at its own slot.

    Returns:
        :class:`MotifGrid` (x, index, mask). It has no gradient; for one see :func:`gather_grid`.

    Made on the CPU, where a Graph is.

    Raises:
        TypeError: labels that are no tensor, or of another dtype. ValueError: numbers, names or shapes that do not fit;
            the message names the argument. IndexError: a label outside [0, num_labels). MemoryError: a grid too large.

    Source: Peng et al., Graph Convolutional Neural Networks via Motif-based Attention (2018), and the authors' program;
        the paper leaves the order of motifs open.
    """
    graph = Graph.of(graph)
    counts = []
    for name, given, most in (("num_nodes", num_nodes, None), ("slots", slots, None), ("k", k, _LARGEST_MOTIF)):
        low, number = 1 if most is None else 2, as_int(given)
        if number is None or number < low or (most and number > most):
            wanted = "of at least 1" if most is None else f"from {low} to {most}"
            raise ValueError(f"motif_grid: {name} is {given!r}, expected an int {wanted}")
        counts.append(number)
    for name, given, known in (("tie", tie, _TIES), ("content", content, _CONTENTS)):
        if not isinstance(given, str) or given not in known:
            raise ValueError(f"motif_grid: {name} is {given!r}, expected one of {', '.join(known)}")
    if not isinstance(per_type, bool):
        raise TypeError(f"motif_grid: per_type is {per_type!r}, expected a bool")
    value, planes = _values(graph, node_labels, num_labels, content)
    edge_value = _numbers("edge_labels", edge_labels, graph.num_edges, torch.float32)
    central = _numbers("centrality", centrality, graph.num_nodes, torch.float64)
    if _bytes(graph.num_graphs, *counts, planes) >= 2**63:
        raise ValueError(f"{_named(graph.num_graphs, *counts, planes)}, expected less than 2**63")
    options = (*counts, planes, _TIES[tie], per_type)
    return MotifGrid(*_motif_grid(graph.index, graph.adjacency, graph.ptr, value, edge_value, central, *options))


def gather_grid(index: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """The grid of any node features: those of an instance's nodes on the diagonal of its block, 0 elsewhere.

    Args:
        index: integer (B, N, S, k), mask: bool (B, N, S), of :func:`motif_grid`.
        features: (n, F).

    Returns:
        (B, F, kS, kN) in the dtype of `features`, differentiable with respect to them. With one-hot labels these are
        all planes but the last of `motif_grid(…, content="onehot").x`.

    Raises:
        TypeError: no tensor, or another dtype. ValueError: shapes that do not fit. IndexError: where there is an
        instance, a node that is none of the n.
    """
    for name, t in (("index", index), ("mask", mask), ("features", features)):
        if not isinstance(t, Tensor):
            raise TypeError(f"gather_grid: {name} is {type(t).__name__}, expected a tensor")
    if index.dtype not in _INT_DTYPES:
        raise TypeError(f"gather_grid: index has dtype {index.dtype}, expected an integer dtype")
    if mask.dtype != torch.bool:
        raise TypeError(f"gather_grid: mask has dtype {mask.dtype}, expected torch.bool")
    if index.dim() != 4:
        raise ValueError(f"gather_grid: index has shape {tuple(index.shape)}, expected (B, N, S, k)")
    if mask.shape != index.shape[:3]:
        raise ValueError(f"gather_grid: mask has shape {tuple(mask.shape)}, expected {tuple(index.shape[:3])}")
    if features.dim() != 2:
        raise ValueError(f"gather_grid: features has shape {tuple(features.shape)}, expected (n, F)")
    graphs, columns, slots, k = index.shape
    n, channels = features.shape
    if readable(index) and readable(mask):
        there = index[mask]
        bad = there[(there < 0) | (there >= n)]
        if bad.numel():
            raise IndexError(f"gather_grid: index holds {int(bad[0])} where mask is True, expected nodes in [0, {n})")
    padded = F.pad(features, (0, 0, 0, 1))  # node n is the one that is not there
    rows = padded[index.long().masked_fill(~mask[..., None], n)]  # (B, N, S, k, F)
    blocks = torch.diag_embed(rows.movedim(4, 1))  # (B, F, N, S, k, k)
    return blocks.permute(0, 1, 3, 4, 2, 5).reshape(graphs, channels, slots * k, columns * k)


def _values(graph: Graph, labels: Tensor | None, num_labels: int | None, content: str) -> tuple[Tensor, int]:
    """int64 (n,), label from 1 or degree of each node, and the number of planes."""
    op = "motif_grid"
    if num_labels is not None:
        given, num_labels = num_labels, as_int(num_labels)
        if num_labels is None or num_labels < 1:
            raise ValueError(f"{op}: num_labels is {given!r}, expected an int of at least 1, or None")
    if labels is None:
        value = graph.degree
        if content == "value":
            if num_labels is not None:
                raise ValueError(f"{op}: num_labels is {num_labels} without node_labels, expected None")
            return value, 1
        if num_labels is None:
            num_labels = _num_degrees(value)  # breaks a compiled graph: give num_labels
        return value.clamp(max=min(num_labels, 2**31) - 1) + 1, num_labels + 1  # degrees are below 2**31
    if not isinstance(labels, Tensor) or labels.dtype not in _INT_DTYPES:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{op}: node_labels is {kind}, expected an integer tensor")
    if labels.shape != (graph.num_nodes,):
        raise ValueError(f"{op}: node_labels has shape {tuple(labels.shape)}, expected ({graph.num_nodes},)")
    if num_labels is None:
        if content == "onehot":
            num_labels, labels = _dense_outside(labels)  # breaks a compiled graph: give num_labels
        else:
            num_labels, labels = _dense(labels)
    elif labels.numel() and readable(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_labels:
            bad = low if low < 0 else high
            raise IndexError(f"{op}: node_labels holds {bad}, expected labels in [0, {num_labels})")
    return labels.to("cpu", torch.int64) + 1, 1 if content == "value" else num_labels + 1


def _dense(labels: Tensor) -> tuple[int, Tensor]:
    """The number of distinct labels, and of each its place among them."""
    distinct, places = torch.unique(labels, return_inverse=True)
    return max(len(distinct), 1), places


# A shape that depends on values is none that the op can be traced with.
_dense_outside = not_traced(_dense)


@not_traced
def _num_degrees(degree: Tensor) -> int:
    return int(degree.max()) + 1 if len(degree) else 1


def _bytes(graphs: int, num_nodes: int, slots: int, k: int, planes: int) -> int:
    """Of a grid with its index and mask, of one graph at least."""
    return max(graphs, 1) * num_nodes * slots * (4 * planes * k * k + 4 * k + 1)


def _named(graphs: int, num_nodes: int, slots: int, k: int, planes: int) -> str:
    labels = "" if planes == 1 else f", num_labels is {planes - 1}"
    size = _bytes(graphs, num_nodes, slots, k, planes)
    return f"motif_grid: num_nodes is {num_nodes}, slots is {slots}{labels}, {size} bytes for a batch of {graphs}"


def _numbers(name: str, given: Tensor | None, count: int, dtype: torch.dtype) -> Tensor | None:
    """An argument of integers or floats, (count,), in the dtype of the kernel."""
    op = "motif_grid"
    if given is None:
        return None
    if not isinstance(given, Tensor) or given.is_complex() or given.dtype == torch.bool:
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{op}: {name} is {kind}, expected an integer or floating tensor")
    if given.shape != (count,):
        raise ValueError(f"{op}: {name} has shape {tuple(given.shape)}, expected ({count},)")
    if differentiated(given):
        raise ValueError(f"{op}: {name} requires a gradient, expected none: x has no gradient")
    return given.to("cpu", dtype)


_motif_grid = define(
    "motif_grid(Tensor graph_index, Tensor adjacency, Tensor ptr, Tensor value, Tensor? edge_value, "
    "Tensor? centrality, int num_nodes, int slots, int k, int planes, int tie, bool per_type) "
    "-> (Tensor, Tensor, Tensor)"
)


def _grid(ptr: Tensor, num_nodes: int, slots: int, k: int, planes: int) -> tuple[Tensor, Tensor, Tensor]:
    graphs = ptr.shape[0] - 1
    return (
        ptr.new_empty((graphs, planes, slots * k, num_nodes * k), dtype=torch.float32),
        ptr.new_empty((graphs, num_nodes, slots, k), dtype=torch.int32),
        ptr.new_empty((graphs, num_nodes, slots), dtype=torch.bool),
    )


@_motif_grid.cpu
def _(graph_index, adjacency, ptr, value, edge_value, centrality, num_nodes, slots, k, planes, tie, per_type):
    try:
        grid = _grid(ptr, num_nodes, slots, k, planes)
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        sizes = ptr.shape[0] - 1, num_nodes, slots, k, planes
        raise MemoryError(f"{_named(*sizes)}, expected a grid that fits in memory") from None
    edge_value = None if edge_value is None else edge_value.contiguous()
    centrality = None if centrality is None else centrality.contiguous()
    graph = (graph_index, adjacency, ptr, value.contiguous(), edge_value, centrality)
    _cpu.motif_grid(*grid, *graph, num_nodes, slots, k, planes, tie, per_type, torch.get_num_threads())
    return grid


@_motif_grid.fake
def _(graph_index, adjacency, ptr, value, edge_value, centrality, num_nodes, slots, k, planes, tie, per_type):
    return _grid(ptr, num_nodes, slots, k, planes)
