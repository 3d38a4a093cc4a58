# SPDX-License-Identifier: Apache-2.0
"""Queries shared out to the processes of a torch.distributed group: each computes some columns, all get the result.

Training needs none of this: under DistributedDataParallel each process has its own batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["my_share", "over_queries"]


def my_share(count: int, group: dist.ProcessGroup | None = None) -> slice:
    """The part of `count` queries that is this process's: neighbouring ones, as equal as can be."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    return slice(count * rank // size, count * (rank + 1) // size)


@torch.no_grad()
def over_queries(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    *queries: Tensor,
    dim: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Any:
    """`function(*queries)`, each process computing its share of the queries.

    Args:
        function: takes tensors (B', ...) and returns a tensor, or a tuple of them, with B' entries along `dim`; for no
            query (B' = 0) too, where there are more processes than queries.
        queries: (B, ...), the same on every process.
        dim: of the results.
        group: of torch.distributed; default: all processes.

    Returns:
        What `function(*queries)` would return on one process, on every process, without gradients.

    Raises:
        RuntimeError: torch.distributed is not initialised; or `function` failed on another process, with its message.
        ValueError: queries of different lengths. What `function` raises, on the process where it does.

    Example:
        >>> scores = over_queries(lambda h, r: model(graph, h, r), source, relation)  # doctest: +SKIP
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("over_queries: torch.distributed is not initialised, expected init_process_group before")
    lengths = {len(q) for q in queries}
    if len(lengths) != 1:
        raise ValueError(f"over_queries: queries have lengths {sorted(lengths)}, expected one or more of equal length")
    mine = my_share(lengths.pop(), group)
    failure, parts = None, ()
    try:
        result = function(*(q[mine] for q in queries))
        parts = result if isinstance(result, tuple) else (result,)
    except Exception as error:  # told to the others first: they would wait for ever
        failure = error
    described = [[(tuple(p.shape), p.dtype) for p in parts], None if failure is None else repr(failure)]
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, described, group)
    if failure is not None:
        raise failure
    for rank, (_, text) in enumerate(everyone):
        if text is not None:
            raise RuntimeError(f"over_queries: process {rank} of the group failed: {text}")
    gathered = tuple(
        _gather(part.contiguous(), [shapes[i][0] for shapes, _ in everyone], dim, group) for i, part in enumerate(parts)
    )
    return gathered if isinstance(result, tuple) else gathered[0]


def _gather(part: Tensor, shapes: list[tuple[int, ...]], dim: int, group: dist.ProcessGroup | None) -> Tensor:
    """The parts of all processes along `dim`; padded to the longest, for gloo gathers equal shapes only."""
    longest = max(shape[dim] for shape in shapes)
    padded = part.movedim(dim, 0)
    padded = torch.cat([padded, padded.new_zeros(longest - len(padded), *padded.shape[1:])]).contiguous()
    pieces = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(pieces, padded, group)
    return torch.cat([piece[: shape[dim]] for piece, shape in zip(pieces, shapes, strict=True)]).movedim(0, dim)
