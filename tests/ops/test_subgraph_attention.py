# SPDX-License-Identifier: Apache-2.0
"""subgraph_attention against the matrix of all scores."""

import pytest
import torch
from cases import Largest, filter_torch_warnings
from innerloop import reference, subgraph_attention
from processes import run_python
from tolerances import assert_close, assert_close_to_truth

# B, H, N, D: MUTAG's first layer, an output head, one node, many nodes, odd sizes
SHAPES = [(3, 8, 18, 16), (2, 1, 33, 2), (2, 3, 1, 5), (1, 2, 285, 16), (2, 2, 7, 1), (1, 1, 64, 37)]
HALF = [torch.bfloat16, torch.float16]


def make(shape, dtype=torch.float64, *, bias=True, pad=False, scale=1.0):
    """v, e, g, bias, valid; some of the scores are exactly 0 and some keys equal."""
    B, H, N, D = shape
    v, b = torch.randn(shape, dtype=torch.float64), torch.randn(H, D, dtype=torch.float64)
    e, g = (torch.randint(-8, 9, (2, B, H, N)) / 4 * scale).double()
    valid = torch.rand(B, N) > 0.4 if pad else None
    return [v.to(dtype), e.to(dtype), g.to(dtype), b.to(dtype) if bias else None, valid]


def results(f, tensors, grad_out=None, **options):
    """The value and the gradients of all tensors."""
    tensors = [t.detach().requires_grad_() for t in tensors if t is not None]
    out = f(*tensors, **options)
    grad_out = torch.ones_like(out) if grad_out is None else grad_out.to(out)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad_out)]


def check(tensors, valid=None, activation="elu", op="default"):
    options = {"valid": valid, "activation": activation}
    grad_out = torch.randn(tensors[0].shape, dtype=torch.float64).to(tensors[0])
    actual = results(subgraph_attention, tensors, grad_out, **options)
    expected = results(reference.subgraph_attention, [t if t is None else t.double() for t in tensors],
                       grad_out, **options)  # fmt: skip
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, op=op)


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize(("bias", "activation"), [(True, "elu"), (False, "elu"), (True, "none")])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(shape, bias, activation, pad):
    *tensors, valid = make(shape, bias=bias, pad=pad)
    check(tensors, valid, activation)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32(shape):
    *tensors, valid = make(shape, torch.float32, pad=True)
    check(tensors, valid, op="subgraph_attention")


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types(dtype):
    *tensors, valid = make((2, 3, 40, 16), dtype, pad=True)
    actual, eager, truth = (
        results(f, [t.to(to) for t in tensors], valid=valid)
        for f, to in (
            (subgraph_attention, dtype),
            (reference.subgraph_attention, dtype),
            (reference.subgraph_attention, torch.float64),
        )
    )
    for a, e, t in zip(actual, eager, truth, strict=True):
        assert a.dtype == dtype
        assert_close_to_truth(a, e, t)


@pytest.mark.parametrize("activation", ["elu", "none"])
@pytest.mark.parametrize("pad", [False, True])
def test_gradcheck(pad, activation):
    torch.manual_seed(1)  # no score near the kink
    B, H, N, D = 2, 2, 6, 3
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((B, H, N, D), (B, H, N), (B, H, N))]
    tensors.append(torch.randn(H, D, dtype=torch.float64, requires_grad=True))
    valid = torch.rand(B, N) > 0.3 if pad else None
    assert torch.autograd.gradcheck(lambda *t: subgraph_attention(*t, activation=activation, valid=valid), tensors)


def test_a_score_of_zero_passes_no_gradient_on():
    v = torch.randn(1, 1, 3, 2, dtype=torch.float64)
    e = torch.tensor([[[0.0, 1.0, -2.0]]], dtype=torch.float64)
    check([v, e, -e, None])
    _, _, grad_e, grad_g = results(subgraph_attention, [v, torch.zeros_like(e), torch.zeros_like(e)])
    assert not grad_e.any()
    assert not grad_g.any()


