# SPDX-License-Identifier: Apache-2.0
"""What the matching engine executes: a matching order, the candidate set of each level and the rank bounds.

A plan of a q-node pattern is a depth-first search of q levels. Level i matches one pattern node to a vertex v_i;
vertices are compared by rank (``Graph``: position in ascending order of graph, degree, id), so a bound on ranks is a
range of a sorted row. N(v) is the sorted row of v. Masks are bit sets of levels, bit j for level j. -1 stands for
"none" or "any". Every order is connected: all levels but the first have an adjacent earlier one.

``Plan.code`` is one flat array of ints (they fit int32)::

    header   HEADER = 5    q, S, tail, has_node_labels, has_edge_labels
    levels   q x LEVEL     the fields of class Level, in that order
    sets     S x SET       the fields of class CandidateSet, in that order; S <= q (q - 1) / 2
    orbit    q x q         edge orbit of the pattern for a pair of levels, row-major, symmetric; -1 without an edge
    label    q x q         edge label of a pair of levels, likewise; -1 also for "any"

Sets. Each set is a sorted list of vertices. As soon as level d has its vertex, compute sets[begin_d : end_d], in that
order (``begin`` and ``end`` of level d; a base precedes what is built on it, maybe at an earlier depth)::

    operation 0 (ROW)         N(v_operand)
    operation 1 (INTERSECT)   base ∩ N(v_operand)
    operation 2 (SUBTRACT)    base \\ N(v_operand)

    and of that only members whose rank is above that of every level in ``above`` and below that of every one in
    ``below``; with edge_label >= 0 the edge to v_operand has that label (never with SUBTRACT); with node_label >= 0
    the member has that label (to be checked with ROW; what is built on it inherits it).

A ROW without labels is a range of the adjacency, nothing to store; with ``above`` = {operand} it begins at ``split``,
with ``below`` = {operand} it ends there. Each set is computed where its operands are first known, not deeper
(loop-invariant code motion), and once for all levels that share it. ``count_only``: nothing but the tail levels uses
it, and of it a count needs the size alone, less one for each level in ``inside``.

Levels. Level 0 runs over all vertices (or the seeds) of its node_label. Level i > 0 runs over members x of sets[set]
with rank(x) above every level in ``above``, below every one in ``below``, and x != v_j for the levels j in
``distinct``; all else (adjacency, absence of edges when induced, labels, other bounds, other coincidences) the set
guarantees. ``inside`` is the part of ``distinct`` whose vertices are certainly in that range: a count subtracts one
for each without looking. ``above`` and ``below`` name at most what is needed: bounds that follow from others are left
out.

Tail. The last ``tail`` levels, 1 to q - 1 of them, draw from the same range, in ascending or descending order and with
no other condition between them. For a count stop at level q - tail: where it has c candidates x there are
binomial(c, tail) matches, c for tail = 1, of which each candidate is in binomial(c - 1, tail - 1). Listing, treat them
like any other level.

The plain definition of the same search, for an engine without sets: v_i is in N(v_j) for j in ``adjacent``, not in it
for j in ``apart``, above ``lower``, below ``higher``, different from ``distinct``, and has the labels.

Symmetry. Each class of embeddings under the automorphisms (all, or those that fix ``root``) is found exactly once:
level by level, the vertex of the level has the lowest (or at every level the highest) rank among those of the nodes it
can be exchanged for while the earlier levels stay (Grochow and Kellis, RECOMB 2007).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ._patterns import Pattern, Permutation, automorphisms, edge_orbits, fixing, orbits

HEADER = 5
ROW, INTERSECT, SUBTRACT = range(3)


class Level(NamedTuple):
    """LEVEL ints of ``Plan.code``."""

    set: int  # candidates; -1 for level 0
    above: int  # levels of lower rank, to check here
    below: int  # levels of higher rank, to check here
    distinct: int  # levels that may coincide with this one
    inside: int  # of those, the ones certainly in the range
    begin: int  # sets to compute once this level is placed ..
    end: int  # .. up to, not including
    node_label: int  # -1: any; to be checked at level 0 only
    node: int  # node of the pattern
    orbit: int  # its orbit
    adjacent: int  # the plain definition
    apart: int
    lower: int
    higher: int


class CandidateSet(NamedTuple):
    """SET ints of ``Plan.code``."""

    depth: int  # level whose vertex completes it
    base: int  # set, -1 for ROW
    operand: int  # level, at most depth
    operation: int
    above: int
    below: int
    edge_label: int
    node_label: int
    count_only: int  # 0 or 1


LEVEL, SET = len(Level._fields), len(CandidateSet._fields)


@dataclass(frozen=True)
class Plan:
    """A compiled pattern.

    Attributes:
        pattern, induced: what it finds.
        levels, sets, tail: see the module.
        group: the automorphisms that symmetry breaking used. From one embedding f, i to f[i], of a class the others are
            f[π[0]], f[π[1]], .. for π in the group.
        multiplier: embeddings to count for one that is found: len(group) with symmetry="all", else 1.
        node_of_level, level_of_node: the matching order and its inverse.
        num_node_orbits, num_edge_orbits: of the pattern.
        code: all of it for the engine.
    """

    pattern: Pattern
    induced: bool
    levels: tuple[Level, ...]
    sets: tuple[CandidateSet, ...]
    tail: int
    group: tuple[Permutation, ...]
    multiplier: int

    @functools.cached_property
    def node_of_level(self) -> tuple[int, ...]:
        return tuple(level.node for level in self.levels)

    @functools.cached_property
    def level_of_node(self) -> tuple[int, ...]:
        return tuple(self.node_of_level.index(node) for node in range(self.pattern.num_nodes))

    @functools.cached_property
    def num_node_orbits(self) -> int:
        return 1 + max(orbits(self.pattern))

    @functools.cached_property
    def num_edge_orbits(self) -> int:
        return 1 + max(edge_orbits(self.pattern))

    @functools.cached_property
    def code(self) -> tuple[int, ...]:
        pattern, order = self.pattern, self.node_of_level
        number, orbit = pattern.edge_number, edge_orbits(pattern)
        pairs = [(u, v) for u in order for v in order]
        return (
            pattern.num_nodes,
            len(self.sets),
            self.tail,
            int(pattern.node_labels is not None),
            int(pattern.edge_labels is not None),
            *(x for level in self.levels for x in level),
            *(x for each in self.sets for x in each),
            *(orbit[number[pair]] if pair in number else -1 for pair in pairs),
            *(pattern.edge_label(*pair) for pair in pairs),
        )


def compile_plan(
    pattern: Pattern,
    induced: bool = False,
    symmetry: Literal["break", "all"] = "break",
    *,
    root: int | None = None,
    n: int = 1 << 17,
    m: int = 1 << 20,
    max_degree: int = 1 << 10,
) -> Plan:
    """The plan of least estimated cost.

    Args:
        pattern: see ``as_pattern``.
        induced: whether nodes that are not adjacent must be matched by vertices that are not.
        symmetry: see ``Plan.multiplier``.
        root: node of level 0, for seeds; symmetry is then broken among the automorphisms that fix it.
        n, m, max_degree: vertices, undirected edges and the largest degree of the graph. Only their magnitudes count.
    """
    magnitudes = tuple(1 << max(x, 1).bit_length() for x in (n, m, max_degree))
    return _compile(pattern, induced, symmetry == "all", root, *magnitudes)


@functools.lru_cache(maxsize=256)
def _compile(pattern: Pattern, induced: bool, every: bool, root: int | None, n: int, m: int, max_degree: int) -> Plan:
    group = automorphisms(pattern) if root is None else fixing(automorphisms(pattern), root)
    # Ascending, the first of an orbit has the lowest rank, descending the highest.
    search = [_Search(pattern, induced, group, root, ascending, n, m, max_degree) for ascending in (True, False)]
    best = min((s.best() for s in search), key=lambda found: found.cost)
    levels, sets, tail = _lower(pattern, induced, best.order, best.followers, best.ascending)
    return Plan(pattern, induced, levels, sets, tail, group, len(group) if every else 1)


def _bits(mask: int) -> Iterator[int]:
    return (i for i in range(mask.bit_length()) if mask >> i & 1)


def _mask(levels: Iterator[int]) -> int:
    return sum(1 << i for i in levels)


def _lower(
    pattern: Pattern, induced: bool, order: tuple[int, ...], followers: tuple[int, ...], ascending: bool
) -> tuple[tuple[Level, ...], tuple[CandidateSet, ...], int]:
    """Levels, sets and tail of a matching order. followers: by level, the nodes whose rank comes after its own."""
    q = len(order)
    near = [pattern.neighbors[node] for node in order]
    adjacent = [_mask(j for j in range(i) if near[i] >> order[j] & 1) for i in range(q)]
    apart = [((1 << i) - 1) & ~adjacent[i] if induced else 0 for i in range(q)]
    before: list[int] = []  # of each level, those ordered before it, transitively
    for i, node in enumerate(order):
        direct = _mask(j for j in range(i) if followers[j] >> node & 1)
        before.append(functools.reduce(lambda mask, j: mask | before[j], _bits(direct), direct))

    def bound(mask: int, known: int) -> tuple[int, int]:
        """(above, below) that makes all of `mask` hold where `known` does: the last of the order imply the rest."""
        last = functools.reduce(lambda rest, j: rest & ~before[j], _bits(mask), mask) & ~known
        return (last, 0) if ascending else (0, last)

    # A set is its node label and the steps that make it; equal prefixes of steps are the same set.
    uses: dict[_Key, list[int]] = {}
    key_of: list[_Key | None] = [None]
    for i in range(1, q):
        steps = tuple(_steps(pattern, order, i, adjacent[i], apart[i]))
        for length in range(1, len(steps) + 1):
            uses.setdefault((pattern.node_label(order[i]), steps[:length]), []).append(i)
        key_of.append((pattern.node_label(order[i]), steps))
    keys = sorted(uses, key=lambda key: key[1][-1].depth)  # stable: a base stays ahead of what is built on it
    number = {key: s for s, key in enumerate(keys)}
    ahead = {
        key: functools.reduce(lambda mask, i: mask & before[i], uses[key], (2 << key[1][-1].depth) - 1) for key in keys
    }

    distinct = [_may_coincide(pattern, order, i, before[i], induced) for i in range(q)]
    inside = [
        _mask(j for j in _bits(distinct[i]) if before[i] & ~before[j] == 0 and _fits(pattern, order, i, j, adjacent[i]))
        for i in range(q)
    ]
    # Levels that end on one set match twins: each may take the others' place, so that all their conditions are alike.
    tail = 1
    while key_of[q - 1 - tail] == key_of[-1]:
        tail += 1

    orbit = orbits(pattern)
    depths = [key[1][-1].depth for key in keys]
    levels = []
    for i, (node, key) in enumerate(zip(order, key_of, strict=True)):
        above, below = bound(before[i], 0 if key is None else ahead[key])
        lower, higher = bound(before[i], 0)
        levels.append(
            Level(
                set=-1 if key is None else number[key],
                above=above,
                below=below,
                distinct=distinct[i],
                inside=inside[i],
                begin=sum(depth < i for depth in depths),
                end=sum(depth <= i for depth in depths),
                node_label=pattern.node_label(node),
                node=node,
                orbit=orbit[node],
                adjacent=adjacent[i],
                apart=apart[i],
                lower=lower,
                higher=higher,
            )
        )
    sets = []
    for key in keys:
        label, steps = key
        base = (label, steps[:-1]) if len(steps) > 1 else None
        above, below = bound(ahead[key], 0 if base is None else ahead[base])
        counted = uses[key] == list(range(q - tail, q)) and key == key_of[-1] and steps[-1].depth == q - tail - 1
        sets.append(
            CandidateSet(
                depth=steps[-1].depth,
                base=-1 if base is None else number[base],
                operand=steps[-1].operand,
                operation=steps[-1].operation,
                above=above,
                below=below,
                edge_label=steps[-1].edge_label,
                node_label=label,
                count_only=int(counted and distinct[-1] == inside[-1]),
            )
        )
    return tuple(levels), tuple(sets), tail


class _Step(NamedTuple):
    depth: int
    operation: int
    operand: int
    edge_label: int


_Key = tuple[int, tuple[_Step, ...]]


def _steps(pattern: Pattern, order: tuple[int, ...], i: int, adjacent: int, apart: int) -> Iterator[_Step]:
    first = next(_bits(adjacent))
    yield _Step(first, ROW, first, pattern.edge_label(order[i], order[first]))
    for j in _bits((adjacent | apart) & ~(1 << first)):
        operation = INTERSECT if adjacent >> j & 1 else SUBTRACT
        yield _Step(max(j, first), operation, j, pattern.edge_label(order[i], order[j]))


def _may_coincide(pattern: Pattern, order: tuple[int, ...], i: int, before: int, induced: bool) -> int:
    """Levels whose vertex the conditions of level i do not rule out."""

    def apart(j: int) -> bool:
        labels = {pattern.node_label(order[i]), pattern.node_label(order[j])} - {-1}
        if before >> j & 1 or (order[i], order[j]) in pattern.edge_number or len(labels) > 1:
            return True
        for k in order[:i]:  # adjacent to one, not to the other; or by edges of different labels
            with_i, with_j = (k, order[i]) in pattern.edge_number, (k, order[j]) in pattern.edge_number
            labels = {pattern.edge_label(k, order[i]), pattern.edge_label(k, order[j])} - {-1}
            if k != order[j] and ((induced and with_i != with_j) or (with_i and with_j and len(labels) > 1)):
                return True
        return False

    return _mask(j for j in range(i) if not apart(j))


def _fits(pattern: Pattern, order: tuple[int, ...], i: int, j: int, adjacent: int) -> bool:
    """Whether the vertex of level j, one of ``distinct``, certainly has the edges and labels of level i."""
    if pattern.node_label(order[i]) not in (-1, pattern.node_label(order[j])):
        return False
    for a in _bits(adjacent):
        wanted = pattern.edge_label(order[i], order[a])
        if (order[a], order[j]) not in pattern.edge_number or wanted not in (
            -1,
            pattern.edge_label(order[j], order[a]),
        ):
            return False
    return True


# How often two neighbours of a vertex are adjacent; what a member of the short list costs against a long one.
CLOSURE = 0.25
GALLOP = 16


@dataclass(frozen=True)
class _Partial:
    """A matching order under construction, with estimates by level."""

    cost: float
    order: tuple[int, ...]
    followers: tuple[int, ...]
    group: tuple[Permutation, ...]  # what fixes every node of the order
    embeddings: tuple[float, ...]
    degree: tuple[float, ...]  # of the vertex, as met by the levels behind
    ascending: bool


class _Search:
    """The best order of every connected set of nodes, grown node by node (as Held and Karp do for tours).

    The model: vertices have the mean degree, but met along an edge √(mean · largest), of the order of Σ d² / Σ d in a
    graph with hubs, and no more than the mean of their neighbours have a higher rank. k bounds on the rank keep one in
    k + 1 candidates, an adjacency keeps the fraction CLOSURE.
    """

    def __init__(
        self,
        pattern: Pattern,
        induced: bool,
        group: tuple[Permutation, ...],
        root: int | None,
        ascending: bool,
        n: int,
        m: int,
        max_degree: int,
    ) -> None:
        self.pattern, self.induced, self.group, self.root, self.ascending = pattern, induced, group, root, ascending
        self.vertices, self.mean = float(n), 2 * m / n
        self.hub = max(self.mean, math.sqrt(self.mean * max_degree))

    def best(self) -> _Partial:
        front = [_Partial(0.0, (), (), self.group, (), (), self.ascending)]
        for i in range(self.pattern.num_nodes):
            best: dict[frozenset[int], _Partial] = {}
            for partial in front:
                for node in self._next(partial):
                    grown = self._extend(partial, node) if i else self._first(partial, node)
                    key = frozenset(grown.order)
                    if key not in best or (grown.cost, grown.order) < (best[key].cost, best[key].order):
                        best[key] = grown
            front = list(best.values())
        return front[0]

    def _next(self, partial: _Partial) -> Iterator[int]:
        """Nodes that keep the order connected, one of each orbit of what is left of the symmetry."""
        if not partial.order and self.root is not None:
            yield self.root
            return
        for node in range(self.pattern.num_nodes):
            touches = not partial.order or any((node, u) in self.pattern.edge_number for u in partial.order)
            if node not in partial.order and touches and node == min(p[node] for p in partial.group):
                yield node

    def _grow(self, partial: _Partial, node: int, cost: float, embeddings: float, degree: float) -> _Partial:
        return _Partial(
            cost,
            (*partial.order, node),
            (*partial.followers, _mask(iter({p[node] for p in partial.group} - {node}))),
            fixing(partial.group, node),
            (*partial.embeddings, embeddings),
            (*partial.degree, degree),
            self.ascending,
        )

    def _first(self, partial: _Partial, node: int) -> _Partial:
        return self._grow(partial, node, self.vertices, self.vertices, self.hub)

    def _extend(self, partial: _Partial, node: int) -> _Partial:
        i = len(partial.order)
        adjacent = [j for j, u in enumerate(partial.order) if (node, u) in self.pattern.edge_number]
        bounded = {j for j in range(i) if partial.followers[j] >> node & 1}

        def row(j: int) -> float:
            upward = self.ascending and j in bounded
            return min(partial.degree[j], self.mean) if upward else partial.degree[j]

        work, size = 0.0, row(adjacent[0])
        for j in range(i) if self.induced else adjacent[1:]:
            if j == adjacent[0]:
                continue
            depth = max(j, adjacent[0])
            work += partial.embeddings[depth] * (size + min(row(j), GALLOP * size))
            size *= CLOSURE if j in adjacent else 1 - CLOSURE
        size /= max(1, len(bounded)) if adjacent[0] in bounded else 1 + len(bounded)
        if i == 1:
            size = self.mean / (1 + len(bounded))
        embeddings = partial.embeddings[-1] * size
        visited = embeddings if i < self.pattern.num_nodes - 1 else 0.0  # the last level is only counted
        degree = self.hub
        if bounded & set(adjacent):
            degree = 2 * self.hub if self.ascending else self.mean
        return self._grow(partial, node, partial.cost + work + visited, embeddings, degree)
