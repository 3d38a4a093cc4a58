# SPDX-License-Identifier: Apache-2.0
"""Two and three gloo processes count what one counts; ranges of roots add up to all."""

import inspect
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path

import innerloop
import numpy as np
import pytest
import torch
from cases import Record
from innerloop import Graph, edge_orbits, node_orbits, triangles
from innerloop.ops import _motif_distributed
from innerloop.ops._motif_distributed import (
    edge_orbits_distributed,
    match_distributed,
    node_orbits_distributed,
    triangles_distributed,
)
from processes import run_processes
from torch import distributed as dist


def graphs() -> list[Graph]:
    """The same in every process: skewed, dense, a batch, fewer nodes than processes, no edge, no node."""
    generator = torch.Generator().manual_seed(0)
    skewed = (torch.rand(2, 2000, generator=generator) ** 3 * 300).long()
    dense = torch.triu_indices(70, 70, 1)
    dense = dense[:, torch.rand(dense.shape[1], generator=generator) < 0.7]
    batch = torch.cat([torch.triu_indices(5, 5, 1), torch.tensor([[5, 5], [6, 7]])], 1)
    none = torch.empty(2, 0, dtype=torch.int64)
    return [
        Graph(skewed, 300),
        Graph(dense, 70),
        Graph(batch, 9, ptr=torch.tensor([0, 5, 5, 9])),
        Graph(torch.tensor([[0], [1]]), 2),
        Graph(none, 4),
        Graph(none, 0),
    ]


def counts_equal(rank: int, size: int) -> None:
    for graph in graphs():
        for per in ("node", "edge", "graph"):
            assert torch.equal(triangles_distributed(graph, per), triangles(graph, per))
        for k, induced in product((3, 4), (True, False)):
            options = {"k": k, "induced": induced}
            assert torch.equal(node_orbits_distributed(graph, **options), node_orbits(graph, **options))
            assert torch.equal(edge_orbits_distributed(graph, **options), edge_orbits(graph, **options))


def matches_equal(rank: int, size: int) -> None:
    for graph in graphs():
        for pattern, output in product(("triangle", "square", "claw"), ("count", "node_counts", "edge_counts")):
            expected = innerloop.match(graph, pattern, output=output)
            assert torch.equal(match_distributed(graph, pattern, output=output), expected)


def each_process_has_a_share(rank: int, size: int) -> None:
    """The op is called with neighbouring ranges that cover the ranks, none of them all."""
    graph = graphs()[0]
    with Record() as record:
        triangles_distributed(graph)
    (roots,) = [args[2:4] for op, args, _ in record.calls if op.name() == "innerloop::motif_sums"]
    everyone = [None] * size
    dist.all_gather_object(everyone, roots)
    assert everyone[0][0] == 0
    assert everyone[-1][1] == graph.num_nodes
    assert all(a[1] == b[0] for a, b in pairwise(everyone))
    assert all(first < last for first, last in everyone)


def in_a_group(rank: int, size: int) -> None:
    group = dist.new_group([1, 2])
    graph = graphs()[0]
    if rank:
        assert torch.equal(node_orbits_distributed(graph, group=group), node_orbits(graph))
    else:
        with pytest.raises(ValueError, match="node_orbits_distributed: group is one without this process"):
            node_orbits_distributed(graph, group=group)


def errors_reach_everyone(rank: int, size: int) -> None:
    graph = graphs()[0]
    with pytest.raises(ValueError, match=r"node_orbits_distributed: graph is \d+ on process 1 of the group"):
        node_orbits_distributed(graphs()[rank])
    with pytest.raises(ValueError, match="triangles_distributed: per is 'edge' on process 1 of the group"):
        triangles_distributed(graph, per="edge" if rank else "node")
    with pytest.raises(ValueError, match="edge_orbits_distributed: induced is False on process 1"):
        edge_orbits_distributed(graph, induced=not rank)
    kind, text = (
        (TypeError, "graph is str") if rank else (RuntimeError, "process 1 of the group failed: Graph: graph is")
    )
    with pytest.raises(kind, match=text):
        node_orbits_distributed("graph" if rank else graph)
    assert torch.equal(triangles_distributed(graph), triangles(graph))  # still in step


def errors_of_match_name_the_argument(rank: int, size: int) -> None:
    graph = graphs()[0]
    labels = torch.arange(graph.num_nodes) % 2
    for name, here, there, text in (
        ("pattern", "01 12 20", "01 12", "'01 12' on process 1 of the group, expected '01 12 20' as on process 0"),
        ("output", "count", "node_counts", "'node_counts' on process 1"),
        ("symmetry", "break", "all", "'all' on process 1"),
        ("induced", False, True, "True on process 1"),
        ("pattern_node_labels", [0, 0, 1], [0, 1, 1], r"\[0, 1, 1\] on process 1"),
        ("node_labels", labels, 1 - labels, "'labels with the CRC-32 [0-9a-f]{8}' on process 1"),
    ):
        options = {"pattern": "01 12 20"}
        if name.endswith("labels"):
            options |= {"node_labels": labels, "pattern_node_labels": [0, 0, 1]}
        with pytest.raises(ValueError, match=f"match_distributed: {name} is {text}"):
            match_distributed(graph, **options | {name: there if rank else here})
    with pytest.raises(TypeError, match="match_distributed: foo is no option of match that counts matches"):
        match_distributed(graph, "triangle", foo=1)


