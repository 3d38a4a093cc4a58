# SPDX-License-Identifier: Apache-2.0
"""motif_adjacency and triangle_list against all triples of nodes, the matrix formulas of the paper and edge orbits."""

import itertools
from types import SimpleNamespace

import networkx as nx
import pytest
import torch
from cases import filter_torch_warnings
from innerloop import Graph, triangles
from innerloop.data.tu import load_mutag, read_edge_list
from innerloop.ops import _motif_adjacency
from innerloop.ops._motif_adjacency import motif_adjacency, triangle_list
from innerloop.reference.node_orbits import GRAPHLETS, edge_orbits
from tolerances import assert_close
from torch import Tensor

DIRECTED = [f"M{i}" for i in range(1, 14)]
# The triads of networkx's census, which names them after Holland and Leinhardt.
CENSUS = dict(
    zip(
        DIRECTED,
        ["030C", "120C", "210", "300", "030T", "120D", "120U", "021D", "021C", "021U", "111U", "111D", "201"],
        strict=True,
    )
)


@pytest.fixture(params=[None, 5], ids=["whole", "chunks"])
def _chunks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(_motif_adjacency, "_CHUNK", request.param)


def random_edges(n: int, density: float, *, directed: bool = False) -> Tensor:
    """Distinct edges without loops, (2, E), in random order; undirected ones in one direction."""
    there = torch.rand(n, n) < density
    edges = (there.fill_diagonal_(False) if directed else there.triu(1)).nonzero().t()
    return edges[:, torch.randperm(edges.shape[1])]


def brute_force(edges: Tensor, n: int, is_instance, weight: Tensor | None, reduce: str, induced: bool) -> Tensor:
    """Dense (n, n): every set of three nodes, and of its edges all (induced) or every part that is an instance."""
    number = {pair: i for i, pair in enumerate(map(tuple, edges.t().tolist()))}
    total = torch.zeros(n, n, dtype=torch.int64 if weight is None else weight.dtype)
    for nodes in itertools.combinations(range(n), 3):
        inside = [pair for pair in itertools.permutations(nodes, 2) if pair in number]
        parts = [inside] if induced else itertools.chain(*(itertools.combinations(inside, s) for s in (2, 3)))
        for part in parts:
            if not is_instance(part):
                continue
            value = 1
            if weight is not None:
                weights = weight[[number[pair] for pair in part]]
                value = {"product": weights.prod(), "sum": weights.sum(), "mean": weights.mean()}[reduce]
            for i, j in itertools.permutations(nodes, 2):
                total[i, j] += value
    return total


def has_edges(count: int):
    return lambda part: len(part) == count


def is_triad(motif: str):
    return lambda part: nx.triad_type(nx.DiGraph(part)) == CENSUS[motif] if len({*sum(part, ())}) == 3 else False


def assert_adjacency(actual: Tensor, expected: Tensor) -> None:
    assert actual.layout == torch.sparse_coo
    assert actual.is_coalesced()
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.indices(), expected.nonzero().t())
    if expected.is_floating_point():
        assert_close(actual.to_dense(), expected)
    else:
        assert torch.equal(actual.to_dense(), expected)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("induced", [True, False])
@pytest.mark.parametrize("motif", ["G1", "G2"])
def test_three_nodes_as_all_triples(motif, induced):
    is_instance = has_edges(int(motif[1]) + 1)
    for n, density in itertools.product((1, 3, 9), (0, 0.3, 0.7, 1)):
        edges = random_edges(n, density)
        graph = Graph(edges, n)
        expected = brute_force(edges, n, is_instance, None, "", induced)
        assert_adjacency(motif_adjacency(graph, motif, induced=induced), expected)
        weight = 0.5 + torch.rand(edges.shape[1], dtype=torch.float64)
        for reduce in ("product", "mean", "sum"):
            expected = brute_force(edges, n, is_instance, weight, reduce, induced)
            assert_adjacency(motif_adjacency(graph, motif, weight, reduce, induced=induced), expected)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("motif", DIRECTED)
def test_directed_triads_as_all_triples(motif):
    for density in (0.3, 0.75):
        edges = random_edges(8, density, directed=True)
        data = SimpleNamespace(edge_index=edges, num_nodes=8)
        assert_adjacency(motif_adjacency(data, motif), brute_force(edges, 8, is_triad(motif), None, "", True))
        weight = 0.5 + torch.rand(edges.shape[1], dtype=torch.float64)
        for reduce in ("product", "mean", "sum"):
            expected = brute_force(edges, 8, is_triad(motif), weight, reduce, True)
            assert_adjacency(motif_adjacency(data, motif, weight, reduce), expected)


