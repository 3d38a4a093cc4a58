# SPDX-License-Identifier: Apache-2.0
"""triangles, clustering and transitivity against their definition, networkx, closed forms and published counts."""

import re
from math import comb
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from cases import NO_GRAPHS, Record, filter_torch_warnings
from innerloop import Graph, clustering, transitivity, triangles
from innerloop.data.rmat import rmat
from innerloop.data.tu import load_mutag, read_edge_list
from innerloop.ops.triangles import sum_by_graph
from innerloop.reference.triangles import clustering as reference_clustering
from innerloop.reference.triangles import transitivity as reference_transitivity
from innerloop.reference.triangles import triangles as reference
from scipy.sparse import csr_array
from tolerances import assert_close
from torch import Tensor


def random_edges(n: int, density: float) -> Tensor:
    """Distinct undirected edges, (2, m), in random order and direction."""
    pairs = torch.triu_indices(n, n, 1)
    pairs = pairs[:, torch.rand(pairs.shape[1]) < density]
    pairs = pairs[:, torch.randperm(pairs.shape[1])]
    return torch.where(torch.rand(pairs.shape[1]) < 0.5, pairs, pairs.flip(0))


def network(shared_data: Path, name: str) -> tuple[Tensor, int]:
    path = shared_data / "graphs" / "net" / f"{name}.txt.xz"
    return read_edge_list(path) if path.is_file() else pytest.skip(f"{path} is absent")


def assert_as_defined(graph: Graph) -> None:
    edges, n = graph.edges.T, graph.num_nodes
    for per in ("node", "edge"):
        counts = triangles(graph, per)
        assert counts.dtype == torch.int64
        assert torch.equal(counts, reference(edges, n, per)), per
    assert triangles(graph, "graph").tolist() == [int(reference(edges, n, "graph"))]
    assert_close(clustering(graph), reference_clustering(edges, n))
    assert_close(transitivity(graph), reference_transitivity(edges, n)[None])


@pytest.mark.parametrize("density", [0, 0.05, 0.2, 0.5, 0.8, 0.95, 1])
def test_random_graphs(density):
    for n in (1, 2, 3, 5, 9, 12, 40, 66, 130, 200):
        assert_as_defined(Graph(random_edges(n, density), n))


@pytest.mark.parametrize(("scale", "edge_factor"), [(9, 24), (14, 4), (14, 24)])
def test_skewed_graphs_as_scipy(scale, edge_factor):
    """Some of these have more nodes than may have rows of bits."""
    n, edges = 1 << scale, rmat(scale, edge_factor)
    a = csr_array((np.ones(2 * edges.shape[1], np.int64), torch.cat([edges, edges.flip(0)], 1).numpy()), shape=(n, n))
    common = (a @ a).multiply(a)
    graph = Graph(edges, n)
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        assert triangles(graph, "node").tolist() == (common.sum(1) // 2).tolist()
        expected = common.tocsr()[tuple(graph.edges.T.numpy())]
        assert triangles(graph, "edge").tolist() == np.asarray(expected).ravel().tolist()
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["karate", "dolphins", "lesmis"])
def test_networks_as_networkx(name, shared_data):
    edges, n = network(shared_data, name)
    graph, other = Graph(edges, n), nx.Graph(edges.T.tolist())
    assert triangles(graph).tolist() == [nx.triangles(other, v) for v in range(n)]
    assert_close(clustering(graph), torch.tensor([nx.clustering(other, v) for v in range(n)], dtype=torch.float64))
    assert_close(transitivity(graph), torch.tensor([nx.transitivity(other)], dtype=torch.float64))


KNOWN = {
    "karate": 45,
    "power": 651,
    "hep-th": 13302,
    "as-22july06": 46873,
    "ca-grqc": 48260,
    "cond-mat-2005": 378063,
    "wiki-vote": 608389,
    "email-enron": 727044,
    "astro-ph": 756019,
    "pgp-strong-2009": 1146500,
    "ego-facebook": 1612010,
    "fb-mit8": 2370587,
}


@pytest.mark.parametrize("name", KNOWN)
def test_published_counts(name, shared_data):
    graph = Graph(*network(shared_data, name))
    node, edge = triangles(graph), triangles(graph, "edge")
    assert triangles(graph, "graph").tolist() == [KNOWN[name]]
    assert node.sum() == edge.sum() == 3 * KNOWN[name]
    ends = torch.zeros_like(node).index_add(0, graph.edges.flatten(), edge.repeat_interleave(2))
    assert torch.equal(ends, 2 * node)
    wedges = (graph.degree * (graph.degree - 1)).sum() // 2
    assert_close(transitivity(graph), (3 * KNOWN[name] / wedges.double())[None])


def test_molecules_of_mutag_have_no_triangle():
    data = load_mutag()
    graph = Graph(data.edge_index, data.num_nodes, ptr=data.ptr)
    assert torch.equal(triangles(graph, "graph"), torch.zeros(188, dtype=torch.int64))
    assert torch.equal(transitivity(graph), torch.zeros(188, dtype=torch.float64))


def test_a_batch_is_its_graphs_one_after_another():
    graphs = [Graph(random_edges(n, p), n) for n in (0, 1, 2, 3, 7, 12, 0, 30) for p in (0.2, 0.7, 1)]
    batch = Graph.batch_of(graphs)
    for per in ("node", "edge", "graph"):
        assert torch.equal(triangles(batch, per), torch.cat([triangles(g, per) for g in graphs]))
    assert torch.equal(clustering(batch), torch.cat([clustering(g) for g in graphs]))
    assert torch.equal(transitivity(batch), torch.cat([transitivity(g) for g in graphs]))


