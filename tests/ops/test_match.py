# SPDX-License-Identifier: Apache-2.0
"""match and k_cliques against the definition, networkx, the orbit counts and published numbers."""

import re
from math import comb

import networkx as nx
import numpy as np
import pytest
import torch
from innerloop import Graph, edge_orbits, graphlets, k_cliques, match, match_batches, node_orbits, triangles
from innerloop.data.tu import load_mutag, read_edge_list
from innerloop.ops._patterns import as_pattern, automorphisms
from innerloop.ops._patterns import edge_orbits as pattern_edge_orbits
from innerloop.ops._patterns import orbits as pattern_orbits
from innerloop.reference.match import match as reference
from innerloop.reference.node_orbits import GRAPHLETS
from processes import run_python
from torch import Tensor

SMALL = [f"G{i}" for i in range(len(GRAPHLETS))]
LARGE = ["cycle6", "path6", "star6", "K6", "K3,3", "wheel6", "cycle7", "path7", "cycle8"]
LARGE += [[(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 3)]]


def random_edges(n: int, density: float) -> Tensor:
    """Distinct undirected edges, (2, m), in random order and direction."""
    pairs = torch.triu_indices(n, n, 1)
    pairs = pairs[:, torch.rand(pairs.shape[1]) < density]
    pairs = pairs[:, torch.randperm(pairs.shape[1])]
    return torch.where(torch.rand(pairs.shape[1]) < 0.5, pairs, pairs.flip(0))


def network(shared_data, name: str) -> Graph:
    path = shared_data / "graphs" / "net" / f"{name}.txt.xz"
    return Graph(*read_edge_list(path)) if path.is_file() else pytest.skip(f"{path} is absent")


def rows(embeddings: Tensor) -> list[tuple[int, ...]]:
    return sorted(map(tuple, embeddings.tolist()))


def classes(embeddings: list[tuple[int, ...]], group) -> list[tuple[int, ...]]:
    """The lexicographically least embedding of each: which one is listed is free."""
    return sorted(min(tuple(f[i] for i in p) for p in group) for f in embeddings)


def tally(places: Tensor, column: list[int], size: int) -> Tensor:
    """How often each item is in each column of places (k, c), columns of one number together: (size, columns)."""
    counts = torch.zeros(size, 1 + max(column, default=-1), dtype=torch.int64)
    for place, c in zip(places.T, column, strict=True):
        counts[:, c] += torch.bincount(place, minlength=size)
    return counts


def edge_places(graph: Graph, embeddings: Tensor, pattern) -> Tensor:
    """The edge of the graph, a row of graph.edges, for every edge of the pattern: (k, |E|)."""
    number = {frozenset(pair): i for i, pair in enumerate(graph.edges.tolist())}
    found = [[number[frozenset((f[u], f[v]))] for u, v in pattern.edges] for f in embeddings.tolist()]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, len(pattern.edges))


def assert_as_defined(graph: Graph, given, induced: bool, labels=None, seeds: Tensor | None = None) -> int:
    """Every output of match, both symmetries; returns the number of embeddings."""
    labels = labels or {}
    pattern = as_pattern(given, "match", labels.get("pattern_node_labels"), labels.get("pattern_edge_labels"))
    n, m, q = graph.num_nodes, graph.num_edges, pattern.num_nodes
    group = [p for p in automorphisms(pattern) if seeds is None or p[0] == 0]
    _, every = reference(graph.edges.T, n, pattern.edges, q, induced, "all", **labels, seeds=seeds)
    one_each = torch.tensor(classes(rows(every), group)[:: len(group)], dtype=torch.int64).reshape(-1, q)
    options = {"induced": induced, "seeds": seeds, **labels}
    for symmetry, expected in (("break", one_each), ("all", every)):

        def run(output, symmetry=symmetry):
            return match(graph, given, symmetry=symmetry, output=output, **options)

        assert int(run("count")) == len(expected)
        listed = run("list")
        assert listed.dtype == torch.int64
        assert listed.shape == (len(expected), q)
        if symmetry == "all":
            assert rows(listed) == rows(expected)
        else:
            assert classes(rows(listed), group) == rows(expected)
            assert {tuple(f) for f in listed.tolist()} <= set(rows(every))
        expanded = tally(expected, list(range(q)), n)
        node = run("node_counts")
        assert node.dtype == torch.int64
        assert torch.equal(node, expanded.sum(1))
        places = edge_places(graph, expected, pattern)
        assert torch.equal(run("edge_counts"), tally(places, [0] * len(pattern.edges), m)[:, 0])
        if seeds is None:  # else which node of an orbit is the seed tells its nodes apart
            assert torch.equal(run("orbit_counts"), tally(expected, list(pattern_orbits(pattern)), n))
    return len(every)


