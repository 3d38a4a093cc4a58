# SPDX-License-Identifier: Apache-2.0
"""Pattern counts as features, and the functions of orca-graphlets."""

from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch
from innerloop.compat import orca_edges, orca_nodes
from innerloop.nn import orbit_features
from innerloop.nn.orbit_features import AddOrbitCounts, AddSubstructureCounts
from innerloop.ops._patterns import as_pattern

# A triangle 0-1-2 with the tail 2-3, both directions; node 4 is alone.
PAW = torch.tensor([[0, 1, 1, 2, 2, 0, 2, 3], [1, 0, 2, 1, 0, 2, 3, 2]])
# Orbits 0 to 3 of its nodes: degree, end and middle of an induced path of 3 nodes, triangle.
FIRST = torch.tensor([[2, 1, 0, 1], [2, 1, 0, 1], [3, 0, 2, 1], [1, 2, 0, 0], [0, 0, 0, 0]])


def paw(**attributes) -> SimpleNamespace:
    return SimpleNamespace(edge_index=PAW.clone(), num_nodes=5, **attributes)


def test_counts_make_an_attribute():
    graph = paw()
    assert AddOrbitCounts(3, log=False)(graph) is graph
    assert graph.x.dtype == torch.int64
    assert torch.equal(graph.x, FIRST)


