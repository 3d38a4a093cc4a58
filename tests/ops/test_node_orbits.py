# SPDX-License-Identifier: Apache-2.0
"""node_orbits, edge_orbits and graphlets against brute force, identities, closed forms and published counts."""

import functools
import inspect
import itertools
from math import comb, factorial
from pathlib import Path

import innerloop
import pytest
import torch
from cases import Record, filter_torch_warnings
from innerloop import Graph, edge_orbits, graphlets, node_orbits
from innerloop.data.tu import GraphDataset, load_mutag, read_edge_list, read_tu
from innerloop.reference.node_orbits import GRAPHLETS, NUM_ORBITS, overlap_matrix
from innerloop.reference.node_orbits import edge_orbits as reference_edges
from innerloop.reference.node_orbits import graphlets as reference_graphlets
from innerloop.reference.node_orbits import node_orbits as reference_nodes
from processes import run_python
from torch import Tensor

NUM_GRAPHLETS = {3: 3, 4: 9, 5: 30}
AUTOMORPHISMS = [
    2, 2, 6, 2, 6, 8, 2, 4, 24, 2, 2, 24, 2, 2, 4, 10, 2, 2, 8, 2, 12, 2, 12, 6, 2, 4, 4, 8, 12, 120,
]  # fmt: skip


def graphlet(i: int) -> tuple[Tensor, int]:
    """Edges (m, 2) and number of nodes of G_i."""
    text, orbit, _ = GRAPHLETS[i]
    return torch.tensor([[int(u), int(v)] for u, v in text.split()]), len(orbit)


def random_edges(n: int, density: float) -> Tensor:
    """Distinct undirected edges, (m, 2), in random order and direction."""
    pairs = torch.triu_indices(n, n, 1).T
    pairs = pairs[torch.rand(len(pairs)) < density]
    pairs = pairs[torch.randperm(len(pairs))]
    return torch.where(torch.rand(len(pairs), 1) < 0.5, pairs, pairs.flip(1))


def complete(n: int) -> Graph:
    return Graph(torch.triu_indices(n, n, 1), n)


def star(leaves: int) -> Graph:
    return Graph(torch.stack([torch.zeros(leaves, dtype=torch.int64), torch.arange(1, leaves + 1)]), leaves + 1)


@pytest.fixture
def folder(shared_data) -> Path:
    if not (shared_data / "graphs").is_dir():
        pytest.skip(f"{shared_data / 'graphs'} is absent")
    return shared_data / "graphs"


def network(folder: Path, name: str) -> Graph:
    return Graph(*read_edge_list(folder / "net" / f"{name}.txt.xz"))


def collection(folder: Path, name: str) -> GraphDataset:
    return read_tu(folder / "tu" / f"{name}.txt.xz")


overlaps = functools.cache(overlap_matrix)


def assert_orbits(graph: Graph, nodes: Tensor, edges: Tensor) -> None:
    """`nodes` and `edges` are the induced counts for k = 5; those for less are the first columns."""
    every = nodes, edges, nodes @ overlaps(5).T, edges @ overlaps(5, "edge").T
    for k, induced in itertools.product((3, 4, 5), (True, False)):
        n, e = every[:2] if induced else every[2:]
        actual = node_orbits(graph, k, induced=induced)
        assert actual.dtype == torch.int64
        assert torch.equal(actual, n[:, : NUM_ORBITS["node"][k]]), f"nodes, k = {k}, induced = {induced}"
        actual = edge_orbits(graph, k, induced=induced)
        assert actual.dtype == torch.int64
        assert torch.equal(actual, e[:, : NUM_ORBITS["edge"][k]]), f"edges, k = {k}, induced = {induced}"


def assert_brute_force(graph: Graph) -> None:
    edges, n = graph.edges, graph.num_nodes
    assert_orbits(graph, reference_nodes(edges.T, n, 5), reference_edges(edges, n, 5))


# The definition itself


