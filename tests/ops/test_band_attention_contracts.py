# SPDX-License-Identifier: Apache-2.0
"""What torch expects of band_attention and pool_kv: opcheck, compile, vmap, torch.func, no second derivatives."""

import pytest
import torch
from innerloop import band_attention, pool_kv
from innerloop.ops.band_attention import band
from tolerances import assert_close
from torch._dynamo.testing import CompileCounter


def sample_calls():
    q, k, v = (torch.randn(2, 2, 30, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    low, high = band(30, 30, 4, 4, False, 1, None, "cpu")
    valid = torch.rand(2, 30) > 0.2
    extra = [torch.randn(2, 2, 3, 8, dtype=torch.float64) for _ in range(2)]
    return [
        (q, k, v, low, high, None, None, None, None, None, 0.3, 0.0, None),
        (q, k, v, low, high, valid, *extra, torch.ones(2, 3, dtype=torch.bool), torch.randn_like(q), 0.3, 0.0, None),
    ]


@pytest.mark.parametrize("i", range(2))
def test_opcheck(i):
    args = sample_calls()[i]
    detached = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
    torch.library.opcheck(torch.ops.innerloop.band_attention.default, detached)
    out, lse = torch.ops.innerloop.band_attention(*detached)
    torch.library.opcheck(
        torch.ops.innerloop.band_attention_backward.default, (torch.randn_like(out), None, out, lse, *detached)
    )


@pytest.mark.filterwarnings("ignore")
def test_compile_with_few_recompilations():
    torch._dynamo.reset()
    counter = CompileCounter()

    def f(q, k, v):
        return band_attention(q, k, v, left=5, right=3).square().sum()

    compiled = torch.compile(f, backend=counter, fullgraph=True, dynamic=True)
    for L in (17, 18, 40, 41, 64, 65, 90, 128, 200, 301):
        tensors = [torch.randn(1, 2, L, 8, requires_grad=True) for _ in range(3)]
        assert_close(compiled(*tensors), f(*tensors))
    assert counter.frame_count <= 3  # two recompilations


def test_second_derivatives_raise():
    q, k, v = (torch.randn(1, 1, 5, 4, requires_grad=True) for _ in range(3))
    (grad,) = torch.autograd.grad(band_attention(q, k, v, left=1, right=1).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="band_attention: second derivatives"):
        grad.sum().backward()


def samples() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Three of each argument of `call`: those with a gradient, and those without."""
    shapes = (4, 9, 4), (2, 9, 4), (2, 9, 4), (4, 9, 4)
    floats = [torch.randn(3, 2, *shape, dtype=torch.float64) for shape in shapes]
    floats.append(torch.randn(3, 4, 6, dtype=torch.float64))
    return floats, [torch.rand(3, 2, 9) > 0.3, torch.randint(-1, 9, (3, 2, 3))]


def call(q, k, v, residual, bias, valid, index):
    out, lse = band_attention(
        q, k, v, left=3, right=2, residual=residual, bias=bias, key_valid=valid, global_index=index, return_lse=True
    )
    return out.sin().sum() + lse.where(lse.isfinite(), 0).square().sum()


@pytest.mark.parametrize("order", ["vmap(grad)", "grad(vmap)", "autograd of vmap"])
def test_vmap_and_gradients(order):
    floats, others = samples()
    arguments = tuple(range(5))
    if order == "vmap(grad)":
        actual = torch.func.vmap(torch.func.grad(call, arguments))(*floats, *others)
    elif order == "grad(vmap)":
        actual = torch.func.grad(lambda *t: torch.func.vmap(call)(*t).sum(), arguments)(*floats, *others)
    else:
        leaves = [t.clone().requires_grad_() for t in floats]
        actual = torch.autograd.grad(torch.func.vmap(call)(*leaves, *others).sum(), leaves)
    for i in range(3):
        leaves = [t[i].clone().requires_grad_() for t in floats]
        expected = torch.autograd.grad(call(*leaves, *(t[i] for t in others)), leaves)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a[i], e)


def test_vmap_of_one_argument():
    floats, _ = samples()
    q, k, v = (t[0] for t in floats[:3])
    out = torch.func.vmap(lambda q: band_attention(q, k, v, left=3, right=2), in_dims=2, out_dims=1)(q[:, :, None])
    assert torch.equal(out[:, 0], band_attention(q, k, v, left=3, right=2))


def test_jacrev():
    floats, _ = samples()
    q, k, v, _, bias = (t[0] for t in floats)

    def f(q, bias):
        return band_attention(q, k, v, left=3, right=2, bias=bias)

    actual = torch.func.jacrev(f, (0, 1))(q, bias)
    for a, e in zip(actual, torch.autograd.functional.jacobian(f, (q, bias)), strict=True):
        assert_close(a, e)


def test_vmap_of_pooling():
    floats, _ = samples()
    k, v, weight = floats[1], floats[2], torch.randn(3, 4, dtype=torch.float64)

    def f(k, v, weight):
        return sum(t.square().sum() for t in pool_kv(k, v, kernel=3, stride=2, weight_k=weight, weight_v=weight))

    actual = torch.func.vmap(torch.func.grad(f, (0, 1, 2)), (0, 0, None))(k, v, weight)
    outside = torch.func.grad(lambda *t: torch.func.vmap(f, (0, 0, None))(*t).sum(), (0, 1))(k, v, weight)
    for i in range(3):
        leaves = [t.clone().requires_grad_() for t in (k[i], v[i], weight)]
        expected = torch.autograd.grad(f(*leaves), leaves)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a[i], e)
        for a, e in zip(outside, expected[:2], strict=True):
            assert_close(a[i], e)


@pytest.mark.parametrize("nested", ["vmap(grad(grad))", "grad(vmap(grad))", "jacrev(jacrev)"])
def test_second_derivatives_under_vmap_raise(nested):
    floats, _ = samples()
    q, k, v = floats[0], floats[1][0], floats[2][0]
    grad, vmap, jacrev = torch.func.grad, torch.func.vmap, torch.func.jacrev

    def f(q):
        return band_attention(q, k, v, left=3, right=2).square().sum()

    second = {
        "vmap(grad(grad))": vmap(grad(lambda q: grad(f)(q).sum())),
        "grad(vmap(grad))": grad(lambda q: vmap(grad(f))(q).sum()),
        "jacrev(jacrev)": lambda q: jacrev(jacrev(f))(q[0]),
    }
    with pytest.raises(NotImplementedError, match="band_attention: second derivatives are not implemented"):
        second[nested](q)
