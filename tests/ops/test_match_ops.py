# SPDX-License-Identifier: Apache-2.0
"""match: lists with a limit and part by part, what they look at and take; opcheck and torch.compile."""

import networkx as nx
import numpy as np
import pytest
import torch
from cases import Record, filter_torch_warnings
from innerloop import Graph, k_cliques, match, match_batches, node_orbits
from innerloop.ops import _match_ops
from innerloop.ops._patterns import as_pattern
from innerloop.ops.match import _request
from processes import run_python
from torch import Tensor


def random_edges(n: int, density: float) -> Tensor:
    """Distinct undirected edges, (2, m), in random order and direction."""
    pairs = torch.triu_indices(n, n, 1)
    pairs = pairs[:, torch.rand(pairs.shape[1]) < density]
    pairs = pairs[:, torch.randperm(pairs.shape[1])]
    return torch.where(torch.rand(pairs.shape[1]) < 0.5, pairs, pairs.flip(0))


def search_of(graph: Graph, pattern: str, **options) -> _match_ops.Search:
    return _match_ops.Search(*_request("match", graph, pattern, **options))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("first", [1, 64])
def test_a_limit_cuts_the_list(first, threads, monkeypatch):
    """Roots are searched a few at a time, and of each only what is wanted."""
    monkeypatch.setattr(_match_ops, "_FIRST_ROOTS", first)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    graph = Graph(random_edges(40, 0.25), 40)
    for options in ({}, {"symmetry": "all"}, {"seeds": torch.tensor([3, 5, 7])}, {"roots": (2, 30)}):
        every = match(graph, "paw", output="list", **options)
        assert len(every) > 9
        for limit in (0, 1, 7, len(every) - 1, len(every), len(every) + 5, 2**40, 2**70):
            assert torch.equal(match(graph, "paw", output="list", limit=limit, **options), every[:limit])
    torch.set_num_threads(before)


def test_a_limit_ends_the_search():
    """C(2390, 7) stars at the hub are beyond int64; the nodes behind those that are needed are not looked at."""
    star = Graph(torch.stack([torch.zeros(2390, dtype=torch.int64), torch.arange(1, 2391)]))
    listed = match(star, "star8", output="list", limit=10)
    assert listed.shape == (10, 8)
    assert listed[:, 0].tolist() == [0] * 10
    assert len({frozenset(row) for row in listed[:, 1:].tolist()}) == 10
    with pytest.raises(OverflowError):
        match(star, "star8", output="list")
    path = Graph(torch.stack([torch.arange(999), torch.arange(1, 1000)]))
    search = search_of(path, "edge")
    assert len(search.offsets(None)[0]) == 1 + 1000
    assert len(search.offsets(20)[0]) == 1 + 64


@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize("pattern", ["edge", "star5", "diamond", "paw", "K4", "cycle6"])
def test_counts_stop_where_they_are_told(pattern, induced):
    graph = Graph(random_edges(14, 0.6), 14)
    wanted = [0] + [-1] * (as_pattern(pattern, "match").num_nodes - 1)
    labels = {"node_labels": torch.randint(0, 2, (14,)), "pattern_node_labels": wanted}
    for options in ({}, {"seeds": torch.tensor([2, 9])}, labels):
        search = search_of(graph, pattern, induced=induced, **options)
        whole = search.count(search.ranks)
        for most in (1, 2, 5, int(whole.max()) + 1):
            assert torch.equal(search.count(search.ranks, most), whole.clamp(max=most))


@pytest.mark.parametrize("induced", [False, True])
@pytest.mark.parametrize("pattern", ["edge", "star4", "diamond", "path4", "house"])
def test_a_list_goes_on_where_it_is_told(pattern, induced):
    """Behind a match that is given, wherever it is in its root: nothing before it is searched."""
    graph = Graph(random_edges(10, 0.6), 10)
    search = search_of(graph, pattern, induced=induced)
    offsets, total = search.offsets(None)
    every = search.listed(None)
    assert total == len(every) > 0
    for root in range(10):
        first, last = offsets[root : root + 2].tolist()
        for at in range(first, last - 1):
            take = last - at - 1
            assert torch.equal(search._part(offsets, at + 1, take, every[at]), every[at + 1 : last])
            if at > first:  # by the match, not by its number
                assert torch.equal(search._part(offsets, first + 1, take, every[at]), every[at + 1 : last])


