# SPDX-License-Identifier: Apache-2.0
"""bellman_ford against its plain definition, SciPy, NetworkX and dense solves."""

import itertools
import lzma
import math

import innerloop
import networkx
import pytest
import scipy.sparse
import scipy.sparse.csgraph
import torch
from cases import Record, filter_torch_warnings, make_case
from innerloop import RelGraph, Semiring, bellman_ford, reference
from tolerances import assert_close
from torch import Tensor

# (add, mul): zero, one, and a map of uniform [0, 1) numbers to weights for which the pair has a fixpoint.
PAIRS = {
    ("sum", "mul"): (0.0, 1.0, lambda u: u * 0.2),
    ("min", "add"): (math.inf, 0.0, lambda u: u),
    ("min", "mul"): (math.inf, 1.0, lambda u: 1 + u),
    ("min", "max"): (math.inf, -math.inf, lambda u: u),
    ("max", "add"): (-math.inf, 0.0, lambda u: -u),
    ("max", "mul"): (0.0, 1.0, lambda u: u),
    ("max", "min"): (-math.inf, math.inf, lambda u: u),
    ("logsumexp", "add"): (-math.inf, 0.0, lambda u: u - 4),
}
# V, E, S
SHAPES = [(1, 0, 1), (1, 3, 2), (4, 0, 3), (9, 20, 1), (30, 60, 5), (30, 200, 17), (60, 300, 70)]
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}


def make(V: int, E: int, S: int, pair=("min", "add"), dtype=torch.float64, device="cpu"):
    """A random graph, weights, sources (repeated where S > V) and the semiring."""
    edges = torch.randint(0, V, (2, E), device=device)
    graph = RelGraph(edges, torch.zeros(E, dtype=torch.int64, device=device), V, 1)
    zero, one, weights = PAIRS[pair]
    return (
        graph,
        weights(torch.rand(E, dtype=dtype, device=device)),
        torch.randint(0, V, (S,), device=device),
        (Semiring(*pair, zero, one)),
    )


def plain(graph: RelGraph, weight: Tensor, sources: Tensor, ring: Semiring, steps: int, **options):
    return reference.bellman_ford(
        graph.edge_index, weight, graph.num_nodes, sources, ring.add, ring.mul, ring.zero, ring.one, steps, **options
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_steps_and_fixpoint(pair, dtype):
    for shape in SHAPES:
        graph, weight, sources, ring = make(*shape, pair, dtype)
        if pair[0] == "sum":  # keep the spectral radius below 1
            weight = weight / graph.in_degree.to(dtype)[graph.edge_index[1]].clamp(min=1)
        if pair[0] == "logsumexp":
            weight = weight - graph.in_degree.to(dtype)[graph.edge_index[1]].clamp(min=1).log()
        for steps in (0, 1, 2, 5):
            result = bellman_ford(graph, sources, ring, edge_weight=weight, steps=steps)
            expected = plain(graph, weight, sources, ring, steps)[0]
            torch.testing.assert_close(result.value, expected, **TOLERANCE[dtype])
        expected = plain(graph, weight, sources, ring, 1000, fixpoint=True, tol=1e-12 if dtype.itemsize == 8 else 1e-6)
        assert expected[3]
        result = bellman_ford(graph, sources, ring, edge_weight=weight)
        torch.testing.assert_close(result.value, expected[0], **TOLERANCE[dtype])
        assert result.converged
        assert result.value.dtype == dtype


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[0] in ("min", "max")], ids="-".join)
def test_predecessors_lead_back_to_the_source(pair):
    graph, weight, sources, ring = make(40, 160, 21, pair)
    result = bellman_ford(graph, sources, ring, edge_weight=weight, predecessors=True)
    assert torch.equal(result.value, bellman_ford(graph, sources, ring, edge_weight=weight).value)
    times = reference.bellman_ford.__globals__["TIMES"][ring.mul]
    for column, start in enumerate(sources.tolist()):
        for v in range(graph.num_nodes):
            value, at = torch.tensor(ring.one, dtype=torch.float64), start
            for e in result.path(v, column):
                source, target = graph.edge_index[:, e].tolist()
                assert source == at
                value, at = times(value, weight[e]), target
            reached = at == v
            expected = value if reached else torch.tensor(ring.zero, dtype=torch.float64)
            assert result.value[v, column] == expected


