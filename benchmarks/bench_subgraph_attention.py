# SPDX-License-Identifier: Apache-2.0
"""Attention between the subgraphs of a graph, forward and backward: sorted sums against the matrix of scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from harness import OURS, Work, assert_near, path_taken
from innerloop import reference, subgraph_attention
from torch import Tensor

H, D = 8, 16  # of the first layer of MA-GCNN
# N: graphs of a batch. The sizes of grids of MUTAG, COLLAB, D&D and REDDIT-BINARY, and one beyond.
BATCHES = {18: 18, 75: 18, 285: 18, 430: 18, 2048: 1}


def make(batch: int, nodes: int) -> tuple[list[Tensor], Tensor]:
    """v as one product for all heads leaves it, e, g and bias; and the gradient of the result."""
    v = torch.randn(batch, nodes, H, D).transpose(1, 2)
    e, g = torch.randn(2, batch, H, nodes)
    leaves = [t.requires_grad_() for t in (v, e, g, torch.randn(H, D))]
    return leaves, torch.randn(batch, H, nodes, D)


def train(function: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("nodes", BATCHES)
def test_subgraph_attention(nodes, quick, full, compare):
    batch, nodes = (2, min(nodes, 100)) if quick else (BATCHES[nodes], nodes)
    functions = {OURS: subgraph_attention, "N × N scores in torch": reference.subgraph_attention}
    if full:
        torch._dynamo.reset()
        functions["N × N scores, torch.compile"] = torch.compile(reference.subgraph_attention, dynamic=False)
    leaves, grad = make(batch, nodes)
    first = [(t[:1] if t.dim() > 2 else t).detach().requires_grad_() for t in leaves]
    doubles = [t.detach().double().requires_grad_() for t in first]
    expected = train(reference.subgraph_attention, doubles, grad[:1].double())
    for name, function in functions.items():
        for i, (actual, truth) in enumerate(zip(train(function, first, grad[:1]), expected, strict=True)):
            assert_near(actual.double(), truth, 1e-5, f"{name}, {f'gradient {i}' if i else 'value'}")
    compare(
        f"subgraph_attention forward+backward, N={nodes}, B={batch}, H={H}, D={D}, cpu",
        {name: [lambda f=function: train(f, leaves, grad)] for name, function in functions.items()},
        Work(
            4 * batch * H * nodes * (5 * D + 6),
            batch * H * nodes * (36 * D + 4 * math.ceil(math.log2(nodes))),
        ),
        path=path_taken("subgraph_attention", "cpu"),
    )