@pytest.mark.parametrize("keys", ["equal", "all cut off", "none cut off", "minus infinity"])
def test_keys(keys):
    v, e, g, bias, _ = make((2, 2, 20, 4))
    if keys == "equal":
        g = torch.full_like(g, 0.25)
    elif keys == "minus infinity":
        g[..., ::3] = -torch.inf
        g[1] = -torch.inf
    else:
        e = torch.full_like(e, -3.0 if keys == "all cut off" else 3.0)
    check([v, e, g, bias])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_scores(scale, dtype):
    """exp of any of them overflows; the largest key takes all, and ties share."""
    v, e, g, bias, _ = make((2, 2, 30, 4), dtype, scale=scale)
    check([v, e, g, bias], op="subgraph_attention")
    v, e, g, bias, _ = make((2, 2, 30, 4), dtype)
    check([v, e + scale, g - scale, bias], op="subgraph_attention")


def test_tiny_weights_keep_their_gradient():
    """Of e, where the keys cut off have next to no weight: the difference of two equal sums would be rounding alone."""
    v, grad_out = torch.randn(2, 1, 1, 12, 4)
    g = torch.linspace(-20, 20, 12).view(1, 1, 12)
    tensors = [v, torch.zeros_like(g), g]
    actual = results(subgraph_attention, tensors, grad_out)[2]
    expected = results(reference.subgraph_attention, [t.double() for t in tensors], grad_out)[2]
    assert 0 < expected.abs().max() < 1e-6
    assert_close(actual * 1e8, expected * 1e8, dtype=torch.float32)


def test_what_all_values_share_cancels():
    """Values far from 0, as behind a ReLU: gradients of scores are as exact as the differences of values are."""
    v, e, g, _, _ = make((1, 2, 40, 8), torch.float32)
    v, grad_out = v + 1000, torch.randn(1, 2, 40, 8)
    actual = results(subgraph_attention, [v, e, g], grad_out, activation="none")
    expected = results(reference.subgraph_attention, [t.double() for t in (v, e, g)], grad_out, activation="none")
    for i in (2, 3):
        assert_close(actual[i], expected[i], dtype=torch.float32, op="subgraph_attention")


VALUES = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("where", ["v", "e", "g"])
def test_nan_and_infinity_are_where_the_definition_has_them(where, value):
    tensors = make((1, 2, 9, 3))[:4]
    named = dict(zip("veg", tensors, strict=False))
    named[where][0, 1, 4] = value
    out, expected = subgraph_attention(*tensors), reference.subgraph_attention(*tensors)
    assert torch.equal(out.isnan(), expected.isnan())
    assert_close(out, expected)
    assert out[0, 0].isfinite().all()


def test_a_score_that_overflows_is_nan():
    v, e, g, bias, _ = make((1, 1, 5, 2), torch.float32)
    e[0, 0, 2] = g[0, 0, 1] = 3e38
    assert_close(subgraph_attention(v, e, g, bias), reference.subgraph_attention(v, e, g, bias))


def test_nodes_without_part_may_hold_anything():
    v, e, g, bias, _ = make((2, 2, 9, 3))
    valid = torch.arange(9)[None] < torch.tensor([[5], [0]])
    kept = results(subgraph_attention, [v[:1, :, :5], e[:1, :, :5], g[:1, :, :5], bias])
    for t in (v, e, g):
        t[:, :, 5:] = torch.nan
        t[1] = torch.inf
    out, grad_v, grad_e, grad_g, grad_bias = results(subgraph_attention, [v, e, g, bias], valid=valid)
    assert torch.equal(grad_bias, kept.pop())
    for whole, part in zip((out, grad_v, grad_e, grad_g), kept, strict=True):
        assert torch.equal(whole[:1, :, :5], part)
        assert not whole[:, :, 5:].any()
        assert not whole[1].any()


