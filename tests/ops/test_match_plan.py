# SPDX-License-Identifier: Apache-2.0
"""Patterns, their automorphisms, and plans: executed in plain Python they find what the definition finds."""

import itertools
import math
import random
import re

import innerloop
import networkx as nx
import numpy as np
import pytest
import torch
from innerloop.ops._match_plan import HEADER, INTERSECT, LEVEL, ROW, SET, CandidateSet, Level, compile_plan
from innerloop.ops._patterns import (
    NAMED,
    Pattern,
    as_pattern,
    automorphisms,
    canonical_code,
    edge_orbits,
    orbits,
    pattern_family,
)
from innerloop.reference.match import match
from innerloop.reference.node_orbits import GRAPHLETS

SMALL = [f"G{i}" for i in range(len(GRAPHLETS))]
LARGE = [
    "cycle6", "path6", "star6", "K3,3", "K2,4", "wheel6", "path7", "cycle7", "wheel7", "star8", "K4,4", "K8",
    [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 3)],
    [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (3, 4), (4, 5), (5, 0), (4, 6)],
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)],
]  # fmt: skip


class RankGraph:
    """Rows, edge labels and node labels by rank, as the engine sees them."""

    def __init__(self, n, edges, node_labels=None, edge_labels=None):
        degree = [sum(v in edge for edge in edges) for v in range(n)]
        self.order = sorted(range(n), key=lambda v: (degree[v], v))
        rank = {v: r for r, v in enumerate(self.order)}
        self.label = [0 if node_labels is None else node_labels[v] for v in self.order]
        self.edge = {}
        for i, (u, v) in enumerate(edges):
            label = 0 if edge_labels is None else edge_labels[i]
            self.edge[rank[u], rank[v]] = self.edge[rank[v], rank[u]] = label
        self.row = [sorted(y for x, y in self.edge if x == r) for r in range(n)]


def unpack(code):
    q, num_sets, tail, *_ = code[:HEADER]
    at = HEADER + q * LEVEL
    levels = [Level(*code[i : i + LEVEL]) for i in range(HEADER, at, LEVEL)]
    sets = [CandidateSet(*code[i : i + SET]) for i in range(at, at + num_sets * SET, SET)]
    orbit, label = (code[at + num_sets * SET + k * q * q :][: q * q] for k in range(2))
    assert len(code) == at + num_sets * SET + 2 * q * q
    return q, tail, levels, sets, orbit, label


def bits(mask):
    return [j for j in range(mask.bit_length()) if mask >> j & 1]


def within(x, v, above, below):
    return all(x > v[j] for j in bits(above)) and all(x < v[j] for j in bits(below))


def execute(code, graph, seeds=None, count=False):
    """The embeddings by pattern node, or by `count` their number, in the way the module's docstring describes."""
    q, tail, levels, sets, _, _ = unpack(code)
    stored = [None] * len(sets)
    found = []

    def compute(s, v):
        each = sets[s]
        row = graph.row[v[each.operand]]
        if each.operation == ROW:
            members = [x for x in row if each.node_label in (-1, graph.label[x])]
        else:
            wanted = each.operation == INTERSECT
            members = [x for x in stored[each.base] if (x in row) == wanted]
        if each.edge_label >= 0:
            members = [x for x in members if graph.edge[v[each.operand], x] == each.edge_label]
        return [x for x in members if within(x, v, each.above, each.below)]

    def run(v):
        i = len(v)
        if i == q:
            found.append(tuple(graph.order[v[level]] for level in sorted(range(q), key=lambda k: levels[k].node)))
            return 1
        level = levels[i]
        if i == 0:
            vertices = range(len(graph.row)) if seeds is None else [r for r, x in enumerate(graph.order) if x in seeds]
            candidates = [x for x in vertices if level.node_label in (-1, graph.label[x])]
        else:
            pool = [x for x in stored[level.set] if within(x, v, level.above, level.below)]
            assert all(v[j] in pool for j in bits(level.inside))
            candidates = [x for x in pool if x not in [v[j] for j in bits(level.distinct)]]
            if count and i == q - tail:
                if sets[level.set].count_only:
                    assert len(candidates) == len(stored[level.set]) - level.inside.bit_count()
                return math.comb(len(candidates), tail)
        total = 0
        for x in candidates:
            for s in range(level.begin, level.end):
                stored[s] = compute(s, [*v, x])
            total += run([*v, x])
        return total

    total = run([])
    return total if count else sorted(found)