def test_both_directions_loops_and_duplicates():
    edges = random_edges(20, 0.5)
    graph = Graph(edges, 20)
    messy = torch.cat([edges, edges.flip(0), edges[:, ::3], torch.arange(20).expand(2, 20)], 1)
    for again in (messy, messy.int(), messy.T.contiguous().T):
        assert torch.equal(triangles(Graph(again, 20), "edge"), triangles(graph, "edge"))
        assert torch.equal(clustering(Graph(again, 20)), clustering(graph))
    assert torch.equal(triangles(edges), triangles(Graph(edges)))  # a tensor will do


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_no_edges(n):
    graph = Graph(torch.zeros(2, 0, dtype=torch.int64), n)
    assert triangles(graph).tolist() == [0] * n
    assert triangles(graph, "edge").shape == (0,)
    assert triangles(graph, "graph").tolist() == [0]
    assert clustering(graph).tolist() == [0.0] * n
    assert transitivity(graph).tolist() == [0.0]


@pytest.mark.parametrize("n", [3, 64, 129, 500, pytest.param(2400, marks=pytest.mark.slow)])
def test_complete_graphs(n):
    """2.3e9 triangles in the last, beyond 32 bits."""
    graph = Graph(torch.triu_indices(n, n, 1), n)
    assert triangles(graph).unique().tolist() == [comb(n - 1, 2)]
    assert triangles(graph, "edge").unique().tolist() == [n - 2]
    assert triangles(graph, "graph").tolist() == [comb(n, 3)]
    assert clustering(graph).unique().tolist() == [1.0]
    assert transitivity(graph).tolist() == [1.0]


def test_star_beyond_32_bits():
    """5e9 wedges: 100,000 leaves, the centre in the middle of the ids, and one edge between two of the leaves."""
    n = 100_000
    leaf = torch.cat([torch.arange(n // 2), torch.arange(n // 2 + 1, n + 1)])
    edges = torch.cat([torch.stack([leaf, torch.full((n,), n // 2)]), torch.tensor([[0], [n]])], 1)
    graph = Graph(edges, n + 1)
    assert triangles(graph).nonzero().flatten().tolist() == [0, n // 2, n]
    assert triangles(graph, "graph").tolist() == [1]
    assert_close(clustering(graph)[n // 2], torch.tensor(1 / comb(n, 2), dtype=torch.float64))
    assert_close(transitivity(graph), torch.tensor([3 / (comb(n, 2) + 2)], dtype=torch.float64))


def test_relabelling_and_threads():
    edges, order = random_edges(300, 0.2), torch.randperm(300)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for moved in (False, True):
            graph = Graph(order[edges] if moved else edges, 300)
            node, share = triangles(graph), clustering(graph)
            results.append(
                [
                    node[order] if moved else node,
                    share[order] if moved else share,
                    triangles(graph, "edge"),
                    transitivity(graph),
                ]
            )
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


FUNCTIONS = {
    "node": lambda graph: triangles(graph),
    "edge": lambda graph: triangles(graph, "edge"),
    "graph": lambda graph: triangles(graph, "graph"),
    "clustering": clustering,
    "transitivity": transitivity,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_opcheck(name):
    """With the arguments that the public functions pass, whatever they are."""
    for graph in (Graph.batch_of([Graph(random_edges(n, 0.6), n) for n in (4, 0, 6)]), Graph(random_edges(3, 0), 3)):
        with Record() as record:
            FUNCTIONS[name](graph)
        record.opcheck()


@filter_torch_warnings
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    edges, n, ptr = random_edges(8, 0.6), 13, torch.tensor([0, 8, 13])
    expected = [f(Graph(edges, n, ptr=ptr)) + 1 for f in FUNCTIONS.values()]
    graph = Graph(edges, n, ptr=ptr)  # another one: nothing that it keeps has been asked for
    torch._dynamo.reset()
    compiled = torch.compile(lambda one: [f(graph) + one for f in FUNCTIONS.values()], fullgraph=True, backend=backend)
    for a, e in zip(compiled(torch.tensor(1)), expected, strict=True):
        assert torch.equal(a, e)


def test_sums_by_graph_up_to_63_bits():
    """Divided after they pass int64, and an error only where the result does."""
    top = 2**62 + 12345
    counts = torch.tensor([[top, 7], [top, 8], [top - 1, 9], [5, 2**63 - 1]])
    ptr = torch.tensor([0, 3, 3, 4])
    assert sum_by_graph("f", counts, ptr, (2, 4)).tolist() == [[(3 * top - 1) // 2, 6], [0, 0], [2, (2**63 - 1) // 4]]
    assert sum_by_graph("f", counts[:1, 0], ptr[:2] // 3).tolist() == [top]
    with pytest.raises(OverflowError, match="f: more matches than int64 holds"):
        sum_by_graph("f", counts, ptr)


@pytest.mark.parametrize("per", ["nodes", None, 3])
def test_error_text_of_per(per):
    with pytest.raises((ValueError, TypeError), match=rf"triangles: per is {re.escape(repr(per))}, expected"):
        triangles(Graph(random_edges(5, 0.5), 5), per)


@pytest.mark.parametrize("f", [triangles, clustering, transitivity])
@NO_GRAPHS
def test_error_texts_of_graph(f, graph, error, text):
    with pytest.raises(error, match=text):
        f(graph)