@pytest.mark.parametrize(("k", "columns"), [(3, 4), (4, 15), (5, 73)])
def test_logarithm_is_the_default(k, columns):
    x = AddOrbitCounts(k)(paw()).x
    assert (x.shape, x.dtype) == ((5, columns), torch.float32)
    torch.testing.assert_close(x[:, :4], FIRST.float().log1p())
    assert (x[4] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_counts_go_behind_what_is_there(dtype):
    before = torch.arange(10).view(5, 2).to(dtype)
    graph = AddOrbitCounts(3, log=False, attr="h")(paw(h=before))
    assert graph.h.dtype == dtype
    assert torch.equal(graph.h, torch.cat([before, FIRST.to(dtype)], 1))
    assert AddOrbitCounts(3, attr="h")(paw(h=before)).h.is_floating_point()
    assert AddOrbitCounts(3)(paw(x=torch.zeros(5))).x.shape == (5, 5)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.bool, torch.int64),
        (torch.uint8, torch.int64),
        (torch.int32, torch.int64),
        (torch.float16, torch.float64),
        (torch.bfloat16, torch.float64),
        (torch.float32, torch.float32),
    ],
)
def test_counts_are_not_rounded(dtype, wanted):
    leaves = torch.arange(1, 501)
    star = SimpleNamespace(edge_index=torch.stack([torch.zeros_like(leaves), leaves]), num_nodes=501)
    star.x = torch.ones(501, 1, dtype=dtype)
    x = AddOrbitCounts(3, log=False)(star).x
    assert x.dtype == wanted
    assert x[0].tolist() == [1, 500, 0, 500 * 499 // 2, 0]


def test_counts_beyond_float32():
    counts = torch.tensor([[2**24 + 1]])
    assert orbit_features._dtype_for(counts, torch.float32) == torch.float64
    assert orbit_features._dtype_for(counts - 1, torch.float32) == torch.float32


def test_mappings_and_graphs_without_a_number_of_nodes():
    graph = AddOrbitCounts(3, log=False)({"edge_index": PAW})
    assert torch.equal(graph["x"], FIRST[:4])
    x = torch.zeros(5, 2)
    assert torch.equal(AddOrbitCounts(3, log=False)(SimpleNamespace(edge_index=PAW, x=x)).x[:, 2:], FIRST.float())
    assert AddSubstructureCounts("edge", attr="h")({"edge_index": PAW, "h": x}).get("h").shape == (5, 3)
    empty = AddOrbitCounts()(SimpleNamespace(edge_index=torch.empty(2, 0, dtype=torch.int64), num_nodes=3))
    assert empty.x.shape == (3, 15)


def test_pyg_objects():
    data = pytest.importorskip("torch_geometric.data").Data(edge_index=PAW, num_nodes=5)
    assert torch.equal(AddOrbitCounts(3, log=False)(data).x, FIRST)


def test_substructures_of_nodes():
    graph = AddSubstructureCounts(["triangle", [(0, 1), (1, 2)]], induced=True)(paw())
    assert torch.equal(graph.x, FIRST[:, [3, 1, 2]])
    free = AddSubstructureCounts([[(0, 1), (1, 2)]], log=True)(paw())
    torch.testing.assert_close(free.x, torch.tensor([[3, 1], [3, 1], [2, 3], [2, 0], [0, 0]]).float().log1p())


@pytest.mark.parametrize(
    "one",
    [
        [(0, 1), (1, 2)],
        ((0, np.int64(1)), (1, 2)),
        torch.tensor([[0, 1], [1, 2]]),
        np.array([[0, 1], [1, 2]]),
        nx.path_graph(3),
        as_pattern("wedge", "test"),
        [[0, 1, 2], [1, 2, 0]],
    ],
    ids=lambda one: type(one).__name__,
)
def test_one_pattern_alone(one):
    assert torch.equal(AddSubstructureCounts(one)(paw()).x, AddSubstructureCounts([one])(paw()).x)


def test_substructures_of_edges():
    graph = AddSubstructureCounts("triangle", scope="edge")(paw())
    assert graph.edge_attr.tolist() == [[1], [1], [1], [1], [1], [1], [0], [0]]
    # Rows follow edge_index as it is: loops have none, a direction that is missing and copies do no harm.
    order = torch.tensor([[3, 2, 1, 1, 0, 0, 0], [2, 2, 2, 0, 1, 2, 2]])
    graph = SimpleNamespace(edge_index=order, num_nodes=5, edge_attr=torch.ones(7, 1))
    graph = AddSubstructureCounts(["triangle", [(0, 1), (1, 2)]], scope="edge")(graph)
    assert graph.edge_attr.tolist() == [[1, 0, 2], [1, 0, 0], [1, 1, 3], [1, 1, 2], [1, 1, 2], [1, 1, 3], [1, 1, 3]]
    loops = SimpleNamespace(edge_index=torch.tensor([[1], [1]]), num_nodes=2)
    assert AddSubstructureCounts("triangle", scope="edge")(loops).edge_attr.tolist() == [[0]]
    assert AddSubstructureCounts("triangle", scope="edge")(vars(loops) | {"edge_attr": None})["edge_attr"].tolist() == [
        [0]
    ]


def test_transforms_say_what_they_are():
    assert repr(AddOrbitCounts(5)) == "AddOrbitCounts(k=5, log=True, attr='x')"
    assert repr(AddSubstructureCounts("triangle")) == "AddSubstructureCounts(['triangle'], scope='node', induced=False)"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: AddOrbitCounts(6), ValueError, "AddOrbitCounts: k is 6, expected 3, 4 or 5"),
        (
            lambda: AddSubstructureCounts(["triangel"]),
            ValueError,
            "AddSubstructureCounts: pattern 'triangel' is unknown",
        ),
        (lambda: AddSubstructureCounts([3]), TypeError, "AddSubstructureCounts: pattern is int"),
        (lambda: AddSubstructureCounts([]), ValueError, "patterns is empty, expected at least one"),
        (lambda: AddSubstructureCounts(["triangle"], "graph"), ValueError, "scope is 'graph', expected node or edge"),
        (lambda: AddOrbitCounts()(SimpleNamespace(x=1)), TypeError, "SimpleNamespace has no edge_index"),
        (lambda: AddOrbitCounts(4.0), ValueError, "AddOrbitCounts: k is 4.0, expected 3, 4 or 5"),
        (lambda: AddOrbitCounts(log=1), TypeError, "AddOrbitCounts: log is 1, expected a bool"),
        (lambda: AddOrbitCounts(attr=None), TypeError, "AddOrbitCounts: attr is None, expected the name"),
        (lambda: AddSubstructureCounts("edge", induced=1), TypeError, "AddSubstructureCounts: induced is 1, expected"),
        (lambda: AddSubstructureCounts("edge", attr=3), TypeError, "AddSubstructureCounts: attr is 3, expected"),
        (lambda: AddSubstructureCounts(3), TypeError, "AddSubstructureCounts: patterns is int, expected a list"),
        (lambda: AddOrbitCounts()(paw(x=[1] * 5)), TypeError, "AddOrbitCounts: x is list, expected a tensor"),
        (
            lambda: AddOrbitCounts(attr="h")(paw(h=torch.zeros(6, 2))),
            ValueError,
            r"AddOrbitCounts: h has shape \(6, 2\), expected \(5,\) or \(5, F\)",
        ),
        (
            lambda: AddSubstructureCounts("edge", "edge")(paw(edge_attr=torch.zeros(8, 1, 1))),
            ValueError,
            r"AddSubstructureCounts: edge_attr has shape \(8, 1, 1\), expected \(8,\) or \(8, F\)",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


EDGES = [(0, 1), (1, 2), (2, 0), (3, 2)]


@pytest.mark.parametrize(
    "edge_list", [EDGES, iter(EDGES), np.array(EDGES), np.array(EDGES, np.int32), torch.tensor(EDGES)]
)
def test_orca_nodes(edge_list):
    counts = orca_nodes(edge_list, num_nodes=5)
    assert isinstance(counts, np.ndarray)
    assert (counts.shape, counts.dtype) == ((5, 15), np.int64)
    assert counts[:, :4].tolist() == FIRST.tolist()
    assert counts[:, 9:12].tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_orca_edges_and_sizes():
    counts = orca_edges(EDGES)
    assert counts.shape == (4, 12)
    assert counts[:, :2].tolist() == [[0, 1], [1, 1], [1, 1], [2, 0]]
    assert orca_edges(EDGES, graphlet_size=5).shape == (4, 68)
    assert orca_nodes(EDGES, graphlet_size=np.int64(5)).shape == (4, 73)
    assert orca_nodes([], num_nodes=2).tolist() == [[0] * 15] * 2
    assert orca_edges([]).shape == (0, 12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((EDGES, None, 6), ValueError, "orca_nodes: graphlet_size is 6, expected 3, 4 or 5"),
        (([(0, 1, 2)],), ValueError, r"orca_nodes: edge_list is torch.int64 of shape \(1, 3\), expected integers"),
        (([(0.0, 1.0)],), ValueError, r"orca_nodes: edge_list is torch.float32 of shape \(1, 2\), expected integers"),
        ((EDGES, None, 4.0), ValueError, "orca_nodes: graphlet_size is 4.0, expected 3, 4 or 5"),
        ((None,), TypeError, "orca_nodes: edge_list is NoneType, expected pairs of node ids"),
        (([("a", "b")],), ValueError, "orca_nodes: edge_list has entries that are no ids"),
        ((np.array([["a", "b"]]),), ValueError, "orca_nodes: edge_list has entries that are no ids"),
        (([(0, 1), (1,)],), ValueError, "orca_nodes: edge_list has entries that are no ids"),
        (([(0, 2**70)],), ValueError, "orca_nodes: edge_list has entries that are no ids"),
        (([(True, False)],), ValueError, "orca_nodes: edge_list is torch.bool"),
        ((EDGES, 3), IndexError, "3"),
        (([(0, -1)],), IndexError, "-1"),
    ],
)
def test_orca_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        orca_nodes(*arguments)