@pytest.mark.parametrize("kind", [nx.DiGraph, nx.MultiDiGraph])
def test_directed_triads_of_networkx(kind):
    """Directions are kept; nodes and weights are in the order of the graph, whatever the names."""
    edges = random_edges(8, 0.4, directed=True)
    other = kind()
    other.add_nodes_from("hgfedcba")
    other.add_edges_from(("hgfedcba"[u], "hgfedcba"[v]) for u, v in edges.t().tolist())
    edges = torch.tensor([["hgfedcba".index(name) for name in edge] for edge in other.edges()]).t()
    weight = torch.rand(edges.shape[1], dtype=torch.float64)
    for motif in DIRECTED:
        for options in ({}, {"edge_weight": weight, "reduce": "sum"}):
            expected = motif_adjacency(SimpleNamespace(edge_index=edges, num_nodes=8), motif, **options)
            assert_adjacency(motif_adjacency(other, motif, **options), expected.to_dense())
    one_way = kind([(0, 1), (1, 2), (2, 0)])
    assert motif_adjacency(one_way, "M1")._nnz() == 6
    assert motif_adjacency(one_way.to_undirected().to_directed(), "M1")._nnz() == 0


def test_directed_triads_as_matrix_products():
    """The formulas of Benson et al., table S7 for triangles; M8 to M13 by pairs around a centre."""
    n = 60
    edges = random_edges(n, 0.2, directed=True)
    a = torch.zeros(n, n, dtype=torch.float64)
    a[edges[0], edges[1]] = 1
    b = a * a.T
    u = a - b
    apart = (1 - a) * (1 - a.T) * (1 - torch.eye(n, dtype=torch.float64))
    c = {
        "M1": (u @ u) * u.T,
        "M2": (b @ u) * u.T + (u @ b) * u.T + (u @ u) * b,
        "M3": (b @ b) * u + (b @ u) * b + (u @ b) * b,
        "M4": (b @ b) * b / 2,
        "M5": (u @ u) * u + (u @ u.T) * u + (u.T @ u) * u,
        "M6": (u @ b) * u + (u.T @ u) * b / 2,
        "M7": (u.T @ b) * u.T + (u @ u.T) * b / 2,
    }
    for motif, left, right in (
        ("M8", u, u), ("M9", u, u.T), ("M10", u.T, u.T), ("M11", b, u), ("M12", b, u.T), ("M13", b, b),
    ):  # fmt: skip
        double = 2 if left is right or motif == "M10" else 1
        to_left, to_right = left * (right @ apart), right * (left @ apart)
        c[motif] = (to_left + to_right + left.T @ right * apart) / double
    for motif in DIRECTED:
        actual = motif_adjacency(SimpleNamespace(edge_index=edges, num_nodes=n), motif)
        assert_adjacency(actual, (c[motif] + c[motif].T).long())


@pytest.mark.parametrize("induced", [True, False])
@pytest.mark.parametrize("motif", [f"G{i}" for i in range(1, 30)])
def test_pairs_that_are_edges(motif, induced):
    edges, n = random_edges(9, 0.6), 9
    _, nodes, orbits = GRAPHLETS[int(motif[1:])]
    size = len(nodes)
    counts = edge_orbits(edges.t(), n, size, induced)[:, list({*orbits})].sum(1)
    expected = torch.zeros(n, n, dtype=torch.int64)
    expected[edges[0], edges[1]] = expected[edges[1], edges[0]] = counts
    graph = Graph(edges, n)
    assert_adjacency(motif_adjacency(graph, motif, induced=induced, pairs="edges"), expected)
    if motif in ("G2", "G8", "G29"):
        assert_adjacency(motif_adjacency(graph, motif, induced=induced), expected)
    if size == 3:  # the path of weights takes other code
        ones = torch.ones(edges.shape[1], dtype=torch.float64)
        weighted = motif_adjacency(graph, motif, ones, induced=induced, pairs="edges")
        assert_adjacency(weighted, expected.double())


