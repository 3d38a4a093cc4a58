# SPDX-License-Identifier: Apache-2.0
"""node_orbits, edge_orbits and graphlets against brute force, and what they promise: bits, compile, memory, errors."""

import inspect
import itertools

import innerloop
import pytest
import torch
from cases import NO_GRAPHS, Record, filter_torch_warnings
from innerloop import Graph, edge_orbits, graphlets, node_orbits
from innerloop.reference.node_orbits import GRAPHLETS, NUM_ORBITS, overlap_matrix
from innerloop.reference.node_orbits import edge_orbits as reference_edges
from innerloop.reference.node_orbits import graphlets as reference_graphlets
from innerloop.reference.node_orbits import node_orbits as reference_nodes
from ops.orbit_cases import AUTOMORPHISMS, complete, graphlet, network, overlaps, random_edges
from processes import run_python
from torch import Tensor


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
@NO_GRAPHS
def test_error_texts_of_graph(name, graph, error, text):
    with pytest.raises(error, match=text):
        FUNCTIONS[name](graph, 4)