@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_small_patterns_as_defined(name, induced):
    for n, density in ((7, 0.35), (8, 0.6), (7, 0.9), (6, 1.0)):
        assert_as_defined(Graph(random_edges(n, density), n), name, induced)


@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize("given", SMALL[1:] + LARGE, ids=str)
def test_networkx_as_peer(given, induced):
    """networkx lists every embedding, from vertices to nodes: |Aut| of each class."""
    pattern = as_pattern(given, "match")
    q = pattern.num_nodes
    edges = random_edges(14, 0.3 if q > 5 else 0.4)
    noise = edges[:, (edges >= q).any(0)][:, : 40 if q < 6 else 14]
    edges = torch.cat([torch.tensor(pattern.edges).T, noise], 1)  # at least once
    matcher = nx.isomorphism.GraphMatcher(nx.Graph(edges.T.tolist()), nx.Graph(pattern.edges))
    maps = matcher.subgraph_isomorphisms_iter() if induced else matcher.subgraph_monomorphisms_iter()
    graph, group = Graph(edges, 14), automorphisms(pattern)
    expected = set()
    for f in maps:
        back = {node: vertex for vertex, node in f.items()}
        expected.add(min(tuple(back[p[i]] for i in range(q)) for p in group))
    assert expected
    listed = match(graph, given, induced=induced, output="list")
    assert classes(rows(listed), group) == sorted(expected)
    assert int(match(graph, given, induced=induced)) == len(expected)
    assert int(match(graph, given, induced=induced, symmetry="all")) == len(expected) * len(group)


@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize("which", ["node", "edge", "both"])
@pytest.mark.parametrize(
    "name", ["edge", "wedge", "triangle", "path4", "square", "paw", "star4", "diamond", "K4", "bull"]
)
def test_labels(name, which, induced):
    """-1 in the pattern fits every label; labels leave fewer automorphisms."""
    pattern, total = as_pattern(name, "match"), 0
    for _ in range(4):
        edges, labels = random_edges(8, 0.9), {}
        if which != "edge":
            labels["node_labels"] = torch.randint(0, 2, (8,))
            labels["pattern_node_labels"] = torch.randint(-1, 2, (pattern.num_nodes,)).tolist()
        if which != "node":
            labels["edge_labels"] = torch.randint(0, 2, (edges.shape[1],))
            labels["pattern_edge_labels"] = torch.randint(-1, 2, (len(pattern.edges),)).tolist()
        total += assert_as_defined(Graph(edges, 8), name, induced, labels)
    assert total > 0 or induced


@pytest.mark.parametrize("name", ["edge", "triangle", "path4", "star5", "diamond", "house"])
def test_seeds_are_the_vertices_of_node_0(name):
    graph = Graph(random_edges(9, 0.5), 9)
    for seeds in ([4], [0, 7, 2], [], list(range(9))):
        assert_as_defined(graph, name, False, seeds=torch.tensor(seeds, dtype=torch.int64))
    whole = match(graph, name, symmetry="all")
    alone = [match(graph, name, symmetry="all", seeds=torch.tensor([v])) for v in range(9)]
    assert int(sum(alone)) == int(whole)
    around = [int(match(graph, "triangle", seeds=torch.tensor([v]))) for v in range(9)]
    assert around == triangles(graph).tolist()


@pytest.mark.parametrize("name", SMALL[1:])
def test_induced_totals_are_the_orbit_counts(name):
    """Every graphlet: its number, its column of node_orbits for each orbit, of edge_orbits in sum."""
    i, pattern = int(name[1:]), as_pattern(name, "match")
    graph = Graph(random_edges(30, 0.3), 30)
    assert int(match(graph, name, induced=True)) == int(graphlets(graph, 5)[0, i])
    _, node, edge = GRAPHLETS[i]
    ours = match(graph, name, induced=True, output="orbit_counts")
    column = dict(zip(pattern_orbits(pattern), node, strict=True))
    assert ours.shape == (30, len(column))
    assert torch.equal(ours, node_orbits(graph, 5)[:, [column[o] for o in range(len(column))]])
    at_edges = match(graph, name, induced=True, output="edge_counts")
    assert torch.equal(at_edges, edge_orbits(graph, 5)[:, sorted(set(edge))].sum(1))
    assert len(set(pattern_edge_orbits(pattern))) == len(set(edge))


