# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of band_attention on a GPU: against the CPU kernel, dropout, repeatability, CUDA graphs."""

import importlib

import pytest
import torch
from innerloop import band_attention
from tolerances import assert_close, assert_close_to_truth

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
ops = importlib.import_module("innerloop.ops.band_attention")  # the package's attribute of that name is the function


@pytest.fixture(autouse=True)
def _kernels(monkeypatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(ops, "_GPU_KERNELS", "triton")


def operands(B=2, H=4, Hkv=2, L=700, D=64, stride=1, dtype=torch.float32):
    shapes = (B, H, L, D), *((B, Hkv, -(-L // stride), D),) * 2, (B, H, L, D)
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def results(tensors, device, **options):
    """out, lse, and the gradients of q, k, v, the residual and a bias, on the CPU."""
    q, k, v, residual = leaves = [t.detach().to(device).requires_grad_() for t in tensors]
    options = {name: o.to(device) if isinstance(o, torch.Tensor) else o for name, o in options.items()}
    if "bias" in options:
        options["bias"] = options["bias"].to(q.dtype).requires_grad_()
        leaves.append(options["bias"])
    out, lse = band_attention(q, k, v, residual=residual, return_lse=True, **options)
    seen = lse.isfinite()
    generator = torch.Generator().manual_seed(0)
    g, gl = (torch.randn(t.shape, generator=generator).bfloat16().to(t) for t in (out, lse))  # exact in every dtype
    grads = torch.autograd.grad([out, lse], leaves, [g, torch.where(seen, gl, 0)])
    return [t.detach().cpu() for t in (out, torch.where(seen, lse, 0), *grads)]


PADDED = {"key_valid": torch.arange(700)[None] < torch.tensor([[700], [450]])}
CASES = {
    "band": {"left": 128, "right": 100},
    "causal": {"left": -1, "right": -1, "causal": True},
    "padding": {"left": 30, "right": 5, **PADDED},
    "global": {"left": 9, "right": 9, "global_index": torch.tensor([[0, 5, 699], [3, -1, 3]]), **PADDED},
    "pooled": {"left": 16, "right": 16, "kv_stride": 4},
    "bias": {"left": 40, "right": 30, "bias": torch.sin(torch.arange(4 * 71.0)).view(4, 71), **PADDED},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_cpu(case, dtype):
    options = CASES[case]
    tensors = operands(stride=options.get("kv_stride", 1), dtype=dtype)
    check(tensors, options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("D", [1, 16, 32, 40, 111, 128, 256])
def test_widths(D, dtype):
    check(operands(B=1, L=150, D=D, dtype=dtype), {"left": 40, "right": 30})


def check(tensors, options):
    dtype = tensors[0].dtype
    actual, expected = results(tensors, "cuda", **options), results(tensors, "cpu", **options)
    if dtype in (torch.float64, torch.float32):
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, op="triton_gradients")
        return
    truth = results([t.double() for t in tensors], "cpu", **options)
    ops._GPU_KERNELS = None  # eager, to be no worse than; the fixture puts it back
    for i, (a, e, t) in enumerate(zip(actual, results(tensors, "cuda", **options), truth, strict=True)):
        assert_close_to_truth(a, e.nan_to_num(0), t, op="default" if i < 2 else "triton_gradients")


def test_drops_the_weights_that_the_cpu_drops():
    q, k, v, _ = operands(L=300, dtype=torch.float64)
    low, high = ops.band(300, 300, 20, 20, False, 1, None, "cpu")
    args = q, k, v, low, high, *(None,) * 5, 0.125, 0.3, torch.tensor([2**61 + 5])
    there = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
    out, lse = torch.ops.innerloop.band_attention(*args)
    g = torch.randn_like(out)
    expected = torch.ops.innerloop.band_attention_backward(g, None, out, lse, *args)
    out_there, lse_there = torch.ops.innerloop.band_attention(*there)
    actual = torch.ops.innerloop.band_attention_backward(g.cuda(), None, out_there, lse_there, *there)
    for a, e in zip((out_there, *actual), (out, *expected), strict=True):
        assert_close(a.cpu(), e)


def test_same_bits_in_every_run():
    tensors = operands(L=5000, dtype=torch.float16)
    options = {"left": 200, "right": 200, "global_index": torch.tensor([[0, 17], [1, 2500]])}
    first = results(tensors, "cuda", **options)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(results(tensors, "cuda", **options), first, strict=True))


def test_cuda_graph():
    q, k, v, _ = (t.cuda() for t in operands(dtype=torch.float16))
    low, high = ops.band(700, 700, 50, 50, False, 1, None, "cuda")
    args = q, k, v, low, high, *(None,) * 5, 0.125, 0.0, None

    def run():
        out, lse = torch.ops.innerloop.band_attention(*args)
        return out, *torch.ops.innerloop.band_attention_backward(torch.ones_like(out), None, out, lse, *args)[:3]

    run()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    q.mul_(2)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, run(), strict=True))


def test_no_tensor_of_scores():
    q, k, v, _ = operands(B=1, L=32768, H=8, Hkv=8, dtype=torch.float16)
    tensors = [t.cuda().requires_grad_() for t in (q, k, v)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    band_attention(*tensors, left=256, right=256).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 8 * q.numel() * 2
