# SPDX-License-Identifier: Apache-2.0
"""node_orbits, edge_orbits and graphlets against identities, published counts and closed forms."""

import itertools
from math import comb, factorial

import pytest
import torch
from innerloop import Graph, edge_orbits, graphlets, node_orbits
from innerloop.data.tu import load_mutag
from innerloop.reference.node_orbits import GRAPHLETS, NUM_ORBITS
from innerloop.reference.node_orbits import node_orbits as reference_nodes
from ops.orbit_cases import AUTOMORPHISMS, NUM_GRAPHLETS, complete, graphlet, network, overlaps, random_edges
from torch import Tensor

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


def star(leaves: int) -> Graph:
    return Graph(torch.stack([torch.zeros(leaves, dtype=torch.int64), torch.arange(1, leaves + 1)]), leaves + 1)


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


@pytest.mark.slow
def test_star_whose_triples_pass_63_bits_on_the_way():
    leaves = 2_650_000
    star = Graph(torch.stack([torch.zeros(leaves, dtype=torch.int64), torch.arange(1, leaves + 1)]))
    assert int(node_orbits(star, 4)[0, 7]) == comb(leaves, 3)


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
