# SPDX-License-Identifier: Apache-2.0
"""motif_grid against its definition, and facts that can be told by hand."""

import itertools

import numpy as np
import pytest
import torch
from innerloop import Graph, closeness, gather_grid, motif_grid, reference
from innerloop.data.tu import load_mutag, read_tu
from tolerances import assert_close

TIES = ["degree", "official", "canonical"]
STAR = [(0, leaf) for leaf in range(1, 30)]
CLIQUE = list(itertools.combinations(range(9), 2))
RING = [(i, (i + 1) % 6) for i in range(6)]


def union(*graphs):
    """A batch of (n, edges)."""
    ptr = torch.tensor([0, *itertools.accumulate(n for n, _ in graphs)])
    edges = [(u + first, v + first) for first, (_, pairs) in zip(ptr.tolist(), graphs, strict=False) for u, v in pairs]
    return Graph(torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T, ptr=ptr)


def random_graph(n, density):
    mask = torch.rand(n, n).triu(1) > 1 - density
    return n, mask.nonzero().tolist()


def some_graphs():
    """Of all kinds: empty, one node, isolated nodes, several components, hubs, dense ones."""
    few = [(0, []), (1, []), (2, [(0, 1)]), (5, [(1, 3)]), (30, STAR), (9, CLIQUE), (6, RING), (3, [(2, 1), (0, 2)])]
    return union(*few, *(random_graph(n, d) for n in (4, 7, 11, 14) for d in (0.15, 0.35, 0.7)))


def expected(graph, num_nodes, slots, value, planes=1, **options):
    return reference.motif_grid(graph.edges, graph.ptr, value, num_nodes, slots, planes=planes, **options)


def assert_same(grid, definition):
    for name, a, e in zip(("x", "index", "mask"), grid, definition, strict=True):
        assert a.dtype == e.dtype, name
        assert torch.equal(a, e), name


@pytest.mark.parametrize("per_type", [False, True])
@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_against_the_definition(k, tie, per_type):
    small = [(0, []), (7, STAR[:6]), (6, RING), (5, itertools.combinations(range(5), 2)), random_graph(8, 0.3)]
    graph = some_graphs() if k < 4 else union(*small)
    labels, edge_labels = torch.randint(3, (graph.num_nodes,)), torch.randint(1, 4, (graph.num_edges,))
    options = {"k": k, "tie": tie, "per_type": per_type}
    grid = motif_grid(graph, 5, 4, **options)
    assert_same(grid, expected(graph, 5, 4, graph.degree, **options))
    grid = motif_grid(graph, 8, 64, node_labels=labels, edge_labels=edge_labels, **options)
    assert_same(grid, expected(graph, 8, 64, labels + 1, edge_value=edge_labels, **options))


def test_a_block_of_each_type():
    # A triangle 0 1 2 with a tail 2 - 3 - 4: closeness 4/7, 4/7, 4/5, 4/6, 4/10.
    graph = union((5, [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4)]))
    grid = motif_grid(graph, 2, 5, node_labels=torch.tensor([10, 20, 30, 40, 50]))
    assert grid.index[0, 0].tolist() == [[2, 0, 1], [2, 3, 4], [2, 3, 0], [2, 3, 1], [-1, -1, -1]]
    assert grid.index[0, 1].tolist() == [[3, 2, 0], [3, 2, 1], [3, 2, 4], [-1, -1, -1], [-1, -1, -1]]
    assert grid.x[0, 0, :3, :3].tolist() == [[3, 1, 1], [1, 1, 1], [1, 1, 2]]
    assert grid.x[0, 0, 3:6, :3].tolist() == [[3, 1, 0], [1, 4, 1], [0, 1, 5]]
    assert grid.x[0, 0, 6:9, :3].tolist() == [[3, 1, 1], [1, 4, 0], [1, 0, 1]]
    assert grid.mask[0].sum(1).tolist() == [4, 3]
    spread = motif_grid(graph, 1, 5, per_type=True).index[0, 0]  # two slots, two and one
    assert spread.tolist() == [[2, 0, 1], [-1, -1, -1], [2, 3, 4], [-1, -1, -1], [2, 3, 0]]


