# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of infonce on a GPU: against the CPU kernel, repeatability, CUDA graphs, memory."""

from __future__ import annotations

import importlib

import innerloop
import pytest
import torch
from ops.infonce_cases import calls
from tolerances import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
ops = importlib.import_module("innerloop.ops.infonce")  # the package's attribute of that name is the function
# Of a gradient's norm: sums in another order; G and the gradient itself rounded to the half type.
RELATIVE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = list(RELATIVE)
BUDGETS = pytest.mark.parametrize("budget", [{}, {"memory_budget": 0}], ids=["kept", "again"])


@pytest.fixture(autouse=True)
def _kernels(monkeypatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(ops, "_GPU_KERNELS", "triton")


def results(f, tensors, device):
    """The loss, and the gradients of what has one, on the CPU."""
    leaves = [t.detach().to(device).requires_grad_() for t in tensors]
    loss = f(*leaves)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return loss.detach().cpu(), *(g.cpu() for g in grads if g is not None)


def check(f, tensors):
    """Against the CPU kernel, half types against it in float32: it then rounds nothing."""
    dtype = tensors[0].dtype
    wide = dtype if dtype in (torch.float64, torch.float32) else torch.float32
    actual, expected = results(f, tensors, "cuda"), results(f, [t.to(wide) for t in tensors], "cpu")
    assert_close(actual[0], expected[0])
    for a, e in zip(actual[1:], expected[1:], strict=True):
        assert a.dtype == dtype
        assert (a.double() - e.double()).norm() <= RELATIVE[dtype] * e.double().norm()


def pair(B, D, dtype, N=None):
    return [torch.randn(n, D, dtype=torch.float64).to(dtype) for n in (B, N or B)]


def clip(q, k, **options):
    return innerloop.infonce(q, k, log_scale=2.66, normalize=True, **options)


@BUDGETS
@pytest.mark.parametrize("name", calls({}))
def test_every_op(name, budget):
    def f(x, y):
        with torch.device(x.device):  # labels
            return calls(budget)[name](x, y)

    check(f, [t / 8**0.5 for t in pair(700, 8, torch.float64)])


@BUDGETS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [1, 16, 40, 64, 128, 256, 513, 1024])
def test_widths(D, dtype, budget):
    if D == 1:  # a unit vector of one dimension cannot turn: all of a normalized one's gradient is rounding
        check(lambda q, k: innerloop.infonce(q, k, **budget), pair(300, D, dtype))
    else:
        check(lambda q, k: clip(q, k, **budget), pair(300, D, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("B", [1, 2, 127, 1000, 9000])
def test_sizes(B, dtype):
    """9,000 rows: several tiles to a panel."""
    check(lambda q, k: clip(q, k, memory_budget=0), pair(B, 64, dtype, N=B + B // 3))


def test_rows_of_one_target():
    """The gradient of one column adds up 5,000 positives."""

    def f(q, k):
        targets = torch.arange(len(q), device=q.device) // 5000
        return innerloop.infonce(q, k, symmetric=False, targets=targets, normalize=True)

    check(f, pair(6000, 32, torch.float64, N=40))


def test_learned_scale():
    def f(q, k):
        scale = q.new_tensor(2.0, requires_grad=True)
        loss = innerloop.infonce(q, k, log_scale=scale, normalize=True)
        return loss + torch.autograd.grad(loss, scale, retain_graph=True)[0].detach()

    check(f, pair(500, 64, torch.float32))


@BUDGETS
def test_same_bits_in_every_run(budget):
    tensors = pair(5000, 200, torch.float16)
    first = results(lambda q, k: clip(q, k, **budget), tensors, "cuda")
    for _ in range(3):
        again = results(lambda q, k: clip(q, k, **budget), tensors, "cuda")
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_cuda_graph():
    q, k = (t.cuda() for t in pair(700, 64, torch.float16))
    log_scale = torch.zeros((), device="cuda")

    def run():
        args = q, k, log_scale, None, None, None, 3.0, True, False, True, True, True
        return torch.ops.innerloop.infonce_mean(*args)

    run()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    q.mul_(2).add_(1)
    log_scale.add_(1)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, run(), strict=True))


def test_no_matrix_of_scores():
    """65,536 rows, whose scores are 16 GiB: gradients in float32 and sums of columns, one panel for each 1,024 rows."""
    tensors = [t.cuda().requires_grad_() for t in pair(65536, 256, torch.bfloat16)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    clip(*tensors).backward()
    assert torch.cuda.max_memory_allocated() - before < 8 * tensors[0].numel() * 2
