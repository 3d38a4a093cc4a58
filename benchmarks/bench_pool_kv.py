# SPDX-License-Identifier: Apache-2.0
"""Pooled keys and values, and both attention levels of a Poolingformer layer beside the first: L=4096, H=8, D=64."""

from __future__ import annotations

import pytest
import torch
from harness import OURS, Work, assert_near, path_taken
from innerloop import band_attention, pool_kv, pooling_attention, reference
from torch import Tensor

H, D, KERNEL, STRIDE, W1, RADIUS = 8, 64, 5, 4, 128, 128


@pytest.mark.parametrize("mode", ["mean", "max", "ldconv"])
def test_pool_kv(mode, quick, compare):
    length = 300 if quick else 4096
    k, v = (torch.randn(1, H, length, D, requires_grad=True) for _ in range(2))
    weight = torch.randn(KERNEL, D, requires_grad=True) if mode == "ldconv" else None
    leaves = [t for t in (k, v, weight) if t is not None]
    options = {"kernel": KERNEL, "stride": STRIDE, "mode": mode}
    g = torch.randn(1, H, -(-length // STRIDE), D)

    def train(outputs: tuple[Tensor, ...]) -> list[Tensor]:
        return [*outputs, *torch.autograd.grad(outputs, leaves, [g] * len(outputs))]

    def ours() -> list[Tensor]:
        return train(pool_kv(k, v, weight_k=weight, weight_v=weight, **options))

    def gathered() -> list[Tensor]:
        return train(tuple(reference.pool_kv(t, weight, **options) for t in (k, v)))

    for i, (a, e) in enumerate(zip(ours(), gathered(), strict=True)):
        assert_near(a, e, 1e-4, f"result {i}")
    compare(
        f"pool_kv {mode} forward+backward, L={length}, kernel {KERNEL}, stride {STRIDE}, H={H}, D={D}, cpu",
        {OURS: [ours], "gathered windows in torch": [gathered]},
        Work(2 * 4 * H * length * D * 3, 2 * 6 * H * length // STRIDE * KERNEL * D),
        path=path_taken("pool_kv", "cpu"),
    )


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_two_levels(direction, quick, compare):
    """Goal: both levels in at most 2.2 times the first."""
    length = 300 if quick else 4096
    tensors = [torch.randn(1, H, length, D, requires_grad=True) for _ in range(6)]
    g = torch.randn(1, H, length, D)

    def first(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        return band_attention(q, k, v, left=W1, right=W1)

    def both(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor, v2: Tensor) -> Tensor:
        y = first(q, k, v)
        return pooling_attention(q2, k2, v2, radius=RADIUS, kernel=KERNEL, stride=STRIDE, mode="mean", residual=y)

    def run(function, leaves):
        def call() -> list[Tensor]:
            if direction == "forward":
                with torch.no_grad():
                    return [function(*tensors)]
            out = function(*tensors)
            return [out, *torch.autograd.grad(out, leaves, g)]

        return call

    expected, _ = reference.band_attention(*tensors[:3], *band(length), scale=D**-0.5)
    assert_near(first(*tensors), expected, 1e-4, "first level")
    products = 2 if direction == "forward" else 7
    compare(
        f"two levels {direction}, L={length}, w1={W1}, {RADIUS} pooled on each side, H={H}, D={D}, cpu",
        {OURS: [run(both, tensors)], "first level alone": [run(first, tensors[:3])]},
        Work(4 * H * length * D * 8, 2 * products * 2 * H * length * (2 * W1 + 1) * D),
        path=path_taken("band_attention", "cpu"),
    )


def band(length: int) -> tuple[Tensor, Tensor]:
    i = torch.arange(length)
    return (i - W1).clamp(min=0), (i + W1 + 1).clamp(max=length)