def test_paths_of_a_known_graph():
    edges = torch.tensor([[0, 1, 0, 2, 3], [1, 2, 2, 3, 0]])
    graph = RelGraph(edges, torch.zeros(5, dtype=torch.int64), 5)
    result = bellman_ford(graph, [0, 3], edge_weight=torch.tensor([1.0, 1, 5, 1, 1]), predecessors=True)
    assert result.value.T.tolist() == [[0, 1, 2, 3, math.inf], [1, 2, 3, 0, math.inf]]
    assert [result.path(v) for v in range(5)] == [[], [0], [0, 1], [0, 1, 3], []]
    assert result.path(2, 1) == [4, 0, 1]


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_bits_do_not_depend_on_threads(pair, threads):
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, 500, (2, 3000), generator=generator)
    graph = RelGraph(edges, torch.zeros(3000, dtype=torch.int64), 500)
    zero, one, weights = PAIRS[pair]
    weight = weights(torch.rand(3000, generator=generator))
    ring, sources = Semiring(*pair, zero, one), torch.arange(130)
    before = torch.get_num_threads()
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        results.append(bellman_ford(graph, sources, ring, edge_weight=weight, steps=4).value)
        if ring.idempotent:
            fixed = bellman_ford(graph, sources, ring, edge_weight=weight, predecessors=True)
            results[-1] = torch.cat([results[-1], fixed.value, fixed.predecessor.float()])
    torch.set_num_threads(before)
    assert torch.equal(*results)


# ---- against other libraries ----