def execute_plain(code, graph):
    """The same by the plain definition of a level."""
    q, _, levels, _, _, label = unpack(code)
    found = []

    def fits(x, v):
        i, level = len(v), levels[len(v)]
        return (
            level.node_label in (-1, graph.label[x])
            and all((x, v[j]) in graph.edge for j in bits(level.adjacent))
            and all(label[i * q + j] in (-1, graph.edge[x, v[j]]) for j in bits(level.adjacent))
            and not any((x, v[j]) in graph.edge for j in bits(level.apart))
            and within(x, v, level.lower, level.higher)
            and x not in [v[j] for j in bits(level.distinct)]
        )

    def run(v):
        if len(v) == q:
            found.append(tuple(graph.order[v[level]] for level in sorted(range(q), key=lambda k: levels[k].node)))
            return
        for x in range(len(graph.row)):
            if fits(x, v):
                run([*v, x])

    run([])
    return sorted(found)


def random_graph(rng, n, density):
    edges = [pair for pair in itertools.combinations(range(n), 2) if rng.random() < density]
    rng.shuffle(edges)
    return edges


def check_plan(pattern, n, edges, induced, labels=(None, None), root=None, seeds=None, **stats):
    """Every class once: the embeddings, expanded by the group, are the definition's, none twice."""
    node_labels, edge_labels = labels
    _, every = match(
        torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t(),
        n,
        pattern.edges,
        pattern.num_nodes,
        induced,
        "all",
        node_labels=None if node_labels is None else torch.tensor(node_labels),
        pattern_node_labels=pattern.node_labels,
        edge_labels=None if edge_labels is None else torch.tensor(edge_labels, dtype=torch.int64),
        pattern_edge_labels=pattern.edge_labels,
    )
    every = [tuple(f) for f in every.tolist() if seeds is None or f[root] in seeds]
    plan = compile_plan(pattern, induced, "all", root=root, **stats)
    graph = RankGraph(n, edges, node_labels, edge_labels)
    found = execute(plan.code, graph, seeds)
    expanded = sorted(tuple(f[i] for i in p) for f in found for p in plan.group)
    assert expanded == sorted(every)
    assert plan.multiplier == len(plan.group)
    assert execute(plan.code, graph, seeds, count=True) * plan.multiplier == len(every)
    if seeds is None:
        assert execute_plain(plan.code, graph) == found
    return len(every)


@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_plan_finds_what_the_definition_finds(name, induced):
    rng = random.Random(name)
    pattern, total = as_pattern(name, "match"), 0
    for density in (0.25, 0.5, 0.75, 1.0):
        for max_degree in (1, 1 << 20):  # other costs, other orders
            n = rng.randint(5, 7)
            total += check_plan(pattern, n, random_graph(rng, n, density), induced, max_degree=max_degree)
    assert total > 0 or induced


@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize("name", SMALL[1:])
def test_plan_with_labels(name, induced):
    rng = random.Random(name)
    plain = as_pattern(name, "match")
    for which in ("node", "edge", "both"):
        node = [rng.randint(-1, 1) for _ in range(plain.num_nodes)] if which != "edge" else None
        edge = [rng.randint(-1, 1) for _ in plain.edges] if which != "node" else None
        pattern = as_pattern(plain, "match", node, edge)
        edges = random_graph(rng, 7, 0.6)
        labels = (
            None if node is None else [rng.randint(0, 1) for _ in range(7)],
            None if edge is None else [rng.randint(0, 1) for _ in edges],
        )
        check_plan(pattern, 7, edges, induced, labels)


@pytest.mark.parametrize("name", SMALL[1:20])
def test_plan_from_seeds(name):
    """Level 0 is the root; symmetry is left only among what fixes it."""
    rng = random.Random(name)
    pattern = as_pattern(name, "match")
    for root in (0, pattern.num_nodes - 1):
        plan = compile_plan(pattern, root=root)
        assert plan.node_of_level[0] == root
        assert all(p[root] == root for p in plan.group)
        check_plan(pattern, 6, random_graph(rng, 6, 0.6), False, root=root, seeds={0, 3})


