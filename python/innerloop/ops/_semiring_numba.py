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
_TILE = 16  # rows are padded to a multiple, so that vector code has no tail


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
    loop = _compile(add, mul, idempotent and fixpoint)
    dtype = weight.numpy().dtype.type
    eid = graph.eid.to(torch.int64)
    # Unsigned: numba would test every signed index for wrapping around.
    indptr, src = (x.numpy().view(np.uint32) for x in (graph.indptr, graph.src))
    edge_weight = weight[eid].numpy()
    largest = int(graph.indptr.diff().max()) if graph.num_nodes else 0
    value = np.empty((graph.num_nodes, len(sources)), dtype)
    last = np.full(value.shape if predecessors else (0, 0), -1, np.int64)
    starts = sources.numpy()

    def block(first: int) -> tuple[int, bool]:
        columns = slice(first, first + width)
        count = len(starts[columns])
        part = np.full((graph.num_nodes, -(-count // _TILE) * _TILE), zero, dtype)
        edges = np.full(part.shape if predecessors else (0, 0), -1, np.int32)
        begin = starts[columns].astype(np.uint64)
        result = loop(
            indptr, src, edge_weight, begin, dtype(zero), dtype(one), steps, fixpoint, tol, part, edges, predecessors,
            np.empty(largest, np.uint32),
        )  # fmt: skip
        value[:, columns] = part[:, :count]
        if predecessors:
            positions = np.append(eid.numpy(), -1)  # -1 picks the last
            last[:, columns] = positions[edges[:, :count]]
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
def _compile(add: Callable, mul: Callable, in_place: bool) -> Callable:
    try:
        import numba
    except ImportError as error:
        raise ImportError(
            "bellman_ford: a Semiring of functions is compiled by numba, which is not installed: "
            "pip install innerloop[numba]"
        ) from error

    def jit(function: Callable) -> Callable:
        return function if hasattr(function, "py_func") else numba.njit(function)

    U = np.uint64
    plus, times = jit(add), jit(mul)
    fast = numba.njit(nogil=True, error_model="numpy")

    # Eight edges at a time: a loop over columns that LLVM turns into vector code, with one load and store of the row
    # for all. `value` is flat: a view of each source's row would cost its reference count.
    @fast
    def add_eight(row, value, x0, x1, x2, x3, x4, x5, x6, x7, w0, w1, w2, w3, w4, w5, w6, w7):
        for c in range(U(len(row))):
            new = plus(plus(row[c], times(value[x0 + c], w0)), times(value[x1 + c], w1))
            new = plus(plus(new, times(value[x2 + c], w2)), times(value[x3 + c], w3))
            new = plus(plus(new, times(value[x4 + c], w4)), times(value[x5 + c], w5))
            row[c] = plus(plus(new, times(value[x6 + c], w6)), times(value[x7 + c], w7))

    @fast
    def relax(value, v, src, weight, due, count, begin, row):
        """row = row v of begin ⊕ the messages of the due edges; whether it is not row v of value, which is flat."""
        width = U(len(row))
        at = v * width
        for c in range(width):
            row[c] = begin[at + c]
        whole = count - count % U(8)
        for i in range(U(0), whole, U(8)):
            e0, e1, e2, e3 = due[i], due[i + U(1)], due[i + U(2)], due[i + U(3)]
            e4, e5, e6, e7 = due[i + U(4)], due[i + U(5)], due[i + U(6)], due[i + U(7)]
            add_eight(
                row,
                value,
                src[e0] * width,
                src[e1] * width,
                src[e2] * width,
                src[e3] * width,
                src[e4] * width,
                src[e5] * width,
                src[e6] * width,
                src[e7] * width,
                weight[e0],
                weight[e1],
                weight[e2],
                weight[e3],
                weight[e4],
                weight[e5],
                weight[e6],
                weight[e7],
            )
        for i in range(whole, count):
            x, w = src[due[i]] * width, weight[due[i]]
            for c in range(width):
                row[c] = plus(row[c], times(value[x + c], w))
        changed = False
        for c in range(width):
            changed |= row[c] != value[at + c]
        return changed

    @fast
    def relax_with_edges(row, value, src, weight, due, count, edges):
        changed = False
        for i in range(count):
            x, w, e = value[src[due[i]]], weight[due[i]], np.int32(due[i])
            for c in range(len(row)):
                old = row[c]
                row[c] = plus(old, times(x[c], w))
                take = row[c] != old  # as stored: a literal in a user's function makes the sum float64
                edges[c] = e if take else edges[c]
                changed |= take
        return changed

    @fast
    def to_fixpoint(indptr, src, weight, sources, zero, one, steps, fixpoint, tol, value, edges, with_edges, due):
        num_nodes = U(value.shape[0])
        flat, row = value.reshape(-1), np.empty(value.shape[1], value.dtype)
        changed_at, visited_at = np.zeros(num_nodes, np.int64), np.zeros(num_nodes, np.int64)
        for c in range(len(sources)):
            value[sources[c], c] = one
            changed_at[sources[c]] = 1
        stamp, sweeps = 1, 0
        while True:
            any_changed = False
            for i in range(num_nodes):
                v = U(i) if sweeps % 2 == 0 else num_nodes - U(1) - U(i)
                count = U(0)
                for e in range(indptr[v], indptr[v + U(1)]):
                    due[count] = e
                    count += U(changed_at[src[e]] > visited_at[v])
                if count == U(0):
                    continue
                visited_at[v] = stamp
                if with_edges:
                    changed = relax_with_edges(value[v], value, src, weight, due, count, edges[v])
                else:
                    changed = relax(flat, v, src, weight, due, count, flat, row)
                    for c in range(U(len(row))):
                        flat[v * U(len(row)) + c] = row[c]
                if changed:
                    stamp += 1
                    changed_at[v] = stamp
                    any_changed = True
            if not any_changed:
                return sweeps, True
            sweeps += 1
            if sweeps >= steps:
                return sweeps, False

    @fast
    def stepwise(indptr, src, weight, sources, zero, one, steps, fixpoint, tol, value, edges, with_edges, due):
        num_nodes, width = U(value.shape[0]), value.shape[1]
        for c in range(len(sources)):
            value[sources[c], c] = one
        start, following = value.copy(), value.copy()
        flat, flat_start = value.reshape(-1), start.reshape(-1)
        changed_at = np.full(num_nodes, -1, np.int64)
        for c in range(len(sources)):
            changed_at[sources[c]] = 0
        for step in range(steps):
            num_changed, largest = 0, 0.0
            for i in range(num_nodes):
                v = U(i)
                count, fresh = U(0), False
                for e in range(indptr[v], indptr[v + U(1)]):
                    due[count] = e
                    count += U(1)
                    fresh |= changed_at[src[e]] >= step  # a row of this very step may already say step + 1
                if not fresh:
                    continue
                if relax(flat, v, src, weight, due, count, flat_start, following[v]):
                    for c in range(width if fixpoint else 0):
                        new, old = following[v, c], value[v, c]
                        if new != old:
                            moved = abs(new - old) / max(1.0, abs(new))
                            largest = max(largest, moved) if moved == moved else np.inf
                    num_changed += 1
                    changed_at[v] = step + 1
            if num_changed == 0:
                return step, True
            for i in range(num_nodes):
                if changed_at[i] == step + 1:
                    value[i] = following[i]
            if fixpoint and largest <= tol:
                return step + 1, True
        return steps, False

    return to_fixpoint if in_place else stepwise