@pytest.mark.parametrize("density", [0.4, 0.7, 1])
@pytest.mark.parametrize("induced", [True, False])
def test_reference_is_the_definition(induced, density):
    """Every injective map of every graphlet that keeps its edges, divided by |Aut|."""
    n, edges = 6, random_edges(6, density)
    nodes, pairs = torch.zeros(n, 73, dtype=torch.int64), torch.zeros(len(edges), 68, dtype=torch.int64)
    row = {frozenset(e): i for i, e in enumerate(edges.tolist())}
    for i, (_, node_orbit, edge_orbit) in enumerate(GRAPHLETS):
        own = [tuple(e) for e in graphlet(i)[0].tolist()]
        others = set(itertools.combinations(range(len(node_orbit)), 2)) - set(own)
        node_maps, edge_maps = torch.zeros_like(nodes), torch.zeros_like(pairs)
        for image in itertools.permutations(range(n), len(node_orbit)):
            at = [row.get(frozenset((image[u], image[v]))) for u, v in own]
            extra = any(frozenset((image[u], image[v])) in row for u, v in others)
            if None in at or (induced and extra):
                continue
            for v, orbit in zip(image, node_orbit, strict=True):
                node_maps[v, orbit] += 1
            for e, orbit in zip(at, edge_orbit, strict=False):  # the single edge has no orbit
                edge_maps[e, orbit] += 1
        assert not (node_maps % AUTOMORPHISMS[i]).any()
        nodes += node_maps // AUTOMORPHISMS[i]
        pairs += edge_maps // AUTOMORPHISMS[i]
    assert torch.equal(reference_nodes(edges.T, n, 5, induced), nodes)
    assert torch.equal(reference_edges(edges, n, 5, induced), pairs)


@pytest.mark.parametrize("k", [3, 4, 5])
def test_overlap_matrices(k):
    """Unitriangular in the order of graphlets, and those of spec 2.2 for four nodes."""
    for per in ("node", "edge"):
        matrix = overlap_matrix(k, per)
        assert matrix.shape == (NUM_ORBITS[per][k],) * 2
        assert matrix.diagonal().unique().tolist() == [1]
        assert torch.equal(matrix, matrix.triu())
        assert torch.equal(matrix, overlap_matrix(5, per)[: len(matrix), : len(matrix)])
    if k > 3:
        matrix = overlap_matrix(k)
        rows = {5: {5: 1, 8: 2, 11: 2, 10: 1, 13: 4, 12: 2, 14: 6}, 9: {9: 1, 12: 2, 14: 3}, 12: {12: 1, 14: 3}}
        rows |= {1: {1: 1, 3: 2}, 2: {2: 1, 3: 1}, 6: {6: 1, 9: 1, 10: 1, 13: 1, 12: 2, 14: 3}}
        for orbit, row in rows.items():
            assert {i: int(x) for i, x in enumerate(matrix[orbit]) if x} == row


# The ops against it


def test_each_graphlet():
    """In one batch: its own orbits once each, and no other graphlet of its size."""
    batch = Graph.batch_of([Graph(edges.T, n) for edges, n in map(graphlet, range(30))])
    nodes, edges, whole = node_orbits(batch, 5), edge_orbits(batch, 5), graphlets(batch, 5)
    assert torch.equal(whole.diagonal(), torch.ones(30, dtype=torch.int64))
    node = edge = 0
    for i, (_, node_orbit, edge_orbit) in enumerate(GRAPHLETS):
        n, m = len(node_orbit), graphlet(i)[0].shape[0]
        mine = torch.zeros(n, 73, dtype=torch.int64)
        mine[torch.arange(n), list(node_orbit)] = 1
        smaller = NUM_ORBITS["node"].get(n - 1, 0)
        assert torch.equal(nodes[node : node + n, smaller:], mine[:, smaller:]), f"G{i}"
        if edge_orbit:
            mine = torch.zeros(m, 68, dtype=torch.int64)
            mine[torch.arange(m), list(edge_orbit)] = 1
            smaller = NUM_ORBITS["edge"][n - 1]
            assert torch.equal(edges[edge : edge + m, smaller:], mine[:, smaller:]), f"G{i}"
        node, edge = node + n, edge + m