def test_cliques_need_no_induced():
    graph = Graph(random_edges(25, 0.6), 25)
    for k in range(2, 9):
        name = f"K{k}"
        count = int(match(graph, name))
        assert count == int(match(graph, name, induced=True)) == int(k_cliques(graph, k, "graph").sum())
        assert torch.equal(k_cliques(graph, k), match(graph, name, output="node_counts"))
        assert torch.equal(k_cliques(graph, k, "edge"), match(graph, name, output="edge_counts"))
        assert k_cliques(graph, k).sum() == k * count
    assert torch.equal(k_cliques(graph, 2), graph.degree)
    assert torch.equal(k_cliques(graph, 3), triangles(graph))
    assert torch.equal(k_cliques(graph, 4), node_orbits(graph, 4)[:, 14])
    other = nx.Graph(graph.edges.tolist())
    assert int(k_cliques(graph, 5, "graph")) == sum(len(c) == 5 for c in nx.enumerate_all_cliques(other))


def test_k_cliques_of_a_batch():
    graphs = [Graph(random_edges(n, 0.7), n) for n in (0, 1, 6, 9, 12)]
    batch = Graph.batch_of(graphs)
    for per in ("node", "edge", "graph"):
        assert torch.equal(k_cliques(batch, 4, per), torch.cat([k_cliques(g, 4, per) for g in graphs]))
    assert int(match(batch, "K4")) == sum(int(match(g, "K4")) for g in graphs)


def test_ranges_of_roots_add_up():
    graph = Graph(random_edges(15, 0.5), 15)
    for output in ("count", "graph_counts", "node_counts", "edge_counts", "orbit_counts"):
        parts = [match(graph, "house", output=output, roots=roots) for roots in ((0, 4), (4, 4), (4, 15))]
        assert torch.equal(sum(parts), match(graph, "house", output=output))


def test_a_list_that_would_not_fit_wants_a_limit():
    """C(300, 7) stars: counted at once, never listed."""
    star = Graph(torch.stack([torch.zeros(300, dtype=torch.int64), torch.arange(1, 301)]), 301)
    assert int(match(star, "star8")) == comb(300, 7)
    with pytest.raises(ValueError, match=rf"match: .*{comb(300, 7):,}|match: .*{comb(300, 7)}.*limit"):
        match(star, "star8", output="list")
    assert match(star, "star8", output="list", limit=10).shape == (10, 8)


def test_closed_forms():
    n = 40
    complete = Graph(torch.triu_indices(n, n, 1), n)
    assert int(match(complete, "square")) == 3 * comb(n, 4)
    assert int(match(complete, "square", induced=True)) == 0
    assert int(match(complete, "path4", symmetry="all")) == n * (n - 1) * (n - 2) * (n - 3)
    assert int(match(complete, "cycle5")) == 12 * comb(n, 5)
    ring = Graph(torch.stack([torch.arange(n), (torch.arange(n) + 1) % n]), n)
    for k in range(3, 9):
        assert int(match(ring, f"cycle{k}")) == 0
        assert match(ring, f"path{k}", output="node_counts").tolist() == [k] * n
    assert match(Graph(torch.stack([torch.arange(8), (torch.arange(8) + 1) % 8])), "cycle8") == 1


@pytest.mark.parametrize("n", [0, 1, 2, 5])
@pytest.mark.parametrize("name", ["edge", "triangle", "star5", "K8"])
def test_graphs_without_edges(name, n):
    graph = Graph(torch.zeros(2, 0, dtype=torch.int64), n)
    pattern = as_pattern(name, "match")
    for induced in (False, True):
        assert int(match(graph, name, induced=induced)) == 0
        assert match(graph, name, output="list").shape == (0, pattern.num_nodes)
        assert match(graph, name, output="node_counts").tolist() == [0] * n
        assert match(graph, name, output="edge_counts").shape == (0,)
        assert match(graph, name, output="orbit_counts").shape == (n, 1 + max(pattern_orbits(pattern)))
    assert k_cliques(graph, 3, "graph").tolist() == [0]