def test_ties():
    # Two components in which the best node has closeness 1: node 1 of degree 1, node 4 of degree 2.
    graph = union((5, [(0, 1), (2, 4), (3, 4)]))
    order = {tie: motif_grid(graph, 5, 1, k=2, tie=tie).index[0, :, 0, 0].tolist() for tie in TIES}
    assert order == {"degree": [4, 0, 1, 2, 3], "official": [0, 1, 4, 2, 3], "canonical": [4, 0, 1, 2, 3]}


@pytest.mark.parametrize("tie", TIES)
def test_another_centrality(tie):
    graph = some_graphs()
    for central in (graph.degree, torch.rand(graph.num_nodes), torch.randint(-2, 2, (graph.num_nodes,))):
        grid = motif_grid(graph, 5, 4, centrality=central, tie=tie)
        assert_same(grid, expected(graph, 5, 4, graph.degree, centrality=central, tie=tie))
    assert_same(motif_grid(graph, 5, centrality=closeness(graph), tie=tie), motif_grid(graph, 5, tie=tie))


@pytest.mark.parametrize("content", ["value", "onehot"])
@pytest.mark.parametrize("edges", [False, True], ids=["unlabelled", "labelled edges"])
def test_canonical_order_does_not_depend_on_the_numbering(content, edges):
    data = load_mutag()
    graph = Graph(data.edge_index, ptr=data.ptr)
    edge_labels = torch.randint(1, 4, (graph.num_edges,)) if edges else None
    renumbered = torch.cat([first + torch.randperm(n) for first, n in zip(data.ptr, data.ptr.diff(), strict=False)])
    labels = torch.empty_like(data.node_tags)
    labels[renumbered] = data.node_tags
    other = Graph(renumbered[graph.edges.T], ptr=data.ptr)
    options = {"num_labels": 7, "content": content, "edge_labels": edge_labels}
    for tie, same in (("canonical", True), ("degree", False)):
        a = motif_grid(graph, 18, node_labels=data.node_tags, tie=tie, **options)
        b = motif_grid(other, 18, node_labels=labels, tie=tie, **options)
        assert torch.equal(a.x, b.x) == same


def test_mutag():
    """Acceptance: the shape, the share of entries that are not 0, and 15 slots hold every motif."""
    data = load_mutag()
    graph = Graph(data.edge_index, ptr=data.ptr)
    grid = motif_grid(graph, 18, 15, node_labels=data.node_tags)
    assert grid.x.shape == (188, 1, 45, 54)
    assert round(100 * (grid.x != 0).double().mean().item(), 2) == 23.57
    wide = motif_grid(graph, 28, 40, node_labels=data.node_tags)  # 28 nodes are the most
    per_node = wide.mask.sum(-1)
    assert int(per_node.max()) == 9
    assert int(per_node.sum()) == 3 * 5428  # no triangle, and each wedge from each of its nodes
    assert torch.equal(grid.mask.sum(-1), per_node[:, :18])
    some = per_node > 0
    center = wide.index[:, :, 0, 0][some].long()
    assert torch.equal(torch.zeros_like(graph.degree).index_add(0, center, per_node[some]), wedges(graph))
    assert_same(grid, expected(graph, 18, 15, data.node_tags + 1))


def wedges(graph):
    """Wedges that hold each node: with it in the middle, and with it at an end."""
    degree = graph.degree
    u, v = graph.edges.T
    ends = torch.zeros_like(degree).index_add(0, u, degree[v] - 1).index_add(0, v, degree[u] - 1)
    return degree * (degree - 1) // 2 + ends


@pytest.mark.parametrize("name", ["ENZYMES", "NCI1"])
def test_isolated_nodes(name, shared_data):
    path = shared_data / "graphs" / "tu" / f"{name}.txt.xz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    data = read_tu(path)
    graph = Graph(data.edge_index, ptr=data.ptr)
    central = closeness(graph)
    assert int((graph.degree == 0).sum()) == {"ENZYMES": 106, "NCI1": 428}[name]
    assert bool((central[graph.degree == 0] == 0).all())
    assert bool(central.isfinite().all())
    assert bool(motif_grid(graph, 30, node_labels=data.node_tags).x.isfinite().all())


