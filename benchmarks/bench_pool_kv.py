# SPDX-License-Identifier: Apache-2.0
"""Pooled keys and values, both attention levels beside the first, and a whole layer: L=4096, H=8, D=64."""

from __future__ import annotations

import pytest
import torch
from harness import OURS, Work, assert_near, path_taken, peer
from innerloop import band_attention, pool_kv, pooling_attention, reference
from innerloop.nn import PoolingAttention, PoolingformerLayer, SlidingWindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

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


def plain_layer(layer: PoolingformerLayer, x: Tensor) -> Tensor:
    """The layer of two levels by its definition: each token projected, then pooled, and rows of scores formed."""
    attention, length = layer.attention, x.shape[1]

    def heads(names: str, source: Tensor) -> tuple[Tensor, ...]:
        maps = (getattr(attention, f"{name}{names}") for name in ("query", "key", "value"))
        return tuple(m(source).unflatten(-1, (H, -1)).transpose(1, 2) for m in maps)

    q, k, v = heads("", x)
    scale = q.shape[-1] ** -0.5
    y, _ = reference.band_attention(q, k, v, *band(length), scale=scale)
    q, k, v = heads("_pool", y.transpose(1, 2).flatten(2))
    weights = (attention.weight_k, attention.weight_v) if attention.pooling == "ldconv" else (None, None)
    k, v = (
        reference.pool_kv(t, weight, kernel=KERNEL, stride=STRIDE, mode=attention.pooling)
        for t, weight in zip((k, v), weights, strict=True)
    )
    entry = torch.arange(length) // STRIDE
    low, high = (entry - RADIUS).clamp(min=0), (entry + RADIUS + 1).clamp(max=k.shape[2])
    o, _ = reference.band_attention(q, k, v, low, high, scale=scale, residual=y)
    x = layer.attention_norm(x + layer.output(o.transpose(1, 2).flatten(2)))
    return layer.norm(x + layer.down(F.gelu(layer.up(x))))


def longformer_layer(dim: int, window: int) -> torch.nn.Module | None:
    module = peer("transformers.models.longformer.modeling_longformer")
    config = peer("transformers.models.longformer.configuration_longformer")
    if module is None or config is None:
        return None
    options = config.LongformerConfig(
        hidden_size=dim, num_attention_heads=H, intermediate_size=4 * dim, attention_window=[2 * window],
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    return module.LongformerLayer(options, layer_id=0)


# Ours and transformers' names inside a layer.
THERE = {
    "output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm", "up": "intermediate.dense",
    "down": "output.dense", "norm": "output.LayerNorm",
}  # fmt: skip


@pytest.mark.parametrize("pooling", ["mean", "ldconv"])
def test_layer(pooling, quick, compare):
    """Forward and backward of a whole layer, d = 512. Goal: 5 times transformers' Longformer.

    Its window of 256 on each side has as many keys as ours of 128 and 128 pooled ones. 12 products of size L · d · d in
    the Longformer and 13.5 in ours are neither's attention.
    """
    length, dim = (1024, 64) if quick else (4096, H * D)
    x, g = torch.randn(1, length, dim, requires_grad=True), torch.randn(1, length, dim)
    two = PoolingAttention(dim, H, (W1, W1), pool_window=STRIDE * RADIUS, kernel=KERNEL, stride=STRIDE, pooling=pooling)
    one = SlidingWindowAttention(dim, H, (2 * W1, 2 * W1))
    layers = {OURS: PoolingformerLayer(two, 4 * dim, dropout=0.0)}
    layers["one level of 256 on each side"] = single = PoolingformerLayer(one, 4 * dim, dropout=0.0, eps=1e-12)
    functions = {name: lambda layer=layer: layer(x) for name, layer in layers.items()}
    for p in two.parameters():  # as they start, the second level is lost in the first, and LDConv is the mean
        nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    with torch.no_grad():
        assert_near(functions[OURS](), plain_layer(layers[OURS], x), 1e-5, "layer of two levels")
    theirs, absent = longformer_layer(dim, 2 * W1), {}
    if theirs is None:
        absent["HF Longformer layer"] = "not installed"
    else:
        mask = torch.zeros(1, length)
        options = {"is_index_masked": mask < 0, "is_index_global_attn": mask > 0, "is_global_attn": False}
        layers["HF Longformer layer"] = theirs
        functions["HF Longformer layer"] = lambda: theirs(x, attention_mask=mask, **options)[0]
        # With its weights our layer of one level gives its result.
        single.attention = SlidingWindowAttention.from_longformer(theirs.attention.self)
        for ours, there in THERE.items():
            getattr(single, ours).load_state_dict(theirs.get_submodule(there).state_dict())
        with torch.no_grad():
            assert_near(single(x), functions["HF Longformer layer"](), 1e-4, "layer")

    def train(name: str) -> list[Tensor]:
        # There is no global token, so their projections get no gradient.
        used = [p for n, p in layers[name].named_parameters() if "global" not in n]
        return list(torch.autograd.grad(functions[name](), [x, *used], g))

    compare(
        f"Poolingformer layer ({pooling}) forward+backward, L={length}, d={dim}, cpu",
        {name: [lambda name=name: train(name)] for name in layers},
        Work(4 * length * dim * 2, int(6 * 13.5 * length * dim**2 + 2 * 7 * dim * length * 2 * (2 * W1 + 1))),
        absent=absent,
        path=path_taken("band_attention", "cpu"),
    )
