# SPDX-License-Identifier: Apache-2.0
"""pool_kv against its definition; the golden values are in test_band_attention_golden.py."""

import pytest
import torch
from innerloop import pool_kv, pooled_valid, pooling_attention, reference
from tolerances import assert_close, assert_close_to_truth

MODES = ["mean", "max", "ldconv"]
# B, H, L, D, kernel, stride
SHAPES = [(2, 3, 37, 8, 5, 4), (1, 1, 1, 1, 1, 1), (1, 2, 64, 16, 4, 4), (2, 2, 20, 5, 7, 2), (1, 2, 9, 3, 3, 5)]
SHAPES += [(1, 1, 6, 4, 9, 6)]


def make(shape, mode, per_head=False, pad=False, dtype=torch.float64):
    B, H, L, D, kernel, _ = shape
    x = torch.randn(B, H, L, D, dtype=torch.float64).to(dtype)
    weight = None
    if mode == "ldconv":
        weight = torch.randn(*((H,) if per_head else ()), kernel, D, dtype=torch.float64).to(dtype)
    valid = torch.rand(B, L) > 0.4 if pad else None
    return x, weight, valid


def both(shape, mode, x, weight, valid):
    """(op, definition), each called with x and weight."""
    options = {"kernel": shape[4], "stride": shape[5], "mode": mode}

    def op(x, weight=None):
        k, v = pool_kv(x, x, weight_k=weight, weight_v=weight, valid=valid, **options)
        assert torch.equal(k, v)
        return k

    return op, lambda x, weight=None: reference.pool_kv(x, weight, valid, **options)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, mode, per_head, pad):
    x, weight, valid = make(shape, mode, per_head, pad)
    op, definition = both(shape, mode, x, weight, valid)
    tensors = [t.requires_grad_() for t in (x, weight) if t is not None]
    out, expected = op(*tensors), definition(*tensors)
    assert_close(out, expected)
    g = torch.randn_like(out)
    for a, e in zip(
        torch.autograd.grad(out, tensors, 2 * g), torch.autograd.grad(expected, tensors, 2 * g), strict=True
    ):
        assert_close(a, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_dtypes(mode, dtype):
    shape = SHAPES[0]
    x, weight, valid = make(shape, mode, pad=True, dtype=dtype)
    op, definition = both(shape, mode, x, weight, valid)
    tensors = [t for t in (x, weight) if t is not None]
    out = op(*tensors)
    assert out.dtype == dtype
    assert_close_to_truth(out, definition(*tensors), definition(*(t.double() for t in tensors)))


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode):
    shape = (1, 2, 11, 3, 5, 4)
    x, weight, _ = make(shape, mode)
    op, _ = both(shape, mode, x, weight, None)
    assert torch.autograd.gradcheck(op, [t.requires_grad_() for t in (x, weight) if t is not None])


@pytest.mark.parametrize("mode", MODES)
def test_padding_may_hold_anything(mode):
    shape = (1, 2, 30, 4, 5, 4)
    x, weight, _ = make(shape, mode)
    valid = torch.arange(30)[None] < 17
    op, _ = both(shape, mode, x, weight, valid)
    clean = op(*(t for t in (x, weight) if t is not None))
    x[:, :, 17:] = torch.nan
    assert torch.equal(op(*(t for t in (x, weight) if t is not None)), clean)
    assert bool((clean[:, :, 5:] == 0).all())
    assert pooled_valid(valid, 5, 4)[0].tolist() == [True] * 5 + [False] * 3


def test_the_first_of_equal_maxima_gets_the_gradient():
    x = torch.ones(1, 1, 8, 2, requires_grad=True)
    k, _ = pool_kv(x, x, kernel=4, stride=4, mode="max")
    k.sum().backward()
    assert x.grad[0, 0, :, 0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0]


def test_strides_and_threads():
    x = torch.randn(2, 40, 3, 8).transpose(1, 2).requires_grad_()
    weight = torch.randn(5, 8, requires_grad=True)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for y in (x, x.contiguous()):
            out, _ = pool_kv(y, y, kernel=5, stride=4, weight_k=weight, weight_v=weight)
            results.append([out, *torch.autograd.grad(out.sin().sum(), [x, weight])])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("shape", [(0, 2, 9, 4), (2, 0, 9, 4), (2, 2, 0, 4)])
def test_empty(shape):
    x = torch.randn(shape, requires_grad=True)
    k, _ = pool_kv(x, x, kernel=5, stride=4, mode="mean")
    assert k.shape == (*shape[:2], -(-shape[2] // 4), 4)
    k.sum().backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(mode):
    x, weight, valid = make((1, 2, 11, 3, 5, 4), mode, pad=True)
    code = MODES.index(mode)
    torch.library.opcheck(torch.ops.innerloop.pool_kv.default, (x, weight, valid, 5, 4, code))
    grad = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    torch.library.opcheck(torch.ops.innerloop.pool_kv_backward.default, (grad, x, weight, valid, 5, 4, code))


def test_second_derivatives_raise():
    x = torch.randn(1, 1, 8, 2, requires_grad=True)
    k, _ = pool_kv(x, x, kernel=4, stride=4, mode="mean")
    (grad,) = torch.autograd.grad(k.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="pool_kv: second derivatives"):
        grad.sum().backward()


X, W = torch.ones(1, 2, 10, 4), torch.ones(5, 4)
BAD = [
    ({"mode": "sum"}, ValueError, "mode is 'sum', expected one of mean, max, ldconv"),
    ({"kernel": 0}, ValueError, "kernel is 0, expected an int of at least 1"),
    ({"stride": True}, ValueError, "stride is True"),
    ({"weight_k": None}, ValueError, "weight_k is none with mode='ldconv'"),
    ({"mode": "mean"}, ValueError, "weight_k is a tensor with mode='mean'"),
    ({"weight_v": torch.ones(4, 4)}, ValueError, r"weight_v has shape \(4, 4\), expected \(5, 4\) or \(2, 5, 4\)"),
    ({"weight_v": W.double()}, ValueError, "weight_v is torch.float64 on cpu"),
    ({"k": X[0]}, ValueError, r"k has shape \(2, 10, 4\), expected \(B, H, L, D\)"),
    ({"v": X.long()}, TypeError, "v has dtype torch.int64"),
    ({"v": 3}, TypeError, "v is int, expected a tensor"),
    ({"valid": torch.ones(1, 9, dtype=torch.bool)}, ValueError, "valid is torch.bool of shape"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text for *_, text in BAD])
def test_bad_arguments(change, error, text):
    args = {"k": X, "v": X, "kernel": 5, "stride": 4, "weight_k": W, "weight_v": W} | change
    with pytest.raises(error, match=text):
        pool_kv(**args)


def test_pooling_attention_wants_as_many_tokens():
    with pytest.raises(ValueError, match="k has 9 tokens, expected 10 like q"):
        pooling_attention(X, X[:, :, :9], X[:, :, :9], radius=1, kernel=4, stride=4, mode="mean")