@pytest.mark.parametrize("density", [0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1])
def test_random_graphs(density):
    """Twenty graphs of up to 12 nodes, each alone and all as one batch."""
    graphs = [Graph(random_edges(n, density).T, n) for n in [*range(1, 13), *range(5, 13)]]
    nodes = [reference_nodes(g.edges.T, g.num_nodes, 5) for g in graphs]
    edges = [reference_edges(g.edges, g.num_nodes, 5) for g in graphs]
    for graph, n, e in zip(graphs, nodes, edges, strict=True):
        assert_orbits(graph, n, e)
    assert_orbits(Graph.batch_of(graphs), torch.cat(nodes), torch.cat(edges))


@pytest.mark.parametrize("induced", [True, False])
@pytest.mark.parametrize("k", [3, 4, 5])
def test_graphlets(k, induced):
    graphs = [Graph(random_edges(n, 0.6).T, n) for n in (9, 0, 4, 1, 12)]
    expected = torch.stack([reference_graphlets(g.edges.T, g.num_nodes, k, induced) for g in graphs])
    actual = graphlets(Graph.batch_of(graphs), k, induced=induced)
    assert actual.dtype == torch.int64
    assert torch.equal(actual, expected)
    assert torch.equal(graphlets(graphs[0], k, induced=induced), expected[:1])


@pytest.mark.parametrize("name", ["karate", "dolphins", pytest.param("lesmis", marks=pytest.mark.slow)])
def test_networks_by_brute_force(name, folder):
    assert_brute_force(network(folder, name))


@pytest.mark.parametrize(("n", "density"), [(20, 0.9), (24, 0.5), (40, 0.1), (60, 0.04)])
def test_larger_random_graphs(n, density):
    assert_brute_force(Graph(random_edges(n, density).T, n))


# What must hold on any graph, for graphs too large for brute force


def ends() -> Tensor:
    """(73, 68): for a node in an orbit, how many of its edges in the graphlet are in each edge orbit."""
    matrix = torch.zeros(73, 68, dtype=torch.int64)
    for i, (_, node_orbit, edge_orbit) in enumerate(GRAPHLETS):
        for (u, v), orbit in zip(graphlet(i)[0].tolist(), edge_orbit, strict=False):  # the single edge has no orbit
            matrix[node_orbit[u], orbit] += 1
            matrix[node_orbit[v], orbit] += 1
    return matrix // torch.bincount(torch.tensor([o for _, orbit, _ in GRAPHLETS for o in orbit]))[:, None]


def assert_identities(graph: Graph, k: int) -> None:
    results = {}
    for induced in (True, False):
        nodes, edges = results[induced] = node_orbits(graph, k, induced=induced), edge_orbits(graph, k, induced=induced)
        assert torch.equal(nodes[:, 0], graph.degree)
        at_ends = torch.zeros(graph.num_nodes, edges.shape[1], dtype=torch.int64)
        for end in graph.edges.T:
            at_ends.index_add_(0, end, edges)
        assert torch.equal(at_ends, nodes @ ends()[: nodes.shape[1], : edges.shape[1]])
        total, whole = nodes.sum(0).tolist(), graphlets(graph, k, induced=induced)[0].tolist()
        for i, (_, orbit, _) in enumerate(GRAPHLETS[: NUM_GRAPHLETS[k]]):
            assert all(total[o] == orbit.count(o) * whole[i] for o in orbit), f"G{i}"
    (nodes, edges), (all_nodes, all_edges) = results[True], results[False]
    assert torch.equal(all_nodes, nodes @ overlaps(k).T)
    assert torch.equal(all_edges, edges @ overlaps(k, "edge").T)
    for rays, orbit in ((2, 2), (3, 7), (4, 23)):
        if rays < k:
            assert all_nodes[:, orbit].tolist() == [comb(x, rays) for x in graph.degree.tolist()]