def work(rank: int, size: int, file: str, functions: list, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    try:
        for function in functions:
            function(rank, size)
        Path(f"{result}{rank}").touch()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("size", "functions"),
    [(2, [counts_equal, errors_reach_everyone]), (3, [counts_equal, each_process_has_a_share, in_a_group])],
    ids=["two", "three"],
)
def test_processes(size, functions, tmp_path):
    if size == 2 and find_spec("innerloop.ops.match"):
        functions = [*functions, matches_equal, errors_of_match_name_the_argument]
    run_processes(work, size, str(tmp_path / "init"), functions, str(tmp_path / "done"))
    assert [(tmp_path / f"done{rank}").is_file() for rank in range(size)] == [True] * size


@pytest.mark.parametrize("threads", [1, 2])
def test_ranges_of_roots_add_up(threads):
    """Any ranges, also empty ones and of one node; by what the registered ops return."""
    ops = torch.ops.innerloop
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for graph, k, by_edge in product(graphs()[:3], (3, 4), (False, True)):
        n, m, index = graph.num_nodes, graph.num_edges, (graph.index, graph.adjacency)
        cuts = [0, 0, n // 2, n // 2 + 1, n]
        sums = sum(ops.motif_sums(*index, first, last, k, by_edge) for first, last in pairwise(cuts))
        assert torch.equal(sums, ops.motif_sums(*index, 0, n, k, by_edge))
        t, sums = sums[:m].int(), sums[m:]
        if k == 4:
            fans = sum(ops.fan_sums(*index, t, first, last, by_edge) for first, last in pairwise(cuts))
            sums = torch.cat([sums, fans])
        expected = (edge_orbits if by_edge else node_orbits)(graph, k)
        assert torch.equal(ops.orbits_from_sums(*index, t, sums, k, True, by_edge), expected)
    torch.set_num_threads(before)


@pytest.mark.parametrize("by_edge", [True, False])
@pytest.mark.parametrize("k", [3, 4])
def test_opcheck(k, by_edge):
    ops = torch.ops.innerloop
    for graph in (graphs()[2], graphs()[5]):
        index = graph.index, graph.adjacency
        arguments = (*index, 0, graph.num_nodes, k, by_edge)
        torch.library.opcheck(ops.motif_sums.default, arguments)
        sums = ops.motif_sums(*arguments)
        t, sums = sums[: graph.num_edges].int(), sums[graph.num_edges :]
        if k == 4:
            torch.library.opcheck(ops.fan_sums.default, (*index, t, 0, graph.num_nodes, by_edge))
            sums = torch.cat([sums, ops.fan_sums(*index, t, 0, graph.num_nodes, by_edge)])
        torch.library.opcheck(ops.orbits_from_sums.default, (*index, t, sums, k, True, by_edge))


def test_shares_are_even():
    """No share is more than the largest node away from an even one."""
    for _ in range(20):
        size = int(torch.randint(1, 60, ()))
        cost = 1 + (torch.rand(size) ** 8 * 1000).long()
        for parts in (1, 2, 3, 7, 80):
            bounds = _motif_distributed._ranges(cost, parts)
            assert bounds[0] == 0
            assert bounds[-1] == size
            for first, last in pairwise(bounds):
                assert first <= last
                assert abs(int(cost[first:last].sum()) - int(cost.sum()) / parts) <= int(cost.max()) + 1
    assert _motif_distributed._ranges(torch.empty(0, dtype=torch.int64), 3) == [0, 0, 0, 0]


def test_estimated_work_is_the_number_of_paths():
    graph = Graph(torch.tensor([[0, 0, 0, 1, 1, 2, 3], [1, 2, 3, 2, 3, 3, 4]]), 6)
    neighbors = [set() for _ in range(6)]
    for u, v in graph.rank[graph.edges].tolist():
        neighbors[u].add(v)
        neighbors[v].add(u)
    for v in range(6):
        up = sum(u < w for u in neighbors[v] if u > v for w in neighbors[u])
        down = sum(w < v for u in neighbors[v] if u < v for w in neighbors[u])
        work = _motif_distributed._work(graph, 100, 10000)
        assert work[v] == 1 + len(neighbors[v]) + 100 * up + 10000 * down


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'init'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("function", [triangles_distributed, node_orbits_distributed, edge_orbits_distributed])
def test_without_a_group(function):
    with pytest.raises(RuntimeError, match=f"{function.__name__}: torch.distributed is not initialised"):
        function(graphs()[0])


@pytest.mark.usefixtures("alone")
def test_numpy_ints():
    graph = graphs()[0]
    assert torch.equal(node_orbits_distributed(graph, np.int64(4)), node_orbits(graph, 4))


@pytest.mark.usefixtures("alone")
def test_error_texts():
    graph = graphs()[3]
    with pytest.raises(ValueError, match="triangles_distributed: per is 'all', expected 'node', 'edge' or 'graph'"):
        triangles_distributed(graph, "all")
    for k in (2, 5, True, "4"):
        with pytest.raises(ValueError, match=f"node_orbits_distributed: k is {k!r}, expected 3 or 4"):
            node_orbits_distributed(graph, k)
    with pytest.raises(TypeError, match="graph is int"):
        edge_orbits_distributed(3)
    with pytest.raises(ValueError, match=r"motif_sums: roots has \[1, 3\), expected a range of \[0, 2\)"):
        torch.ops.innerloop.motif_sums(graph.index, graph.adjacency, 1, 3, 4, False)


@pytest.mark.usefixtures("alone")
def test_error_texts_of_match():
    match = pytest.importorskip("innerloop.ops.match").match
    assert "roots" in inspect.signature(match).parameters
    graph = graphs()[3]
    with pytest.raises(ValueError, match="match_distributed: output is 'list', expected one of the counts"):
        match_distributed(graph, "triangle", output="list")
    with pytest.raises(ValueError, match="match_distributed: seeds is given, expected none"):
        match_distributed(graph, "triangle", seeds=torch.tensor([0]))
    assert match_distributed(graph, "triangle", seeds=None, limit=None, roots=None) == 0
