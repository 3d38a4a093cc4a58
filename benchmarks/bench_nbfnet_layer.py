# SPDX-License-Identifier: Apache-2.0
"""nbfnet_layer against three ways to compose the same layer, on the embedded training graphs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bench_relational_spmm import REAL
from harness import OURS, Work, assert_near, free_memory, path_taken
from innerloop import RelGraph, reference, relational_spmm
from innerloop.data import kg
from innerloop.nn import GeneralizedRelationalConv
from innerloop.nn.nbfnet import pna_scalers
from torch import Tensor
from torch.nn import functional as F

DIM = 32
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Layer:
    """A layer of NBFNet as published (DistMult, PNA, LayerNorm, ReLU, short cut), and its inputs.

    Every method takes (input, query) and includes the linear map from queries to relation tables.
    """

    def __init__(self, graph: RelGraph, batch: int, device: str) -> None:
        torch.manual_seed(0)
        self.graph = graph.to(device)
        self.conv = GeneralizedRelationalConv(DIM, DIM, graph.num_relations, DIM, layer_norm=True).to(device)
        self.source = torch.randint(graph.num_nodes, (batch,)).to(device)
        self.input = torch.randn(graph.num_nodes, batch, DIM).to(device)
        self.query = torch.randn(batch, DIM).to(device)
        self.scalers = pna_scalers(self.graph)

    def boundary(self, query: Tensor) -> Tensor:
        columns = torch.arange(len(query), device=query.device)
        zero = query.new_zeros(self.graph.num_nodes, *query.shape)
        return zero.index_put((self.source, columns), query)

    def fused(self, input: Tensor, query: Tensor) -> Tensor:
        return self.conv.fused(self.graph, input, self.source, query, self.scalers, True)

    def composed(self, input: Tensor, query: Tensor) -> Tensor:
        """relational_spmm, one product per scaler, LayerNorm, ReLU: GeneralizedRelationalConv.forward."""
        return self.conv(self.graph, input, query, self.boundary(query)) + input

    def eager(self, input: Tensor, query: Tensor) -> Tensor:
        """The definition: messages of every edge, the 12-fold scaled features, one wide product."""
        g, conv = self.graph, self.conv
        norm = conv.layer_norm
        return reference.nbfnet_layer(
            g.edge_index,
            g.edge_type,
            g.num_nodes,
            conv.relation_table(query),
            input,
            self.source,
            query,
            conv.linear.weight,
            conv.linear.bias,
            norm.weight,
            norm.bias,
            self.scalers,
            eps=norm.eps,
        )

    def group_by_degree(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Scalers depend on the degree alone: with nodes sorted by degree, one 4d → d product per degree."""
        g, conv = self.graph, self.conv
        order = g.in_degree.argsort(stable=True)
        sizes = torch.unique_consecutive(g.in_degree[order], return_counts=True)[1].tolist()
        back = torch.empty_like(order)
        back[order] = torch.arange(g.num_nodes, device=order.device)
        first = torch.tensor([0, *sizes[:-1]], device=order.device).cumsum(0)
        scalers = self.scalers[order[first]]  # (degrees, 3)

        def run(input: Tensor, query: Tensor) -> Tensor:
            boundary, table = self.boundary(query), conv.relation_table(query)
            features = relational_spmm(g, table, input, sum="pna", boundary=boundary).flatten(-2)
            own, rest = conv.linear.weight.split([DIM, 12 * DIM], dim=1)
            # (out, channel, statistic, scaler) -> one (out, statistic, channel) matrix per degree
            blocks = rest.view(DIM, DIM, 4, 3).transpose(1, 2).reshape(DIM, 4 * DIM, 3)
            matrices = torch.einsum("ofk,gk->gof", blocks, scalers)
            rows = features.index_select(0, order).split(sizes)
            update = torch.cat([F.linear(f, m) for f, m in zip(rows, matrices, strict=True)])
            hidden = F.linear(input, own, conv.linear.bias) + update.index_select(0, back)
            return conv.layer_norm(hidden).relu() + input

        return run

    def work(self, direction: str) -> Work:
        """Gather of every edge, node states in and out, the 5d → d product; three times that with backward."""
        g, columns = self.graph, self.input.shape[1] * DIM
        moved = 8 * g.num_edges * columns + 8 * g.num_nodes * columns
        flops = 6 * g.num_edges * columns + 2 * g.num_nodes * columns * 5 * DIM
        times = 1 if direction == "forward" else 3
        return Work(times * moved, times * flops)


