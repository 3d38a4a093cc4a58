# SPDX-License-Identifier: Apache-2.0
"""Plain definition of the relational product: build every message, then reduce per destination."""

import torch
from torch import Tensor


def relational_spmm(
    edge_index: Tensor,
    edge_type: Tensor,
    num_nodes: int,
    relation: Tensor,
    input: Tensor,
    *,
    sum: str = "sum",
    mul: str = "mul",
    boundary: Tensor | None = None,
    edge_weight: Tensor | None = None,
) -> Tensor:
    """Relational product ``out[v] = ⊕_(x,r,v) a·(relation[r] ⊗ input[x])  (⊕ boundary[v])``.

    Zhu et al., "Neural Bellman-Ford Networks", NeurIPS 2021, eq. 3 and 4. Allocates the (E, B, d)
    messages that the kernels avoid. Half types are computed in float32 and rounded once at the end.

    Args:
        edge_index: (2, E) int64; row 0 the source x, row 1 the destination v.
        edge_type: (E,) int64, the relation r of each edge.
        num_nodes: V.
        relation: (R, d), or (R, B, d) for one table per query.
        input: (V, B, d) or (V, d).
        sum: a key of ``SUMS`` ("add" is "sum").
        mul: a key of ``PRODUCTS``.
        boundary: like ``input``; one more message into every node.
        edge_weight: (E,), multiplies the messages.

    Returns:
        (V, B, d) or (V, d); for ``sum="pna"`` (V, B, 4, d) or (V, 4, d): mean, max, min, std.

    Raises:
        KeyError: if ``sum`` or ``mul`` is unknown.
    """
    dtype = input.dtype
    if dtype in (torch.bfloat16, torch.float16):
        relation, input = relation.float(), input.float()
        boundary = None if boundary is None else boundary.float()
        edge_weight = None if edge_weight is None else edge_weight.float()
    if relation.dim() < input.dim():
        relation = relation.unsqueeze(1)  # (R, 1, d): shared by all queries

    # Edges by (destination, relation, source, position): the order in which max and min break ties.
    order = torch.arange(edge_type.numel(), device=edge_type.device)
    for key in (edge_index[0], edge_type, edge_index[1]):
        order = order[key[order].argsort(stable=True)]
    (source, destination), edge_type = edge_index[:, order], edge_type[order]

    message = PRODUCTS[mul](input.index_select(0, source), relation.index_select(0, edge_type))
    square = message * message
    if edge_weight is not None:
        weight = edge_weight[order].view(-1, *[1] * (message.dim() - 1))
        message, square = weight * message, weight * square
    if boundary is not None:  # one last message into every node
        message = torch.cat([message, boundary])
        square = torch.cat([square, boundary * boundary])
        destination = torch.cat([destination, torch.arange(num_nodes, device=destination.device)])
    return SUMS[sum](message, square, destination, num_nodes).to(dtype)


# Products, of input rows x (E, B, d) and relation rows w (E, B or 1, d).


def _rotate(x: Tensor, w: Tensor) -> Tensor:
    x_re, x_im = x.chunk(2, dim=-1)
    w_re, w_im = w.chunk(2, dim=-1)
    return torch.cat([x_re * w_re - x_im * w_im, x_re * w_im + x_im * w_re], dim=-1)


def _minimum(x: Tensor, w: Tensor) -> Tensor:
    return torch.where((x <= w) | x.isnan(), x, w)  # torch.minimum would split a tie's gradient


def _truth(x: Tensor) -> Tensor:
    return x.abs().clamp(max=1).ceil()  # 0 stays 0, NaN stays NaN, the rest is 1; gradient zero


PRODUCTS = {
    "mul": lambda x, w: x * w,
    "add": lambda x, w: x + w,
    "rotate": _rotate,
    "min": _minimum,
    "and": lambda x, w: _truth(x) * _truth(w),
}


# Sums, of messages m (n, B, d) and their weighted squares q by destination v (n,) into V rows.


def _sum(m: Tensor, q: Tensor, v: Tensor, num_nodes: int) -> Tensor:
    return m.new_zeros(num_nodes, *m.shape[1:]).index_add(0, v, m)


def _mean(m: Tensor, q: Tensor, v: Tensor, num_nodes: int) -> Tensor:
    count = _sum(m.new_ones(v.numel()), q, v, num_nodes).clamp(min=1)
    return _sum(m, q, v, num_nodes) / count.view(-1, *[1] * (m.dim() - 1))


def _first(m: Tensor, v: Tensor, num_nodes: int, reduce: str, identity: float) -> Tensor:
    """The extremum of each row, taken from the first message that attains it; so its gradient."""
    n, shape = len(m), (num_nodes, *m.shape[1:])
    column = [1] * (m.dim() - 1)
    index = v.view(-1, *column).expand_as(m)
    best = m.new_full(shape, identity).scatter_reduce(0, index, m.detach(), reduce)
    attains = (m == best.index_select(0, v)) | m.isnan()
    position = torch.arange(n, device=m.device).view(-1, *column)
    winner = index.new_full(shape, n)  # row n of the padded messages holds the identity
    winner = winner.scatter_reduce(0, index, position.where(attains, n), "amin")
    return torch.cat([m, m.new_full((1, *m.shape[1:]), identity)]).gather(0, winner)


def _max(m: Tensor, q: Tensor, v: Tensor, num_nodes: int) -> Tensor:
    return _first(m, v, num_nodes, "amax", -torch.inf)


def _min(m: Tensor, q: Tensor, v: Tensor, num_nodes: int) -> Tensor:
    return _first(m, v, num_nodes, "amin", torch.inf)


def _or(m: Tensor, q: Tensor, v: Tensor, num_nodes: int) -> Tensor:
    return _first(_truth(m), v, num_nodes, "amax", 0.0)


def _logsumexp(m: Tensor, q: Tensor, v: Tensor, num_nodes: int) -> Tensor:
    shift = _max(m.detach(), q, v, num_nodes)
    shift = shift.masked_fill(shift.isinf(), 0.0)
    total = _sum((m - shift.index_select(0, v)).exp(), q, v, num_nodes)
    empty = total == 0
    return (total.masked_fill(empty, 1.0).log() + shift).masked_fill(empty, -torch.inf)


def _pna(m: Tensor, q: Tensor, v: Tensor, num_nodes: int) -> Tensor:
    mean = _mean(m, q, v, num_nodes)
    variance = _mean(q, q, v, num_nodes) - mean * mean
    maximum, minimum = _max(m, q, v, num_nodes), _min(m, q, v, num_nodes)
    return torch.stack([mean, maximum, minimum, variance.clamp(min=1e-6).sqrt()], dim=-2)


SUMS = {
    "sum": _sum,
    "add": _sum,
    "mean": _mean,
    "max": _max,
    "min": _min,
    "logsumexp": _logsumexp,
    "or": _or,
    "pna": _pna,
}
