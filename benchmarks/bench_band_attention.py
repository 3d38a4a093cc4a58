# SPDX-License-Identifier: Apache-2.0
"""Attention to a window of keys, B=1, H=8, D=64, 256 keys on each side: innerloop against what users have today."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import pytest
import torch
from harness import OURS, Work, assert_near, path_taken, peer
from innerloop import band_attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

H, D, RADIUS = 8, 64, 256

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # (1, H, L, D) each


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return band_attention(q, k, v, left=RADIUS, right=RADIUS)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All keys: another function, the price of not having a window."""
    return scaled_dot_product_attention(q, k, v)


def masked(length: int) -> Attention:
    i = torch.arange(length)
    mask = (i[:, None] - i).abs() <= RADIUS
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)


def chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Blocks of RADIUS queries against the 3 · RADIUS keys around them, masked: the usual advice, without loops."""
    length = q.shape[2]
    blocks = -(-length // RADIUS)
    pad = blocks * RADIUS - length
    q, k, v = (torch.nn.functional.pad(t, (0, 0, 0, pad)) for t in (q, k, v))
    k, v = (torch.nn.functional.pad(t, (0, 0, RADIUS, RADIUS)).unfold(2, 3 * RADIUS, RADIUS) for t in (k, v))
    # Blocks as the batch: torch's fused attention takes four dimensions.
    q, k, v = (t.movedim(2, 1)[0] for t in (q.view(1, H, blocks, RADIUS, D), k.transpose(-1, -2), v.transpose(-1, -2)))
    query, key = torch.arange(RADIUS)[:, None], torch.arange(3 * RADIUS) - RADIUS
    start = torch.arange(blocks)[:, None, None] * RADIUS
    seen = ((query - key).abs() <= RADIUS) & (start + key >= 0) & (start + key < length)
    out = scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])  # (blocks, H, RADIUS, D)
    return out.transpose(0, 1).reshape(1, H, blocks * RADIUS, D)[:, :, :length]


def longformer() -> Attention | None:
    """transformers' LongformerSelfAttention without its projections."""
    module = peer("transformers.models.longformer.modeling_longformer")
    config = peer("transformers.models.longformer.configuration_longformer")
    if module is None or config is None:
        return None
    options = config.LongformerConfig(
        hidden_size=H * D, num_attention_heads=H, attention_window=[2 * RADIUS], attention_probs_dropout_prob=0.0
    )
    layer = module.LongformerSelfAttention(options, layer_id=0)
    for name in ("query", "key", "value"):
        setattr(layer, name, torch.nn.Identity())

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The projections are identities, so the layer would read one tensor: hand it three.
        rows = [t.transpose(1, 2).reshape(1, -1, H * D) for t in (q, k, v)]
        for name, row in zip(("query", "key", "value"), rows, strict=True):
            getattr(layer, name).forward = lambda _, row=row: row.transpose(0, 1)
        mask = torch.zeros(rows[0].shape[:2])
        out = layer(
            rows[0], attention_mask=mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0, is_global_attn=False
        )[0]
        return out.view(1, -1, H, D).transpose(1, 2)

    return run


def local_attention() -> Attention | None:
    module = peer("local_attention")
    if module is None:
        return None
    layer = module.LocalAttention(
        dim=D, window_size=RADIUS, causal=False, look_backward=1, look_forward=1, exact_windowsize=True,
        use_rotary_pos_emb=False, autopad=True,
    )  # fmt: skip
    return lambda q, k, v: layer(q, k, v)


