# SPDX-License-Identifier: Apache-2.0
"""bellman_ford against graph libraries: 64 sources on FB15k-237 with inverse edges, one thread."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from bench_relational_spmm import load_graph
from harness import OURS, Work, assert_near, path_taken, peer
from innerloop import RelGraph, Semiring, bellman_ford
from torch import Tensor

SOURCES = 64

Run = Callable[[], Tensor]  # (V, S) float64


def simple(graph: RelGraph, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target and smallest weight of each distinct ordered pair, for libraries without parallel edges."""
    V = graph.num_nodes
    key, inverse = torch.unique(graph.edge_index[0] * V + graph.edge_index[1], return_inverse=True)
    best = weight.new_zeros(len(key)).scatter_reduce(0, inverse, weight, "amin", include_self=False)
    return key // V, key % V, best


def distance_peers(graph: RelGraph, weight: Tensor, sources: Tensor) -> dict[str, Run | None]:
    head, tail, best = simple(graph, weight)
    V = graph.num_nodes
    peers: dict[str, Run | None] = {}
    if scipy := peer("scipy.sparse"):
        csgraph = peer("scipy.sparse.csgraph")
        matrix = scipy.csr_matrix((best.double().numpy(), (head.numpy(), tail.numpy())), shape=(V, V))
        peers["scipy dijkstra"] = lambda: torch.from_numpy(csgraph.dijkstra(matrix, indices=sources.numpy())).T
    if igraph := peer("igraph"):
        g = igraph.Graph(V, torch.stack([head, tail], 1).tolist(), directed=True)
        weights = best.tolist()
        peers["igraph distances"] = lambda: (
            torch.tensor(g.distances(sources.tolist(), weights=weights), dtype=torch.float64).T
        )
    if networkx := peer("networkx"):
        nx = networkx.DiGraph()
        nx.add_nodes_from(range(V))
        nx.add_weighted_edges_from(zip(head.tolist(), tail.tolist(), best.tolist(), strict=True))

        def run_networkx() -> Tensor:
            out = torch.full((V, len(sources)), math.inf, dtype=torch.float64)
            for c, s in enumerate(sources.tolist()):
                found = networkx.single_source_dijkstra_path_length(nx, s)
                out[list(found), c] = torch.tensor(list(found.values()), dtype=torch.float64)
            return out

        peers["networkx dijkstra"] = run_networkx
    if graphblas := peer("graphblas"):
        from graphblas import semiring

        adjacency = graphblas.Matrix.from_coo(head.numpy(), tail.numpy(), best.numpy(), nrows=V, ncols=V)

        def run_graphblas() -> Tensor:
            columns, zeros = np.arange(len(sources)), np.zeros(len(sources), np.float32)
            rows = graphblas.Matrix.from_coo(columns, sources.numpy(), zeros, nrows=len(sources), ncols=V)
            while True:
                before = rows.dup()
                rows(graphblas.binary.min) << semiring.min_plus(rows @ adjacency)
                if rows.isequal(before):
                    row, column, value = map(torch.from_numpy, rows.to_coo())
                    out = torch.full((V, len(sources)), math.inf, dtype=torch.float64)
                    return out.index_put_((column.long(), row.long()), value.double())

        peers["python-graphblas min_plus"] = run_graphblas
    for name in ("igraph", "graphblas"):
        if not peer(name):
            peers[name] = None
    return peers


@pytest.mark.parametrize("semiring", ["distance", "ppr"])
def test_bellman_ford(semiring, quick, compare):
    dataset, graph = load_graph(quick)
    generator = torch.Generator().manual_seed(0)
    weight = 0.1 + torch.rand(graph.num_edges, generator=generator)
    sources = torch.arange(0, graph.num_nodes, graph.num_nodes // SOURCES)[:SOURCES]
    steps = 6 if semiring == "ppr" else None

    def ours(ring: str | Semiring) -> Run:
        return lambda: bellman_ford(graph, sources, ring, edge_weight=weight, steps=steps).value

    functions: dict[str, Run | None] = {OURS: ours(semiring)}
    if peer("numba"):
        functions["innerloop, numba functions"] = ours(NUMBA[semiring](graph))
    if semiring == "distance":
        functions |= distance_peers(graph, weight, sources)
    else:
        functions |= ppr_peers(graph, weight, sources, steps)
    absent = {name: "not installed" for name, run in functions.items() if run is None}
    functions = {name: run for name, run in functions.items() if run is not None}
    result = functions[OURS]()
    for name, run in functions.items():
        assert_near(run().float(), result, 1e-5, name)
    rounds = steps or bellman_ford(graph, sources, semiring, edge_weight=weight).steps
    moved = 4 * SOURCES * (graph.num_edges + 2 * graph.num_nodes) * rounds
    compare(
        f"bellman_ford {semiring}, {dataset}, {SOURCES} sources, cpu",
        {name: [run] for name, run in functions.items()},
        Work(moved, 2 * graph.num_edges * SOURCES * rounds),
        absent=absent,
        path=path_taken("bellman_ford", "cpu"),
        graph=repr(graph),
        note=f"work counted for {rounds} whole steps; edges whose source did not change are skipped",
    )


def ppr_peers(graph: RelGraph, weight: Tensor, sources: Tensor, steps: int) -> dict[str, Run]:
    """h = P h + start, with one sparse product per step."""
    V = graph.num_nodes
    prepared = Semiring.ppr().prepare(graph, weight)
    indices = graph.edge_index.flip(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        matrix = torch.sparse_coo_tensor(indices, prepared, (V, V), check_invariants=True).coalesce().to_sparse_csr()
    start = torch.zeros(V, len(sources))
    start[sources, torch.arange(len(sources))] = 1

    def run(product: Callable) -> Run:
        def call() -> Tensor:
            value = start
            for _ in range(steps):
                value = product(value) + start
            return value

        return call

    peers = {"torch.sparse CSR": run(lambda x: matrix @ x)}
    if scipy := peer("scipy.sparse"):
        other = scipy.csr_matrix((prepared.numpy(), indices.numpy()), shape=(V, V))
        peers["scipy CSR"] = run(lambda x: torch.from_numpy(other @ x.numpy()))
    return peers


NUMBA = {
    "distance": lambda graph: Semiring(
        lambda a, b: a if a < b else b, lambda x, w: x + w, math.inf, 0.0, idempotent=True
    ),
    "ppr": lambda graph: Semiring(
        lambda a, b: a + b, lambda x, w: x * w, 0.0, 1.0, prepare=Semiring.ppr().prepare
    ),
}  # fmt: skip