@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize("given", LARGE, ids=str)
def test_plan_of_a_large_pattern(given, induced):
    """On the pattern itself, relabelled, with an edge less, an edge more or a vertex more; symmetric or not."""
    rng = random.Random(str(given))
    pattern = as_pattern(given, "match")
    q = pattern.num_nodes
    where = rng.sample(range(q), q)
    edges = [(where[u], where[v]) for u, v in pattern.edges]
    missing = [pair for pair in itertools.combinations(range(q), 2) if pair not in pattern.edge_number]
    plan = compile_plan(pattern, induced)
    for extra in ([], [(0, q), (2, q)], [tuple(where[u] for u in pair) for pair in missing[:1]]):
        graph = RankGraph(q + 1, edges + extra)
        g, h = nx.Graph(edges + extra), nx.Graph(pattern.edges)
        matcher = nx.isomorphism.GraphMatcher(g, h)
        order = len(automorphisms(pattern))
        if order > 1000:  # too many to list
            expected = execute_plain(plan.code, graph)
        else:
            maps = matcher.subgraph_isomorphisms_iter() if induced else matcher.subgraph_monomorphisms_iter()
            back = [{p: x for x, p in f.items()} for f in maps]
            every = {tuple(f[i] for i in range(q)) for f in back}
            expected = execute(plan.code, graph)
            assert len({min(tuple(f[i] for i in p) for p in plan.group) for f in every}) == len(expected)
            assert {tuple(f[i] for i in p) for f in expected for p in plan.group} == every
            assert len(expected) * order == len(every)
        assert execute(plan.code, graph, count=True) == len(expected) == len(execute(plan.code, graph))
        assert expected or (induced and extra)


def test_plan_layout():
    """Masks name earlier levels, sets follow their base, levels use sets that are ready."""
    for name in [*SMALL, *LARGE]:
        for induced in (False, True):
            plan = compile_plan(as_pattern(name, "match"), induced)
            q, tail, levels, sets, orbit, label = unpack(plan.code)
            assert all(-1 <= x < 1 << 30 for x in plan.code)
            assert len(sets) <= q * (q - 1) // 2
            assert 1 <= tail <= q - 1
            assert [level.node for level in levels] == list(plan.node_of_level)
            assert [plan.node_of_level[i] for i in plan.level_of_node] == list(range(q))
            assert [level.end for level in levels[:-1]] == [level.begin for level in levels[1:]]
            assert levels[0].set == -1
            for i, level in enumerate(levels):
                assert i == 0 or sets[level.set].depth < i
                assert (level.adjacent > 0) == (i > 0)
                earlier = level.adjacent | level.apart | level.above | level.below | level.distinct
                assert (earlier | level.lower | level.higher) < 1 << i
                assert level.inside & ~level.distinct == 0
                assert level.above & level.below == 0
                assert (level.above & ~level.lower) | (level.below & ~level.higher) == 0
                assert all(levels[i].begin <= s < levels[i].end for s, x in enumerate(sets) if x.depth == i)
            for s, each in enumerate(sets):
                assert (each.operation == ROW) == (each.base == -1)
                assert each.base < s
                assert (each.above | each.below) < 2 << each.depth
            assert set(orbit) - {-1} == set(range(plan.num_edge_orbits))
            assert set(label) == {-1}
            assert [orbit[j * q + i] for i in range(q) for j in range(q)] == list(orbit)
            assert {level.orbit for level in levels} == set(range(plan.num_node_orbits))


@pytest.mark.parametrize("k", range(3, 9))
def test_a_clique_runs_over_out_neighbours(k):
    """Each vertex of higher rank than all before; one intersection per level, on the set of the level before."""
    plan = compile_plan(as_pattern(f"K{k}", "match"), n=10**5, m=10**6, max_degree=10**4)
    assert [level.lower for level in plan.levels] == [0, *(1 << i for i in range(k - 1))]
    assert len(plan.sets) == k - 1
    assert [each.base for each in plan.sets] == list(range(-1, k - 2))
    assert [each.above for each in plan.sets] == [1 << i for i in range(k - 1)]
    assert [each.count_only for each in plan.sets] == [0] * (k - 2) + [1]
    assert not any(level.above | level.below | level.distinct for level in plan.levels)


