# SPDX-License-Identifier: Apache-2.0
"""RelGraph: CSR order, degrees, drop, inverse edges, checks."""

import pytest
import torch
from cases import make_case
from innerloop import RelGraph
from innerloop import graph as graph_module

INTS = ("indptr", "src", "rel", "eid")


def random_graph(V=9, E=60, R=4, weight=False, isolated=False) -> RelGraph:
    case = make_case(V, E, R, 1, 1, isolated=isolated)
    edge_weight = torch.arange(E, dtype=torch.float32) if weight else None
    return RelGraph(case.edge_index, case.edge_type, V, R, edge_weight)


def assert_same(actual: RelGraph, expected: RelGraph) -> None:
    for name in ("num_nodes", "num_edges", "num_relations"):
        assert getattr(actual, name) == getattr(expected, name)
    for name in (*INTS, "edge_index", "edge_type", "in_degree"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    if expected.edge_weight is None:
        assert actual.edge_weight is None
    else:
        assert torch.equal(actual.edge_weight, expected.edge_weight)


@pytest.mark.parametrize("sizes", [(9, 60, 4), (1, 5, 1), (6, 0, 2), (40, 15, 3), (3, 500, 2)])
def test_csr_is_the_sorted_edge_list(sizes):
    V, E, R = sizes
    graph = random_graph(V, E, R)
    (source, destination), kind = graph.edge_index.tolist(), graph.edge_type.tolist()
    rows = sorted(zip(destination, kind, source, range(E), strict=True))
    assert [graph.rel.tolist(), graph.src.tolist(), graph.eid.tolist()] == [[row[k] for row in rows] for k in (1, 2, 3)]
    starts = [sum(row[0] < v for row in rows) for v in range(V + 1)]
    assert graph.indptr.tolist() == starts
    assert all(getattr(graph, name).dtype == torch.int32 for name in INTS)


def test_attributes_keep_the_users_order():
    case = make_case(9, 60, 4)
    weight = torch.rand(60)
    graph = RelGraph(case.edge_index, case.edge_type, 9, 4, weight)
    assert torch.equal(graph.edge_index, case.edge_index)
    assert torch.equal(graph.edge_type, case.edge_type)
    assert torch.equal(graph.edge_weight, weight)
    assert (graph.num_nodes, graph.num_edges, graph.num_relations) == (9, 60, 4)
    assert graph.device == torch.device("cpu")


def test_in_degree_counts_edges_not_weights():
    graph = random_graph(weight=True, isolated=True)
    expected = torch.bincount(graph.edge_index[1], minlength=9)
    assert graph.in_degree.dtype == torch.float32
    assert torch.equal(graph.in_degree, expected.float())
    assert graph.in_degree[8] == 0


def test_sizes_default_to_largest_id_plus_one():
    graph = RelGraph(torch.tensor([[0, 6], [3, 2]]), torch.tensor([4, 1]))
    assert (graph.num_nodes, graph.num_relations) == (7, 5)


def test_strided_and_transposed_indices():
    pairs = torch.randint(0, 9, (60, 2))
    types = torch.randint(0, 4, (120,))
    assert_same(
        RelGraph(pairs.t(), types[::2], 9, 4),
        RelGraph(pairs.t().contiguous(), types[::2].contiguous(), 9, 4),
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["mask", "ids", "repeated ids"])
def test_drop_equals_rebuilding(kind, share):
    graph = random_graph(weight=True)
    mask = torch.rand(60) < share
    ids = mask.nonzero().flatten()
    ids = ids[torch.randperm(len(ids))]
    edges = {"mask": mask, "ids": ids, "repeated ids": torch.cat([ids, ids])}[kind]
    keep = ~mask
    rebuilt = RelGraph(graph.edge_index[:, keep], graph.edge_type[keep], 9, 4, graph.edge_weight[keep])
    before = random_graph_copy(graph)
    assert_same(graph.drop(edges), rebuilt)
    assert_same(graph, before)  # the graph itself is left alone
    again = torch.rand(rebuilt.num_edges) < 0.5
    assert_same(graph.drop(edges).drop(again), rebuilt.drop(again))


def random_graph_copy(graph: RelGraph) -> RelGraph:
    return RelGraph(graph.edge_index.clone(), graph.edge_type.clone(), 9, 4, graph.edge_weight.clone())


def test_drop_after_degrees_were_read():
    """Cached attributes of the full graph must not be carried over."""
    graph = random_graph()
    full = graph.in_degree.sum(), graph.with_inverse().in_degree.sum()
    assert full == (60, 120)
    assert graph.drop(torch.arange(20)).in_degree.sum() == 40


def test_with_inverse():
    graph = random_graph(weight=True)
    (x, v), r = graph.edge_index, graph.edge_type
    expected = RelGraph(
        torch.stack([torch.cat([x, v]), torch.cat([v, x])]),
        torch.cat([r, r + 4]),
        9,
        8,
        torch.cat([graph.edge_weight, graph.edge_weight]),
    )
    assert_same(graph.with_inverse(), expected)
    assert random_graph().with_inverse().edge_weight is None


def test_repr_names_the_sizes():
    assert repr(random_graph()).startswith("RelGraph(num_nodes=9, num_edges=60, num_relations=4")


def off(edge: int, row: int, by: int) -> torch.Tensor:
    """The valid indices with one of them moved."""
    moved = index.clone()
    moved[row, edge] += by
    return moved


index, kind = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([0, 1, 0])
RANGE = (ValueError, IndexError)
# what: (arguments, error, words of the message)
ERRORS = {
    "float-index": ((index.float(), kind, 3, 2), TypeError, "edge_index float32 int64"),
    "float-type": ((index, kind.float(), 3, 2), TypeError, "edge_type float32 int64"),
    "bool-index": ((index.bool(), kind, 3, 2), TypeError, "edge_index bool"),
    "list-index": ((index.tolist(), kind, 3, 2), TypeError, "edge_index list"),
    "source-range": ((off(1, 0, 4), kind, 3, 2), RANGE, "edge_index 5 |edge 1|[0, 3)"),
    "destination-range": ((off(0, 1, 2), kind, 3, 2), RANGE, "edge_index 3 |edge 0|[0, 3)"),
    "negative-node": ((off(2, 0, -9), kind, 3, 2), RANGE, "edge_index -7 |edge 2|"),
    "relation-range": ((index, kind, 3, 1), RANGE, "edge_type 1 |edge 1|[0, 1)"),
    "negative-relation": ((index, kind - 1, 3, 2), RANGE, "edge_type -1 |edge 0|"),
    "index-shape": ((index.t().contiguous(), kind, 3, 2), ValueError, "edge_index |(3, 2)|(2, E)"),
    "type-shape": ((index, kind[:2], 3, 2), ValueError, "edge_type (2,) (3,)"),
    "weight-shape": ((index, kind, 3, 2, torch.ones(2)), ValueError, "edge_weight (2,) (3,)"),
    "weight-dtype": ((index, kind, 3, 2, kind), TypeError, "edge_weight int64"),
    "negative-count": ((index, kind, -3, 2), ValueError, "num_nodes -3"),
    "float-count": ((index, kind, 3.0, 2), TypeError, "num_nodes float"),
}


def assert_names(text: str, words: str) -> None:
    """``words`` are separated by spaces, or, after a bar, by bars."""
    first, *rest = words.split("|")
    assert not [word for word in ["RelGraph", *first.split(), *rest] if word not in text], text


@pytest.mark.parametrize("what", ERRORS)
def test_error_texts(what):
    arguments, error, words = ERRORS[what]
    with pytest.raises(error) as caught:
        RelGraph(*arguments)
    assert_names(str(caught.value), words)


DROP_ERRORS = {
    "mask-length": (torch.zeros(2, dtype=torch.bool), ValueError, "edges (2,) (3,)"),
    "id-too-large": (torch.tensor([0, 3]), RANGE, "edges 3"),
    "negative-id": (torch.tensor([-1]), RANGE, "edges -1"),
    "float": (torch.ones(3), TypeError, "edges float32"),
    "list": ([0], TypeError, "edges list"),
}


@pytest.mark.parametrize("what", DROP_ERRORS)
def test_drop_error_texts(what):
    edges, error, words = DROP_ERRORS[what]
    with pytest.raises(error) as caught:
        RelGraph(index, kind, 3, 2).drop(edges)
    assert_names(str(caught.value), words)


def test_drop_keeps_no_tie_to_the_callers_mask():
    graph = random_graph()
    mask = torch.zeros(graph.num_edges, dtype=torch.bool)
    mask[:7] = True
    dropped = graph.drop(mask)
    mask.zero_()
    assert torch.equal(dropped.edge_index, graph.edge_index[:, 7:])


@pytest.mark.parametrize(
    ("ids", "error"),
    [([-9, 1], IndexError), ([0, 2**45], ValueError)],
)
def test_default_counts_are_checked(ids, error):
    with pytest.raises(error, match="RelGraph"):
        RelGraph(torch.tensor([ids, [0, 0]]), torch.tensor([0, 0]))


# What a GPU would run, on the CPU: plain torch, so the device does not matter.


@pytest.mark.parametrize(
    ("num_nodes", "num_edges", "num_relations"), [(7, 60, 3), (1, 4, 1), (5, 0, 2), (9, 3, 1), (0, 0, 0)]
)
def test_build_and_drop_on_a_device(num_nodes, num_edges, num_relations):
    edges = torch.randint(0, max(num_nodes, 1), (2, num_edges))
    kinds = torch.randint(0, max(num_relations, 1), (num_edges,))
    graph = RelGraph(edges, kinds, num_nodes, num_relations)
    built = graph_module._build_on_device(graph.edge_index, graph.edge_type, num_nodes, num_relations)
    assert torch.equal(built, graph.csr)
    mask = torch.rand(num_edges) < 0.4
    assert torch.equal(graph_module._drop_on_device(graph, mask), graph.drop(mask).csr)


def test_bad_ids_leave_the_device_for_their_message():
    good = torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 1])
    graph = RelGraph(*good, 3, 2)
    assert graph_module._in_range(*good, graph)
    for edges, kinds in (([[0, 3], [1, 2]], [0, 1]), ([[0, 1], [-1, 2]], [0, 1]), ([[0, 1], [1, 2]], [0, 2])):
        assert not graph_module._in_range(torch.tensor(edges), torch.tensor(kinds), graph)