NETWORKS = (
    "adjnoun", "as-22july06", "astro-ph", "ca-grqc", "celegansneural", "cond-mat", "cond-mat-2005", "dolphins",
    "ego-facebook", "email-enron", "fb-mit8", "football", "hep-th", "karate", "lesmis", "netscience",
    "pgp-strong-2009", "polblogs", "polbooks", "power", "wiki-vote",
)  # fmt: skip
SMALL = ("adjnoun", "celegansneural", "football", "hep-th", "karate", "lesmis", "netscience", "polbooks", "power")


@pytest.mark.parametrize("name", NETWORKS)
def test_identities_of_four_nodes(name, folder):
    assert_identities(network(folder, name), 4)


@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_identities_of_five_nodes(name, folder):
    assert_identities(network(folder, name), 5)


@pytest.mark.parametrize(("n", "density"), [(70, 0.5), (100, 0.9), (300, 0.05), (1000, 0.01)])
@pytest.mark.parametrize("k", [3, 4, 5])
def test_identities_of_random_graphs(n, density, k):
    assert_identities(Graph(random_edges(n, density).T, n), k)


@pytest.mark.parametrize(("n", "density"), [(30, 0.6), (75, 0.4), (150, 0.8)])
def test_neighbourhoods(n, density):
    """A graphlet around a node that is adjacent to all of it is a smaller graphlet of the neighbourhood."""
    edges = random_edges(n, density)
    adjacent = torch.zeros(n, n, dtype=torch.bool)
    adjacent[edges[:, 0], edges[:, 1]] = adjacent[edges[:, 1], edges[:, 0]] = True
    for k in (4, 5):
        apexes = []
        for i in range(NUM_GRAPHLETS.get(k - 2, 1), NUM_GRAPHLETS[k - 1]):
            small, size = graphlet(i)
            cone = torch.cat([small.T, torch.stack([torch.arange(size), torch.full((size,), size)])], 1)
            apexes.append(int(reference_nodes(cone, k, k)[size, NUM_ORBITS["node"][k - 1] :].argmax()))
        nodes = node_orbits(Graph(edges.T, n), k)[:, NUM_ORBITS["node"][k - 1] :]
        around = []
        for v in range(0, n, 5):
            neighbors = adjacent[v].nonzero().flatten()
            inside = Graph(adjacent[neighbors][:, neighbors].nonzero().T, len(neighbors))
            around.append(graphlets(inside, k - 1)[0, -len(apexes) :])
        assert torch.equal(nodes[::5, apexes], torch.stack(around))


@pytest.mark.parametrize(("n", "density"), [(30, 0.6), (100, 0.3), (250, 0.1)])
def test_cycles_by_traces(n, density):
    """Non-induced cycles of 4 and 5 from powers of the adjacency matrix (Harary and Manvel, 1971)."""
    edges = random_edges(n, density)
    a = torch.zeros(n, n, dtype=torch.float64)
    a[edges[:, 0], edges[:, 1]] = a[edges[:, 1], edges[:, 0]] = 1
    d, a2 = a.sum(1), a @ a
    a3 = a2 @ a
    four = ((a2 * a2).sum() - 2 * (d * d).sum() + d.sum()) / 8
    five = ((a2 * a3).sum() + 5 * a3.trace() - 5 * (d * a3.diagonal()).sum()) / 10
    counts = graphlets(Graph(edges.T, n), 5, induced=False)[0]
    assert (counts[5], counts[15]) == (int(four), int(five))


# Published and closed forms


KNOWN = {  # graphlet: induced number
    "karate": {2: 45, 8: 11},
    "ca-grqc": {2: 48260, 3: 553322, 4: 405750, 5: 1115, 6: 628366, 7: 65717, 8: 329297},
    "ego-facebook": {2: 1612010, 8: 30004668},
    "email-enron": {2: 727044, 8: 2341639},
    "fb-mit8": {8: 13680925},
    "pgp-strong-2009": {8: 9600653},
    "wiki-vote": {2: 608389},
}