def test_a_cycle_starts_from_its_highest_vertex_among_hubs():
    """Whose neighbours are of low degree: the scans of a two-path stay short."""
    plan = compile_plan(as_pattern("square", "match"), n=10**5, m=10**6, max_degree=10**4)
    assert [level.higher for level in plan.levels[1:3]] == [1, 1]
    assert not any(level.lower for level in plan.levels)


def test_stars_and_diamonds_end_in_binomials():
    for name, tail in (("star5", 4), ("diamond", 2), ("K2,3", 2), ("K4", 1)):
        assert compile_plan(as_pattern(name, "match")).tail == tail
    assert compile_plan(as_pattern("star5", "match"), induced=True).tail == 1


def test_plans_are_kept():
    pattern = as_pattern("house", "match")
    assert compile_plan(pattern, n=1000, m=5000) is compile_plan(as_pattern("house", "match"), n=1001, m=5003)
    assert compile_plan(pattern).multiplier == 1


def brute_force_group(pattern):
    pairs = set(pattern.edge_number)
    return {
        p
        for p in itertools.permutations(range(pattern.num_nodes))
        if {(p[u], p[v]) for u, v in pairs} == pairs
        and all(pattern.node_label(p[u]) == pattern.node_label(u) for u in range(pattern.num_nodes))
        and all(pattern.edge_label(p[u], p[v]) == pattern.edge_label(u, v) for u, v in pairs)
    }


def test_automorphisms_against_brute_force():
    rng = random.Random(0)
    for name in SMALL + LARGE[:8]:
        plain = as_pattern(name, "match")
        node = [rng.randint(-1, 0) for _ in range(plain.num_nodes)]
        edge = [rng.randint(-1, 0) for _ in plain.edges]
        for pattern in (plain, as_pattern(plain, "match", node), as_pattern(plain, "match", None, edge)):
            group = automorphisms(pattern)
            assert len(set(group)) == len(group)
            assert set(group) == brute_force_group(pattern)
            assert group[0] == tuple(range(pattern.num_nodes))


# Orders of the groups of G0 .. G29.
ORDERS = [2, 2, 6, 2, 6, 8, 2, 4, 24, 2, 2, 24, 2, 2, 4, 10, 2, 2, 8, 2, 12, 2, 12, 6, 2, 4, 4, 8, 12, 120]


def test_graphlets_have_their_groups_and_orbits():
    patterns = [as_pattern(name, "match") for name in SMALL]
    assert [len(automorphisms(p)) for p in patterns] == ORDERS
    assert len({canonical_code(p) for p in patterns}) == 30
    for pattern, (_, node, edge) in zip(patterns, GRAPHLETS, strict=True):
        for ours, theirs in ((orbits(pattern), node), (edge_orbits(pattern), edge or (0,))):
            assert len(set(zip(ours, theirs, strict=True))) == len(set(ours)) == len(set(theirs))


def test_orbits_of_a_paw():
    paw = as_pattern([(0, 1), (0, 2), (1, 2), (2, 3)], "match")
    assert orbits(paw) == (0, 0, 1, 2)
    assert edge_orbits(paw) == (0, 1, 1, 2)
    assert orbits(as_pattern(paw, "match", [0, 1, -1, -1])) == (0, 1, 2, 3)
    assert edge_orbits(as_pattern(paw, "match", None, [0, 0, 1, 0])) == (0, 1, 2, 3)


def test_canonical_code():
    rng = random.Random(1)
    for name in SMALL + LARGE:
        plain = as_pattern(name, "match")
        labelled = as_pattern(plain, "match", [rng.randint(0, 1) for _ in range(plain.num_nodes)])
        for pattern in (plain, labelled):
            q = pattern.num_nodes
            to = rng.sample(range(q), q)
            label = pattern.node_labels and [pattern.node_labels[to.index(i)] for i in range(q)]
            moved = as_pattern([(to[u], to[v]) for u, v in pattern.edges], "match", label)
            assert canonical_code(moved) == canonical_code(pattern)
        assert canonical_code(labelled) != canonical_code(plain)


