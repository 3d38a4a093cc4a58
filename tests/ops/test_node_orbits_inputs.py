# SPDX-License-Identifier: Apache-2.0
"""node_orbits, edge_orbits and graphlets of relabelled, messy, empty and batched graphs."""

import itertools
from pathlib import Path

import innerloop
import pytest
import torch
from innerloop import Graph, edge_orbits, graphlets, node_orbits
from innerloop.data.tu import GraphDataset, load_mutag, read_tu
from innerloop.reference.node_orbits import NUM_ORBITS
from ops.orbit_cases import NUM_GRAPHLETS, random_edges


def collection(folder: Path, name: str) -> GraphDataset:
    return read_tu(folder / "tu" / f"{name}.txt.xz")


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
