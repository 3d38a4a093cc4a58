# SPDX-License-Identifier: Apache-2.0
"""Drop-ins for functions of other packages: `generalized_rspmm` of the NBFNet family, and those of orca-graphlets.

In `generalized_rspmm` rows without edges return the identity of the sum (0, -inf, inf), where the peers return 0 or
±FLT_MAX; NaN is propagated; and a maximum's gradient goes to one edge, not to every tied one. See `relational_spmm`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from .graph import RelGraph
from .ops._checks import as_int
from .ops.node_orbits import edge_orbits, node_orbits
from .ops.relational_spmm import relational_spmm
from .simple_graph import Graph

__all__ = ["generalized_rspmm", "orca_edges", "orca_nodes"]


_SPARSE = ("sparse", "relation", "input", "sum", "mul")
_EDGES = ("edge_index", "edge_type", "edge_weight", "relation", "input", "sum", "mul")


def generalized_rspmm(*args: Tensor | str, **kwargs: Tensor | str) -> Tensor:
    """`generalized_rspmm` of torchdrug and of NBFNet-PyG / ULTRA, told apart by their arguments.

    - ``generalized_rspmm(sparse, relation, input, sum, mul)`` (torchdrug): `sparse` is a 3-D COO tensor indexed
      (out, in, relation), its values are the edge weights; equal indices are merged and their weights added.
    - ``generalized_rspmm(edge_index, edge_type, edge_weight, relation, input, sum, mul)`` (NBFNet-PyG, ULTRA):
      aggregates at ``edge_index[0]`` from ``edge_index[1]``.

    Each call sorts the edges. Build a `RelGraph` once and call `relational_spmm` to sort them once.

    Args:
        relation: (R, C). input: (V, C).
        sum: "add", "max" or "min". mul: "mul" or "add".

    Returns:
        (V, C), or (V_out, C) for a sparse tensor of shape (V_out, V, R).

    Raises:
        TypeError: neither call form.
        ValueError: a `sparse` that is not a 3-D COO tensor, an unknown `sum` or `mul`, or shapes that do not fit.
        IndexError: an id out of range.
    """
    first = args[0] if args else kwargs.get("sparse")
    sparse = isinstance(first, Tensor) and (first.layout != torch.strided or "sparse" in kwargs)
    names = _SPARSE if sparse or (len(args) == 3 and "relation" not in kwargs) else _EDGES
    given = dict(zip(names, args, strict=False))
    wrong = [k for k in kwargs if k in given or k not in names]
    given = {"sum": "add", "mul": "mul"} | given | kwargs
    if len(args) > len(names) or wrong or set(given) != set(names):
        raise TypeError(
            f"generalized_rspmm: {len(args)} arguments and {', '.join(kwargs) or 'no'} keywords, expected "
            f"({', '.join(_SPARSE)}) or ({', '.join(_EDGES)})"
        )
    sum, mul = given["sum"], given["mul"]
    if sum not in ("add", "max", "min"):
        raise ValueError(f"generalized_rspmm: sum is {sum!r}, expected one of add, max, min")
    if mul not in ("mul", "add"):
        raise ValueError(f"generalized_rspmm: mul is {mul!r}, expected one of mul, add")
    if names is _SPARSE:
        return _from_sparse(given["sparse"], given["relation"], given["input"], sum=sum, mul=mul)
    relation, input = given["relation"], given["input"]
    graph = RelGraph(given["edge_index"], given["edge_type"], len(input), len(relation), flow="target_to_source")
    return relational_spmm(graph, relation, input, sum=sum, mul=mul, edge_weight=given["edge_weight"])


def _from_sparse(sparse: Tensor, relation: Tensor, input: Tensor, sum: str, mul: str) -> Tensor:
    if sparse.layout != torch.sparse_coo or sparse.dim() != 3:
        raise ValueError(
            f"generalized_rspmm: sparse is {sparse.layout} with shape {tuple(sparse.shape)}, expected a COO tensor of "
            "shape (V_out, V_in, R)"
        )
    sparse = sparse.coalesce()
    out, source, kind = sparse.indices()
    rows, num_in, num_relations = sparse.shape
    if len(input) != num_in or len(relation) != num_relations:
        raise ValueError(
            f"generalized_rspmm: input has {len(input)} and relation {len(relation)} rows, expected {num_in} and "
            f"{num_relations} for sparse of shape {tuple(sparse.shape)}"
        )
    nodes = max(rows, num_in)
    graph = RelGraph(torch.stack([source, out]), kind, nodes, num_relations)
    if nodes > num_in:
        input = torch.cat([input, input.new_zeros(nodes - num_in, *input.shape[1:])])
    weight = sparse.values().to(input.dtype)
    return relational_spmm(graph, relation, input, sum=sum, mul=mul, edge_weight=weight)[:rows]


def orca_nodes(
    edge_list: np.ndarray | Tensor | Iterable[tuple[int, int]], num_nodes: int | None = None, graphlet_size: int = 4
) -> np.ndarray:
    """`orca_nodes` of the package orca-graphlets: `node_orbits` of an edge list, as an array.

    Args:
        edge_list: (m, 2) node ids ≥ 0; loops are dropped, an edge that comes twice counts once.
        num_nodes: by default the greatest id + 1.
        graphlet_size: 3, 4 or 5 (3 only here).

    Returns:
        int64 (num_nodes, 15 | 73 | 4).

    Raises:
        ValueError: an edge list of another shape or kind, or another size. TypeError: an edge list that is none.
        IndexError: an id out of range.
    """
    k = _checked_size("orca_nodes", graphlet_size)
    return node_orbits(_simple_graph("orca_nodes", edge_list, num_nodes), k).numpy()


def orca_edges(
    edge_list: np.ndarray | Tensor | Iterable[tuple[int, int]], num_nodes: int | None = None, graphlet_size: int = 4
) -> np.ndarray:
    """`orca_edges` of the package orca-graphlets: `edge_orbits` of an edge list, as an array.

    Args: as for `orca_nodes`.

    Returns:
        int64 (m, 12 | 68 | 2), a row for each distinct edge, in the order of their first appearance.
    """
    k = _checked_size("orca_edges", graphlet_size)
    return edge_orbits(_simple_graph("orca_edges", edge_list, num_nodes), k).numpy()


def _checked_size(owner: str, graphlet_size: int) -> int:
    size = as_int(graphlet_size)
    if size not in (3, 4, 5):
        raise ValueError(f"{owner}: graphlet_size is {graphlet_size!r}, expected 3, 4 or 5")
    return size


def _simple_graph(owner: str, edge_list: np.ndarray | Tensor | Iterable[tuple[int, int]], n: int | None) -> Graph:
    if not isinstance(edge_list, Iterable):
        raise TypeError(f"{owner}: edge_list is {type(edge_list).__name__}, expected pairs of node ids")
    given = edge_list if isinstance(edge_list, np.ndarray | Tensor) else list(edge_list)
    try:
        edges = torch.as_tensor(given, dtype=None if len(given) else torch.int64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # no numbers, or of no shape
        raise ValueError(
            f"{owner}: edge_list has entries that are no ids ({error}), expected integers of shape (m, 2)"
        ) from None
    if edges.numel() == 0:
        edges = edges.reshape(0, 2).long()
    if edges.dim() != 2 or edges.shape[1] != 2 or edges.dtype == torch.bool or edges.is_floating_point():
        raise ValueError(
            f"{owner}: edge_list is {edges.dtype} of shape {tuple(edges.shape)}, expected integers of shape (m, 2)"
        )
    return Graph(edges.T, n)