@pytest.mark.parametrize("size", [1, 5, 1000, 2**70])
def test_batches_are_the_list(size):
    graph = Graph(random_edges(12, 0.6), 12)
    labels = {"edge_labels": torch.randint(0, 2, (graph.num_edges,)), "pattern_edge_labels": [0, -1, 1, -1]}
    seeds = {"seeds": torch.tensor([2, 8, 11])}
    for options in ({}, {"symmetry": "all"}, {"symmetry": "all", "limit": 17}, {"induced": True}, labels, seeds):
        parts = []
        for part in match_batches(graph, "paw", size=size, **options):
            parts.append(part.clone())
            part.fill_(-1)  # which is the caller's
        assert all(len(part) <= size for part in parts)
        every = match(graph, "paw", output="list", **options)
        assert torch.equal(torch.cat([every[:0], *parts]), every)
    assert list(match_batches(Graph(torch.empty(2, 0, dtype=torch.int64), 3), "edge")) == []


def test_all_embeddings_are_made_part_by_part(monkeypatch):
    graph = Graph(random_edges(12, 0.6), 12)
    whole = [match(graph, name, symmetry="all", output="list") for name in ("wedge", "diamond", "K5")]
    monkeypatch.setattr(_match_ops, "_PART", 3)
    for name, expected in zip(("wedge", "diamond", "K5"), whole, strict=True):
        assert torch.equal(match(graph, name, symmetry="all", output="list"), expected)
        assert torch.equal(match(graph, name, symmetry="all", output="list", limit=50), expected[:50])


def test_the_peak_of_a_list_is_its_size():
    """A wedge and its mirror image, made from one of them: 2.2 million, 54 MB."""
    peak, size = run_python(
        "import innerloop, resource, torch\n"
        "graph = innerloop.Graph(torch.stack([torch.zeros(1500, dtype=torch.int64), torch.arange(1, 1501)]))\n"
        "def listed(limit): return innerloop.match(graph, 'wedge', symmetry='all', output='list', limit=limit)\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "listed(1000)\nbefore = peak()\nsize = listed(None).nbytes\nprint(1024 * (peak() - before), size)"
    ).split()
    assert int(size) == 1500 * 1499 * 3 * 8
    assert int(peak) < 1.2 * int(size)


BATCH = torch.tensor([[0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 6], [1, 2, 3, 2, 3, 3, 4, 0, 6, 7, 7]]), 8, torch.tensor([0, 5, 8])
LIST = [(0, 1), (1, 2), (2, 0), (2, 3)]
NODE_LABELS, EDGE_LABELS = torch.arange(8) % 2, torch.arange(11) % 3
FUNCTIONS = {
    "count": lambda graph: match(graph, "triangle", symmetry="all"),
    "graph_counts": lambda graph: match(graph, LIST, output="graph_counts"),
    "node_counts": lambda graph: match(graph, "4-cycle", induced=True, output="node_counts"),
    "edge_counts": lambda graph: match(graph, "01 12", output="edge_counts"),
    "orbit_counts": lambda graph: match(graph, "diamond", output="orbit_counts"),
    "labels": lambda graph: match(
        graph, "wedge", node_labels=NODE_LABELS, pattern_node_labels=[0, -1, 1], edge_labels=EDGE_LABELS,
        pattern_edge_labels=[-1, 1],
    ),
    "seeds": lambda graph: match(graph, "path4", seeds=torch.tensor([3, 1])),
    "roots": lambda graph: match(graph, "path4", roots=(2, 7)),
    "k_cliques": lambda graph: k_cliques(graph, 4, "edge"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FUNCTIONS, "list"])
def test_opcheck(name):
    function = FUNCTIONS.get(name, lambda graph: match(graph, "wedge", symmetry="all", output="list", limit=7))
    for graph in (Graph(*BATCH[:2], ptr=BATCH[2]), Graph(*BATCH[:2])):
        with Record() as record:
            function(graph)
        record.opcheck()