def test_isolated_vertices_and_fragments():
    """A pattern larger than every component; vertices without edges between those with."""
    graph = Graph(torch.tensor([[1, 3, 5, 5], [3, 1, 7, 5]]), 9)
    assert int(match(graph, "edge")) == 2
    assert match(graph, "edge", output="node_counts").tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert int(match(graph, "wedge")) == 0


def test_relabelling_and_threads():
    edges, order = random_edges(60, 0.3), torch.randperm(60)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for moved in (False, True):
            graph = Graph(order[edges] if moved else edges, 60)
            for name in ("house", "bull"):
                node = match(graph, name, induced=True, output="node_counts")
                results.append((name, node[order] if moved else node, match(graph, name, output="edge_counts")))
        listed = match(Graph(edges, 60), "square", output="list")
        results.append(("list", listed, listed))
    torch.set_num_threads(before)
    for name in ("house", "bull", "list"):
        first, *others = [r[1:] for r in results if r[0] == name]
        assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))


def test_wedges_of_mutag():
    data = load_mutag()
    graph = Graph(data.edge_index, data.num_nodes, ptr=data.ptr)
    assert int(match(graph, "wedge", induced=True)) == int(match(graph, "wedge")) == 5428
    assert sum(int(match(graph, f"G{i}", induced=True)) for i in range(3, 9)) == 8864


CA_GRQC = {"star4": 405_750, "path4": 553_322, "paw": 628_366, "square": 1_115, "diamond": 65_717, "K4": 329_297}


def test_published_counts_of_ca_grqc(shared_data):
    graph = network(shared_data, "ca-grqc")
    assert int(match(graph, "triangle")) == 48_260
    assert int(match(graph, "triangle", symmetry="all")) == 289_560
    assert int(match(graph, "4-cycle", symmetry="all")) == 8_437_784
    for name, count in CA_GRQC.items():
        assert int(match(graph, name, induced=True)) == count, name
        orbit = match(graph, name, induced=True, output="orbit_counts").sum(0)
        sizes = torch.bincount(torch.tensor(pattern_orbits(as_pattern(name, "match"))))
        assert torch.equal(orbit, count * sizes)
    assert len(match(graph, "square", output="list")) == 1_054_723


@pytest.mark.parametrize(("name", "count"), [("ego-facebook", 30_004_668), ("email-enron", 2_341_639), ("karate", 11)])
def test_published_4_cliques(name, count, shared_data):
    graph = network(shared_data, name)
    assert int(match(graph, "K4")) == count
    assert k_cliques(graph, 4).sum() == 4 * count


def test_tallies_at_real_hubs(shared_data):
    """Against the closed forms of orbits."""
    graph = network(shared_data, "as-22july06")
    orbits = node_orbits(graph, induced=False)
    for name, columns in (("star4", [6, 7]), ("paw", [9, 10, 11]), ("diamond", [12, 13])):
        counts = match(graph, name, output="orbit_counts")
        assert sorted(counts.T.tolist()) == sorted(orbits[:, columns].T.tolist()), name