def test_a_batch_is_its_graphs():
    graphs = [random_graph(n, 0.4) for n in (12, 5, 20)]
    batch = motif_grid(union(*graphs), 6, 5)
    first = 0
    for b, (n, edges) in enumerate(graphs):
        alone = motif_grid(union((n, edges)), 6, 5)
        assert torch.equal(batch.x[b], alone.x[0])
        assert torch.equal(batch.index[b], torch.where(alone.mask[0, ..., None], alone.index[0] + first, -1))
        first += n


def test_threads():
    graph, before = union(*(random_graph(n, 0.3) for n in range(4, 40))), torch.get_num_threads()
    grids = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        grids += [motif_grid(graph, 10, tie="canonical"), motif_grid(graph, 10, 7, k=4, per_type=True)]
    torch.set_num_threads(before)
    for i, grid in enumerate(grids[2:]):
        assert_same(grid, grids[i % 2])


def test_a_hub_stops_early():
    """Two million wedges around a node, of which 15 are wanted."""
    leaves = 2000
    hub = torch.stack([torch.zeros(leaves, dtype=torch.int64), torch.arange(1, leaves + 1)])
    grid = motif_grid(Graph(hub), 1)
    assert grid.index[0, 0].tolist() == [[0, 1, b] for b in range(2, 17)]


def test_onehot():
    graph = some_graphs()
    labels, edge_labels = torch.randint(4, (graph.num_nodes,)), torch.rand(graph.num_edges) + 1
    grid = motif_grid(graph, 7, node_labels=labels, num_labels=5, edge_labels=edge_labels, content="onehot")
    assert_same(grid, expected(graph, 7, 15, labels + 1, planes=6, edge_value=edge_labels))
    onehot = torch.nn.functional.one_hot(labels, 5).float()
    assert torch.equal(gather_grid(grid.index, grid.mask, onehot), grid.x[:, :-1])
    diagonal = motif_grid(graph, 7, node_labels=labels, num_labels=5).x[:, 0]
    numbers = (grid.x[:, :-1] * torch.arange(1, 6)[:, None, None]).sum(1)
    assert torch.equal(torch.where(grid.x[:, -1] == 0, diagonal, 0), numbers)


def test_onehot_degrees():
    graph = union((5, STAR[:4]))
    assert motif_grid(graph, 5, content="onehot").x.shape == (1, 6, 45, 15)
    grid = motif_grid(graph, 5, content="onehot", num_labels=3)
    assert grid.x.shape == (1, 4, 45, 15)
    assert grid.x[0, :, 0, 0].tolist() == [0, 0, 1, 0]  # degree 4 counts as 2


@pytest.mark.parametrize("content", ["value", "onehot"])
def test_nothing(content):
    for graphs in ([(0, [])], [(3, [])], [(0, []), (3, []), (0, [])]):
        graph, B = union(*graphs), len(graphs)
        grid = motif_grid(graph, 4, 2, content=content, num_labels=2 if content == "onehot" else None)
        assert grid.x.shape == (B, 3 if content == "onehot" else 1, 6, 12)
        assert not grid.x.any()
        assert not grid.mask.any()
        assert bool((grid.index == -1).all())
        features = torch.randn(graph.num_nodes, 2)
        assert not gather_grid(grid.index, grid.mask, features).any()


def test_gather_grid_gradient():
    graph = union(random_graph(6, 0.5), random_graph(3, 0.9))
    grid = motif_grid(graph, 4, 3)
    features = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: gather_grid(grid.index, grid.mask, f), features)
    assert torch.autograd.gradgradcheck(lambda f: gather_grid(grid.index, grid.mask, f).sin(), features)
    out = gather_grid(grid.index, grid.mask, features)
    assert out.shape == (2, 2, 9, 12)
    i, s, p = 1, 0, 2
    assert_close(out[1, :, s * 3 + p, i * 3 + p], features[grid.index[1, i, s, p].item()])
    fewer = grid.mask.clone()
    fewer[:, :, 0] = False  # a caller may leave instances out
    assert not gather_grid(grid.index, fewer, features)[:, :, :3].any()