@functools.cache
def flex(length: int) -> Attention:
    """Compiled flex_attention, which has no backward pass on CPUs."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(
        lambda b, h, i, j: (i - j).abs() <= RADIUS, B=None, H=None, Q_LEN=length, KV_LEN=length, device="cpu"
    )
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def pairs(length: int) -> int:
    """Visible (query, key) pairs of one head."""
    i = torch.arange(length)
    return int((torch.clamp(i + RADIUS, max=length - 1) - torch.clamp(i - RADIUS, min=0) + 1).sum())


def call_of(function: Attention, tensors: list[Tensor], grad: Tensor, backward: bool) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        if not backward:
            with torch.no_grad():
                return [function(*tensors)]
        out = function(*tensors)
        return [out, *torch.autograd.grad(out, tensors, grad)]

    return run


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("length", [1024, 4096])
def test_band_attention(length, direction, quick, compare):
    length = 1024 if quick else length
    backward = direction != "forward"
    tensors = [torch.randn(1, H, length, D, requires_grad=backward) for _ in range(3)]
    grad = torch.randn(1, H, length, D)
    functions: dict[str, Attention | None] = {
        OURS: ours,
        "SDPA, dense (another function)": dense,
        "SDPA, band mask": masked(length),
        "chunked SDPA": chunked,
        "HF Longformer": longformer(),
        "local-attention": local_attention(),
    }
    if not backward and not quick:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations
            functions["flex_attention, compiled"] = flex(length)
    absent = {name: "not installed" for name, function in functions.items() if function is None}
    if backward:
        absent["flex_attention, compiled"] = "no backward pass on CPUs"
    calls = {name: [call_of(f, tensors, grad, backward)] for name, f in functions.items() if f is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers
        expected = call_of(masked(length), tensors, grad, backward)()
        for name, (call,) in calls.items():
            if "another" not in name:
                for i, (a, e) in enumerate(zip(call(), expected, strict=True)):
                    assert_near(a, e, 1e-4, f"{name}, result {i}")
        products = 7 if backward else 2  # matrix products of useful size; the kernel does 2 and 5
        compare(
            f"band_attention {direction}, L={length}, w={RADIUS}, H={H}, D={D}, cpu",
            calls,
            Work(4 * H * length * D * (4 if not backward else 12), 2 * products * H * D * pairs(length)),
            absent=absent,
            path=path_taken("band_attention", "cpu"),
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [4096, 16384])
def test_length_and_dtype(length, dtype, quick, compare):
    """Linear in the length, and half types beside float32."""
    length = 300 if quick else length
    q, k, v = (torch.randn(1, H, length, D).to(getattr(torch, dtype)) for _ in range(3))
    assert_near(ours(q, k, v).float(), ours(q.float(), k.float(), v.float()), 1e-2, dtype)
    size = q.element_size()
    compare(
        f"band_attention forward, {dtype}, L={length}, cpu",
        {OURS: [lambda: ours(q, k, v)]},
        Work(size * H * length * D * 4, 4 * H * D * pairs(length), dtype),
        path=path_taken("band_attention", "cpu"),
    )


# ---- on a GPU ----


def flex_gpu(length: int, stride: int) -> Attention:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    radius = RADIUS // stride
    mask = torch.compile(create_block_mask)(
        lambda b, h, i, j: (i // stride - j).abs() <= radius, B=None, H=None, Q_LEN=length, KV_LEN=length // stride
    )
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def flash() -> Attention | None:
    """flash-attn's window, which has no pooled keys."""
    module = peer("flash_attn")
    if module is None:
        return None

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = (t.transpose(1, 2) for t in (q, k, v))
        return module.flash_attn_func(*rows, window_size=(RADIUS, RADIUS)).transpose(1, 2)

    return run


@pytest.mark.gpu
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("length", "stride"), [(8192, 1), (8192, 4), (32768, 1), (131072, 1), (131072, 4)])
def test_gpu(length, stride, dim, direction, quick, compare):
    """bfloat16, 256 keys on each side, or 64 pooled ones; goals: 10 % from flash-attn, 2 times flex when pooled."""
    if path_taken("band_attention", "cuda") != "Triton kernel":
        pytest.skip("tensors on a GPU take the Triton kernel with INNERLOOP_GPU=triton")
    length = 1024 if quick else length
    backward = direction != "forward"
    shapes = [(1, H, length, dim), *[(1, H, length // stride, dim)] * 2]
    tensors = [torch.randn(s, device="cuda", dtype=torch.bfloat16, requires_grad=backward) for s in shapes]
    grad = torch.randn(shapes[0], device="cuda", dtype=torch.bfloat16)
    radius = RADIUS // stride
    functions = {
        OURS: lambda q, k, v: band_attention(q, k, v, left=radius, right=radius, kv_stride=stride),
        "flex_attention, compiled": flex_gpu(length, stride),
        "flash-attn": flash() if stride == 1 else None,
    }
    why = "has no pooled keys" if stride > 1 else "not installed"
    absent = {name: why for name, function in functions.items() if function is None}
    calls = {name: [call_of(f, tensors, grad, backward)] for name, f in functions.items() if f is not None}
    results = {name: call() for name, (call,) in calls.items()}
    for name, actual in results.items():
        for i, (a, e) in enumerate(zip(actual, results[OURS], strict=True)):
            assert_near(a.float(), e.float(), 2e-2, f"{name}, result {i}")
    visible = pairs(length) if stride == 1 else length * (2 * radius + 1)
    size, products = (12, 7) if backward else (4, 2)
    compare(
        f"band_attention {direction}, bfloat16, L={length}, stride {stride}, D={dim}, cuda",
        calls,
        Work(2 * H * length * dim * size, 2 * products * H * dim * visible, "bfloat16"),
        device="cuda",
        absent=absent,
        path=path_taken("band_attention", "cuda"),
    )
