# SPDX-License-Identifier: Apache-2.0
"""Graph, the simple undirected graph of the counting ops: its layout against plain lists, adapters, batches, checks."""

import itertools
import pickle
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch
from innerloop import Graph, simple_graph
from torch import Tensor

EMPTY = torch.zeros(2, 0, dtype=torch.int64)


def random_edges(n: int, count: int) -> Tensor:
    """(2, count) with self loops, duplicates and edges in both directions."""
    return torch.randint(0, n, (2, count))


def plain(edge_index: Tensor, n: int, starts: tuple[int, ...]) -> dict[str, list]:
    """Every attribute in obvious Python; graphs of the batch begin at `starts`."""
    edges = []
    for edge in edge_index.T.tolist():
        if edge[0] != edge[1] and set(edge) not in map(set, edges):
            edges.append(edge)
    number = {frozenset(e): i for i, e in enumerate(edges)}
    degree = [sum(v in e for e in edges) for v in range(n)]
    order = sorted(range(n), key=lambda v: (sum(v >= start for start in starts), degree[v], v))
    rank = [order.index(v) for v in range(n)]
    rowptr, split, col, eid = [0], [], [], []
    for v in order:
        row = sorted(rank[w] for w in range(n) if frozenset((v, w)) in number)
        split.append(len(col) + sum(r < rank[v] for r in row))
        col += row
        eid += [number[frozenset((v, order[r]))] for r in row]
        rowptr.append(len(col))
    return {
        "edges": edges,
        "degree": degree,
        "order": order,
        "rank": rank,
        "index": [n, len(edges), *rowptr, *split],
        "adjacency": [*col, *eid, *order],
    }


def assert_layout(graph: Graph, edge_index: Tensor, n: int, starts: tuple[int, ...] = (0,)) -> None:
    for name, expected in plain(edge_index, n, starts).items():
        assert getattr(graph, name).flatten().tolist() == torch.tensor(expected).flatten().tolist(), name
    assert (graph.num_nodes, graph.num_edges) == (n, len(graph.edges))
    assert graph.edges.shape == (graph.num_edges, 2)
    assert graph.adjacency.dtype == torch.int32
    for name in ("edges", "degree", "index", "ptr", "batch"):
        assert getattr(graph, name).dtype == torch.int64, name


def assert_same(actual: Graph, expected: Graph) -> None:
    assert actual.num_graphs == expected.num_graphs
    for name in ("edges", "ptr", "batch", "degree", "index", "adjacency"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name


def pairs(graph: Graph) -> set[frozenset[int]]:
    return {frozenset(e) for e in graph.edges.tolist()}


@pytest.mark.parametrize("sizes", [(9, 20), (1, 3), (6, 0), (0, 0), (40, 15), (12, 300), (90, 400)], ids=str)
def test_layout(sizes):
    n, count = sizes
    edge_index = random_edges(max(n, 1), count)
    graph = Graph(edge_index, n)
    assert_layout(graph, edge_index, n)
    assert graph.num_graphs == 1
    assert graph.ptr.tolist() == [0, n]
    assert graph.batch.tolist() == [0] * n


def test_edges_in_order_of_first_appearance():
    """As first given, without loops and repetitions."""
    graph = Graph(torch.tensor([[3, 1, 2, 1, 0, 3], [1, 1, 0, 3, 2, 2]]), 5)
    assert graph.edges.tolist() == [[3, 1], [2, 0], [3, 2]]
    assert graph.degree.tolist() == [1, 1, 2, 2, 0]
    assert graph.order.tolist() == [4, 0, 1, 2, 3]
    assert graph.rank.tolist() == [1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint16, torch.uint32, torch.uint64],
    ids=str,
)
def test_dtypes_and_strides(dtype):
    edge_index = random_edges(20, 80)
    expected = Graph(edge_index, 20)
    assert_same(Graph(edge_index.to(dtype), 20), expected)
    assert_same(Graph(edge_index.T.contiguous().to(dtype).T, 20), expected)
    assert_same(Graph(edge_index.repeat_interleave(2, 1).to(dtype)[:, ::2], 20), expected)


def test_one_direction_or_both():
    one = torch.triu_indices(9, 9, 1)
    assert_same(Graph(torch.cat([one, one.flip(0)], 1), 9), Graph(one, 9))