def call_of(
    layer: Layer, function: Callable, direction: str, input: Tensor, query: Tensor, with_input: bool = True
) -> Callable[[], object]:
    if direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return function(input, query)

        return forward
    leaves = [input.detach().requires_grad_(), query.detach().requires_grad_()]
    wanted = [*leaves[0 if with_input else 1 :], *layer.conv.parameters()]
    grad = torch.randn(input.shape, generator=torch.Generator(input.device).manual_seed(1), device=input.device)
    return lambda: torch.autograd.grad(function(*leaves), wanted, grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dataset", ["WN18RR_v1", "fb237_v1", "FB15k-237"])
def test_nbfnet_layer(dataset, direction, device, quick, compare):
    if dataset == "FB15k-237":
        if quick or not REAL.is_dir():
            pytest.skip("takes the full data set")
        data = kg.read_kg(REAL)
    else:
        data = kg.load_embedded(dataset)
    facts = data.train.facts
    graph = RelGraph(facts[:, [0, 2]].T, facts[:, 1], data.train.num_entities, data.num_relations)
    batch = 4 if quick else 8 if dataset == "FB15k-237" else 64
    layer = Layer(graph.with_inverse(), batch, device)
    functions = {
        OURS: layer.fused,
        "relational_spmm + 3 products": layer.composed,
        "relational_spmm + product by degree": layer.group_by_degree(),
        "eager, 12-fold": layer.eager,
    }
    absent = {}
    needed = 4 * batch * DIM * (12 * layer.graph.num_edges + 60 * layer.graph.num_nodes)
    if needed > 0.6 * free_memory(device):
        del functions["eager, 12-fold"]
        absent["eager, 12-fold"] = f"would need about {needed / 1e9:.0f} GB of memory"
    inputs = [(layer.input, layer.query)]
    if device == "cuda":
        inputs.append((layer.input.clone(), layer.query.clone()))
    calls = {
        name: [call_of(layer, function, direction, *copy) for copy in inputs] for name, function in functions.items()
    }

    # Correctness first: the definition with 4 of the queries, so that it always fits, and then all with each other.
    few = Layer(graph.with_inverse(), 4, device)
    few.conv = layer.conv
    expected = as_list(call_of(few, few.eager, direction, few.input, few.query)())
    for name, function in (("fused", few.fused), ("composed", few.composed), ("by degree", few.group_by_degree())):
        check(as_list(call_of(few, function, direction, few.input, few.query)()), expected, name)
    result = as_list(calls[OURS][0]())
    for name in functions:
        check(as_list(calls[name][0]()), result, name)
    del result

    compare(
        f"nbfnet_layer {direction}, {dataset}, B={batch}, d={DIM}, {device}",
        calls,
        layer.work(direction),
        device=device,
        absent=absent,
        path=path_taken("nbfnet_layer", device),
        graph=repr(layer.graph),
    )


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dataset", ["WN18RR_v1", "fb237_v1"])
def test_first_layer(dataset, direction, quick, compare):
    """Without input, against the same op on the boundary as a tensor."""
    data = kg.load_embedded(dataset)
    facts = data.train.facts
    graph = RelGraph(facts[:, [0, 2]].T, facts[:, 1], data.train.num_entities, data.num_relations)
    batch = 4 if quick else 64
    layer = Layer(graph.with_inverse(), batch, "cpu")

    def first(_: Tensor, query: Tensor) -> Tensor:
        return layer.conv.fused(layer.graph, None, layer.source, query, layer.scalers, True)

    def full(_: Tensor, query: Tensor) -> Tensor:
        return layer.fused(layer.boundary(query), query)

    def composed(_: Tensor, query: Tensor) -> Tensor:
        return layer.composed(layer.boundary(query), query)

    functions = {OURS: first, "input as a tensor": full, "relational_spmm + 3 products": composed}
    calls = {
        name: [call_of(layer, function, direction, layer.input, layer.query, with_input=False)]
        for name, function in functions.items()
    }
    result = as_list(calls[OURS][0]())
    for name in functions:
        check(as_list(calls[name][0]()), result, name)
    del result
    compare(
        f"nbfnet_layer, first layer, {direction}, {dataset}, B={batch}, d={DIM}, cpu",
        calls,
        layer.work(direction),
        path=path_taken("nbfnet_layer", "cpu"),
        graph=repr(layer.graph),
        note="work counted as for a layer with input",
    )


def as_list(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def check(actual: list[Tensor], expected: list[Tensor], name: str) -> None:
    for k, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_near(a, b, 1e-3 if len(expected) > 1 else 1e-4, f"{name}, result {k}")