@pytest.mark.parametrize("shape", [(0, 2, 9, 4), (2, 0, 9, 4), (2, 2, 0, 4), (2, 2, 9, 0)], ids=str)
def test_empty(shape):
    tensors = make(shape)[:4]
    out, *grads = results(subgraph_attention, tensors)
    assert out.shape == shape
    for grad, t in zip(grads, tensors, strict=True):
        assert torch.equal(grad, torch.zeros_like(t))


def test_strides_and_threads():
    """The same bits from heads that lie between nodes and channels, as one product for all of them leaves them."""
    B, H, N, D = 3, 4, 50, 6
    rows = torch.randn(B, N, H * D + 2 * H)
    v = rows[..., : H * D].unflatten(2, (H, D)).transpose(1, 2)
    e, g = rows[..., H * D :].unflatten(2, (2, H)).permute(2, 0, 3, 1)
    bias, grad = torch.randn(D, H).T, torch.randn(N, B, H, D).permute(1, 2, 0, 3)
    assert subgraph_attention(v, e, g, bias).transpose(1, 2).is_contiguous()
    tensors, before, found = [v, e, g, bias], torch.get_num_threads(), []
    strided = v.transpose(2, 3).contiguous().transpose(2, 3)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for inputs in (tensors, [t.contiguous() for t in tensors], [strided, *tensors[1:]]):
            found.append(results(subgraph_attention, inputs, grad))
        found.append(results(subgraph_attention, tensors, grad.contiguous()))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize("whole", [False, True])
def test_opcheck(whole):
    v, *rest = make((2, 2, 5, 3), bias=whole, pad=whole)
    v = v if whole else v.transpose(1, 2).contiguous().transpose(1, 2)
    torch.library.opcheck(torch.ops.innerloop.subgraph_attention.default, (v, *rest, whole))
    args = (torch.randn_like(v), v, *rest, whole)
    torch.library.opcheck(torch.ops.innerloop.subgraph_attention_backward.default, args)


@filter_torch_warnings
def test_compile():
    torch._dynamo.reset()

    def f(v, e, g, bias, valid):
        return subgraph_attention(v, e, g, bias, valid=valid).square()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for N in (4, 9, 17):
        *tensors, valid = make((2, 3, N, 5), pad=True)
        actual, expected = (results(g, tensors, valid=valid) for g in (compiled, f))
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e)


@pytest.mark.parametrize("mapped", ["v", "e", "g", "bias", "valid", "all"])
def test_vmap_and_grad(mapped):
    names = ("v", "e", "g", "bias", "valid")
    first, second = (make((2, 3, 6, 4), pad=True) for _ in range(2))
    in_dims = tuple((1 if name == "v" else 0) if mapped in (name, "all") else None for name in names)
    tensors = [a if d is None else torch.stack([a, b], d) for a, b, d in zip(first, second, in_dims, strict=True)]
    weight = torch.randn(2, 3, 6, 4, dtype=torch.float64)

    def loss(f, v, e, g, bias, valid):
        return (f(v, e, g, bias, valid=valid) * weight).sum()

    def per_sample(f):
        samples = [[t if d is None else t.select(d, i) for t, d in zip(tensors, in_dims, strict=True)] for i in (0, 1)]
        found = [results(lambda *t, valid=s[4]: f(*t, valid=valid), s[:4], weight) for s in samples]
        return [torch.stack(pair) for pair in zip(*found, strict=True)]

    expected = per_sample(reference.subgraph_attention)
    out = torch.func.vmap(lambda v, e, g, b, m: subgraph_attention(v, e, g, b, valid=m), in_dims)(*tensors)
    assert_close(out, expected[0])
    grad = torch.func.grad(lambda *t: loss(subgraph_attention, *t), (0, 1, 2, 3))
    for a, e in zip(torch.func.vmap(grad, in_dims)(*tensors), expected[1:], strict=True):
        assert_close(a, e)

    def total(f):
        return lambda *t: torch.func.vmap(lambda *s: loss(f, *s), in_dims)(*t).sum()

    outside = [
        torch.func.grad(total(f), (0, 1, 2, 3))(*tensors) for f in (subgraph_attention, reference.subgraph_attention)
    ]
    for a, e in zip(*outside, strict=True):
        assert_close(a, e)