def test_opcheck():
    graph = union((0, []), (3, [(0, 1)]), random_graph(6, 0.5))
    packed = (graph.index, graph.adjacency, graph.ptr)
    labels, edge_value = torch.randint(1, 4, (graph.num_nodes,)), torch.rand(graph.num_edges)
    central = torch.rand(graph.num_nodes, dtype=torch.float64)
    for k, planes, edges, order in ((3, 1, None, None), (4, 4, edge_value, central)):
        torch.library.opcheck(
            torch.ops.innerloop.motif_grid.default, (*packed, labels, edges, order, 5, 6, k, planes, 2, True)
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile():
    graph = some_graphs()
    labels, degree = torch.randint(4, (graph.num_nodes,)), Graph(graph.edges.T, graph.num_nodes).degree

    def model(features, labels):
        options = {"node_labels": labels, "num_labels": 4, "content": "onehot"}
        grid = motif_grid(graph, 5, **options)
        by_degree = motif_grid(graph, 5, centrality=degree, **options)
        plain = motif_grid(graph, 5)  # reads the degrees, for the first time
        return grid.x, gather_grid(grid.index, grid.mask, features), by_degree.x, plain.x

    features = torch.randn(graph.num_nodes, 3)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for a, e in zip(compiled(features, labels), model(features, labels), strict=True):
        assert_close(a, e)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("labelled", [False, True])
def test_onehot_without_num_labels_breaks_the_graph(labelled):
    graph = some_graphs()
    labels = torch.randint(4, (graph.num_nodes,)) if labelled else None

    def function():
        return motif_grid(graph, 5, node_labels=labels, content="onehot").x

    torch._dynamo.reset()
    assert torch.equal(torch.compile(function, backend="eager")(), function())
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="breaks a compiled graph: give num_labels"):
        torch.compile(function, backend="eager", fullgraph=True)()


def test_numpy_ints():
    graph, labels = some_graphs(), {"content": "onehot", "num_labels": 3}
    grid = motif_grid(graph, np.int64(5), np.int32(4), k=np.uint8(3), **labels | {"num_labels": np.int64(3)})
    assert_same(grid, motif_grid(graph, 5, 4, k=3, **labels))


def test_kernels_refuse_what_is_no_batch():
    graph = union((3, [(0, 1)]), (3, [(0, 2)]))
    for ptr in ([0, 1, 6], [0, 4, 3, 6], [0, 3], [1, 6], [0]):
        ptr = torch.tensor(ptr, dtype=torch.int64)
        args = (graph.index, graph.adjacency, ptr, graph.degree, None, None, 2, 2, 3, 1, 0, False)
        with pytest.raises(ValueError, match="motif_grid: ptr"):
            torch.ops.innerloop.motif_grid(*args)
    value = torch.full((6,), 4)
    with pytest.raises(ValueError, match="motif_grid: value"):
        torch.ops.innerloop.motif_grid(graph.index, graph.adjacency, graph.ptr, value, None, None, 2, 2, 3, 4, 0, False)


