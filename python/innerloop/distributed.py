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
        function: takes tensors (B', ...) and returns a tensor, or a tuple of them, with B' entries along `dim`. Where
            there are more processes than queries it is called for none too, with B' = 0.
        queries: (B, ...), the same on every process.
        dim: of the queries in the results, not negative.
        group: of torch.distributed; default: all processes.

    Returns:
        What `function(*queries)` would return on one process, on every process, without gradients.

    Raises:
        RuntimeError: torch.distributed is not initialised; another process failed, with its message; or the results
            of the processes do not fit. ValueError, TypeError: queries of different lengths, a result that is no tensor
            or has another number of entries. What `function` raises, on the process where it does.

    Example:
        >>> scores = over_queries(lambda h, r: model(graph, h, r), source, relation)  # doctest: +SKIP
        >>> hops = over_queries(lambda s: bellman_ford(graph, s).value, source, dim=1)  # doctest: +SKIP
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("over_queries: torch.distributed is not initialised, expected init_process_group before")
    # Whatever goes wrong here is told to the others first: they would wait for ever.
    result, parts, mine = None, (), {"error": None}
    failure = None
    try:
        lengths = {len(q) for q in queries}
        if len(lengths) != 1:
            raise ValueError(
                f"over_queries: queries have lengths {sorted(lengths)}, expected one or more of equal length"
            )
        count = lengths.pop()
        share = my_share(count, group)
        result = function(*(q[share] for q in queries))
        parts = result if isinstance(result, tuple) else (result,)
        _check_results(parts, dim, share.stop - share.start)
        mine |= {"count": count, "tuple": isinstance(result, tuple), "queries": share.stop - share.start}
        mine["parts"] = [(p.dtype, p.movedim(dim, 0).shape[1:]) for p in parts]
    except Exception as error:
        failure, mine["error"] = error, repr(error)
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group)
    if failure is not None:
        raise failure
    for rank, other in enumerate(everyone):
        if other["error"] is not None:
            raise RuntimeError(f"over_queries: process {rank} of the group failed: {other['error']}")
    # A process without queries may have made its empty result in another dtype or shape: it takes that of the others.
    first = next((other for other in everyone if other["queries"]), everyone[0])
    for rank, other in enumerate(everyone):
        same = [other[name] == first[name] for name in ("count", "tuple", "parts")]
        if not (all(same) or (not other["queries"] and same[0])):
            described = ", ".join(f"{dtype} {tuple(shape)}" for dtype, shape in other["parts"])
            raise RuntimeError(
                f"over_queries: process {rank} of the group has {other['count']} queries and results of {described}, "
                "which do not go with those of the others"
            )
    sizes = [other["queries"] for other in everyone]
    gathered = []
    for i, (dtype, shape) in enumerate(first["parts"]):
        rows = parts[i].movedim(dim, 0) if mine["queries"] else queries[0].new_empty((0, *shape), dtype=dtype)
        gathered.append(_gather(rows, sizes, group).movedim(0, dim))
    return tuple(gathered) if first["tuple"] else gathered[0]


def _check_results(parts: tuple[Any, ...], dim: int, count: int) -> None:
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"over_queries: function returned {type(part).__name__}, expected tensors")
        if count and (part.dim() <= dim or part.shape[dim] != count):
            raise ValueError(
                f"over_queries: function returned shape {tuple(part.shape)}, expected {count} entries along dimension "
                f"{dim}"
            )
        if not count and part.dim() <= dim:
            raise ValueError(f"over_queries: function returned shape {tuple(part.shape)}, expected dimension {dim}")


def _gather(rows: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all processes; padded to the most, for gloo gathers equal shapes only."""
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])]).contiguous()
    pieces = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(pieces, padded, group)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])