@filter_torch_warnings
@pytest.mark.parametrize("nested", ["autograd", "func", "forward-mode"])
def test_derivatives_that_are_not_there_raise(nested):
    v, e, g, *_ = make((1, 2, 5, 3))

    def f(e):
        return subgraph_attention(v, e, g).square().sum()

    def derive():
        if nested == "autograd":
            leaf = e.clone().requires_grad_()
            (first,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
            first.sum().backward()
        elif nested == "func":
            torch.func.grad(lambda x: torch.func.grad(f)(x).sum())(e)
        else:
            torch.func.jvp(f, (e,), (e,))

    with pytest.raises((NotImplementedError, RuntimeError), match=r"subgraph_attention: second|jvp"):
        derive()


def test_no_tensor_of_scores():
    *tensors, _ = make((1, 2, 500, 4))
    with Largest() as mode:
        results(subgraph_attention, tensors)
    assert mode.largest == 2 * 500 * 4


MEMORY = """
import resource, torch
from innerloop import subgraph_attention
torch.set_num_threads(1)
N = 200_000
v, e, g = (torch.randn(s, requires_grad=True) for s in ((1, 1, N, 4), (1, 1, N), (1, 1, N)))
subgraph_attention(v[:, :, :9], e[..., :9], g[..., :9]).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
subgraph_attention(v, e, g).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_is_linear():
    """160 GB of scores; the tables are 4 · 4 · N floats, and the sorted keys 2 · N pairs."""
    assert int(run_python(MEMORY)) < 80


V, E = torch.ones(2, 3, 5, 4), torch.ones(2, 3, 5)
BAD = [
    ({"activation": "relu"}, ValueError, "activation is 'relu', expected one of elu, none"),
    ({"v": V.tolist()}, TypeError, "v is list, expected a tensor"),
    ({"g": None}, TypeError, "g is NoneType, expected a tensor"),
    ({"valid": 1}, TypeError, "valid is int, expected a tensor"),
    ({"v": V.long()}, TypeError, "v has dtype torch.int64, expected float32"),
    ({"v": V[0]}, ValueError, r"v has shape \(3, 5, 4\), expected \(B, H, N, D\)"),
    ({"e": E[..., :4]}, ValueError, r"e has shape \(2, 3, 4\), expected \(2, 3, 5\)"),
    ({"g": E.double()}, ValueError, "g is torch.float64 on cpu, expected torch.float32 on cpu like v"),
    ({"bias": torch.ones(12)}, ValueError, r"bias has shape \(12,\), expected \(3, 4\)"),
    ({"e": E.to("meta")}, ValueError, "e is torch.float32 on meta"),
    ({"valid": torch.ones(2, 5)}, ValueError, "valid is torch.float32 of shape"),
    ({"valid": torch.ones(2, 3, 5).bool()}, ValueError, r"expected torch.bool of shape \(2, 5\)"),
    ({"valid": torch.ones(2, 5, device="meta").bool()}, ValueError, "valid is on meta, expected cpu like v"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text for *_, text in BAD])
def test_bad_arguments(change, error, text):
    args = {"v": V, "e": E, "g": E, "bias": torch.ones(3, 4)} | change
    with pytest.raises(error, match=text):
        subgraph_attention(args.pop("v"), **args)


def test_no_node_and_many_channels():
    v, e, bias = torch.zeros(1, 1, 0, 9000), torch.zeros(1, 1, 0), torch.zeros(1, 9000, requires_grad=True)
    subgraph_attention(v, e, e, bias).sum().backward()
    assert torch.equal(bias.grad, torch.zeros(1, 9000))