PEERS = {
    "triangle": nx.cycle_graph(3),
    "4-cycle": nx.cycle_graph(4),
    "path_4": nx.path_graph(4),
    "star4": nx.star_graph(3),
    "clique5": nx.complete_graph(5),
    "complete4": nx.complete_graph(4),
    "wheel5": nx.wheel_graph(5),
    "K2,3": nx.complete_bipartite_graph(2, 3),
    "K_2,3": nx.complete_bipartite_graph(2, 3),
    "C5": nx.cycle_graph(5),
    "Diamond": nx.diamond_graph(),
    "bull": nx.bull_graph(),
    "house": nx.house_graph(),
    "bowtie": nx.windmill_graph(2, 3),
    "tailed-triangle": nx.lollipop_graph(3, 1),
    "lollipop": nx.lollipop_graph(3, 2),
    "banner": nx.tadpole_graph(4, 1),
    "gem": nx.Graph([(1, 2), (2, 3), (3, 4), *((0, i) for i in range(1, 5))]),
    "G28": nx.Graph([pair for pair in itertools.combinations(range(5), 2) if pair != (0, 1)]),
}


@pytest.mark.parametrize("name", PEERS)
def test_names(name):
    pattern = as_pattern(name, "match")
    assert nx.is_isomorphic(nx.Graph(pattern.edges), PEERS[name])


def test_every_name_is_connected_and_no_graph6():
    for name in NAMED:
        assert 2 <= as_pattern(name, "match").num_nodes <= 5


def test_graph6_against_networkx():
    for name in SMALL + LARGE:
        pattern = as_pattern(name, "match")
        graph = nx.Graph()
        graph.add_nodes_from(range(pattern.num_nodes))
        graph.add_edges_from(pattern.edges)
        for header in (False, True):
            text = nx.to_graph6_bytes(graph, header=header).decode()
            read = as_pattern(text, "match")
            assert set(map(frozenset, read.edges)) == set(map(frozenset, pattern.edges))


def test_edge_lists():
    wanted = Pattern(3, ((0, 1), (1, 2)))
    both = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    for given in (
        [(0, 1), (1, 2)],
        ((0, 1), (1, 2)),
        [[0, 1], [1, 2], [2, 1]],
        [[0, 1, 1], [1, 2, 2]],
        torch.tensor([[0, 1], [1, 2]]),
        both,
        both.numpy(),
        np.array([[0, 1], [1, 2], [1, 0]]),
        nx.path_graph(3),
        "01 12",
        "01 12 21",
        wanted,
    ):
        assert as_pattern(given, "match") == wanted
    assert as_pattern(nx.Graph([("b", "a"), ("a", "c")]), "match") == wanted
    labelled = as_pattern(both, "match", torch.tensor([3, -1, 0]), [5, 5, 7, 7])
    assert (labelled.node_labels, labelled.edge_labels) == ((3, -1, 0), (5, 7))
    assert as_pattern(labelled, "match") == labelled