BAD = [
    ([(0, 1), (2, 3)], {}, ValueError, "match: pattern is not connected: no path from node 0 to node 2"),
    ("K9", {}, ValueError, "match: pattern 'K9' has 9 nodes, expected 2 to 8"),
    ("heptagram", {}, ValueError, "match: pattern 'heptagram' is unknown, expected one of"),
    (5, {}, TypeError, "match: pattern is int, expected"),
    ("edge", {"symmetry": "none"}, ValueError, "match: symmetry is 'none', expected"),
    ("edge", {"output": "dict"}, ValueError, "match: output is 'dict', expected"),
    ("edge", {"induced": 1.5}, (TypeError, ValueError), "match: induced is 1.5, expected"),
    ("edge", {"limit": -1, "output": "list"}, ValueError, "match: limit is -1, expected"),
    ("edge", {"seeds": torch.tensor([6])}, IndexError, "match: seeds"),
    ("edge", {"seeds": torch.tensor([-1])}, IndexError, "match: seeds"),
    ("edge", {"seeds": torch.tensor([0.5])}, TypeError, "match: seeds"),
    ("edge", {"node_labels": torch.zeros(5).long(), "pattern_node_labels": [0, 0]}, ValueError, "match: node_labels"),
    ("edge", {"node_labels": torch.zeros(6).long(), "pattern_node_labels": [0]}, ValueError,
     "match: pattern_node_labels has 1 entries, expected 2, one per node of the pattern"),
    ("edge", {"edge_labels": torch.zeros(4).long(), "pattern_edge_labels": [0]}, ValueError, "match: edge_labels"),
    ("edge", {"edge_labels": torch.zeros(3).long(), "pattern_edge_labels": [0, 1]}, ValueError,
     "match: pattern_edge_labels has 2 entries, expected 1, one per edge of the pattern"),
    ("edge", {"node_labels": torch.zeros(6).long()}, ValueError, "match: "),
    ("edge", {"pattern_edge_labels": [0]}, ValueError, "match: "),
    ("edge", {"node_labels": torch.zeros(6), "pattern_node_labels": [0, 0]}, TypeError, "match: node_labels"),
    ("edge", {"node_labels": torch.arange(-1, 5).to(torch.int8), "pattern_node_labels": [-1, 0]}, ValueError,
     "match: node_labels holds -1, expected labels in [0, 2**31), as -1 in a pattern is any: node_labels - node"),
    ("edge", {"edge_labels": torch.tensor([0, 1, 2**31]), "pattern_edge_labels": [0]}, ValueError,
     "match: edge_labels holds 2147483648, expected labels in [0, 2**31)"),
    ("edge", {"limit": 3}, ValueError, "match: limit is 3 beside counts, expected None"),
    ("edge", {"limit": np.float64(3), "output": "list"}, ValueError, "match: limit is np.float64(3.0), expected an"),
    ("edge", {"roots": (True, 2)}, TypeError, "match: roots is (True, 2), expected two ints (first, last)"),
    ("edge", {"roots": (0, 7)}, ValueError, "match: roots is (0, 7), expected a range of [0, 6]"),
    ([(0, np.True_)], {}, ValueError, "match: pattern has the entry (0, np.True_), expected pairs of nodes, ints of"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "options", "error", "text"), BAD)
def test_error_texts(given, options, error, text):
    graph = Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]), 6)
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        match(graph, given, **options)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda graph: k_cliques(graph, 1), "k_cliques: k is 1, expected"),
        (lambda graph: k_cliques(graph, 9), "k_cliques: k is 9, expected"),
        (lambda graph: k_cliques(graph, 3, "nodes"), "k_cliques: per is 'nodes', expected"),
        (lambda graph: match_batches(graph, "edge", size=0), "match_batches: size is 0, expected"),
        (lambda graph: match_batches(graph, "edge", size=True), "match_batches: size is True, expected"),
        (lambda graph: match_batches(graph, "edge", limit=-1), "match_batches: limit is -1, expected"),
        (
            lambda graph: match_batches(graph, "edge", node_labels=torch.arange(-1, 5), pattern_node_labels=[0, 0]),
            "match_batches: node_labels holds -1, expected",
        ),
    ],
)
def test_error_texts_of_the_others(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call(Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]), 6))


def test_numpy_ints():
    graph = Graph(random_edges(9, 0.6), 9)
    two, three = np.int64(2), np.uint8(3)
    assert int(match(graph, [(np.int64(0), np.int32(1)), (1, two)])) == int(match(graph, "wedge"))
    assert int(match(graph, "wedge", roots=(np.int64(0), three))) == int(match(graph, "wedge", roots=(0, 3)))
    assert len(match(graph, "wedge", output="list", limit=two)) == 2
    assert [len(part) for part in match_batches(graph, "wedge", size=two, limit=three)] == [2, 1]
    assert torch.equal(k_cliques(graph, three), triangles(graph))
    assert torch.equal(graphlets(graph, three), graphlets(graph, 3))
    assert torch.equal(edge_orbits(graph, three), edge_orbits(graph, 3))


@pytest.mark.parametrize("leaves", [1400, 1600])
def test_the_largest_counts_are_exact(leaves):
    """C(1600, 7) is 5.3e18; its products are beyond int64."""
    star = Graph(torch.stack([torch.zeros(leaves, dtype=torch.int64), torch.arange(1, leaves + 1)]))
    assert int(match(star, "star8")) == comb(leaves, 7)


