# SPDX-License-Identifier: Apache-2.0
"""closeness, exact and sampled, against its definition, and facts that can be told by hand."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from innerloop import Graph, closeness, reference
from innerloop.data.tu import read_edge_list
from tolerances import assert_close


def graph_of(n, edges):
    return Graph(torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T, n)


def path(n, gap=None):
    return graph_of(n, [(i, i + 1) for i in range(n - 1) if i != gap])


def some_graphs():
    """Empty, one node, isolated nodes, a hub, and random ones of several components, up to one group and beyond."""
    few = [graph_of(0, []), graph_of(1, []), graph_of(5, [(1, 3)]), graph_of(30, [(0, i) for i in range(1, 30)])]
    sizes = [(12, 8), (64, 70), (64, 50), (65, 70), (150, 130), (300, 900), (400, 390)]
    return Graph.batch_of([*few, *(Graph(torch.randint(n, (2, m)), n) for n, m in sizes)])


def network(shared_data, name):
    file = shared_data / "graphs" / "net" / f"{name}.txt.xz"
    return Graph(*read_edge_list(file)) if file.is_file() else pytest.skip(f"{file} is absent")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def expected(graph, samples=None, seed=0):
    order = torch.randperm(graph.num_nodes, generator=seeded(seed)).argsort()
    return reference.closeness(graph.edges, graph.num_nodes, samples, order)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_by_hand():
    # A path of three, a pair and an isolated node: the pair is as central as the middle of the path.
    graph = graph_of(6, [(1, 0), (1, 2), (3, 4)])
    assert closeness(graph).tolist() == [2 / 3, 1, 2 / 3, 1, 1, 0]
    assert closeness(graph, samples=3).tolist() == [2 / 3, 1, 2 / 3, 1, 1, 0]
    with_two = {tuple(closeness(graph, 2, seeded(i)).tolist()) for i in range(40)}
    assert with_two == {(1, 1, 2 / 3, 1, 1, 0), (1 / 2, 1, 1 / 2, 1, 1, 0), (2 / 3, 1, 1, 1, 1, 0)}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("n", [1, 63, 64, 65, 200, 500])
def test_groups_of_sources(n):
    graph = path(n, gap=150)
    assert torch.equal(closeness(graph), expected(graph))
    assert torch.equal(closeness(graph, 130, seeded()), expected(graph, 130))


@pytest.mark.usefixtures("threads")
def test_batch():
    graph = some_graphs()
    assert torch.equal(closeness(graph), expected(graph))
    for samples in (2, 5, 64, 65, 129, 10**12):
        assert torch.equal(closeness(graph, samples, seeded(samples)), expected(graph, samples, samples)), samples


def test_a_component_of_so_many_nodes_is_exact():
    graph = Graph.batch_of([path(40), path(41), Graph(torch.randint(39, (2, 60)), 39)])
    exact = closeness(graph)
    sampled = closeness(graph, 40)
    assert torch.equal(sampled[:40], exact[:40])
    assert torch.equal(sampled[81:], exact[81:])
    assert not torch.equal(sampled[40:81], exact[40:81])


@pytest.mark.parametrize("samples", [2, 3])
def test_no_bias(samples):
    """The mean of 1/ĉ over all draws, each as likely as another."""
    graph = graph_of(9, [(0, 1), (1, 2), (2, 3), (1, 4), (5, 6), (6, 7), (7, 5)])  # trees, a triangle, a node
    draws = []
    for order in itertools.product(itertools.permutations(range(5)), itertools.permutations(range(5, 8))):
        order = torch.tensor([*itertools.chain(*order), 8])
        drawn = torch.ops.innerloop.closeness(graph.index, graph.adjacency, graph.ptr, order, samples)
        draws.append(1 / drawn[:8])
    assert_close(torch.stack(draws).mean(0), 1 / closeness(graph)[:8])


def test_netscience(shared_data):
    graph = network(shared_data, "netscience")  # 1,589 nodes, 396 components, one of 379
    assert torch.equal(closeness(graph), expected(graph))
    assert torch.equal(closeness(graph, 70, seeded()), expected(graph, 70))


def test_error_on_a_network(shared_data):
    graph = network(shared_data, "ca-grqc")  # 5,242 nodes, 355 components, one of 4,158 with diameter 17
    some = graph.degree > 0
    exact = 1 / closeness(graph)[some]
    for samples, most, mean in ((64, 0.1, 0.02), (256, 0.05, 0.01), (1024, 0.025, 0.005)):
        off = (1 / closeness(graph, samples, seeded())[some] - exact).abs()
        assert float(off.max()) <= 17 * math.sqrt(math.log(2 * graph.num_nodes / 1e-3) / (2 * samples - 2))
        assert float((off / exact).max()) <= most, samples
        assert float((off / exact).mean()) <= mean, samples


def test_draws_follow_the_generator():
    graph = path(200)
    first = closeness(graph, 10, seeded(1))
    assert torch.equal(closeness(graph, 10, seeded(1)), first)
    assert not torch.equal(closeness(graph, 10, seeded(2)), first)
    generator = seeded(1)
    assert torch.equal(closeness(graph, 10, generator), first)
    assert not torch.equal(closeness(graph, 10, generator), first)
    torch.manual_seed(1)
    assert torch.equal(closeness(graph, np.int64(10)), first)


def test_opcheck():
    graph = Graph.batch_of([graph_of(0, []), path(3), path(5)])
    packed = (graph.index, graph.adjacency, graph.ptr)
    for order in (None, torch.tensor([2, 0, 1, 4, 3, 0, 1, 2])):
        torch.library.opcheck(torch.ops.innerloop.closeness.default, (*packed, order, 2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile():
    graph, one = some_graphs(), path(70)

    def model(scale):
        return closeness(graph) * scale, closeness(graph, samples=400), closeness(one, samples=70)

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for a, e in zip(compiled(torch.tensor(2.0)), model(torch.tensor(2.0)), strict=True):
        assert torch.equal(a, e)


def test_kernel_refuses_what_is_no_batch():
    graph = Graph.batch_of([path(2), graph_of(1, []), path(3)])
    for ptr in ([0, 1, 6], [0, 4, 3, 6], [0, 3], [1, 6], [0]):
        with pytest.raises(ValueError, match="closeness: ptr"):
            torch.ops.innerloop.closeness(graph.index, graph.adjacency, torch.tensor(ptr), None, 6)
    args = (graph.index, graph.adjacency, graph.ptr)
    for order in ([0, 1, 0, 0, 1, 1], [0, 1, 0, 0, 1, -1], [0, 1, 2, 3, 4, 5], [0, 2, 0, 0, 1, 2]):
        with pytest.raises(ValueError, match="closeness: order has other nodes"):
            torch.ops.innerloop.closeness(*args, torch.tensor(order), 2)
    with pytest.raises(ValueError, match="closeness: samples has -1"):
        torch.ops.innerloop.closeness(*args, None, -1)


BAD = [
    ({"samples": 1}, ValueError, "samples is 1, expected an int of at least 2, or None"),
    ({"samples": True}, ValueError, "samples is True"),
    ({"samples": 2.0}, ValueError, "samples is 2.0"),
    ({"samples": 2, "generator": 7}, TypeError, "generator is int, expected a torch.Generator on the CPU, or None"),
    ({"generator": seeded()}, ValueError, "generator is given without samples, expected None"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text for *_, text in BAD])
def test_bad_arguments(change, error, text):
    with pytest.raises(error, match=re.escape(f"closeness: {text}")):
        closeness(path(4), **change)