@pytest.mark.parametrize("kind", ["both directions", "one missing", "any", "loops"])
def test_ascending_pairs(kind):
    """As libraries coalesce them: each direction of an edge once, or nearly so."""
    for n, density in itertools.product((2, 3, 5, 8, 13), (0.2, 0.5, 1)):
        adjacency = torch.rand(n, n) < density
        if kind != "any":
            adjacency = (adjacency | adjacency.T) & ~torch.eye(n, dtype=torch.bool)
        if kind == "loops":
            adjacency |= torch.diag(torch.rand(n) < 0.5)
        edge_index = adjacency.nonzero().T
        if kind == "one missing" and edge_index.shape[1]:
            gone = int(torch.randint(edge_index.shape[1], ()))
            edge_index = torch.cat([edge_index[:, :gone], edge_index[:, gone + 1 :]], 1)
        assert_layout(Graph(edge_index, n), edge_index, n)


def test_number_of_nodes_defaults_to_largest_id_plus_one():
    assert Graph(torch.tensor([[0, 6], [3, 2]])).num_nodes == 7
    assert Graph(EMPTY).num_nodes == 0


def test_no_tie_to_the_callers_tensors():
    edge_index, ptr = torch.tensor([[0, 1, 3], [1, 2, 4]]), torch.tensor([0, 3, 5])
    graph = Graph(edge_index, 5, ptr=ptr)
    edge_index.zero_()
    ptr.zero_()
    assert graph.edges.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert graph.ptr.tolist() == [0, 3, 5]


def test_pickle():
    """As a worker of a DataLoader passes it on."""
    graph = Graph(random_edges(9, 20), 9, ptr=torch.tensor([0, 9, 9]))
    assert_same(pickle.loads(pickle.dumps(graph)), graph)


# Batches


def test_batch_of():
    sizes, counts = (4, 0, 1, 7, 3, 0), (5, 0, 0, 30, 0, 0)
    parts = [random_edges(max(n, 1), count) for n, count in zip(sizes, counts, strict=True)]
    graphs = [Graph(e, n) for e, n in zip(parts, sizes, strict=True)]
    batch = Graph.batch_of(graphs)
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    union = torch.cat([e + start for e, start in zip(parts, starts, strict=False)], 1)
    assert_layout(batch, union, 15, tuple(starts))
    assert batch.num_graphs == 6
    assert batch.ptr.tolist() == starts
    assert batch.batch.tolist() == [i for i, n in enumerate(sizes) for _ in range(n)]
    assert_same(batch, Graph(union, 15, ptr=torch.tensor(starts)))
    assert_same(Graph.batch_of([Graph.batch_of(graphs[:2]), Graph.batch_of(graphs[2:])]), batch)


def test_batch_of_one_and_of_none():
    graph = Graph(random_edges(5, 8), 5)
    assert_same(Graph.batch_of([graph]), graph)
    nothing = Graph.batch_of([])
    assert (nothing.num_graphs, nothing.num_nodes, nothing.num_edges) == (0, 0, 0)
    assert nothing.ptr.tolist() == [0]


def test_batch_of_what_of_takes():
    triangle = torch.tensor([[0, 1, 2], [1, 2, 0]])
    batch = Graph.batch_of([triangle, nx.path_graph(3), Graph(EMPTY, 2)])
    assert batch.ptr.tolist() == [0, 3, 6, 8]
    assert pairs(batch) == {frozenset(e) for e in ((0, 1), (1, 2), (2, 0), (3, 4), (4, 5))}


# Adapters


@pytest.mark.parametrize("graph", [[(0.5, 1.2)], [(0, 1), (1,)], ["ab"], [(0, 2**70)], [(0, True)], [(0, -1)]], ids=str)
def test_of_refuses_what_is_no_list_of_pairs(graph):
    with pytest.raises(ValueError, match=r"Graph: graph has the entry .*, expected pairs of nodes"):
        Graph.of(graph)


def test_of_nothing():
    assert_same(Graph.of([]), Graph(EMPTY))
    assert_same(Graph.of(np.array([])), Graph(EMPTY))


@pytest.mark.parametrize("dtype", [">i8", np.int16, np.uint8, np.uint16, ">u4", np.uint32, np.uint64, np.ulonglong])
def test_of_arrays(dtype):
    array = np.array([[0, 1], [1, 2]], dtype)
    assert_same(Graph.of(array[:, ::-1]), Graph(torch.tensor([[1, 0], [2, 1]])))
    graph = Graph.of(array)
    array[:] = 0
    assert graph.edges.tolist() == [[0, 1], [1, 2]]