@pytest.mark.parametrize("name", KNOWN)
def test_published_counts(name, folder):
    counts = graphlets(network(folder, name), 4)[0].tolist()
    assert {i: counts[i] for i in KNOWN[name]} == KNOWN[name]
    if name == "email-enron":
        assert sum(counts[3:]) == 6258690375


def test_cycles_of_ca_grqc(folder):
    assert graphlets(network(folder, "ca-grqc"), 4, induced=False)[0, 5] == 1054723


def test_mutag():
    data = load_mutag()
    counts = graphlets(Graph(data.edge_index, data.num_nodes, ptr=data.ptr), 4)
    assert counts.shape == (188, 9)
    assert counts.sum(0)[:3].tolist() == [3721, 5428, 0]
    assert counts[:, 3:].sum() == 8864


@pytest.mark.parametrize(
    ("n", "k"),
    [
        *itertools.product((5, 63, 64, 65, 127, 129, 200), (3, 4)),
        *itertools.product((5, 63, 64, 65, 129), (5,)),
        (500, 4),
        *(pytest.param(n, k, marks=pytest.mark.slow) for n, k in ((1500, 4), (200, 5))),
    ],
)
def test_complete_graphs(n, k):
    """Sizes around those of machine words, and counts beyond 32 bits: C(500, 4) = C(200, 5) = 2.6e9."""
    graph = complete(n)
    whole = torch.zeros(NUM_GRAPHLETS[k], dtype=torch.int64)
    for size, i in ((2, 0), (3, 2), (4, 8), (5, 29)):
        if size <= k:
            whole[i] = comb(n, size)
    assert torch.equal(graphlets(graph, k)[0], whole)
    node = torch.zeros(NUM_ORBITS["node"][k], dtype=torch.int64)
    non_induced = torch.zeros_like(node)
    for i, (_, orbit, _) in enumerate(GRAPHLETS[: NUM_GRAPHLETS[k]]):
        copies = comb(n, len(orbit)) * factorial(len(orbit)) // AUTOMORPHISMS[i]
        for o in set(orbit):
            node[o] = int(whole[i]) * orbit.count(o) // n
            non_induced[o] = copies * orbit.count(o) // n
    assert torch.equal(node_orbits(graph, k), node.expand(n, -1))
    assert torch.equal(node_orbits(graph, k, induced=False), non_induced.expand(n, -1))
    if n <= 200:
        edge = torch.zeros(NUM_ORBITS["edge"][k], dtype=torch.int64)
        for size, o in ((3, 1), (4, 11), (5, 67)):
            if size <= k:
                edge[o] = comb(n - 2, size - 2)
        assert torch.equal(edge_orbits(graph, k), edge.expand(graph.num_edges, -1))


@pytest.mark.parametrize(
    ("leaves", "k"), [(100_000, 3), (100_000, 4), (3000, 5), pytest.param(100_000, 5, marks=pytest.mark.slow)]
)
def test_stars(leaves, k):
    """4.2e18 stars of four rays: their number fits 64 bits, four times it does not."""
    graph, k_orbits = star(leaves), NUM_ORBITS["node"][k]
    center, leaf = torch.zeros(2, 73, dtype=torch.int64)
    edge, whole = torch.zeros(68, dtype=torch.int64), torch.zeros(30, dtype=torch.int64)
    center[0], leaf[0], whole[0] = leaves, 1, leaves
    for rays, i, at_center, at_leaf, at_edge in ((2, 1, 2, 1, 0), (3, 4, 7, 6, 4), (4, 11, 23, 22, 17)):
        if rays < k:
            center[at_center] = whole[i] = comb(leaves, rays)
            leaf[at_leaf] = edge[at_edge] = comb(leaves - 1, rays - 1)
    for induced in (True, False):
        nodes = node_orbits(graph, k, induced=induced)
        assert torch.equal(nodes[0], center[:k_orbits])
        assert torch.equal(nodes[1:], leaf[:k_orbits].expand(leaves, -1))
        assert torch.equal(edge_orbits(graph, k, induced=induced), edge[: NUM_ORBITS["edge"][k]].expand(leaves, -1))
        assert torch.equal(graphlets(graph, k, induced=induced)[0], whole[: NUM_GRAPHLETS[k]])


