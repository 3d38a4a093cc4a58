# SPDX-License-Identifier: Apache-2.0
"""Triangles at every node and on every edge of real networks, against graph libraries; building the Graph included."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from harness import OURS, Group, Work, path_taken, peer
from innerloop import Graph, reference, triangles
from innerloop.data.rmat import rmat
from innerloop.data.tu import read_edge_list
from plot import seconds
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "graphs" / "net"
NETWORKS = ("email-enron", "ego-facebook", "fb-mit8", "as-22july06")
PART = 24  # nodes of the part that the definition is asked about
OURS_BUILT = "innerloop, Graph built before"

Run = Callable[[], object]


# ---- what the benchmarks of patterns share ----


def load_network(name: str, quick: bool) -> tuple[str, Tensor, int]:
    """What the group calls it, distinct undirected edges without loops, int64 (2, m), and the number of nodes."""
    path = FOLDER / f"{name}.txt.xz"
    if path.is_file() and not quick:
        return name, *read_edge_list(path)
    scale, edge_factor = (6, 4) if quick else (14, 16)
    return f"R-MAT scale {scale} in place of {name}", rmat(scale, edge_factor), 1 << scale


def densest_part(edge_index: Tensor, num_nodes: int) -> Tensor:
    """The edges between the nodes of highest degree, which are numbered anew: few nodes, many patterns."""
    top = torch.bincount(edge_index.flatten(), minlength=num_nodes).argsort(descending=True, stable=True)[:PART]
    number = torch.full((num_nodes,), -1)
    number[top] = torch.arange(len(top))
    part = number[edge_index]
    return part[:, (part >= 0).all(0)]


def within(limit: float, call: Run) -> object | None:
    """The result of `call`, or None where it was stopped after `limit` seconds. Python and igraph can be stopped."""
    expired = []

    def stop(*_: object) -> None:
        expired.append(True)
        raise TimeoutError

    handler = signal.signal(signal.SIGALRM, stop)
    start = time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, limit)  # to pytest-timeout
    try:
        return call()
    except Exception:
        if not expired:
            raise
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1))


def compare_cpu(compare: Callable[..., Group], name: str, functions: dict[str, Run], work: Work, **info) -> Group:
    """`compare`, and for each implementation the median CPU time of a call, all threads together: `cpu_s`."""
    used: dict[str, list[float]] = {key: [] for key in functions}

    def counted(key: str) -> Run:
        def call() -> object:
            start = time.process_time()
            result = functions[key]()
            used[key].append(time.process_time() - start)
            return result

        return call

    group = compare(name, {key: [counted(key)] for key in functions}, work, **info)
    for key, row in group.info.get("implementations", {}).items():
        row["cpu_s"] = statistics.median(used[key][1:])  # the first call was that for the memory
        add_note(group, f"{key}: {seconds(row['cpu_s'])} of CPU time")
    return group


def add_note(group: Group, text: str) -> None:
    group.info["note"] = f"{group.info['note']}; {text}" if "note" in group.info else text


# ---- peers: what is timed, on a graph that was built before, and how its result is read ----

Peer = tuple[Run, Callable[[object], np.ndarray]]


def networkit_graph(networkit: ModuleType, edges: np.ndarray, n: int) -> object:
    networkit.setNumberOfThreads(torch.get_num_threads())
    g = networkit.Graph(n)
    for u, v in edges.T.tolist():
        g.addEdge(u, v)
    g.indexEdges()
    g.sortEdges()
    return g


def networkx_graph(networkx: ModuleType, edges: np.ndarray, n: int) -> object:
    g = networkx.empty_graph(n)
    g.add_edges_from(edges.T.tolist())
    return g


def scipy_matrices(scipy: ModuleType, edges: np.ndarray, n: int) -> tuple[object, object]:
    """The adjacency matrix, and the triangle of it that remains when edges go from lower to higher (degree, id)."""
    ones = np.ones(edges.shape[1], np.int32)
    rank = np.empty(n, np.int64)
    rank[np.argsort(np.bincount(edges.ravel(), minlength=n), kind="stable")] = np.arange(n)
    low, high = np.where(rank[edges[0]] < rank[edges[1]], edges, edges[::-1])
    upper = scipy.csr_array((ones, (low, high)), shape=(n, n))
    return (upper + upper.T).tocsr(), upper


def node_peers(edges: np.ndarray, n: int) -> dict[str, Peer]:
    degree = np.bincount(edges.ravel(), minlength=n)
    peers: dict[str, Peer] = {}

    def from_coefficients(values: object) -> np.ndarray:
        return np.rint(np.array(values) * (degree * (degree - 1) / 2))

    if networkit := peer("networkit"):
        nk = networkit_graph(networkit, edges, n)
        coefficient = networkit.centrality.LocalClusteringCoefficient
        peers["networkit"] = lambda: coefficient(nk, True).run().scores(), from_coefficients
    if igraph := peer("igraph"):
        ig = igraph.Graph(n, edges.T.tolist())
        peers["igraph"] = lambda: ig.transitivity_local_undirected(mode="zero"), from_coefficients
    if networkx := peer("networkx"):
        nx = networkx_graph(networkx, edges, n)
        peers["networkx"] = lambda: networkx.triangles(nx), lambda counts: np.array([counts[v] for v in range(n)])
    if scipy := peer("scipy.sparse"):
        a, upper = scipy_matrices(scipy, edges, n)

        def by_degree() -> np.ndarray:
            lowest_highest, lowest_middle = (upper @ upper).multiply(upper), (upper @ upper.T).multiply(upper)
            return lowest_highest.sum(1) + lowest_highest.sum(0) + lowest_middle.sum(0)

        peers["scipy, A² ∘ A"] = lambda: (a @ a).multiply(a).sum(1) // 2, np.array
        peers["scipy, directed by degree"] = by_degree, np.array
    return peers


def edge_peers(edges: np.ndarray, n: int) -> dict[str, Peer]:
    key = np.sort(edges, 0).T @ np.array([n, 1])
    order = np.argsort(key)
    peers: dict[str, Peer] = {}

    def at_edges(u: np.ndarray, v: np.ndarray, counts: np.ndarray) -> np.ndarray:
        out = np.zeros(len(key), np.int64)
        place = np.searchsorted(key, np.minimum(u, v) * n + np.maximum(u, v), sorter=order)
        np.add.at(out, order[place], counts)
        return out

    if networkit := peer("networkit"):
        nk = networkit_graph(networkit, edges, n)
        score = networkit.sparsification.TriangleEdgeScore
        ids = [nk.edgeId(u, v) for u, v in edges.T.tolist()]
        peers["networkit"] = lambda: score(nk).run().scores(), lambda scores: np.array(scores)[ids]
    if igraph := peer("igraph"):
        ig = igraph.Graph(n, edges.T.tolist())

        def from_list(found: object) -> np.ndarray:
            x, y, z = np.array(found, np.int64).reshape(-1, 3).T
            return at_edges(np.concatenate([x, y, z]), np.concatenate([y, z, x]), np.ones(3 * len(x), np.int64))

        peers["igraph, list only"] = ig.list_triangles, from_list
    if networkx := peer("networkx"):
        nx = networkx_graph(networkx, edges, n)
        near, pairs = [set(nx[v]) for v in range(n)], edges.T.tolist()
        peers["networkx, common neighbours"] = lambda: [len(near[u] & near[v]) for u, v in pairs], np.array
    if scipy := peer("scipy.sparse"):
        a, upper = scipy_matrices(scipy, edges, n)

        def from_matrix(counts: object) -> np.ndarray:
            entries = counts.tocoo()
            return at_edges(entries.row.astype(np.int64), entries.col.astype(np.int64), entries.data)

        def by_degree() -> object:  # the third node between the ends of an edge, above, and below
            return sum((x @ y).multiply(upper) for x, y in ((upper, upper), (upper, upper.T), (upper.T, upper)))

        peers["scipy, A² ∘ A"] = lambda: (a @ a).multiply(a), lambda counts: from_matrix(counts) // 2
        peers["scipy, directed by degree"] = by_degree, from_matrix
    return peers


@pytest.mark.parametrize("per", ["node", "edge"])
@pytest.mark.parametrize("name", NETWORKS)
def test_triangles(name, per, quick, compare):
    """Goals: faster than networkit, 20 times as fast as igraph, networkx and scipy."""
    if quick and name != NETWORKS[0]:
        pytest.skip("one small graph stands for all")
    label, edge_index, n = load_network(name, quick)
    part = densest_part(edge_index, n)
    assert torch.equal(triangles(Graph(part, PART), per), reference.triangles(part, PART, per))
    built = Graph(edge_index, n)
    functions: dict[str, Run] = {
        OURS: lambda: triangles(Graph(edge_index, n), per),
        OURS_BUILT: lambda: triangles(built, per),
    }
    expected = functions[OURS]().numpy()
    assert np.array_equal(functions[OURS_BUILT]().numpy(), expected)
    peers = {"node": node_peers, "edge": edge_peers}[per](edge_index.numpy(), n)
    for key, (run, read) in peers.items():
        assert np.array_equal(read(run()), expected), key
        functions[key] = run
    compare_cpu(
        compare,
        f"triangles per {per}, {label}, {built.num_edges} edges, cpu",
        functions,
        Work(16 * built.num_edges + 8 * len(expected), 0, dtype="int64"),
        absent={key: "not installed" for key in ("networkit", "igraph", "networkx", "scipy") if not peer(key)},
        path=path_taken("triangles", "cpu"),
        graph=repr(built),
    )
