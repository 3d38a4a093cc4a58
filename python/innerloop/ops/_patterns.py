# SPDX-License-Identifier: Apache-2.0
"""Small connected graphs to look for: by name, graph6, edge list or networkx graph; their automorphisms and orbits."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations

from ..reference.node_orbits import GRAPHLETS
from ._checks import as_int

MAX_NODES = 8

Permutation = tuple[int, ...]
Edges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Pattern:
    """A connected simple graph of nodes 0 .. num_nodes - 1, maybe labelled.

    Attributes:
        num_nodes: 2 to 8.
        edges: the distinct edges in order of first appearance, as first given.
        node_labels: one per node, edge_labels: one per edge; at least 0, or -1 for "any". None without labels.
    """

    num_nodes: int
    edges: Edges
    node_labels: tuple[int, ...] | None = None
    edge_labels: tuple[int, ...] | None = None

    @functools.cached_property
    def neighbors(self) -> tuple[int, ...]:
        """Of each node, as a bit set."""
        masks = [0] * self.num_nodes
        for u, v in self.edges:
            masks[u] |= 1 << v
            masks[v] |= 1 << u
        return tuple(masks)

    @functools.cached_property
    def edge_number(self) -> dict[tuple[int, int], int]:
        """Position in ``edges`` of both directions of every edge."""
        return {pair: i for i, (u, v) in enumerate(self.edges) for pair in ((u, v), (v, u))}

    def node_label(self, node: int) -> int:
        return -1 if self.node_labels is None else self.node_labels[node]

    def edge_label(self, u: int, v: int) -> int:
        """-1 also where u and v are not adjacent."""
        number = self.edge_number.get((u, v))
        return -1 if number is None or self.edge_labels is None else self.edge_labels[number]


NAMED = {
    "edge": "01",
    "wedge": "01 12",
    "triangle": "01 02 12",
    "square": "01 12 23 03",
    "claw": "01 02 03",
    "paw": "01 02 12 23",
    "tailed_triangle": "01 02 12 23",
    "diamond": "01 02 12 13 23",
    "bull": "01 02 12 13 24",
    "banner": "01 12 23 03 34",
    "cricket": "01 02 12 03 04",
    "lollipop": "01 02 12 23 34",
    "house": "01 12 23 03 04 14",
    "bowtie": "01 02 12 03 04 34",
    "butterfly": "01 02 12 03 04 34",
    "dart": "01 12 03 23 02 04",
    "kite": "01 12 23 03 02 34",
    "gem": "12 23 34 01 02 03 04",
}


def _path(n: int) -> Edges:
    return tuple((i, i + 1) for i in range(n - 1))


def _cycle(n: int) -> Edges:
    return (*_path(n), (0, n - 1))


def _star(n: int) -> Edges:
    return tuple((0, i) for i in range(1, n))


def _clique(n: int) -> Edges:
    return tuple(combinations(range(n), 2))


def _wheel(n: int) -> Edges:
    return (*_star(n), *((u + 1, v + 1) for u, v in _cycle(n - 1)))


# Least number of nodes and edges of n nodes.
FAMILIES: dict[str, tuple[int, Callable[[int], Edges]]] = {
    "path": (2, _path),
    "cycle": (3, _cycle),
    "star": (3, _star),
    "clique": (2, _clique),
    "wheel": (4, _wheel),
}
_LETTER = {"p": "path", "c": "cycle", "k": "clique", "w": "wheel", "complete": "clique"}
_KNOWN = ", ".join(
    (*NAMED, *(f"{family}<n>" for family in FAMILIES), "K<n>", "C<n>", "P<n>", "W<n>", "K<a>,<b>", "G0 to G29")
)


def as_pattern(
    x: object, op: str, node_labels: Iterable[int] | None = None, edge_labels: Iterable[int] | None = None
) -> Pattern:
    """The pattern that `x` describes.

    Args:
        x: a Pattern; a name ("triangle", "4-cycle", "path4", "star4" of four nodes, "K5", "K2,3", "G17"; case, space,
            "-" and "_" are of no account); edges in digits ("01 12 20"); a graph6 string; a list of pairs; an integer
            array or tensor (2, E), else (E, 2); an undirected networkx graph, whose nodes are numbered as it iterates
            them. Repeated edges count once.
        op: whose argument it is, for messages.
        node_labels: one per node. edge_labels: one per edge as listed. At least 0, or -1 for "any".

    Raises:
        TypeError, ValueError: no such pattern, a self loop, not connected, not of 2 to 8 nodes, labels that do not fit.
    """
    if isinstance(x, Pattern):
        n, listed = x.num_nodes, x.edges
        node_labels = x.node_labels if node_labels is None else node_labels
        edge_labels = x.edge_labels if edge_labels is None else edge_labels
    elif isinstance(x, str):
        n, listed = _from_text(x, op)
    elif hasattr(x, "is_directed") and hasattr(x, "edges"):
        if x.is_directed():
            raise ValueError(f"{op}: pattern is a directed {type(x).__name__}, expected an undirected graph")
        number = {node: i for i, node in enumerate(x.nodes())}
        n, listed = len(number), tuple((number[u], number[v]) for u, v in x.edges())
    else:
        listed = _pairs(x, op)
        n = 1 + max((max(pair) for pair in listed), default=-1)
    if not 2 <= n <= MAX_NODES:
        raise ValueError(f"{op}: pattern has {n} nodes, expected 2 to {MAX_NODES}")
    if loops := [u for u, v in listed if u == v]:
        raise ValueError(f"{op}: pattern has a self loop at node {loops[0]}, expected a simple graph")
    edges, edge_labels = _merge(listed, _labels(edge_labels, "edge", len(listed), op), op)
    pattern = Pattern(n, edges, _labels(node_labels, "node", n, op), edge_labels)
    if apart := _beyond(pattern, 0):
        raise ValueError(f"{op}: pattern is not connected: no path from node 0 to node {apart[0]}")
    return pattern


def _beyond(pattern: Pattern, start: int) -> list[int]:
    reached, grown = 0, 1 << start
    while grown != reached:
        reached = grown
        for node, mask in enumerate(pattern.neighbors):
            grown |= mask if reached >> node & 1 else 0
    return [node for node in range(pattern.num_nodes) if not reached >> node & 1]


def _merge(listed: Edges, labels: tuple[int, ...] | None, op: str) -> tuple[Edges, tuple[int, ...] | None]:
    first: dict[frozenset[int], int] = {}
    for i, pair in enumerate(listed):
        j = first.setdefault(frozenset(pair), i)
        if labels is not None and labels[i] != labels[j]:
            raise ValueError(
                f"{op}: pattern_edge_labels gives edge {tuple(pair)} the labels {labels[j]} and {labels[i]}, "
                "expected one label"
            )
    return tuple(listed[i] for i in first.values()), labels and tuple(labels[i] for i in first.values())


def _plain(value: object) -> object:
    """An int for what NumPy calls one."""
    return value.item() if hasattr(value, "item") else value


def _labels(values: Iterable[int] | None, kind: str, count: int, op: str) -> tuple[int, ...] | None:
    if values is None:
        return None
    name = f"pattern_{kind}_labels"
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, str | Set | Mapping) or not isinstance(listed, Iterable):
        raise TypeError(f"{op}: {name} is {values!r}, expected a sequence of ints, one per {kind} of the pattern")
    labels = tuple(map(_plain, listed))
    if len(labels) != count:
        raise ValueError(f"{op}: {name} has {len(labels)} entries, expected {count}, one per {kind} of the pattern")
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < 2**31:
            raise ValueError(f"{op}: {name} holds {label!r}, expected ints in [0, 2**31), or -1 for any")
    return labels


def _pairs(x: object, op: str) -> Edges:
    expected = "a name, a graph6 string, a list of pairs, an integer (2, E) or (E, 2) array or a networkx graph"
    rows = x.tolist() if hasattr(x, "tolist") else x
    if not isinstance(rows, Sequence) or not all(isinstance(row, Sequence) for row in rows):
        raise TypeError(f"{op}: pattern is {type(x).__name__}, expected {expected}")
    # An array of two rows is an edge_index; a list is one of pairs where it can be.
    two_rows = len(rows) == 2 and len(rows[0]) == len(rows[1])
    if two_rows and (hasattr(x, "tolist") or len(rows[0]) != 2):
        rows = list(zip(*rows, strict=True))
    pairs = tuple(tuple(map(as_int, row)) for row in rows)
    for row, pair in zip(rows, pairs, strict=True):
        if len(pair) != 2 or not all(u is not None and u >= 0 for u in pair):
            raise ValueError(f"{op}: pattern has the entry {row!r}, expected pairs of nodes, ints of at least 0")
    return pairs


def _digits(text: str) -> tuple[int, Edges]:
    edges = tuple((int(u), int(v)) for u, v in text.split())
    return 1 + max(map(max, edges)), edges


def _from_text(text: str, op: str) -> tuple[int, Edges]:
    if re.fullmatch(r"\d\d( \d\d)*", text):
        return _digits(text)
    name = re.sub(r"[\s_-]", "", text.lower())
    if name in _BARE:
        return _digits(NAMED[_BARE[name]])
    if (match := re.fullmatch(r"\s*g(\d+)\s*", text.lower())) and int(match[1]) < len(GRAPHLETS):
        return _digits(GRAPHLETS[int(match[1])][0])
    if match := re.fullmatch(r"k(\d),(\d)", name):
        a, b = int(match[1]), int(match[2])
        return a + b, tuple((u, a + v) for u in range(a) for v in range(b))
    match = re.fullmatch(r"(?P<family>[a-z]+)(?P<n>\d+)|(?P<n2>\d+)(?P<family2>[a-z]+)", name)
    if match:
        family = match["family"] or match["family2"]
        family, n = _LETTER.get(family, family), int(match["n"] or match["n2"])
        if family in FAMILIES:
            least, build = FAMILIES[family]
            if not least <= n <= MAX_NODES:
                raise ValueError(f"{op}: pattern {text!r} has {n} nodes, expected {least} to {MAX_NODES}")
            return n, build(n)
    decoded = _graph6(text.removeprefix(">>graph6<<").strip())
    if decoded is None:
        raise ValueError(
            f"{op}: pattern {text!r} is unknown, expected one of {_KNOWN}, edges such as '01 12', or graph6"
        )
    return decoded


_BARE = {name.replace("_", ""): name for name in NAMED}


def _graph6(text: str) -> tuple[int, Edges] | None:
    """McKay's format: n + 63, then the upper triangle by columns, six bits to a character. None: it is none."""
    if not text or not all(63 <= ord(c) < 126 + (i > 0) for i, c in enumerate(text)):
        return None
    n = ord(text[0]) - 63
    pairs = [(u, v) for v in range(n) for u in range(v)]
    if len(text) != 1 + -(-len(pairs) // 6):
        return None
    bits = "".join(f"{ord(c) - 63:06b}" for c in text[1:])
    return n, tuple(pair for pair, bit in zip(pairs, bits, strict=False) if bit == "1")


@functools.lru_cache(maxsize=256)
def automorphisms(pattern: Pattern) -> tuple[Permutation, ...]:
    """Every permutation π, node i to π[i], that keeps edges, node labels and edge labels; the identity is the first."""
    nodes = range(pattern.num_nodes)
    found: list[Permutation] = []

    def relation(i: int, j: int) -> int | None:
        if i == j:
            return pattern.node_label(i)
        return pattern.edge_label(i, j) if (i, j) in pattern.edge_number else None

    kept = [[relation(i, j) for j in nodes] for i in nodes]

    def extend(image: Permutation) -> None:
        i = len(image)
        if i == pattern.num_nodes:
            found.append(image)
            return
        for x in nodes:
            if x not in image and kept[i][: i + 1] == [kept[x][y] for y in (*image, x)]:
                extend((*image, x))

    extend(())
    return tuple(found)


def fixing(group: Sequence[Permutation], node: int) -> tuple[Permutation, ...]:
    """The stabiliser of `node` in a permutation group."""
    return tuple(p for p in group if p[node] == node)


def orbits(pattern: Pattern) -> tuple[int, ...]:
    """Orbit of each node under the automorphisms, numbered 0, 1, .. by the least node."""
    group = automorphisms(pattern)
    return _numbered([min(p[i] for p in group) for i in range(pattern.num_nodes)])


def edge_orbits(pattern: Pattern) -> tuple[int, ...]:
    """Orbit of each edge under the automorphisms, numbered 0, 1, .. by the first edge."""
    group, number = automorphisms(pattern), pattern.edge_number
    return _numbered([min(number[p[u], p[v]] for p in group) for u, v in pattern.edges])


def _numbered(least: list[int]) -> tuple[int, ...]:
    number = {x: i for i, x in enumerate(sorted(set(least)))}
    return tuple(number[x] for x in least)


@functools.lru_cache(maxsize=1024)
def canonical_code(pattern: Pattern) -> tuple[tuple[int, ...], ...]:
    """Equal for two patterns exactly when they are isomorphic, labels included.

    Over all orders of the nodes, the greatest list of rows: of the i-th node its label, and by earlier node the label
    of the edge between them, plus 1, or -1 without one.
    """

    def row(order: Permutation, node: int) -> tuple[int, ...]:
        back = (pattern.edge_label(node, u) + 1 if (node, u) in pattern.edge_number else -1 for u in order)
        return pattern.node_label(node), *back

    code: list[tuple[int, ...]] = []
    front: list[tuple[Permutation, tuple[Permutation, ...]]] = [((), automorphisms(pattern))]
    for _ in range(pattern.num_nodes):
        # Images under an automorphism that fixes what is placed give the same code: the least of them is enough.
        grown = [
            (row(order, node), (*order, node), group)
            for order, group in front
            for node in range(pattern.num_nodes)
            if node not in order and node == min(p[node] for p in group)
        ]
        code.append(max(candidate[0] for candidate in grown))
        front = [(order, fixing(group, order[-1])) for best, order, group in grown if best == code[-1]]
    return tuple(code)


def pattern_family(name: str, k: int) -> list[Pattern]:
    """Every pattern of the family with 3 to `k` nodes, by size.

    Args:
        name: "cycle_graph", "path_graph", "complete_graph", "star_graph", "binomial_tree" (of 4 and 8 nodes) or
            "nonisomorphic_trees".
        k: most nodes, 3 to 8. (networkx's star_graph counts leaves, its binomial_tree doublings.)

    Raises:
        ValueError: an unknown family or size.

    Source: the substructure families of Bouritsas et al., Graph Substructure Networks (TPAMI 2022).
    """
    known = {"cycle_graph": _cycle, "path_graph": _path, "complete_graph": _clique, "star_graph": _star}
    if name not in (*known, "binomial_tree", "nonisomorphic_trees"):
        families = ", ".join((*known, "binomial_tree", "nonisomorphic_trees"))
        raise ValueError(f"pattern_family: name is {name!r}, expected one of {families}")
    most = as_int(k)
    if most is None or not 3 <= most <= MAX_NODES:
        raise ValueError(f"pattern_family: k is {k!r}, expected an int from 3 to {MAX_NODES}")
    if name in known:
        return [Pattern(n, known[name](n)) for n in range(3, most + 1)]
    if name == "binomial_tree":  # two copies, their roots joined: the parent of a node is it without its lowest bit
        return [Pattern(n, tuple((i & (i - 1), i) for i in range(1, n))) for n in (4, 8) if n <= most]
    trees = [[Pattern(2, ((0, 1),))]]
    for n in range(3, most + 1):
        grown = (Pattern(n, (*tree.edges, (node, n - 1))) for tree in trees[-1] for node in range(n - 1))
        trees.append(list({canonical_code(tree): tree for tree in grown}.values()))
    return [tree for size in trees[1:] for tree in size]
