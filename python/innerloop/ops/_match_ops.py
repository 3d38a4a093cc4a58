# SPDX-License-Identifier: Apache-2.0
"""The ops of match. They take the pattern as text and plan inside: Dynamo traces neither that nor a look at values."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _cpu
from ._match_plan import Plan, compile_plan
from ._motif_gpu import MotifKernels, match_kernels, on_cpu
from ._patterns import Pattern, as_pattern, edge_orbits, orbits
from ._registry import define, not_traced
from .triangles import num_edges, num_nodes

__all__ = ["ALL", "Request", "Search", "match_count", "match_list", "match_tally"]

ALL = 2**63 - 1
_FIRST_ROOTS = 64  # counted together at first under a limit, then twice as many each time
_PART = 1 << 16  # classes of a list whose matches are made together


class Request(NamedTuple):
    """What every op of a search takes. Shapes and dtypes are checked, values are not."""

    index: Tensor
    adjacency: Tensor
    pattern: str  # for as_pattern
    pattern_node_labels: list[int] | None
    pattern_edge_labels: list[int] | None
    induced: bool
    every: bool  # symmetry="all"
    node_labels: Tensor | None
    edge_labels: Tensor | None
    seeds: Tensor | None
    roots: list[int] | None
    op: str  # whose arguments these are, for messages


@functools.lru_cache(maxsize=256)
def _parsed(text: str, node_labels: tuple[int, ...] | None, edge_labels: tuple[int, ...] | None, op: str) -> Pattern:
    return as_pattern(text, op, node_labels, edge_labels)


def _pattern(request: Request) -> Pattern:
    labels = (None if x is None else tuple(x) for x in request[3:5])
    return _parsed(request.pattern, *labels, request.op)


class Search:
    """A request whose values are checked, with its plan: what the kernel takes.

    The plan finds one match of each class under the automorphisms; its `multiplier` says how many of them are wanted.
    """

    def __init__(self, *request: Any) -> None:
        asked = Request(*request)
        self.op, self.index, self.adjacency = asked.op, asked.index, asked.adjacency
        n, m = num_nodes(self.index), num_edges(self.index, self.adjacency)
        self.order = self.adjacency[4 * m :].long()
        self.plan: Plan = compile_plan(
            _pattern(asked),
            asked.induced,
            "all" if asked.every else "break",
            root=None if asked.seeds is None else 0,
            n=n,
            m=m,
            max_degree=int(self.index[2 : n + 3].diff().max()) if n else 0,
        )
        self.node_labels = self._labels("node_labels", asked.node_labels)
        self.edge_labels = self._labels("edge_labels", asked.edge_labels)
        self.ranks: Tensor | None = None  # of the roots; None: all
        if asked.seeds is not None:
            self.ranks = self._seeds(asked.seeds)
        elif asked.roots is not None:
            self.ranks = torch.arange(*asked.roots, dtype=torch.int32, device=self.index.device)
        self.roots = self.order if self.ranks is None else self.order[self.ranks.long()]

    def _labels(self, name: str, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        labels = labels.long()
        bad = labels[(labels < 0) | (labels >= 2**31)]
        if bad.numel():
            raise ValueError(
                f"{self.op}: {name} holds {int(bad[0])}, expected labels in [0, 2**31)"
                + (f", as -1 in a pattern is any: {name} - {name}.min()" if int(bad[0]) < 0 else "")
            )
        return labels.int().contiguous()

    def _seeds(self, seeds: Tensor) -> Tensor:
        n, seeds = len(self.order), seeds.flatten().long()
        bad = seeds[(seeds < 0) | (seeds >= n)]
        if bad.numel():
            raise IndexError(f"{self.op}: seeds holds {int(bad[0])}, expected nodes in [0, {n})")
        return self.rank[seeds.unique()].sort().values

    @functools.cached_property
    def rank(self) -> Tensor:
        """int32 (n,): of every node."""
        rank = torch.empty_like(self.order, dtype=torch.int32)
        rank[self.order] = torch.arange(len(self.order), dtype=torch.int32, device=rank.device)
        return rank

    @functools.cached_property
    def _plan_and_labels(self) -> tuple[Tensor | None, ...]:
        code = torch.tensor(self.plan.code, dtype=torch.int32)
        by_rank = None if self.node_labels is None else self.node_labels[self.order]
        return code, by_rank, self.edge_labels

    def _run(
        self,
        *outputs: Tensor | None,
        ranks: Tensor | None,
        after: Tensor | None = None,
        skip: int = 0,
        most: int = ALL,
    ) -> None:
        graph = self.index, self.adjacency
        _cpu.match(*outputs, *graph, *self._plan_and_labels, ranks, after, skip, most, torch.get_num_threads())

    def count(self, ranks: Tensor | None, most: int = ALL) -> Tensor:
        """Classes from each root, (R,), or `most` where there are more."""
        found = torch.zeros(len(self.order) if ranks is None else len(ranks), dtype=torch.int64)
        self._run(found, None, None, None, None, ranks=ranks, most=most)
        return found

    def count_on(self, kernels: MotifKernels) -> Tensor:
        """The same of a graph on a GPU, by kernels that count from all roots."""
        labels = self.node_labels, self.edge_labels
        return kernels.match_roots(self.index, self.adjacency, self.plan.code, *labels)[self.roots]

    def by_node(self, found: Tensor) -> Tensor:
        """Matches by the node that the plan begins with, (n,), from classes by root."""
        if len(found) and int(found.max()) * self.plan.multiplier > ALL:
            raise OverflowError(f"{self.op}: more matches than int64 holds")
        counts = found.new_zeros(len(self.order))
        counts[self.roots] = found * self.plan.multiplier
        return counts

    def _check_total(self, found: Tensor, times: int) -> None:
        if float(found.sum(dtype=torch.float64)) * times > 9.2e18:  # no list is so long
            raise OverflowError(f"{self.op}: more matches than int64 holds")

    def tally(self, by_edge: bool) -> Tensor:
        """Matches by node and its orbit (n, node orbits), or by edge and its orbit (m, edge orbits)."""
        rows = num_edges(self.index, self.adjacency) if by_edge else len(self.order)
        counts = torch.zeros(rows, _columns(self.plan.pattern, by_edge), dtype=torch.int64)
        node, edge = (None, counts) if by_edge else (counts, None)
        self._run(None, node, edge, None, None, ranks=self.ranks)
        greatest = int(counts.max()) if counts.numel() else 0
        if greatest * counts.shape[1] * self.plan.multiplier > ALL:  # then by rows, whose sums are asked for too
            most = ALL // self.plan.multiplier
            low = (counts & 0xFFFFFFFF).sum(1)  # by halves of 32 bits, whose sums fit
            high, low = (counts >> 32).sum(1) + (low >> 32), low & 0xFFFFFFFF
            if bool(((high > most >> 32) | ((high == most >> 32) & (low > most & 0xFFFFFFFF))).any()):
                raise OverflowError(f"{self.op}: more matches than int64 holds")
        counts *= self.plan.multiplier
        return counts if by_edge else torch.empty_like(counts).index_copy_(0, self.order, counts)

    @not_traced
    def offsets(self, limit: int | None) -> tuple[Tensor, int]:
        """Running sums (R' + 1,) of the classes from the roots, as far as `limit` needs, and the length of the list."""
        multiplier = self.plan.multiplier
        wanted = None if limit is None else -(-limit // multiplier)
        if wanted is None or wanted > 2**32:  # sums of so large counts, cut or not, could be beyond int64
            found = self.count(self.ranks)
            self._check_total(found, multiplier)
        else:
            found = self._count_until(wanted)
        offsets = torch.cat([found.new_zeros(1), found.cumsum(0)])
        total = int(offsets[-1]) * multiplier
        return offsets, total if limit is None else min(total, limit)

    def _count_until(self, wanted: int) -> Tensor:
        parts = [torch.empty(0, dtype=torch.int64)]
        start, size, known = 0, _FIRST_ROOTS, 0
        while start < len(self.roots) and known < wanted:
            parts.append(self.count(self._ranks(start, start + size), wanted - known))
            known += int(parts[-1].sum())
            start, size = start + size, 2 * size
        return torch.cat(parts)

    def _ranks(self, first: int, last: int) -> Tensor:
        """Those of some of the roots."""
        if self.ranks is not None:
            return self.ranks[first:last]
        return torch.arange(first, min(last, len(self.order)), dtype=torch.int32)

    def _classes(self, offsets: Tensor, count: int, size: int) -> Iterator[Tensor]:
        """One match (at most size, q) of each of the first `count` classes, part by part."""
        before = None
        for start in range(0, count, size):
            found = self._part(offsets, start, min(size, count - start), before)
            before = found[-1].clone()  # what is yielded is no longer ours
            yield found

    @not_traced
    def _part(self, offsets: Tensor, start: int, take: int, before: Tensor | None) -> Tensor:
        """Matches `start` to `start + take`, searched from the match (q,) before them on."""
        after = None if before is None else self.rank[before[list(self.plan.node_of_level)]]
        first = int(torch.searchsorted(offsets, start, right=True)) - 1
        last = int(torch.searchsorted(offsets, start + take))
        found = torch.empty(take, self.plan.pattern.num_nodes, dtype=torch.int64)
        outputs = None, None, None, found, offsets[first : last + 1]
        self._run(*outputs, ranks=self._ranks(first, last), after=after, skip=start)
        return found

    def parts(self, size: int, limit: int | None) -> Iterator[Tensor]:
        offsets, rest = self.offsets(limit)
        multiplier = self.plan.multiplier
        for found in self._classes(offsets, -(-rest // multiplier), max(size // multiplier, 1)):
            if multiplier > 1:
                found = torch.stack([found[:, list(p)] for p in self.plan.group], 1).flatten(0, 1)
            found = found[:rest]
            rest -= len(found)
            yield from found.split(size)  # of one class that is larger than a part

    def listed(self, limit: int | None) -> Tensor:
        offsets, total = self.offsets(limit)
        self._check_fit(total)
        multiplier, q = self.plan.multiplier, self.plan.pattern.num_nodes
        count = -(-total // multiplier)
        if multiplier == 1:
            return next(self._classes(offsets, count, max(count, 1)), torch.empty(0, q, dtype=torch.int64))
        every = torch.empty(count, multiplier, q, dtype=torch.int64)
        start = 0
        for found in self._classes(offsets, count, _PART):
            for i, p in enumerate(self.plan.group):
                every[start : start + len(found), i] = found[:, list(p)]
            start += len(found)
        return every.flatten(0, 1)[:total]

    def _check_fit(self, total: int) -> None:
        size = 8 * total * self.plan.pattern.num_nodes
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if size > memory // 2:
            raise ValueError(
                f"{self.op}: output is 'list' of {total} matches, {size / 2**30:.1f} GiB, which is more than half of "
                "the memory; expected a limit, or match_batches"
            )


def _columns(pattern: Pattern, by_edge: bool) -> int:
    return 1 + max(edge_orbits(pattern) if by_edge else orbits(pattern))


_SCHEMA = (
    "Tensor index, Tensor adjacency, str pattern, int[]? pattern_node_labels, int[]? pattern_edge_labels, "
    "bool induced, bool every, Tensor? node_labels, Tensor? edge_labels, Tensor? seeds, int[]? roots, str op"
)
match_count = define(f"match_count({_SCHEMA}) -> Tensor")
match_tally = define(f"match_tally({_SCHEMA}, bool by_edge) -> Tensor")
match_list = define(f"match_list({_SCHEMA}, int? limit) -> Tensor")


@match_count.cpu
def _(*request):
    search = Search(*request)
    return search.by_node(search.count(search.ranks))


@match_count.cuda
def _(*request):
    kernels = match_kernels()
    if kernels is None:
        return on_cpu(match_count, *request)
    search = Search(*request)
    return search.by_node(search.count_on(kernels))


@match_count.fake
def _(*request):
    index = request[0]
    return index.new_empty(num_nodes(index))


@match_tally.cpu
def _(*args):
    *request, by_edge = args
    return Search(*request).tally(by_edge)


@match_tally.cuda
def _(*args):
    return on_cpu(match_tally, *args)


@match_tally.fake
def _(*args):
    *request, by_edge = args
    asked = Request(*request)
    rows = num_edges(asked.index, asked.adjacency) if by_edge else num_nodes(asked.index)
    return asked.index.new_empty(rows, _columns(_pattern(asked), by_edge))


@match_list.cpu
@not_traced
def _(*args):
    *request, limit = args
    return Search(*request).listed(limit)


@match_list.cuda
def _(*args):
    return on_cpu(match_list, *args)


@match_list.fake
def _(*args):
    asked = Request(*args[:-1])
    return asked.index.new_empty(torch.library.get_ctx().new_dynamic_size(), _pattern(asked).num_nodes)