def test_cliques_of_four_as_all_sets():
    edges, n = random_edges(12, 0.7), 12
    graph = nx.Graph(edges.t().tolist())
    expected = torch.zeros(n, n, dtype=torch.int64)
    for nodes in itertools.combinations(sorted(graph), 4):
        if graph.subgraph(nodes).number_of_edges() == 6:
            for i, j in itertools.permutations(nodes, 2):
                expected[i, j] += 1
    assert_adjacency(motif_adjacency(Graph(edges, n), "G8"), expected)


@pytest.mark.parametrize("reduce", ["product", "mean", "sum"])
@pytest.mark.parametrize("motif", ["G1", "G2", "M3", "M9", "M11"])
def test_gradients(motif, reduce):
    edges = random_edges(10, 0.5, directed=motif[0] == "M")
    graph = edges if motif[0] == "M" else Graph(edges, 10)
    weight = torch.randn(edges.shape[1], dtype=torch.float64)
    weight[0] = 0  # the derivative of a product by a factor of 0
    weight.requires_grad_()

    def adjacency(w):
        return motif_adjacency(graph, motif, w, reduce).to_dense()

    assert adjacency(weight).count_nonzero()
    assert torch.autograd.gradcheck(adjacency, weight)


def test_gradient_through_a_sparse_product():
    edges = random_edges(10, 0.6)
    weight = torch.rand(edges.shape[1], dtype=torch.float64, requires_grad=True)
    x = torch.rand(10, 3, dtype=torch.float64)
    matrix = motif_adjacency(Graph(edges, 10), "G2", weight)
    (sparse,) = torch.autograd.grad((matrix @ x).square().sum(), weight, retain_graph=True)
    (dense,) = torch.autograd.grad((matrix.to_dense() @ x).square().sum(), weight)
    assert_close(sparse, dense)


def test_a_second_derivative_raises():
    weight = torch.rand(3, requires_grad=True)
    matrix = motif_adjacency(torch.triu_indices(3, 3, 1), "G2", weight)
    (first,) = torch.autograd.grad(matrix.to_dense().sum(), weight, create_graph=True)
    assert_close(first, 6 * weight.prod() / weight)
    with pytest.raises(NotImplementedError, match="motif_adjacency: second derivatives are not implemented"):
        first.sum().backward()


@filter_torch_warnings
def test_compile():
    """As it is, outside the graph, with its gradient."""
    graph = Graph(random_edges(8, 0.6), 8)
    weight = torch.rand(graph.num_edges, dtype=torch.float64)

    def function(weight):
        matrix = motif_adjacency(graph, "G2", weight).to_dense()
        return 2 * matrix, motif_adjacency(torch.triu_indices(5, 5, 1), "M5").to_dense() + 1, triangle_list(graph) + 1

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager")
    for actual, expected in zip(compiled(weight), function(weight), strict=True):
        assert torch.equal(actual, expected)
    actual, expected = (
        torch.autograd.grad(f(w)[0].square().sum(), w)[0]
        for f, w in ((compiled, weight.clone().requires_grad_()), (function, weight.clone().requires_grad_()))
    )
    assert actual.count_nonzero()
    assert torch.equal(actual, expected)


def test_no_instance_still_has_a_gradient():
    weight = torch.rand(2, requires_grad=True)
    matrix = motif_adjacency(torch.tensor([[0, 1], [1, 2]]), "G2", weight)
    assert matrix.dtype == torch.float32
    assert matrix._nnz() == 0
    matrix.to_dense().sum().backward()
    assert weight.grad.tolist() == [0, 0]


@pytest.mark.parametrize("motif", ["G1", "G2", "M1", "M9"])
def test_loops_duplicates_and_relabelling(motif):
    n = 15
    edges, order = random_edges(n, 0.4, directed=True), torch.randperm(n)

    def dense(edge_index):
        data = SimpleNamespace(edge_index=edge_index, num_nodes=n)
        return motif_adjacency(data if motif[0] == "M" else Graph.from_pyg(data), motif).to_dense()

    expected = dense(edges)
    messy = torch.cat([edges, edges[:, ::3], torch.arange(n).expand(2, n)], 1)
    assert torch.equal(dense(messy), expected)
    assert torch.equal(dense(order[edges])[order][:, order], expected)


@pytest.mark.parametrize("motif", ["G1", "G2", "G5", "M1", "M8"])
def test_nothing_there(motif):
    none = torch.empty(2, 0, dtype=torch.int64)
    for n in (0, 4):
        matrix = motif_adjacency(SimpleNamespace(edge_index=none, num_nodes=n), motif, pairs="edges")
        assert matrix.shape == (n, n)
        assert matrix._nnz() == 0
    loop = torch.tensor([[1], [1]])
    assert motif_adjacency(loop, motif, pairs="edges")._nnz() == 0


