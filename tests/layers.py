# SPDX-License-Identifier: Apache-2.0
"""Random arguments of nbfnet_layer."""

from dataclasses import dataclass, field, replace

import innerloop
import torch
from cases import make_case
from innerloop import reference
from torch import Tensor

FLOATS = ("relation", "input", "query", "weight", "bias", "norm_weight", "norm_bias")


@dataclass
class Layer:
    """The arguments of one layer."""

    graph: innerloop.RelGraph
    source: Tensor
    floats: dict[str, Tensor]
    scalers: Tensor
    options: dict = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.floats.items() if x is not None}

    def map(self, f) -> "Layer":
        floats = {name: None if x is None else f(x) for name, x in self.floats.items()}
        return replace(self, floats=floats, scalers=self.scalers.to(floats["query"].dtype))

    def arguments(self) -> tuple:
        relation, input, *rest = (self.floats[name] for name in FLOATS)
        return relation, input, self.source, *rest, self.scalers

    def op(self) -> Tensor:
        return innerloop.nbfnet_layer(self.graph, *self.arguments(), **self.options)

    def reference(self) -> Tensor:
        g = self.graph
        return reference.nbfnet_layer(g.edge_index, g.edge_type, g.num_nodes, *self.arguments(), **self.options)


def make_layer(
    V=9,
    E=40,
    R=3,
    B=3,
    d=6,
    D=None,
    *,
    dtype=torch.float64,
    device="cpu",
    per_query=True,
    norm=True,
    first=False,
    **options,
) -> Layer:
    """A random layer; D=None is D = d with the residual. The last node has no in-edge. `first`: without input."""
    case = make_case(V, E, R, B, d, dtype=dtype, device=device, per_query=per_query, isolated=V > 1)
    log_degree = (case.graph.in_degree.double() + 1).log()
    s = log_degree / log_degree.mean() if E else log_degree
    width = d if D is None else D

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64).to(device, dtype)

    return Layer(
        case.graph,
        torch.randint(0, V, (B,), device=device),
        {
            "relation": case.relation,
            "input": None if first else case.input,
            "query": normal(B, d),
            "weight": normal(width, 13 * d) / 6,
            "bias": normal(width),
            "norm_weight": normal(width) if norm else None,
            "norm_bias": normal(width) if norm else None,
        },
        torch.stack([torch.ones_like(s), s, 1 / s.clamp(min=0.01)], dim=-1).to(dtype),
        {"residual": D is None} | options,
    )
