# SPDX-License-Identifier: Apache-2.0
"""Drop-ins for the two call forms of `generalized_rspmm` that the NBFNet family uses.

Rows without edges return the identity of the sum (0, -inf, inf), where the peers return 0 or ±FLT_MAX; NaN is
propagated; and a maximum's gradient goes to one edge, not to every tied one. See `relational_spmm`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import RelGraph
from .ops.relational_spmm import relational_spmm

__all__ = ["generalized_rspmm"]


def generalized_rspmm(*args: Tensor, sum: str = "add", mul: str = "mul") -> Tensor:
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
    args, sum, mul = _positional_names(args, sum, mul)
    if sum not in ("add", "max", "min"):
        raise ValueError(f"generalized_rspmm: sum is {sum!r}, expected one of add, max, min")
    if mul not in ("mul", "add"):
        raise ValueError(f"generalized_rspmm: mul is {mul!r}, expected one of mul, add")
    if len(args) == 3:
        return _from_sparse(*args, sum=sum, mul=mul)
    if len(args) == 5:
        edge_index, edge_type, edge_weight, relation, input = args
        graph = RelGraph(edge_index, edge_type, len(input), len(relation), flow="target_to_source")
        return relational_spmm(graph, relation, input, sum=sum, mul=mul, edge_weight=edge_weight)
    raise TypeError(
        f"generalized_rspmm: {len(args)} tensors, expected (sparse, relation, input) or "
        "(edge_index, edge_type, edge_weight, relation, input)"
    )


def _positional_names(args: tuple, sum: str, mul: str) -> tuple[tuple, str, str]:
    """Both peers also take `sum` and `mul` by position, after the tensors."""
    names = [a for a in args if isinstance(a, str)]
    tensors = tuple(a for a in args if not isinstance(a, str))
    return tensors, *(names + [sum, mul][len(names) :])[:2]


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
