# SPDX-License-Identifier: Apache-2.0
"""The kernels of triangles, orbits and match on a GPU: against the CPU, repeatability, streams."""

import importlib.util

import pytest
import torch
from innerloop import Graph, clustering, edge_orbits, graphlets, node_orbits, system, triangles
from innerloop.ops import _motif_gpu as gpu
from innerloop.ops._match_plan import compile_plan
from innerloop.ops._patterns import as_pattern
from tolerances import assert_close
from torch import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture(autouse=True)
def _asked_for(monkeypatch) -> None:
    if system.cuda_module() is None and importlib.util.find_spec("cupy") is None:
        pytest.skip("built without nvcc, and CuPy is not installed")
    monkeypatch.setattr(gpu, "gpu_kernels", lambda: "cuda")


def rmat(scale: int, edge_factor: int = 16) -> Graph:
    """R-MAT (Chakrabarti et al., 2004) with the parameters of Graph500."""
    ids = torch.zeros(2, edge_factor << scale, dtype=torch.int64)
    for _ in range(scale):
        quadrant = torch.rand(ids.shape[1])
        ids = 2 * ids + torch.stack([quadrant >= 0.76, (quadrant >= 0.57) & (quadrant < 0.76) | (quadrant >= 0.95)])
    return Graph(ids, 1 << scale)


def star_of_hubs() -> Graph:
    """Counts beyond 2**31: three hubs that share 60,000 leaves."""
    hub, leaf = torch.arange(3), torch.arange(3, 60_003)
    return Graph(torch.stack([hub.repeat_interleave(len(leaf)), leaf.repeat(3)]), 60_003)


GRAPHS = {
    "rmat10": lambda: rmat(10),
    "rmat14": lambda: rmat(14),
    "clique": lambda: Graph(torch.triu_indices(600, 600, 1), 600),
    "hubs": star_of_hubs,
    "empty": lambda: Graph(torch.empty(2, 0, dtype=torch.int64), 0),
    "isolated": lambda: Graph(torch.empty(2, 0, dtype=torch.int64), 7),
}


@pytest.fixture(params=GRAPHS)
def graph(request) -> Graph:
    return GRAPHS[request.param]()


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.is_cuda
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.cpu(), expected)


def test_triangles(graph):
    there = graph.to("cuda")
    for per in ("node", "edge", "graph"):
        assert_equal(triangles(there, per), triangles(graph, per))
    assert_close(clustering(there).cpu(), clustering(graph))


@pytest.mark.parametrize("induced", [True, False])
@pytest.mark.parametrize("k", [3, 4])
def test_orbits(graph, k, induced):
    there = graph.to("cuda")
    for op in (node_orbits, edge_orbits, graphlets):
        assert_equal(op(there, k, induced=induced), op(graph, k, induced=induced))


def test_small_scratch_and_small_parts(monkeypatch):
    """One resident block, and every node shared by many: the same counts."""
    graph = rmat(9)
    expected = node_orbits(graph), edge_orbits(graph)
    monkeypatch.setattr(gpu, "_SCRATCH", 1)
    monkeypatch.setattr(gpu, "_PART", 5)
    there = graph.to("cuda")
    assert_equal(node_orbits(there), expected[0])
    assert_equal(edge_orbits(there), expected[1])


def test_batch():
    parts = [rmat(8), Graph(torch.empty(2, 0, dtype=torch.int64), 3), rmat(7, 4)]
    graph = Graph.batch_of(parts)
    assert_equal(graphlets(graph.to("cuda")), torch.cat([graphlets(part) for part in parts]))


@pytest.mark.parametrize("heavy", [0, 64, 1 << 40])
@pytest.mark.parametrize("induced", [True, False])
def test_match(induced, heavy, monkeypatch):
    monkeypatch.setattr(gpu, "_HEAVY", heavy)
    graph = rmat(8, 4)
    there, expected = graph.to("cuda"), graphlets(graph, 5, induced=induced)[0].tolist()
    for i, count in enumerate(expected):
        plan = compile_plan(as_pattern(f"G{i}", "match"), induced)
        roots = gpu.MotifKernels().match_roots(there.index, there.adjacency, plan.code)
        assert int(roots.sum()) == count, f"G{i}"


def test_match_on_hubs():
    """Two of the three hubs and two of their leaves: C(3, 2) · C(60,000, 2) 4-cycles."""
    graph = star_of_hubs().to("cuda")
    plan = compile_plan(as_pattern("cycle4", "match"))
    roots = gpu.MotifKernels().match_roots(graph.index, graph.adjacency, plan.code)
    assert int(roots.sum()) == 3 * (60_000 * 59_999 // 2)


def test_same_counts_in_every_run_and_on_another_stream():
    graph = rmat(12).to("cuda")
    first = node_orbits(graph)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        again = [node_orbits(graph) for _ in range(3)]
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(counts, first) for counts in again)


def test_memory_is_bounded():
    """Triangles: a few numbers per edge and node, however many triangles there are."""
    graph = rmat(16).to("cuda")
    triangles(graph, "edge")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    triangles(graph, "edge")
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 48 * graph.num_edges + 40 * graph.num_nodes + (1 << 20)


def test_five_nodes_are_counted_on_the_cpu():
    graph = rmat(6, 4)
    gpu._warn_on_cpu.cache_clear()
    with pytest.warns(UserWarning, match="counting on the CPU"):
        counts = node_orbits(graph.to("cuda"), 5)
    assert_equal(counts, node_orbits(graph, 5))