def test_of_takes_graphs_and_tensors():
    graph = Graph(random_edges(9, 20), 9)
    assert Graph.of(graph) is graph
    edge_index = torch.tensor([[0, 4], [2, 1]])
    for same in (edge_index, edge_index.numpy(), [(0, 2), (4, 1)]):
        assert_same(Graph.of(same), Graph(edge_index, 5))
    assert Graph(edge_index, np.int64(5)).num_nodes == 5


@pytest.mark.parametrize("kind", [nx.Graph, nx.DiGraph, nx.MultiGraph, nx.MultiDiGraph])
def test_from_networkx(kind):
    """Nodes in the order of the graph, whatever their names."""
    other = kind()
    other.add_nodes_from(["z", "y", (1, 2), 0])
    other.add_edges_from([("y", 0), (0, "y"), ("z", "z"), ((1, 2), "y")])
    for graph in (Graph.from_networkx(other), Graph.of(other)):
        assert graph.num_nodes == 4
        assert pairs(graph) == {frozenset((1, 3)), frozenset((1, 2))}
    assert Graph.from_networkx(kind()).num_nodes == 0
    assert Graph.from_networkx(nx.empty_graph(3)).degree.tolist() == [0, 0, 0]


@pytest.mark.parametrize("form", ["csr_array", "csc_array", "coo_array", "lil_array", "csr_matrix"])
def test_from_scipy(form):
    """A symmetric matrix or one triangle of it; the values do not matter."""
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.zeros((5, 5), np.float32)
    dense[[0, 1, 3, 3], [1, 3, 3, 0]] = [2, -1, 7, 0.5]
    for matrix in (dense, dense + dense.T):
        matrix = getattr(sparse, form)(matrix)
        for graph in (Graph.from_scipy(matrix), Graph.of(matrix)):
            assert graph.num_nodes == 5
            assert pairs(graph) == {frozenset(e) for e in ((0, 1), (1, 3), (0, 3))}
    assert Graph.from_scipy(getattr(sparse, form)((3, 3))).degree.tolist() == [0, 0, 0]


def test_from_scipy_large_indices():
    sparse = pytest.importorskip("scipy.sparse")
    row, col = np.array([0, 1], np.int64), np.array([1, 2], np.int64)
    matrix = sparse.coo_array((np.ones(2), (row, col)), shape=(4, 4))
    assert Graph.from_scipy(matrix).edges.tolist() == [[0, 1], [1, 2]]


def test_from_scipy_entries_that_come_twice():
    """They add up, to 0 maybe; without them the order of the entries is that of the edges."""
    sparse = pytest.importorskip("scipy.sparse")
    twice = sparse.coo_array(([1, -1, 2, 3], ([0, 0, 2, 2], [1, 1, 1, 1])), shape=(3, 3))
    assert Graph.from_scipy(twice).edges.tolist() == [[2, 1]]
    assert twice.nnz == 4
    rows = sparse.csr_array(([1, -1], [1, 1], [0, 2, 2, 2]), shape=(3, 3))
    assert Graph.from_scipy(rows).num_edges == 0
    once = sparse.coo_array(([1, 1], ([2, 0], [1, 1])), shape=(3, 3))
    assert Graph.from_scipy(once).edges.tolist() == [[2, 1], [0, 1]]


def test_from_igraph():
    igraph = pytest.importorskip("igraph")
    other = igraph.Graph(5, [(0, 1), (1, 2), (2, 2), (0, 1)])
    for graph in (Graph.from_igraph(other), Graph.of(other)):
        assert graph.num_nodes == 5
        assert graph.edges.tolist() == [[0, 1], [1, 2]]


def test_from_pyg():
    geometric = pytest.importorskip("torch_geometric.data")
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    one = geometric.Data(edge_index=edge_index, num_nodes=4)
    assert_same(Graph.from_pyg(one), Graph(edge_index, 4))
    assert_same(Graph.of(geometric.Batch.from_data_list([one, one])), Graph.batch_of([Graph(edge_index, 4)] * 2))