def test_a_batch_is_block_diagonal():
    data = load_mutag()
    batch = Graph(data.edge_index, data.num_nodes, ptr=data.ptr)
    matrix = motif_adjacency(batch, "G1")
    i, j = matrix.indices()
    assert torch.equal(batch.batch[i], batch.batch[j])
    assert int(matrix.values().sum()) == 6 * 5428  # wedges of MUTAG


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("density", [0, 0.2, 0.7, 1])
def test_triangle_list(density):
    for n in (0, 2, 3, 12):
        edges = random_edges(n, density)
        graph = Graph(edges, n)
        listed = triangle_list(graph)
        assert listed.dtype == torch.int64
        assert listed.shape[1] == 3
        expected = [c for c in nx.enumerate_all_cliques(nx.Graph(edges.t().tolist())) if len(c) == 3]
        assert sorted(map(sorted, listed.tolist())) == sorted(map(sorted, expected))
        rank = graph.rank[listed]
        assert bool((rank.diff(dim=1) > 0).all())
        assert rank.tolist() == sorted(rank.tolist())


@pytest.mark.parametrize("name", ["karate", "ca-grqc"])
def test_networks(name, shared_data):
    path = shared_data / "graphs" / "net" / f"{name}.txt.xz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    graph = Graph(*read_edge_list(path))
    listed = triangle_list(graph)
    assert torch.equal(torch.bincount(listed.flatten(), minlength=graph.num_nodes), triangles(graph))
    ones = torch.ones(graph.num_edges, dtype=torch.float64)
    weighted, counted = motif_adjacency(graph, "G2", ones), motif_adjacency(graph, "G2")
    assert torch.equal(weighted.indices(), counted.indices())
    assert torch.equal(weighted.values().long(), counted.values())
    wedges = motif_adjacency(graph, "G1", induced=False)
    assert int(wedges.values().sum()) == 3 * int((graph.degree * (graph.degree - 1)).sum())


PATH = torch.tensor([[0, 1], [1, 2]])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((PATH, "G0"), {}, ValueError, "motif is 'G0', expected 'G1' to 'G29' or 'M1' to 'M13'"),
        ((PATH, "M14"), {}, ValueError, "motif is 'M14'"),
        ((PATH, ["G1"]), {}, ValueError, r"motif is \['G1'\]"),
        ((PATH, "G1"), {"reduce": "max"}, ValueError, "reduce is 'max', expected 'product', 'mean' or 'sum'"),
        ((PATH, "G1"), {"pairs": "some"}, ValueError, "pairs is 'some', expected 'all' or 'edges'"),
        ((PATH, "M1"), {"induced": False}, ValueError, "induced is False, expected True with the directed motif M1"),
        ((PATH, "G5"), {}, ValueError, "pairs is 'all', expected 'edges' with G5"),
        ((PATH, "G8", torch.ones(2)), {}, ValueError, "edge_weight is given, expected None with G8, a motif of 4"),
        ((PATH, "G2", torch.ones(3)), {}, ValueError, r"edge_weight has shape \(3,\), expected \(2,\)"),
        ((PATH, "G2", torch.ones(2).long()), {}, TypeError, "edge_weight is torch.int64, expected a floating"),
        ((PATH, "G2", [1.0, 2.0]), {}, TypeError, "edge_weight is list, expected a floating"),
        ((Graph(PATH), "M1"), {}, TypeError, r"graph is Graph, expected an edge_index tensor \(2, E\)"),
        (
            (nx.Graph([(0, 1)]), "M1"),
            {},
            TypeError,
            "graph is Graph, expected .* or a networkx.DiGraph, for a directed",
        ),
        ((PATH[:, [0, 0]], "M1", torch.ones(2)), {}, ValueError, "graph has an edge twice, expected each once"),
        ((PATH, "G2", torch.ones(2, device="meta")), {}, ValueError, "edge_weight is on meta, expected cpu"),
        ((3, "G1"), {}, TypeError, "graph is int"),
        ((-PATH, "M1"), {}, IndexError, "edge_index"),
    ],
)
def test_error_texts(arguments, options, error, text):
    with pytest.raises(error, match=text):
        motif_adjacency(*arguments, **options)