def test_two_hubs():
    """K_{2,20000}: 2e8 cycles, 2.7e12 stars; 400 million pairs of neighbours of a hub are not walked."""
    n = 20_000
    leaf = torch.arange(2, n + 2)
    edges = torch.cat([torch.stack([torch.full((n,), hub), leaf]) for hub in (0, 1)], 1)
    nodes = node_orbits(Graph(edges, n + 2), 4)
    hub = {0: n, 1: n, 2: comb(n, 2), 7: comb(n, 3), 8: comb(n, 2)}
    other = {0: 2, 1: 2 * (n - 1), 2: 1, 6: 2 * comb(n - 1, 2), 8: n - 1}
    assert {o: int(x) for o, x in enumerate(nodes[0]) if x} == hub
    assert torch.equal(nodes[1], nodes[0])
    assert {o: int(x) for o, x in enumerate(nodes[2]) if x} == other
    assert torch.equal(nodes[2:], nodes[2].expand(n, -1))


# Inputs


@pytest.mark.parametrize("k", [3, 4, 5])
def test_relabelling(k):
    edges, order = random_edges(60, 0.2), torch.randperm(60)
    graph, moved = Graph(edges.T, 60), Graph(order[edges].T, 60)
    assert torch.equal(node_orbits(moved, k)[order], node_orbits(graph, k))
    assert torch.equal(edge_orbits(moved, k), edge_orbits(graph, k))
    assert torch.equal(graphlets(moved, k), graphlets(graph, k))


@pytest.mark.parametrize("k", [3, 4, 5])
def test_both_directions_loops_and_duplicates(k):
    edges = random_edges(20, 0.4).T
    graph = Graph(edges, 20)
    messy = torch.cat([edges, edges.flip(0), edges[:, ::3], torch.arange(20).expand(2, 20)], 1)
    for again in (messy, messy.int(), messy.T.contiguous().T):
        assert torch.equal(node_orbits(Graph(again, 20), k), node_orbits(graph, k))
        assert torch.equal(edge_orbits(Graph(again, 20), k), edge_orbits(graph, k))
    assert torch.equal(node_orbits(edges, k), node_orbits(Graph(edges), k))  # a tensor will do


@pytest.mark.parametrize("sizes", [(0,), (1,), (2,), (5,), (0, 0), (0, 3, 0, 1)], ids=str)
@pytest.mark.parametrize("k", [3, 4, 5])
def test_no_edges(sizes, k):
    ptr = torch.tensor([0, *itertools.accumulate(sizes)])
    graph = Graph(torch.zeros(2, 0, dtype=torch.int64), sum(sizes), ptr=ptr)
    for induced in (True, False):
        nodes, edges = node_orbits(graph, k, induced=induced), edge_orbits(graph, k, induced=induced)
        assert torch.equal(nodes, torch.zeros(sum(sizes), NUM_ORBITS["node"][k], dtype=torch.int64))
        assert edges.shape == (0, NUM_ORBITS["edge"][k])
        whole = torch.zeros(len(sizes), NUM_GRAPHLETS[k], dtype=torch.int64)
        assert torch.equal(graphlets(graph, k, induced=induced), whole)


@pytest.mark.parametrize("k", [3, 4, 5])
def test_isolated_nodes_and_small_components(k):
    """Nodes 0, 3 and 6 alone, only a self loop at 3, the edge (1, 4), the path 2 - 5 - 7."""
    graph = Graph(torch.tensor([[3, 4, 5, 7], [3, 1, 2, 5]]), 9)
    nodes = node_orbits(graph, k)
    assert nodes.nonzero().tolist() == [[1, 0], [2, 0], [2, 1], [4, 0], [5, 0], [5, 2], [7, 0], [7, 1]]
    assert nodes[5, 0] == 2
    assert edge_orbits(graph, k).nonzero().tolist() == [[1, 0], [2, 0]]