def sparse(graph: RelGraph, weight: Tensor, keep: str) -> scipy.sparse.csr_matrix:
    """Adjacency of the smallest ("amin") or largest weight of parallel edges."""
    V = graph.num_nodes
    key, inverse = torch.unique(graph.edge_index[0] * V + graph.edge_index[1], return_inverse=True)
    best = weight.new_zeros(len(key)).scatter_reduce(0, inverse, weight, keep, include_self=False)
    return scipy.sparse.csr_matrix((best.double().numpy(), ((key // V).numpy(), (key % V).numpy())), shape=(V, V))


def check_against_scipy(graph: RelGraph, weight: Tensor, sources: Tensor) -> None:
    distance = bellman_ford(graph, sources, edge_weight=weight)
    expected = scipy.sparse.csgraph.dijkstra(sparse(graph, weight, "amin"), indices=sources.numpy())
    assert_close(distance.value.double(), torch.from_numpy(expected).T, op="distance")
    assert distance.steps <= 12
    reliable = bellman_ford(graph, sources, "reliable", edge_weight=weight / 2)
    expected = scipy.sparse.csgraph.dijkstra(
        sparse(graph, -(weight.double() / 2).log(), "amin"), indices=sources.numpy()
    )
    assert_close(reliable.value.double(), torch.from_numpy(expected).T.neg().exp(), op="reliable")


def test_against_scipy():
    graph, weight, sources, _ = make(300, 1500, 20, dtype=torch.float32)
    check_against_scipy(graph, weight + 0.1, sources)


def test_against_scipy_on_fb15k237(shared_data):
    kg = innerloop.data.read_kg(shared_data / "kg" / "fb15k-237")
    h, r, t = kg.train.facts.unbind(1)
    graph = RelGraph(torch.stack([h, t]), r, kg.train.num_entities, kg.num_relations).with_inverse()
    weight = 0.1 + torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0))
    check_against_scipy(graph, weight, torch.arange(0, graph.num_nodes, graph.num_nodes // 64)[:64])


def test_negative_weights_without_a_cycle():
    edges = torch.randint(0, 40, (2, 200)).sort(0).values
    edges = edges[:, edges[0] != edges[1]]  # acyclic
    graph = RelGraph(edges, torch.zeros(edges.shape[1], dtype=torch.int64), 40)
    weight = torch.randn(graph.num_edges, dtype=torch.float64)
    value = bellman_ford(graph, [0, 5], edge_weight=weight).value
    expected = scipy.sparse.csgraph.bellman_ford(sparse(graph, weight, "amin"), indices=[0, 5])
    torch.testing.assert_close(value, torch.from_numpy(expected).T)


def test_widest_path_is_that_of_the_maximum_spanning_tree():
    tree = networkx.Graph()
    tree.add_nodes_from(range(50))
    pairs = torch.randint(0, 50, (2, 90))
    weight = torch.rand(90, dtype=torch.float64)
    for a, b, w in zip(*pairs.tolist(), weight.tolist(), strict=True):
        if a != b and w > tree.get_edge_data(a, b, {"weight": 0})["weight"]:
            tree.add_edge(a, b, weight=w)
    tree = networkx.maximum_spanning_tree(tree)
    graph = RelGraph(torch.cat([pairs, pairs.flip(0)], 1), torch.zeros(180, dtype=torch.int64), 50)
    value = bellman_ford(graph, torch.arange(50), "widest", edge_weight=torch.cat([weight, weight])).value
    for source in range(50):
        paths = networkx.single_source_shortest_path(tree, source)
        for v in range(50):
            path = paths.get(v)
            steps = [tree[a][b]["weight"] for a, b in itertools.pairwise(path)] if path else [-math.inf]
            assert value[v, source] == min(steps, default=math.inf)


def test_katz_and_ppr_are_dense_solves():
    graph, weight, sources, _ = make(30, 150, 6)
    weight = weight + 0.1
    adjacency = torch.zeros(30, 30, dtype=torch.float64).index_put(tuple(graph.edge_index), weight, accumulate=True)
    eye = torch.eye(30, dtype=torch.float64)
    katz = bellman_ford(graph, sources, Semiring.katz(0.02), edge_weight=weight).value
    torch.testing.assert_close(katz, torch.linalg.inv(eye - 0.02 * adjacency)[sources].T)
    out = adjacency.sum(1, keepdim=True)
    walk = 0.85 * adjacency / out.where(out > 0, 1)
    ppr = bellman_ford(graph, sources, "ppr", edge_weight=weight).value
    torch.testing.assert_close(ppr, torch.linalg.inv(eye - walk)[sources].T)


def test_ppr_on_cora(shared_data):
    with lzma.open(shared_data / "planetoid" / "cora.cites.xz", "rt") as file:
        lines = file.read().split()
    ids = {name: i for i, name in enumerate(dict.fromkeys(lines))}
    pairs = torch.tensor([ids[name] for name in lines]).view(-1, 2).T
    graph = RelGraph(torch.cat([pairs, pairs.flip(0)], 1), torch.zeros(2 * pairs.shape[1], dtype=torch.int64))
    sources = torch.arange(0, graph.num_nodes, 300)
    value = bellman_ford(graph, sources, "ppr", edge_weight=torch.ones(graph.num_edges, dtype=torch.float64)).value
    adjacency = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    adjacency.index_put_(tuple(graph.edge_index), torch.ones(graph.num_edges, dtype=torch.float64), accumulate=True)
    system = torch.eye(graph.num_nodes, dtype=torch.float64) - 0.85 * adjacency / adjacency.sum(1, keepdim=True)
    expected = torch.linalg.solve(system.T, torch.eye(graph.num_nodes, dtype=torch.float64)[:, sources])
    assert_close(value, expected, op="ppr")


def test_hops_by_steps():
    """A ring of 7 nodes: after t steps the nodes within t edges are known."""
    graph = RelGraph(torch.tensor([list(range(7)), [*range(1, 7), 0]]), torch.zeros(7, dtype=torch.int64))
    for steps in range(8):
        value = bellman_ford(graph, 2, steps=steps).value.flatten()
        expected = [(v - 2) % 7 if (v - 2) % 7 <= steps else math.inf for v in range(7)]
        assert value.tolist() == expected
        reached = bellman_ford(graph, 2, "reachability", steps=steps).value.flatten()
        assert reached.tolist() == [float(x < math.inf) for x in expected]


# ---- semirings of functions ----

FUNCTIONS = {
    ("min", "add"): (lambda a, b: a if a < b else b, lambda x, w: x + w),
    ("max", "min"): (lambda a, b: a if a > b else b, lambda x, w: x if x < w else w),
    ("sum", "mul"): (lambda a, b: a + b, lambda x, w: x * w),
}


# numba takes seconds for each pair of functions and dtype.
@pytest.mark.parametrize(
    ("pair", "dtype"),
    [(pair, torch.float64) for pair in FUNCTIONS] + [(("min", "add"), torch.float32)],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else "-".join(value),
)
def test_functions_equal_the_built_in_semiring(pair, dtype):
    pytest.importorskip("numba")
    add, mul = FUNCTIONS[pair]
    zero, one, _ = PAIRS[pair]
    ring = Semiring(add, mul, zero, one, idempotent=pair[0] != "sum")
    for shape in SHAPES:
        graph, weight, sources, built_in = make(*shape, pair, dtype)
        weight = weight / graph.in_degree.to(dtype)[graph.edge_index[1]].clamp(min=1)
        for steps in (0, 1, 3, None):
            expected = bellman_ford(graph, sources, built_in, edge_weight=weight, steps=steps)
            result = bellman_ford(graph, sources, ring, edge_weight=weight, steps=steps)
            torch.testing.assert_close(result.value, expected.value, **TOLERANCE[dtype])
            assert result.value.dtype == dtype
        if ring.idempotent:
            a = bellman_ford(graph, sources, ring, edge_weight=weight, predecessors=True)
            b = bellman_ford(graph, sources, built_in, edge_weight=weight, predecessors=True)
            assert torch.equal(a.predecessor, b.predecessor)


def test_a_semiring_that_is_not_built_in():
    """The probability that at least one of two independent paths holds: a + b - a·b."""
    pytest.importorskip("numba")
    ring = Semiring(lambda a, b: a + b - a * b, lambda x, w: x * w, 0.0, 1.0)
    edges = torch.tensor([[0, 0, 1, 2], [1, 2, 3, 3]])
    graph = RelGraph(edges, torch.zeros(4, dtype=torch.int64))
    weight = torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    value = bellman_ford(graph, 0, ring, edge_weight=weight).value.flatten()
    assert value.tolist() == [1.0, 0.5, 0.5, 0.25 + 0.25 - 0.0625]


def test_functions_that_never_settle():
    pytest.importorskip("numba")
    ring = Semiring(*FUNCTIONS["sum", "mul"], 0.0, 1.0)
    graph = RelGraph(torch.tensor([[0], [0]]), torch.tensor([0]))
    with pytest.raises(RuntimeError, match="no fixpoint after"):
        bellman_ford(graph, 0, ring, edge_weight=torch.tensor([-2.0], dtype=torch.float64))


# ---- the op ----


@filter_torch_warnings
@pytest.mark.parametrize("pair", [("min", "add"), ("sum", "mul")], ids="-".join)
def test_opcheck(pair):
    graph, weight, sources, ring = make(8, 20, 3, pair)
    with Record() as record:
        bellman_ford(graph, sources, ring, edge_weight=weight, steps=2)
    ((args, kwargs),) = record.of("bellman_ford")
    torch.library.opcheck(torch.ops.innerloop.bellman_ford.default, args, kwargs)


def test_sources_and_weights():
    graph, weight, _, _ = make(9, 30, 1)
    one = bellman_ford(graph, 3, edge_weight=weight).value
    for sources in ([3], torch.tensor(3), torch.tensor([3], dtype=torch.int32), torch.tensor([3, 3])[::2]):
        assert torch.equal(bellman_ford(graph, sources, edge_weight=weight).value, one)
    assert bellman_ford(graph, [], edge_weight=weight).value.shape == (9, 0)
    assert bellman_ford(graph, 3).value.dtype == torch.float32
    own = RelGraph(graph.edge_index, graph.edge_type, 9, edge_weight=weight)
    assert torch.equal(bellman_ford(own, 3).value, one)
    assert torch.equal(bellman_ford(graph, 3, edge_weight=weight.repeat_interleave(2)[::2]).value, one)


def _negative_cycle():
    graph = RelGraph(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 1]]), torch.zeros(4, dtype=torch.int64))
    return graph, torch.tensor([1.0, 1.0, -3.0, 1.0])


def test_negative_cycle_is_reported_with_its_edges():
    graph, weight = _negative_cycle()
    with pytest.raises(ValueError, match=r"negative cycle, expected none: edges \[(1, 2, 3|2, 3, 1|3, 1, 2)\]"):
        bellman_ford(graph, 0, edge_weight=weight)
    assert bellman_ford(graph, 0, edge_weight=weight, steps=3).value.isfinite().all()
    unreachable = bellman_ford(graph.with_inverse(), 0, edge_weight=torch.cat([weight.abs(), weight.abs()]))
    assert unreachable.converged


def test_negative_cycle_that_the_source_does_not_reach():
    graph, weight = _negative_cycle()
    lonely = RelGraph(graph.edge_index, graph.edge_type, 5)
    assert bellman_ford(lonely, 4, edge_weight=weight).value.flatten().tolist() == [math.inf] * 4 + [0]


BAD = [
    (TypeError, "graph is int, expected RelGraph", lambda g, w: bellman_ford(3, 0)),
    (ValueError, "semiring is 'dijkstra', expected one of katz", lambda g, w: bellman_ford(g, 0, "dijkstra")),
    (IndexError, "sources holds 9, expected ids in", lambda g, w: bellman_ford(g, [1, 9])),
    (IndexError, "sources holds -1", lambda g, w: bellman_ford(g, -1)),
    (TypeError, "sources has dtype torch.float32", lambda g, w: bellman_ford(g, torch.tensor([1.0]))),
    (ValueError, "sources has shape", lambda g, w: bellman_ford(g, torch.zeros(2, 2, dtype=torch.int64))),
    (ValueError, "edge_weight has shape", lambda g, w: bellman_ford(g, 0, edge_weight=w[1:])),
    (ValueError, "edge_weight has dtype torch.float16", lambda g, w: bellman_ford(g, 0, edge_weight=w.half())),
    (TypeError, "edge_weight is list", lambda g, w: bellman_ford(g, 0, edge_weight=[1.0])),
    (ValueError, "edge_weight is NaN at edge 2", lambda g, w: bellman_ford(g, 0, edge_weight=_with(w, 2, math.nan))),
    (ValueError, "expected none negative", lambda g, w: bellman_ford(g, 0, "reliable", edge_weight=_with(w, 2, -1.0))),
    (ValueError, "infinity, expected fin", lambda g, w: bellman_ford(g, 0, "katz", edge_weight=_with(w, 2, math.inf))),
    (ValueError, "steps is -1", lambda g, w: bellman_ford(g, 0, steps=-1)),
    (ValueError, "tol is for a sum", lambda g, w: bellman_ford(g, 0, tol=1e-3)),
    (ValueError, "tol is nan", lambda g, w: bellman_ford(g, 0, "katz", tol=math.nan)),
    (ValueError, "a sum has no best path", lambda g, w: bellman_ford(g, 0, "katz", predecessors=True)),
    (ValueError, "predecessors=True with steps", lambda g, w: bellman_ford(g, 0, steps=2, predecessors=True)),
    (ValueError, "requires grad", lambda g, w: bellman_ford(g, 0, edge_weight=w.requires_grad_())),
    (RuntimeError, "spectral radius", lambda g, w: bellman_ford(g, 0, Semiring.katz(100.0))),
    (ValueError, "add is 'plus'", lambda g, w: Semiring("plus", "mul", 0, 1)),
    (ValueError, "mul is 'add', expected 'mul' with add='sum'", lambda g, w: Semiring("sum", "add", 0, 1)),
    (ValueError, "expected 'mul' or 'add' or 'max' with add='min'", lambda g, w: Semiring("min", "min", 0, 1)),
    (ValueError, "a name and a function", lambda g, w: Semiring("sum", max, 0, 1)),
    (ValueError, "predecessor is None", lambda g, w: bellman_ford(g, 0).path(1)),
    (IndexError, "target is 9", lambda g, w: bellman_ford(g, 0, predecessors=True).path(9)),
]  # fmt: skip


def _with(weight: Tensor, at: int, value: float) -> Tensor:
    weight = weight.clone()
    weight[at] = value
    return weight


@pytest.mark.parametrize(("error", "match", "call"), BAD, ids=[m for _, m, _ in BAD])
def test_bad_input(error, match, call):
    graph, weight, _, _ = make(9, 30, 1, dtype=torch.float32)
    with pytest.raises(error, match=match):
        call(graph, weight)


def test_functions_with_literals_and_predecessors():
    """A Python float makes numba's sum float64; a row changes only where what is stored does."""
    pytest.importorskip("numba")
    case = make_case(30, 120)
    weight = torch.rand(120)
    ring = Semiring(lambda a, b: a if a < b else b, lambda x, w: x + 0.3 * w, math.inf, 0.0, idempotent=True)
    found = bellman_ford(case.graph, [0, 5], ring, edge_weight=weight, predecessors=True)
    expected = bellman_ford(case.graph, [0, 5], "distance", edge_weight=0.3 * weight)
    torch.testing.assert_close(found.value, expected.value)
    reached = found.value[:, 0].where(found.value[:, 0].isfinite(), -1)
    torch.testing.assert_close((0.3 * weight[found.path(int(reached.argmax()))]).sum(), reached.max())


@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_compiled_in_parts():
    """Looks at weights and at the fixpoint end a graph of Dynamo: fullgraph=True is refused, as README.md says."""
    graph, weight = make_case(V=5, E=12, d=4).graph, torch.rand(12)

    def f(w):
        return 2 * bellman_ford(graph, [0, 3], edge_weight=w).value

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(f, backend="aot_eager", fullgraph=True)(weight)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(f, backend="aot_eager")(weight), f(weight))
