# SPDX-License-Identifier: Apache-2.0
"""Closeness of many small graphs and of networks, exact and from a sample, against graph libraries."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from bench_motif_grid import GATE, first_graphs
from bench_triangles import load_network
from harness import OURS, Work, assert_near, path_taken, peer
from innerloop import Graph, closeness, reference
from innerloop.data.tu import load_mutag
from torch import Tensor

SAMPLES = 256


def closeness_peers(graph: Graph) -> dict[str, Callable[[], Tensor]]:
    parts = [(last - first, first) for first, last in pairwise(graph.ptr.tolist())]
    own = graph.batch[graph.edges[:, 0]]
    edges = [(graph.edges[own == b] - first).tolist() for b, (_, first) in enumerate(parts)]
    peers = {}
    if igraph := peer("igraph"):
        graphs = [igraph.Graph(n, pairs) for (n, _), pairs in zip(parts, edges, strict=True)]
        peers["igraph"] = lambda: torch.tensor([c for g in graphs for c in g.closeness()], dtype=torch.float64)
    if networkx := peer("networkx"):
        others = []
        for (n, _), pairs in zip(parts, edges, strict=True):
            g = networkx.empty_graph(n)
            g.add_edges_from(pairs)
            others.append(g)
        peers["networkx"] = lambda: torch.tensor(
            [c for g in others for c in networkx.closeness_centrality(g, wf_improved=False).values()],
            dtype=torch.float64,
        )
    return peers


def test_small_graphs(quick, compare):
    data = load_mutag()
    graph = Graph(data.edge_index, ptr=data.ptr)
    graph = first_graphs(graph, GATE) if quick else graph
    functions = {OURS: lambda: closeness(graph), **closeness_peers(graph)}
    functions["plain Python"] = lambda: reference.closeness(graph.edges, graph.num_nodes)
    expected = functions["plain Python"]()
    for name, function in functions.items():
        assert_near(function(), expected, 1e-12, name)
    compare(
        f"closeness MUTAG, {graph.num_graphs} graphs, cpu",
        {name: [function] for name, function in functions.items()},
        Work(8 * graph.num_edges + 8 * graph.num_nodes, 0, dtype="float64"),
        absent={name: "not installed" for name in ("igraph", "networkx") if name not in functions},
        path=path_taken("closeness", "cpu"),
    )


@pytest.mark.parametrize("name", ["ca-grqc", "email-enron"])
def test_network(name, quick, compare):
    """The definition is asked about a sample; the exact one is held to igraph's."""
    if quick and name != "ca-grqc":
        pytest.skip("ca-grqc stands for all")
    label, edges, n = load_network(name, quick)
    graph = Graph(edges, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).argsort()
    sampled = closeness(graph, 64, torch.Generator().manual_seed(0))
    assert torch.equal(sampled, reference.closeness(graph.edges, n, 64, order))
    functions = {OURS: lambda: closeness(graph), f"{OURS}, {SAMPLES} samples": lambda: closeness(graph, SAMPLES)}
    absent = {"igraph": "not installed" if n < 10_000 else "takes minutes"}
    if (igraph := peer("igraph")) and n < 10_000:
        ig = igraph.Graph(n, graph.edges.tolist())
        functions["igraph"] = lambda: torch.tensor(ig.closeness(), dtype=torch.float64)
        absent = {}
    expected = functions[OURS]()
    for key, function in functions.items():
        # igraph has no number for an isolated node.
        assert_near(function().nan_to_num(0), expected, 0.05 if "samples" in key else 1e-12, key)
    compare(
        f"closeness {label}, {n} nodes, {graph.num_edges} edges, Graph built before, cpu",
        {key: [function] for key, function in functions.items()},
        Work(8 * graph.num_edges + 8 * n, 0, dtype="float64"),
        absent=absent,
        path=path_taken("closeness", "cpu"),
    )
