# SPDX-License-Identifier: Apache-2.0
"""Plain definition of generalized Bellman-Ford over a semiring: every message of a step, then one reduction."""

import torch
from torch import Tensor

PLUS = {"sum": "sum", "min": "amin", "max": "amax", "logsumexp": "logsumexp"}
TIMES = {"mul": torch.mul, "add": torch.add, "min": torch.minimum, "max": torch.maximum}


def bellman_ford(
    edge_index: Tensor,
    weight: Tensor,
    num_nodes: int,
    sources: Tensor,
    add: str,
    mul: str,
    zero: float,
    one: float,
    steps: int,
    *,
    fixpoint: bool = False,
    tol: float = 0.0,
    predecessors: bool = False,
) -> tuple[Tensor, Tensor | None, int, bool]:
    """h_t(v) = ⊕ over in-edges (x, v) of h_{t-1}(x) ⊗ w, ⊕ h_0(v). Zhu et al. (NeurIPS 2021), algorithm 1.

    Args:
        edge_index: int64 (2, E). weight: (E,). sources: int64 (S,).
        add, mul: keys of ``PLUS`` and ``TIMES``; zero, one: their identities.
        steps: number of steps, at most that many with ``fixpoint``.
        tol: of the fixpoint, relative to max(1, |value|); min and max ignore it.
        predecessors: also the edges that made the values (min and max).

    Returns:
        value (V, S), predecessor int64 (V, S) or None, steps done, whether the last one changed nothing.
    """
    source, target = edge_index
    start = weight.new_full((num_nodes, len(sources)), zero)
    start[sources, torch.arange(len(sources), device=start.device)] = one
    value, last = start, torch.full(start.shape, -1, device=start.device) if predecessors else None
    for step in range(steps):
        message = TIMES[mul](value[source], weight[:, None])
        if add in ("min", "max"):  # a NaN, zero ⊗ inf, is no path
            message = torch.where(message.isnan(), zero, message)
        everything = torch.cat([message, start])
        row = torch.cat([target, torch.arange(num_nodes, device=target.device)])
        new = _reduce(add, everything, row, num_nodes)
        if add in ("min", "max"):
            changed = new != value
            if last is not None:
                edge = torch.arange(len(source), device=start.device)[:, None].expand_as(message)
                attains = (message == new[target]) & changed[target]
                index = target[:, None].expand_as(message)
                first = torch.full_like(last, len(source)).scatter_reduce(
                    0, index, edge.where(attains, len(source)), "amin"
                )
                last = torch.where(changed, first, last)
            still = not changed.any()
        else:
            moved = torch.where(new == value, 0, (new - value).abs() / new.abs().clamp(min=1))
            still = bool((moved <= tol).all())
        value = new
        if still and fixpoint:
            return value, last, step if add in ("min", "max") else step + 1, True
    return value, last, steps, False


def _reduce(add: str, message: Tensor, row: Tensor, num_nodes: int) -> Tensor:
    shape = (num_nodes, message.shape[1])
    index = row[:, None].expand_as(message)
    if add == "sum":
        return message.new_zeros(shape).index_add(0, row, message)
    if add != "logsumexp":
        return message.new_zeros(shape).scatter_reduce(0, index, message, PLUS[add], include_self=False)
    top = message.new_zeros(shape).scatter_reduce(0, index, message, "amax", include_self=False)
    shift = top.masked_fill(top.isinf(), 0.0)
    total = message.new_zeros(shape).index_add(0, row, (message - shift[row]).exp())
    return total.log() + shift