@pytest.mark.parametrize(
    ("given", "options", "error", "text"),
    [
        ("heptagram", {}, ValueError, "k_cliques: pattern 'heptagram' is unknown, expected one of edge, wedge, "),
        ("G30", {}, ValueError, "pattern 'G30' is unknown"),
        ("", {}, ValueError, "pattern '' is unknown"),
        ("K9", {}, ValueError, "pattern 'K9' has 9 nodes, expected 2 to 8"),
        ("cycle2", {}, ValueError, "pattern 'cycle2' has 2 nodes, expected 3 to 8"),
        ("K4,5", {}, ValueError, "pattern has 9 nodes, expected 2 to 8"),
        (nx.cycle_graph(9), {}, ValueError, "pattern has 9 nodes, expected 2 to 8"),
        ([], {}, ValueError, "pattern has 0 nodes, expected 2 to 8"),
        ([(0, 1), (2, 3)], {}, ValueError, "pattern is not connected: no path from node 0 to node 2"),
        ([(0, 2)], {}, ValueError, "pattern is not connected: no path from node 0 to node 1"),
        ("C?", {}, ValueError, "pattern is not connected: no path from node 0 to node 1"),
        ([(0, 1), (1, 1)], {}, ValueError, "pattern has a self loop at node 1, expected a simple graph"),
        ([(0, 1, 2)], {}, ValueError, "pattern has the entry (0, 1, 2), expected pairs of nodes"),
        ([(0, -1)], {}, ValueError, "pattern has the entry (0, -1), expected pairs of nodes"),
        (torch.tensor([[0.0, 1.0]]), {}, ValueError, "pattern has the entry [0.0, 1.0], expected pairs of nodes"),
        (torch.tensor(3), {}, TypeError, "pattern is Tensor, expected a name, a graph6 string"),
        (5, {}, TypeError, "pattern is int, expected a name, a graph6 string, a list of pairs"),
        (nx.DiGraph([(0, 1)]), {}, ValueError, "pattern is a directed DiGraph, expected an undirected graph"),
        ("triangle", {"node_labels": [0]}, ValueError, "pattern_node_labels has 1 entries, expected 3, one per node"),
        ("triangle", {"edge_labels": [0]}, ValueError, "pattern_edge_labels has 1 entries, expected 3, one per edge"),
        ("edge", {"node_labels": [0, -2]}, ValueError, "pattern_node_labels holds -2, expected ints in [0, 2**31)"),
        ("edge", {"node_labels": [0, 0.5]}, ValueError, "pattern_node_labels holds 0.5, expected ints"),
        ("edge", {"node_labels": 5}, TypeError, "pattern_node_labels is 5, expected a sequence of ints, one per node"),
        ("edge", {"edge_labels": "0"}, TypeError, "pattern_edge_labels is '0', expected a sequence of ints"),
        ([(0, 1), (1, 0)], {"edge_labels": [0, 1]}, ValueError, "the labels 0 and 1, expected one label"),
    ],
)  # fmt: skip
def test_bad_patterns(given, options, error, text):
    with pytest.raises(error, match=re.escape(text)) as caught:
        as_pattern(given, "k_cliques", **options)
    assert str(caught.value).startswith("k_cliques: pattern")


def test_public_automorphisms():
    assert innerloop.automorphisms("01 12") == [(0, 1, 2), (2, 1, 0)]
    assert innerloop.automorphisms(nx.path_graph(3), pattern_node_labels=[0, 0, 1]) == [(0, 1, 2)]
    assert len(innerloop.automorphisms("C5")) == 10
    with pytest.raises(ValueError, match="automorphisms: pattern 'heptagram' is unknown"):
        innerloop.automorphisms("heptagram")


def test_families():
    sizes = {
        "cycle_graph": [3, 4, 5, 6],
        "path_graph": [3, 4, 5, 6],
        "complete_graph": [3, 4, 5, 6],
        "star_graph": [3, 4, 5, 6],
        "binomial_tree": [4],
        "nonisomorphic_trees": [3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 6, 6],
    }
    peer = {
        "cycle_graph": nx.cycle_graph,
        "path_graph": nx.path_graph,
        "complete_graph": nx.complete_graph,
        "star_graph": lambda n: nx.star_graph(n - 1),
        "binomial_tree": lambda n: nx.binomial_tree(n.bit_length() - 1),
    }
    for name, expected in sizes.items():
        family = pattern_family(name, 6)
        assert [p.num_nodes for p in family] == expected
        if name in peer:
            assert all(nx.is_isomorphic(nx.Graph(p.edges), peer[name](p.num_nodes)) for p in family)
    assert nx.is_isomorphic(nx.Graph(pattern_family("binomial_tree", 8)[-1].edges), nx.binomial_tree(3))
    trees = [nx.Graph(p.edges) for p in pattern_family("nonisomorphic_trees", 8)]
    assert [sum(len(t) == n for t in trees) for n in range(3, 9)] == [1, 2, 3, 6, 11, 23]
    assert all(nx.is_tree(t) for t in trees)
    assert not any(nx.is_isomorphic(a, b) for a, b in itertools.combinations(trees, 2))


@pytest.mark.parametrize(
    ("name", "k", "text"),
    [
        ("trees", 5, "pattern_family: name is 'trees', expected one of cycle_graph, path_graph, "),
        ("cycle_graph", 9, "pattern_family: k is 9, expected an int from 3 to 8"),
        ("path_graph", True, "pattern_family: k is True, expected an int from 3 to 8"),
    ],
)
def test_bad_families(name, k, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        pattern_family(name, k)
