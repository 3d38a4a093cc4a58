# SPDX-License-Identifier: Apache-2.0
"""bellman_ford for a semiring given as Python functions, compiled into the loop by numba.

The same recursion as csrc/cpu/bellman_ford.cpp: blocks of columns, edges skipped while their source stays the same,
rows in place to the fixpoint where ⊕ is idempotent. Blocks are shared out to threads; a column never sees another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..graph import RelGraph

_BLOCK = 64  # columns


def run(
    graph: RelGraph,
    weight: Tensor,
    sources: Tensor,
    add: Callable[[float, float], float],
    mul: Callable[[float, float], float],
    zero: float,
    one: float,
    idempotent: bool,
    steps: int,
    fixpoint: bool,
    tol: float,
    predecessors: bool,
) -> tuple[Tensor, Tensor | None, int, bool]:
    """Value (V, S), predecessor (V, S) or None, steps done, converged."""
    if graph.device.type != "cpu":
        raise ValueError(f"bellman_ford: graph is on {graph.device}, expected cpu for a semiring of functions")
    loop = _compile(add, mul, idempotent)
    dtype = weight.numpy().dtype.type
    eid = graph.eid.to(torch.int64)
    arrays = [x.numpy() for x in (graph.indptr, graph.src, weight[eid].contiguous())]
    value = np.empty((graph.num_nodes, len(sources)), dtype)
    last = np.full(value.shape if predecessors else (0, 0), -1, np.int64)
    starts = sources.numpy()

    def block(first: int) -> tuple[int, bool]:
        columns = slice(first, first + width)
        part = np.full((graph.num_nodes, len(starts[columns])), zero, dtype)
        edges = np.full(part.shape if predecessors else (0, 0), -1, np.int32)
        result = loop(
            *arrays, starts[columns], dtype(zero), dtype(one), steps, fixpoint, tol, part, edges, predecessors
        )
        value[:, columns] = part
        if predecessors:
            positions = np.append(eid.numpy(), -1)  # -1 picks the last
            last[:, columns] = positions[edges]
        return result

    threads = torch.get_num_threads()
    width = max(min(_BLOCK, -(-len(starts) // threads)), 1)
    firsts = range(0, len(starts), width)
    if threads == 1 or len(firsts) < 2:
        results = [block(first) for first in firsts]
    else:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(block, firsts))
    done, converged = max((r[0] for r in results), default=0), all(r[1] for r in results)
    return torch.from_numpy(value), torch.from_numpy(last) if predecessors else None, done, converged


@functools.lru_cache(maxsize=64)
def _compile(add: Callable, mul: Callable, idempotent: bool) -> Callable:
    try:
        import numba
    except ImportError as error:
        raise ImportError(
            "bellman_ford: a Semiring of functions is compiled by numba, which is not installed: "
            "pip install innerloop[numba]"
        ) from error

    def jit(function: Callable) -> Callable:
        return function if hasattr(function, "py_func") else numba.njit(function)

    plus, times = jit(add), jit(mul)

    @numba.njit(nogil=True, error_model="numpy")
    def relax(row, x, w):
        changed = False
        for c in range(len(row)):
            new = plus(row[c], times(x[c], w))
            changed |= new != row[c]
            row[c] = new
        return changed

    @numba.njit(nogil=True, error_model="numpy")
    def relax_with_edge(row, x, w, edges, e):
        changed = False
        for c in range(len(row)):
            new = plus(row[c], times(x[c], w))
            take = new != row[c]
            edges[c] = e if take else edges[c]
            row[c] = new
            changed |= take
        return changed

    @numba.njit(nogil=True, error_model="numpy")
    def in_place(indptr, src, weight, sources, zero, one, steps, fixpoint, tol, value, edges, with_edges):
        num_nodes = len(indptr) - 1
        changed_at, visited_at = np.zeros(num_nodes, np.int64), np.zeros(num_nodes, np.int64)
        for c in range(len(sources)):
            value[sources[c], c] = one
            changed_at[sources[c]] = 1
        stamp, sweeps = 1, 0
        while True:
            any_changed = False
            for i in range(num_nodes):
                v = i if sweeps % 2 == 0 else num_nodes - 1 - i
                since, seen, changed = visited_at[v], False, False
                for e in range(indptr[v], indptr[v + 1]):
                    x = src[e]
                    if changed_at[x] <= since:
                        continue
                    if not seen:
                        visited_at[v] = stamp
                        seen = True
                    if with_edges:
                        changed |= relax_with_edge(value[v], value[x], weight[e], edges[v], e)
                    else:
                        changed |= relax(value[v], value[x], weight[e])
                if changed:
                    stamp += 1
                    changed_at[v] = stamp
                    any_changed = True
            if not any_changed:
                return sweeps, True
            sweeps += 1
            if sweeps >= steps:
                return sweeps, False

    @numba.njit(nogil=True, error_model="numpy")
    def stepwise(indptr, src, weight, sources, zero, one, steps, fixpoint, tol, value, edges, with_edges):
        num_nodes, width = value.shape
        for c in range(width):
            value[sources[c], c] = one
        start = value.copy()
        following = value.copy()
        changed_at = np.full(num_nodes, -1, np.int64)
        for c in range(width):
            changed_at[sources[c]] = 0
        for step in range(steps):
            num_changed, largest = 0, 0.0
            for v in range(num_nodes):
                due = False
                for e in range(indptr[v], indptr[v + 1]):
                    due |= changed_at[src[e]] >= step  # a row of this very step may already say step + 1
                if not due:
                    continue
                row = following[v]
                row[:] = start[v]
                for e in range(indptr[v], indptr[v + 1]):
                    relax(row, value[src[e]], weight[e])
                changed = False
                for c in range(width):
                    if row[c] != value[v, c]:
                        changed = True
                        moved = abs(row[c] - value[v, c]) / max(1.0, abs(row[c]))
                        largest = max(largest, moved) if moved == moved else np.inf
                if changed:
                    num_changed += 1
                    changed_at[v] = step + 1
            if num_changed == 0:
                return step, True
            for v in range(num_nodes):
                if changed_at[v] == step + 1:
                    value[v] = following[v]
            if fixpoint and largest <= tol:
                return step + 1, True
        return steps, False

    def choose(*args):
        fixpoint = args[7]
        return in_place(*args) if idempotent and fixpoint else stepwise(*args)

    return choose
