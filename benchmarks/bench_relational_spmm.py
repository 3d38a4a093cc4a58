# SPDX-License-Identifier: Apache-2.0
"""relational_spmm against what torch and its peers offer, on FB15k-237; RelGraph; the cost of a call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import innerloop
import pytest
import torch
from harness import OURS, Work, assert_near, free_memory, path_taken, peer
from innerloop import RelGraph, reference
from innerloop.data import kg
from torch import Tensor

DIM = 32
GATE_EDGES = 20_000
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "kg" / "fb15k-237"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

Function = Callable[[Tensor, Tensor], Tensor]  # (relation (R, B, d), input (V, B, d)) -> output


# ---- graphs ----


@functools.cache
def load_graph(quick: bool) -> tuple[str, RelGraph]:
    """FB15k-237 with inverse edges where its files are at hand, else a synthetic graph of that size and skew."""
    if quick:
        return "small synthetic", synthetic_graph(2_000, 10_000, 50)
    if REAL.is_dir():
        data = kg.read_kg(REAL)
        facts = data.train.facts
        graph = RelGraph(facts[:, [0, 2]].T, facts[:, 1], data.train.num_entities, data.num_relations)
        return "FB15k-237", graph.with_inverse()
    return "synthetic FB15k-237", synthetic_graph(14_541, 272_115, 237)


def synthetic_graph(nodes: int, facts: int, relations: int) -> RelGraph:
    """Distinct random triples and their inverses; nodes and relations follow Zipf-like laws.

    With FB15k-237's counts the largest in-degree is near 7,600 and the mean 37, as there.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(count: int, shift: float, power: float, n: int) -> Tensor:
        weight = (torch.arange(count) + shift) ** -power
        return torch.multinomial(weight, n, replacement=True, generator=generator)

    n = facts * 3 // 2
    head, tail = draw(nodes, 4, 0.85, n), draw(nodes, 4, 0.85, n)
    triples = torch.unique((head * relations + draw(relations, 1, 1.0, n)) * nodes + tail)
    triples = triples[torch.randperm(len(triples), generator=generator)[:facts]]
    relabel = torch.randperm(nodes, generator=generator)  # popular nodes are not neighbours in memory
    head, tail = relabel[triples // nodes // relations], relabel[triples % nodes]
    return RelGraph(torch.stack([head, tail]), triples // nodes % relations, nodes, relations).with_inverse()


def part_of(graph: RelGraph, edges: int) -> RelGraph:
    keep = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(0))[:edges]
    keep = keep.to(graph.device)
    return RelGraph(graph.edge_index[:, keep], graph.edge_type[keep], graph.num_nodes, graph.num_relations)


# ---- implementations; each makes all messages, as the peers do, but for ours ----


def ours(graph: RelGraph, sum: str) -> Function:
    return lambda w, x: innerloop.relational_spmm(graph, w, x, sum=sum)


def eager(graph: RelGraph, sum: str) -> Function:
    """Gather, multiply, then index_add or scatter_reduce; PNA is four reductions of the same messages."""
    (source, target), edge_type, nodes = graph.edge_index, graph.edge_type, graph.num_nodes
    degree = graph.in_degree.clamp(min=1).view(-1, 1, 1)

    def add(m: Tensor) -> Tensor:
        return m.new_zeros(nodes, *m.shape[1:]).index_add(0, target, m)

    def extremum(m: Tensor, reduce: str, identity: float) -> Tensor:
        index = target.view(-1, 1, 1).expand_as(m)
        return m.new_full((nodes, *m.shape[1:]), identity).scatter_reduce(0, index, m, reduce)

    def run(w: Tensor, x: Tensor) -> Tensor:
        m = x.index_select(0, source) * w.index_select(0, edge_type)
        if sum == "sum":
            return add(m)
        if sum == "max":
            return extremum(m, "amax", -torch.inf)
        mean = add(m) / degree
        std = (add(m * m) / degree - mean * mean).clamp(min=1e-6).sqrt()
        return torch.stack([mean, extremum(m, "amax", -torch.inf), extremum(m, "amin", torch.inf), std], -2)

    return run


def compiled(graph: RelGraph, sum: str) -> Function:
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # the backward pass is run many times on one graph
    return torch.compile(eager(graph, sum))


def scattered(scatter: Callable[..., Tensor], graph: RelGraph, sum: str) -> Function:
    """The messages reduced by the `scatter` that torch_scatter and PyG share."""
    (source, target), edge_type = graph.edge_index, graph.edge_type

    def run(w: Tensor, x: Tensor) -> Tensor:
        m = x.index_select(0, source) * w.index_select(0, edge_type)
        into = functools.partial(scatter, index=target, dim=0, dim_size=graph.num_nodes)
        if sum != "pna":
            return into(m, reduce=sum)
        mean, square = into(m, reduce="mean"), into(m * m, reduce="mean")
        std = (square - mean * mean).clamp(min=1e-6).sqrt()
        return torch.stack([mean, into(m, reduce="max"), into(m, reduce="min"), std], -2)

    return run


def candidates(full: bool, needed: int, device: str) -> tuple[dict[str, Callable], dict[str, str]]:
    """Implementations by name, and why others are not run. `needed`: bytes that one with messages allocates."""
    peers: dict[str, Callable] = {"eager": eager}
    absent = {}
    if full:
        peers["torch.compile"] = compiled
    else:
        absent["torch.compile"] = "only with --full"
    for name, module in (("torch_scatter", "torch_scatter"), ("PyG scatter", "torch_geometric.utils")):
        if package := peer(module):
            peers[name] = functools.partial(scattered, package.scatter)
        else:
            absent[name] = "not installed"
    if needed > 0.6 * free_memory(device):
        reason = f"would need about {needed / 1e9:.0f} GB of memory"
        absent |= dict.fromkeys(peers, reason)
        peers = {}
    return {OURS: ours} | peers, absent


# ---- forward and backward ----


def calls_of(function: Function, direction: str, copies: list[tuple[Tensor, Tensor]]) -> list[Callable[[], object]]:
    """One call per copy of the inputs (w, x). Backward: of a stored forward pass, for both inputs."""

    def forward(w: Tensor, x: Tensor) -> Callable[[], object]:
        return lambda: function(w, x)

    def backward(w: Tensor, x: Tensor) -> Callable[[], object]:
        leaves = [w.detach().requires_grad_(), x.detach().requires_grad_()]
        out = function(*leaves)
        # A fixed gradient; none at rows without messages, where implementations may put any constant.
        generator = torch.Generator(out.device).manual_seed(1)
        grad = torch.randn(out.shape, generator=generator, device=out.device)
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return [(forward if direction == "forward" else backward)(*copy) for copy in copies]


def assert_same(actual: object, expected: object, rows: Tensor, tolerance: float, what: str) -> None:
    """Outputs at the nodes that receive messages, or gradients."""
    if isinstance(expected, Tensor):
        assert_near(actual[rows], expected[rows], tolerance, what)
        return
    for side, a, b in zip(("relation", "input"), actual, expected, strict=True):
        assert_near(a, b, tolerance, f"{what}, gradient of {side}")


def work_of(graph: RelGraph, batch: int, sum: str, direction: str) -> Work:
    """Per edge and column: x and w read (backward: their gradients written too). Per node: the results' side."""
    columns, statistics = batch * DIM, 4 if sum == "pna" else 1
    per_edge = {"forward": 8, "backward": 16}[direction]
    flops = {"forward": {"sum": 2, "max": 2, "pna": 6}, "backward": {"sum": 4, "max": 4, "pna": 9}}[direction][sum]
    moved = (per_edge * graph.num_edges + 4 * statistics * graph.num_nodes) * columns
    return Work(moved, flops * graph.num_edges * columns)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("sum", ["sum", "max", "pna"])
def test_relational_spmm(batch, sum, direction, device, full, quick, compare):
    name, graph = load_graph(quick)
    graph = graph.to(device)
    messages = 4 * graph.num_edges * batch * DIM
    factor = {"forward": {"sum": 3, "max": 3, "pna": 5}, "backward": {"sum": 5, "max": 9, "pna": 16}}
    factor = factor[direction][sum] * (2 if device == "cuda" and direction == "backward" else 1)
    functions, absent = candidates(full, factor * messages, device)
    torch.manual_seed(0)
    w = torch.randn(graph.num_relations, batch, DIM).to(device)
    x = torch.randn(graph.num_nodes, batch, DIM).to(device)
    copies = [(w, x)] if device == "cpu" else [(w, x), (w.clone(), x.clone())]

    # Correctness first. On a part of the edges, against the plain definition in float64 …
    part = part_of(graph, GATE_EDGES)

    def truth(w: Tensor, x: Tensor) -> Tensor:
        index = part.edge_index, part.edge_type, part.num_nodes
        return reference.relational_spmm(*index, w.double(), x.double(), sum=sum).float()

    loose = 1e-3 if direction == "backward" and sum == "pna" else 1e-4
    [expected] = calls_of(truth, direction, copies[:1])
    expected, rows = expected(), part.in_degree > 0
    for implementation, make in functions.items():
        [call] = calls_of(make(part, sum), direction, copies[:1])
        assert_same(call(), expected, rows, loose, f"{implementation} on {part.num_edges} edges")
    del expected, call

    # … and at full size against each other. Here two messages may round to the same maximum and different
    # implementations send its gradient to different edges: a few of millions of elements.
    calls = {k: calls_of(make(graph, sum), direction, copies) for k, make in functions.items()}
    result, rows = calls[OURS][0](), graph.in_degree > 0
    for implementation in calls:
        loose = 1e-4 if direction == "forward" or sum == "sum" else 1e-2
        assert_same(calls[implementation][0](), result, rows, loose, implementation)
    del result

    compare(
        f"relational_spmm {sum} {direction}, {name}, B={batch}, d={DIM}, {device}",
        calls,
        work_of(graph, batch, sum, direction),
        device=device,
        absent=absent,
        path=path_taken("relational_spmm", device),
        graph=repr(graph),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "batch" in metafunc.fixturenames:
        metafunc.parametrize("batch", [8, 64] if metafunc.config.getoption("--full") else [8])


# ---- the graph ----


def sorted_by_torch(edge_index: Tensor, edge_type: Tensor, nodes: int, relations: int) -> tuple[Tensor, ...]:
    """indptr, src, rel, eid with a stable argsort of one key per edge."""
    source, target = edge_index
    eid = ((target * relations + edge_type) * nodes + source).argsort(stable=True)
    indptr = torch.zeros(nodes + 1, dtype=torch.int64)
    indptr[1:] = torch.bincount(target, minlength=nodes).cumsum(0)
    return tuple(t.to(torch.int32) for t in (indptr, source[eid], edge_type[eid], eid))


def assert_same_csr(graph: RelGraph, expected: tuple[Tensor, ...]) -> None:
    for name, t in zip(("indptr", "src", "rel", "eid"), expected, strict=True):
        assert torch.equal(getattr(graph, name), t), f"{name} differs"


def test_graph_build(quick, compare):
    name, graph = load_graph(quick)
    edge_index, edge_type = graph.edge_index.contiguous(), graph.edge_type.contiguous()
    arguments = edge_index, edge_type, graph.num_nodes, graph.num_relations
    assert_same_csr(RelGraph(*arguments), sorted_by_torch(*arguments))
    calls = {OURS: [lambda: RelGraph(*arguments)], "torch argsort + index": [lambda: sorted_by_torch(*arguments)]}
    work = Work(36 * graph.num_edges + 4 * graph.num_nodes, 0, "int64")
    compare(f"RelGraph build, {name}, {graph.num_edges} edges", calls, work, graph=repr(graph))


def test_graph_drop(quick, compare):
    name, graph = load_graph(quick)
    mask = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(0)) < 0.01
    eid, target = graph.eid.long(), torch.repeat_interleave(torch.arange(graph.num_nodes), graph.in_degree.long())

    def indexed() -> tuple[Tensor, ...]:
        """Filter the arrays of the CSR and renumber the edges that remain."""
        keep = ~mask[eid]
        indptr = torch.zeros(graph.num_nodes + 1, dtype=torch.int32)
        indptr[1:] = torch.bincount(target[keep], minlength=graph.num_nodes).cumsum(0)
        position = (~mask).cumsum(0) - 1
        return indptr, graph.src[keep], graph.rel[keep], position[eid[keep]].to(torch.int32)

    def rebuilt() -> RelGraph:
        keep = ~mask
        return RelGraph(graph.edge_index[:, keep], graph.edge_type[keep], graph.num_nodes, graph.num_relations)

    assert_same_csr(graph.drop(mask), indexed())
    assert_same_csr(rebuilt(), indexed())
    calls = {OURS: [lambda: graph.drop(mask)], "torch index": [indexed], "RelGraph of the rest": [rebuilt]}
    work = Work(25 * graph.num_edges + 8 * graph.num_nodes, 0, "int32")
    compare(f"RelGraph.drop 1 % of the edges, {name}, {graph.num_edges} edges", calls, work, graph=repr(graph))


# ---- the cost of a call ----


def test_call_overhead(quick, compare):
    """A product with 64 elements against torch.add(alpha=) of 64: all that is left is the way to the kernel."""
    repeat = 10 if quick else 2_000
    graph = RelGraph(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), torch.tensor([0, 1, 0, 1]))
    w, x, other = torch.randn(2, 8), torch.randn(4, 2, 8), torch.randn(4, 2, 8)
    expected = reference.relational_spmm(graph.edge_index, graph.edge_type, 4, w, x)
    assert_near(innerloop.relational_spmm(graph, w, x), expected, 1e-6, "relational_spmm")

    def product() -> None:
        run = innerloop.relational_spmm
        for _ in range(repeat):
            run(graph, w, x)

    def add() -> None:
        run = torch.add
        for _ in range(repeat):
            run(x, other, alpha=2.0)

    group = compare(
        "call overhead, 64 elements", {OURS: [product], "torch.add(alpha=)": [add]}, Work(768, 128, calls=repeat)
    )
    if "implementations" in group.info:
        ratio = 1 / group.info["implementations"]["torch.add(alpha=)"]["ratio"]
        group.info["note"] = f"a call costs {ratio:.2f} times torch.add(alpha=); goal at most 2.7"