@pytest.mark.parametrize("k", [4, 5])
@pytest.mark.parametrize("name", ["PTC", "ENZYMES", "IMDBBINARY"])
def test_collections_as_batches(name, k, folder):
    assert_batch(collection(folder, name), k)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "PTC_MR", "PTC_FM", "PTC_FR", "PTC_MM", "PROTEINS", "NCI1", "NCI109", "IMDBMULTI", "DD", "COLLAB",
        "REDDIT-BINARY",
    ],
)  # fmt: skip
def test_other_collections_as_batches(name, folder):
    assert_batch(collection(folder, name), 4)


@pytest.mark.parametrize("k", [4, 5])
def test_mutag_as_a_batch(k):
    assert_batch(load_mutag(), k)


def assert_batch(data: GraphDataset, k: int) -> None:
    """One call for all graphs gives what a call for each gives."""
    batch = Graph(data.edge_index, data.num_nodes, ptr=data.ptr)
    owner = data.batch[data.edge_index[0]]
    columns = data.edge_index.split(torch.bincount(owner, minlength=len(data)).tolist(), 1)
    graphs = [
        Graph(e - first, size)
        for e, first, size in zip(columns, data.ptr[:-1].tolist(), data.sizes.tolist(), strict=True)
    ]
    for op in (node_orbits, edge_orbits, graphlets):
        assert torch.equal(op(batch, k), torch.cat([op(graph, k) for graph in graphs])), op.__name__


def dense_batch() -> list[Graph]:
    """Enough graphs to be counted one after the other, of sizes around whole words of bits, dense and not."""
    generator = torch.Generator().manual_seed(1)
    graphs = []
    for n, density in itertools.product((3, 64, 65, 130, 257, 300, 520), (0.05, 0.5, 0.97)):
        pairs = torch.triu_indices(n, n, 1)
        graphs.append(Graph(pairs[:, torch.rand(pairs.shape[1], generator=generator) < density], n))
    return 2 * graphs


def test_dense_graphs_as_a_batch():
    graphs = dense_batch()
    batch = Graph.batch_of(graphs)
    for induced in (True, False):
        alone = [node_orbits(graph, 4, induced=induced) for graph in graphs]
        assert torch.equal(node_orbits(batch, 4, induced=induced), torch.cat(alone))
    assert torch.equal(edge_orbits(batch, 4), torch.cat([edge_orbits(graph, 4) for graph in graphs]))
    for per in ("node", "edge", "graph"):
        alone = [innerloop.triangles(graph, per) for graph in graphs]
        assert torch.equal(innerloop.triangles(batch, per), torch.cat(alone))


@pytest.mark.slow
def test_star_whose_triples_pass_63_bits_on_the_way():
    leaves = 2_650_000
    star = Graph(torch.stack([torch.zeros(leaves, dtype=torch.int64), torch.arange(1, leaves + 1)]))
    assert int(node_orbits(star, 4)[0, 7]) == comb(leaves, 3)


# Promises