@pytest.mark.parametrize("output", ["count", "list"])
def test_counts_beyond_int64_are_an_error(output):
    star = Graph(torch.stack([torch.zeros(2390, dtype=torch.int64), torch.arange(1, 2391)]))
    with pytest.raises(OverflowError, match="match: more matches than int64 holds"):
        match(star, "star8", output=output)


@pytest.mark.timeout(60)
def test_interchangeable_nodes_are_not_enumerated():
    """C(n, 4) matches of star5 at a hub of n = 100,000 leaves are 4e18."""
    n = 100_000
    star = Graph(torch.stack([torch.zeros(n, dtype=torch.int64), torch.arange(1, n + 1)]))
    expected = torch.full((n + 1,), comb(n - 1, 3))
    assert torch.equal(match(star, "star5", output="edge_counts"), expected[1:])
    expected[0] = comb(n, 4)
    assert torch.equal(match(star, "star5", output="node_counts"), expected)
    with pytest.raises(OverflowError, match="match: more matches than int64 holds"):
        match(star, "star5", output="node_counts", symmetry="all")
    with pytest.raises(OverflowError, match="match: more matches than int64 holds"):
        match(star, "star7", output="edge_counts")


@pytest.mark.parametrize(("degree", "leaves"), [(1733, 7), (4337, 6), (16175, 5), (121_977, 4)])
def test_tallies_up_to_the_end_of_int64(degree, leaves):
    """C(degree, leaves) is the last that fits; by edge the counts are far below it."""
    pattern = [(0, i) for i in range(1, leaves + 1)]
    for d, fits in ((degree, True), (degree + 1, False)):
        star = Graph(torch.stack([torch.zeros(d, dtype=torch.int64), torch.arange(1, d + 1)]))
        assert int(match(star, pattern, output="edge_counts")[0]) == comb(d - 1, leaves - 1)
        for output in ("node_counts", "orbit_counts"):
            if fits:
                assert int(match(star, pattern, output=output)[0].max()) == comb(d, leaves) < 2**63
            else:
                with pytest.raises(OverflowError, match="match: more matches than int64 holds"):
                    match(star, pattern, output=output)


def test_labels_on_nothing():
    none = torch.empty(0, dtype=torch.int64)
    edgeless = Graph(torch.empty(2, 0, dtype=torch.int64), 3)
    assert int(match(edgeless, "edge", edge_labels=none, pattern_edge_labels=[1])) == 0
    assert int(match(Graph(none.view(2, 0), 0), "edge", node_labels=none, pattern_node_labels=[1, 0])) == 0


INTERRUPTED = """
import os, signal, threading
import torch
from innerloop import Graph, closeness, match, motif_grid, node_orbits
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
clique, large = (Graph(torch.triu_indices(n, n, 1)) for n in (200, 1200))
star = Graph(torch.stack([torch.zeros(700, dtype=torch.int64), torch.arange(1, 701)]))
path = Graph(torch.stack([torch.arange(59999), torch.arange(1, 60000)]))
few = Graph.batch_of([Graph(torch.triu_indices(600, 600, 1))] * 8)
uneven = Graph.batch_of([path] + [Graph(torch.tensor([[0], [1]]))] * 5)
calls = {
    "match": lambda: match(clique, "K8"),
    "one heavy root": lambda: match(clique, "K8", roots=(0, 16), output="node_counts"),
    "orbits": lambda: node_orbits(large, 4),
    "grid": lambda: motif_grid(star, 1, k=5),
    "closeness": lambda: closeness(path),
    "sampled closeness": lambda: closeness(path, samples=50000),
    "few graphs": lambda: node_orbits(few, 4),
    "uneven graphs": lambda: closeness(uneven),
}
for threads in (1, 2):
    torch.set_num_threads(threads)
    for name, call in calls.items():
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            call()
            timer.cancel()
            print("at its end:", threads, name)
        except KeyboardInterrupt:
            print("interrupted:", threads, name)
"""


def test_ctrl_c_stops_a_count():
    names = [
        "match",
        "one heavy root",
        "orbits",
        "grid",
        "closeness",
        "sampled closeness",
        "few graphs",
        "uneven graphs",
    ]
    expected = [f"interrupted: {threads} {name}" for threads in (1, 2) for name in names]
    assert run_python(INTERRUPTED, timeout=200).splitlines() == expected