LABELS = torch.tensor([0, 1, 2])
BAD = [
    ({"num_nodes": 0}, ValueError, "num_nodes is 0, expected an int of at least 1"),
    ({"slots": 2.0}, ValueError, "slots is 2.0, expected an int of at least 1"),
    ({"k": 6}, ValueError, "k is 6, expected an int from 2 to 5"),
    ({"k": True}, ValueError, "k is True"),
    ({"slots": 2**40, "num_nodes": 2**40}, ValueError,
     r"num_nodes is 1099511627776, slots is 1099511627776, \d+ bytes for a batch of 1, expected less than 2\*\*63"),
    ({"num_nodes": 2**70}, ValueError, rf"num_nodes is {2**70}, slots is 15, \d+ bytes"),
    ({"num_labels": 2**70, "content": "onehot"}, ValueError, rf"num_nodes is 2, slots is 15, num_labels is {2**70}, "),
    ({"slots": 2**50}, MemoryError, rf"num_nodes is 2, slots is {2**50}, {98 * 2**50} bytes for a batch of 1"),
    ({"num_labels": 2**50, "content": "onehot"}, MemoryError, rf"num_nodes is 2, slots is 15, num_labels is {2**50}, "),
    ({"tie": "index"}, ValueError, "tie is 'index', expected one of degree, official, canonical"),
    ({"content": "image"}, ValueError, "content is 'image', expected one of value, onehot"),
    ({"node_labels": LABELS.float()}, TypeError, "node_labels is torch.float32, expected an integer tensor"),
    ({"node_labels": [0, 1, 2]}, TypeError, "node_labels is list"),
    ({"node_labels": LABELS[:2]}, ValueError, r"node_labels has shape \(2,\), expected \(3,\)"),
    ({"node_labels": LABELS, "num_labels": 2}, IndexError, r"node_labels holds 2, expected labels in \[0, 2\)"),
    ({"node_labels": LABELS - 1, "num_labels": 3}, IndexError, "node_labels holds -1"),
    ({"num_labels": 0}, ValueError, "num_labels is 0"),
    ({"num_labels": 3}, ValueError, "num_labels is 3 without node_labels"),
    ({"edge_labels": LABELS}, ValueError, r"edge_labels has shape \(3,\), expected \(2,\)"),
    ({"edge_labels": LABELS[:2] > 0}, TypeError, "edge_labels is torch.bool"),
    ({"edge_labels": torch.ones(2, requires_grad=True)}, ValueError, "edge_labels requires a gradient"),
    ({"centrality": "degree"}, TypeError, "centrality is str, expected an integer or floating tensor"),
    ({"centrality": torch.ones(2)}, ValueError, r"centrality has shape \(2,\), expected \(3,\)"),
    ({"centrality": torch.tensor([1, torch.nan, 2])}, ValueError, "centrality has nan, expected numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text for *_, text in BAD])
def test_bad_arguments(change, error, text):
    args = {"graph": union((3, [(0, 1), (1, 2)])), "num_nodes": 2} | change
    with pytest.raises(error, match=f"motif_grid: {text}"):
        motif_grid(**args)


INDEX, MASK, FEATURES = (
    torch.zeros(1, 2, 4, 3, dtype=torch.int32),
    torch.ones(1, 2, 4, dtype=torch.bool),
    torch.ones(5, 2),
)
BAD_GATHER = [
    ((INDEX.float(), MASK, FEATURES), TypeError, "index has dtype torch.float32"),
    ((INDEX, MASK.int(), FEATURES), TypeError, "mask has dtype torch.int32, expected torch.bool"),
    ((INDEX, MASK, [1.0]), TypeError, "features is list, expected a tensor"),
    ((INDEX[0], MASK, FEATURES), ValueError, r"index has shape \(2, 4, 3\), expected \(B, N, S, k\)"),
    ((INDEX, MASK[:, :1], FEATURES), ValueError, r"mask has shape \(1, 1, 4\), expected \(1, 2, 4\)"),
    ((INDEX, MASK, FEATURES[0]), ValueError, r"features has shape \(2,\), expected \(n, F\)"),
    ((INDEX + 5, MASK, FEATURES), IndexError, r"index holds 5 where mask is True, expected nodes in \[0, 5\)"),
    ((INDEX - 2, MASK, FEATURES), IndexError, "index holds -2 where mask is True"),
]


@pytest.mark.parametrize(("args", "error", "text"), BAD_GATHER, ids=[text for *_, text in BAD_GATHER])
def test_gather_grid_bad_arguments(args, error, text):
    with pytest.raises(error, match=f"gather_grid: {text}"):
        gather_grid(*args)