def results() -> list[Tensor]:
    """The same graphs in every process: skewed, dense, batches of small and of larger graphs."""
    generator = torch.Generator().manual_seed(0)
    skewed = (torch.rand(2, 3000, generator=generator) ** 3 * 400).long()
    dense = torch.triu_indices(90, 90, 1)
    dense = dense[:, torch.rand(dense.shape[1], generator=generator) < 0.7]
    small = torch.randint(0, 30, (2, 90), generator=generator)
    small = small[:, small[0] // 10 == small[1] // 10]
    graphs = Graph(skewed, 400), Graph(dense, 90), Graph(small, 30, ptr=torch.tensor([0, 10, 10, 20, 30]))
    found = []
    for graph in graphs:
        for per in ("node", "edge", "graph"):
            found.append(innerloop.triangles(graph, per))
        found += [innerloop.clustering(graph), innerloop.transitivity(graph)]
        for op in (node_orbits, edge_orbits, graphlets):
            found += [op(graph, k, induced=induced) for k in (3, 4, 5) for induced in (True, False)]
    sizes = torch.tensor([40, 60, 90, 200, 300]).repeat(8)
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    owner = torch.randint(len(sizes), (150_000,), generator=generator)
    many = (torch.rand(2, len(owner), generator=generator) * sizes[owner]).long() + ptr[owner]
    many = Graph(many, int(ptr[-1]), ptr=ptr)
    return [*found, innerloop.triangles(many, "node"), innerloop.triangles(many, "edge"), node_orbits(many, 4)]


@pytest.fixture(scope="module")
def here() -> list[Tensor]:
    return results()


def test_bits_do_not_depend_on_threads(here):
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        again = results()
        torch.set_num_threads(before)
        assert all(map(torch.equal, again, here)), f"{threads} threads"


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree(isa, here, tmp_path):
    if isa not in innerloop.cpu_isas():
        pytest.skip(f"this machine or build has {', '.join(innerloop.cpu_isas())}")
    path = tmp_path / "results.pt"
    chosen = run_python(
        "from __future__ import annotations\nimport innerloop, torch\n"
        "from innerloop import Graph, edge_orbits, graphlets, node_orbits\n"
        f"{inspect.getsource(results)}\ntorch.save(results(), {str(path)!r})\nprint(innerloop.cpu_isa())",
        INNERLOOP_CPU=isa,
    )
    assert chosen.strip() == isa
    assert all(map(torch.equal, torch.load(path), here))


FUNCTIONS = {"node_orbits": node_orbits, "edge_orbits": edge_orbits, "graphlets": graphlets}


@pytest.mark.parametrize("k", [3, 4, 5])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_opcheck(name, k):
    """With the arguments that the public functions pass, whatever they are."""
    for sizes, induced in (((6, 0, 4), True), ((5,), False), ((0,), True)):
        graph = Graph.batch_of([Graph(random_edges(n, 0.6).T, n) for n in sizes])
        with Record() as record:
            FUNCTIONS[name](graph, k, induced=induced)
        record.opcheck()


@filter_torch_warnings
def test_compile():
    graph = Graph.batch_of([Graph(random_edges(n, 0.6).T, n) for n in (9, 12)])

    def everything(one):
        options = itertools.product((3, 4, 5), (True, False))
        return [f(graph, k, induced=induced) + one for k, induced in options for f in FUNCTIONS.values()]

    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="inductor")
    assert all(map(torch.equal, compiled(torch.tensor(1)), everything(1)))


@pytest.mark.slow
def test_memory_of_five_nodes(folder):
    """Within 1 GB on email-enron, interpreter and torch included."""
    path = folder / "net" / "email-enron.txt.xz"
    peak = run_python(
        "import innerloop, resource\nfrom innerloop.data.tu import read_edge_list\n"
        f"graph = innerloop.Graph(*read_edge_list({str(path)!r}))\ninnerloop.node_orbits(graph, 5)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)",
        timeout=280,
    )
    assert int(peak) < 2**20


@pytest.mark.parametrize("k", [2, 6, 4.0, "4", None, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_text_of_k(name, k):
    with pytest.raises((ValueError, TypeError)) as caught:
        FUNCTIONS[name](complete(5), k)
    assert str(caught.value).startswith(f"{name}: k is {k!r}, expected 3, 4 or 5")


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("graph", "error", "text"),
    [
        (3, TypeError, "int"),
        (torch.rand(2, 4), TypeError, "edge_index.*float32"),
        (torch.ones(3, 4, dtype=torch.int64), ValueError, r"edge_index.*\(3, 4\).*\(2, E\)"),
        (torch.tensor([[0], [-1]]), (ValueError, IndexError), "edge_index.*-1"),
    ],
    ids=["number", "float", "shape", "negative"],
)
def test_error_texts_of_graph(name, graph, error, text):
    with pytest.raises(error, match=text):
        FUNCTIONS[name](graph, 4)