def test_from_dgl():
    dgl = pytest.importorskip("dgl")
    one = dgl.graph(([0, 1], [1, 2]), num_nodes=4)
    assert_same(Graph.from_dgl(one), Graph(torch.tensor([[0, 1], [1, 2]]), 4))
    assert_same(Graph.of(dgl.batch([one, one])), Graph.batch_of([Graph.from_dgl(one)] * 2))


EDGES = torch.tensor([[0, 1, 3], [1, 2, 4]])
# What the adapters read of libraries that are not installed here.
STAND_INS = {
    "igraph": (SimpleNamespace(vcount=lambda: 6, get_edgelist=lambda: EDGES.T.tolist()), [0, 6]),
    "igraph without edges": (SimpleNamespace(vcount=lambda: 6, get_edgelist=list), [0, 6]),
    "pyg": (SimpleNamespace(edge_index=EDGES, num_nodes=6), [0, 6]),
    "pyg batch": (
        SimpleNamespace(
            edge_index=EDGES,
            num_nodes=6,
            num_graphs=3,
            ptr=torch.tensor([0, 3, 3, 6]),
            batch=torch.tensor([0, 0, 0, 2, 2, 2]),
        ),
        [0, 3, 3, 6],
    ),
    "dgl": (
        SimpleNamespace(
            num_nodes=lambda: 6, edges=lambda *a, **k: tuple(EDGES), batch_num_nodes=lambda: torch.tensor([3, 0, 3])
        ),
        [0, 3, 3, 6],
    ),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_adapters_of_stand_ins(name):
    other, ptr = STAND_INS[name]
    graph = getattr(Graph, f"from_{name.split()[0]}")(other)
    edges = EMPTY if "without" in name else EDGES
    assert_same(graph, Graph(edges, 6, ptr=torch.tensor(ptr)))


# Checks


def test_check_takes_simple_graphs():
    """An edge may be given in both directions."""
    one = torch.triu_indices(6, 6, 1)
    both = torch.cat([one, one.flip(0)], 1)
    for edge_index in (one, both, EMPTY):
        assert_same(Graph(edge_index, 6, check=True), Graph(edge_index, 6))


@pytest.mark.parametrize(
    ("edges", "words"),
    [([[0, 2], [1, 2]], ["self loop", "2"]), ([[0, 1, 0], [1, 2, 1]], ["0", "1"])],
    ids=["self-loop", "duplicate"],
)
def test_check_refuses(edges, words):
    with pytest.raises(ValueError, match="Graph: edge_index") as caught:
        Graph(torch.tensor(edges), 4, check=True)
    assert [word for word in words if word not in str(caught.value)] == []


GOOD = torch.tensor([[0, 1, 3], [1, 2, 4]])
RANGE = (ValueError, IndexError)
# what: (arguments, options, error, words of the message)
ERRORS = {
    "negative": ((torch.tensor([[0, -7], [1, 2]]), 4), {}, RANGE, ["edge_index", "-7"]),
    "negative-without-count": ((torch.tensor([[0, -7], [1, 2]]),), {}, RANGE, ["edge_index", "-7"]),
    "out-of-range": ((GOOD, 4), {}, RANGE, ["edge_index", "4"]),
    "far-out-of-range": ((GOOD + 2**40, 4), {}, RANGE, ["edge_index", str(2**40)]),
    "beyond-int32": ((GOOD + 2**40,), {}, RANGE, ["2**31"]),
    "absurd": ((torch.tensor([[0], [2**31 - 3]]),), {}, ValueError, ["num_nodes", str(2**31 - 3), "1 edges"]),
    "of-an-empty-graph": ((GOOD, 0), {}, RANGE, ["edge_index"]),
    "float": ((GOOD.double(), 5), {}, TypeError, ["edge_index", "float64"]),
    "bool": ((GOOD.bool(), 5), {}, TypeError, ["edge_index", "bool"]),
    "list": ((GOOD.tolist(), 5), {}, TypeError, ["edge_index", "list"]),
    "none": ((None, 5), {}, TypeError, ["edge_index", "NoneType"]),
    "beyond-int64": ((torch.tensor([[0], [-1]]).to(torch.uint64),), {}, ValueError, ["edge_index", str(2**64 - 1)]),
    "sparse": ((GOOD.to_sparse(), 5), {}, TypeError, ["edge_index", "sparse_coo", "dense", "(2, E)"]),
    "rows": ((GOOD.T, 5), {}, ValueError, ["edge_index", "(3, 2)", "(2, E)"]),
    "rank": ((GOOD[0], 5), {}, ValueError, ["edge_index", "(3,)", "(2, E)"]),
    "negative-count": ((EMPTY, -1), {}, ValueError, ["num_nodes", "-1"]),
    "float-count": ((GOOD, 5.0), {}, TypeError, ["num_nodes", "float"]),
    "bool-count": ((EMPTY, True), {}, TypeError, ["num_nodes", "bool"]),
    "count-too-large": ((EMPTY, 2**31), {}, ValueError, ["num_nodes", str(2**31)]),
    "ptr-start": ((GOOD, 5), {"ptr": torch.tensor([1, 3, 5])}, ValueError, ["ptr", "1"]),
    "ptr-end": ((GOOD, 5), {"ptr": torch.tensor([0, 3, 4])}, ValueError, ["ptr", "4", "5"]),
    "ptr-falls": ((GOOD, 5), {"ptr": torch.tensor([0, 4, 3, 5])}, ValueError, ["ptr"]),
    "ptr-cuts-an-edge": ((GOOD, 5), {"ptr": torch.tensor([0, 2, 5])}, RANGE, ["edge_index", "(1, 2)"]),
    "ptr-empty": ((GOOD, 5), {"ptr": EMPTY[0]}, ValueError, ["ptr"]),
    "ptr-rank": ((GOOD, 5), {"ptr": torch.tensor([[0, 5]])}, ValueError, ["ptr", "(B + 1,)"]),
    "ptr-float": ((GOOD, 5), {"ptr": torch.tensor([0.0, 5.0])}, TypeError, ["ptr", "float32"]),
    "check": ((GOOD, 5), {"check": "no"}, TypeError, ["check", "no", "bool"]),
    "ptr-huge": ((GOOD,), {"ptr": torch.tensor([0, 2**31 + 5])}, ValueError, ["ptr", "2**31"]),
    "ptr-list": ((GOOD, 5), {"ptr": [0, 5]}, TypeError, ["ptr", "list"]),
}


@pytest.mark.parametrize("what", ERRORS)
def test_error_texts(what):
    arguments, options, error, words = ERRORS[what]
    with pytest.raises(error) as caught:
        Graph(*arguments, **options)
    text = str(caught.value)
    assert text.startswith("Graph: ")
    assert [word for word in words if word not in text] == [], text


def test_large_ids_need_the_number_of_nodes(monkeypatch):
    """More than a few nodes, and more than some for each edge."""
    monkeypatch.setattr(simple_graph, "_BELIEVED", 100)
    monkeypatch.setattr(simple_graph, "_PER_EDGE", 60)
    for edges, n in (([[0], [99]], 100), ([[0, 1], [99, 119]], 120)):
        assert Graph(torch.tensor(edges)).num_nodes == n
    for edges, n in (([[0], [100]], 101), ([[0, 1], [99, 120]], 121)):
        with pytest.raises(ValueError, match=rf"Graph: num_nodes is None .* node {n - 1} in .* or num_nodes={n} if"):
            Graph(torch.tensor(edges))
        assert Graph(torch.tensor(edges), n).num_nodes == n
        assert Graph(torch.tensor(edges), ptr=torch.tensor([0, n])).num_nodes == n


def test_errors_of_adapters():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match=r"Graph.*\(3, 4\)"):
        Graph.from_scipy(sparse.csr_array((3, 4)))
    for wrong in (3, "karate", {"edges": 1}):
        with pytest.raises(TypeError, match=rf"Graph.*{type(wrong).__name__}"):
            Graph.of(wrong)
    with pytest.raises(TypeError, match=r"Graph.*int"):
        Graph.batch_of([Graph(EMPTY, 1), 3])


@pytest.mark.parametrize(
    "array",
    [np.array([["a", "b"], ["b", "c"]]), EMPTY.numpy().astype(object), np.zeros((2, 3)), np.zeros((2, 3), bool)],
)
def test_errors_of_arrays(array):
    with pytest.raises(TypeError, match=f"Graph: graph is an array of {array.dtype}, expected integers"):
        Graph.of(array)


def test_errors_of_devices():
    with pytest.raises(ValueError, match="Graph: device is 'foo', expected a name such as 'cuda:0'"):
        Graph(EMPTY, 1).to("foo")
    with pytest.raises(TypeError, match="Graph: device is 0, expected"):
        Graph(EMPTY, 1).to(0)