@filter_torch_warnings
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    graph = Graph(*BATCH[:2], ptr=BATCH[2])
    expected = [f(Graph(*BATCH[:2], ptr=BATCH[2])) + 1 for f in FUNCTIONS.values()]
    assert sum(int((e > 1).sum()) for e in expected) > 20
    torch._dynamo.reset()
    compiled = torch.compile(lambda one: [f(graph) + one for f in FUNCTIONS.values()], fullgraph=True, backend=backend)
    for a, e in zip(compiled(torch.tensor(1)), expected, strict=True):
        assert torch.equal(a, e)


@filter_torch_warnings
@pytest.mark.parametrize("pattern", [[(0, 1), (1, 2), (2, -8)], [(0, 1), (1, True)], [(0, 8), (0, 1)]], ids=str)
def test_compiled_patterns_are_checked(pattern):
    torch._dynamo.reset()
    graph = Graph(*BATCH[:2])
    with pytest.raises(Exception, match="pattern has the entry"):  # Dynamo's own class
        torch.compile(lambda: match(graph, pattern), fullgraph=True, backend="eager")()


@filter_torch_warnings
@pytest.mark.parametrize(
    "f",
    [
        node_orbits,
        k_cliques,
        lambda graph, k: match(graph, "edge", output="list", limit=k),
        lambda graph, k: match(graph, [(0, 1), (1, k - 1)]),
    ],
)
def test_numpy_ints(f):
    graph, k = Graph(*BATCH[:2]), np.int64(3)
    torch._dynamo.reset()
    expected = f(graph, 3)
    assert torch.equal(f(graph, k), expected)
    assert torch.equal(torch.compile(f, backend="eager")(graph, k), expected)


@filter_torch_warnings
def test_compiled_arguments():
    """Patterns, sizes and labels that change from call to call, as Dynamo takes them for variables."""
    graph, one = Graph(*BATCH[:2]), torch.tensor(1)
    for function, arguments in (
        (lambda one, k: k_cliques(graph, k) + one, (2, 3, 4)),
        (lambda one, pattern: match(graph, pattern) + one, ("wedge", "path4", LIST, LIST[:3], LIST[1:])),
        (lambda one, wanted: match(graph, "edge", node_labels=NODE_LABELS, pattern_node_labels=wanted) + one,
         ([0, 1], [1, -1], [1, 1])),
    ):  # fmt: skip
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for argument in arguments:
            assert torch.equal(compiled(one, argument), function(one, argument))


UNTRACED = {
    "tensor": (torch.tensor(LIST).T, {}),
    "array": (np.array(LIST), {}),
    "numpy ints": ([(np.int64(0), 1), (1, 2), (2, 0), (2, 3)], {}),
    "rows": ([[0, 1, 2, 2], [1, 2, 0, 3]], {}),
    "networkx": (nx.Graph(LIST), {}),
    "pattern": (as_pattern(LIST, "match"), {}),
    "array of labels": (LIST, {"pattern_node_labels": np.array([0, -1, 1, -1])}),
    "tensor of labels": (LIST, {"pattern_node_labels": torch.tensor([0, -1, 1, -1])}),
    "numpy labels": (LIST, {"pattern_node_labels": [np.int64(0), -1, 1, -1]}),
}


@filter_torch_warnings
@pytest.mark.parametrize("name", UNTRACED)
def test_what_cannot_be_traced_breaks_the_graph(name):
    graph, (pattern, labels) = Graph(*BATCH[:2]), UNTRACED[name]
    labels = labels and {"node_labels": NODE_LABELS, **labels}
    expected = match(graph, pattern, **labels) + 1
    assert expected > 1

    def function(one):
        return match(graph, pattern, **labels) + one

    torch._dynamo.reset()
    assert torch.compile(function, backend="eager")(torch.tensor(1)) == expected
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="breaks a compiled graph: give text, lists of ints"):
        torch.compile(function, backend="eager", fullgraph=True)(torch.tensor(1))


@filter_torch_warnings
def test_compiled_lists():
    """They may break the graph."""
    graph = Graph(*BATCH[:2])
    for function in (
        lambda one: match(graph, "wedge", symmetry="all", output="list", limit=9) + one,
        lambda one: torch.cat(list(match_batches(graph, "wedge", size=2))) + one,
    ):
        torch._dynamo.reset()
        compiled = torch.compile(function, backend="aot_eager")
        assert torch.equal(compiled(torch.tensor(1)), function(1))
