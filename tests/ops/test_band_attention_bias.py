# SPDX-License-Identifier: Apache-2.0
"""The bias of band_attention, a table of heads and distances, against masked softmax."""

import math
import random

import pytest
import torch
from innerloop import band_attention, pooling_attention, reference
from innerloop.ops.band_attention import _globals, band
from tolerances import assert_close, assert_close_to_truth

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Case:
    """Random operands of one call, with a bias."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        rng = random.Random(seed)
        self.stride = rng.choice([1, 1, 2, 4])
        L = rng.choice([1, rng.randint(2, 40), rng.randint(41, 300)])
        Lk = -(-L // self.stride) if self.stride > 1 else rng.choice([L, L, rng.randint(1, 300)])
        B, Hkv, group, D = (
            rng.choice([1, 2, 3]),
            rng.choice([1, 2]),
            rng.choice([1, 2, 4]),
            rng.choice([8, 16, 40, 111]),
        )
        self.left, self.right = rng.randint(0, L), rng.randint(0, L)
        self.causal = rng.random() < 0.3
        self.shift = self.left - (Lk - L if self.stride == 1 else 0)
        shapes = (B, Hkv * group, L, D), (B, Hkv, Lk, D), (B, Hkv, Lk, D), (Hkv * group, self.left + 1 + self.right)
        self.tensors = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]
        self.valid = torch.rand(B, Lk) > 0.3 if rng.random() < 0.5 else None
        self.index = torch.randint(0, Lk, (B, 3)) if rng.random() < 0.4 else None

    def call(self, q, k, v, bias):
        return band_attention(
            q, k, v, left=self.left, right=self.right, causal=self.causal, kv_stride=self.stride, key_valid=self.valid,
            global_index=self.index, bias=bias, return_lse=True,
        )  # fmt: skip

    def reference(self, q, k, v, bias):
        low, high = band(q.shape[2], k.shape[2], self.left, self.right, self.causal, self.stride, None, "cpu")
        extra, valid = (None,) * 3, self.valid
        if self.index is not None:
            *extra, valid = _globals(k, v, valid, self.index)
        return reference.band_attention(
            q, k, v, low, high, scale=q.shape[3] ** -0.5, key_valid=valid, global_k=extra[0], global_v=extra[1],
            global_valid=extra[2], bias=bias, bias_stride=self.stride, bias_shift=self.shift,
        )  # fmt: skip


def with_gradients(f, tensors):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out, lse = f(*tensors)
    seen = lse.isfinite()
    generator = torch.Generator().manual_seed(0)
    g, gl = (torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (out, lse))
    grads = torch.autograd.grad([out, lse], tensors, [g, torch.where(seen, gl, 0)])
    # Plain softmax has NaN gradients of rows that see nothing; a kernel must not.
    return [out, torch.where(seen, lse, 0), *grads]


@pytest.mark.parametrize("seed", range(30))
def test_equals_masked_softmax(seed):
    case = Case(seed)
    for a, e in zip(with_gradients(case.call, case.tensors), with_gradients(case.reference, case.tensors), strict=True):
        assert_close(a, e.nan_to_num(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_dtypes(seed, dtype):
    case = Case(100 + seed, dtype)
    actual, eager = with_gradients(case.call, case.tensors), with_gradients(case.reference, case.tensors)
    truth = with_gradients(case.reference, [t.double() for t in case.tensors])
    assert actual[-1].dtype == dtype
    for a, e, t in zip(actual, eager, truth, strict=True):
        assert_close_to_truth(a, e.nan_to_num(0), t.nan_to_num(0))


def test_gradcheck():
    q, k, v = (torch.randn(1, 2, 11, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *t: band_attention(*t[:3], left=3, right=2, bias=t[3], return_lse=True), (q, k, v, bias)
    )


def test_alibi():
    """A slope times the distance is the dense mask of Press et al. (2022)."""
    L, H = 70, 3
    q, k, v = (torch.randn(2, H, L, 16) for _ in range(3))
    slopes = torch.tensor([0.5, 0.25, 0.125])
    distance = (torch.arange(L)[:, None] - torch.arange(L)).clamp(min=0)
    mask = (-slopes[:, None, None] * distance).masked_fill(torch.ones(L, L).triu(1).bool(), -torch.inf)
    bias = -slopes[:, None] * torch.arange(L - 1, -1, -1.0)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert_close(band_attention(q, k, v, left=L - 1, right=0, bias=bias), expected)


@pytest.mark.parametrize("stride", [1, 4])
def test_causal_is_a_limit_on_the_right(stride):
    q = torch.randn(2, 4, 40, 8)
    k, v = (torch.randn(2, 2, 40 // stride, 8) for _ in range(2))
    options = {"left": 5, "causal": True, "kv_stride": stride, "bias": torch.randn(4, 6)}
    assert torch.equal(band_attention(q, k, v, right=-1, **options), band_attention(q, k, v, right=0, **options))
    with pytest.raises(ValueError, match="bias is given with left -1 and right 0, expected both limited"):
        band_attention(q, k, v, right=-1, **options | {"left": -1})


def test_minus_infinity_hides_a_distance():
    q, k, v = (torch.randn(1, 1, 50, 8, requires_grad=True) for _ in range(3))
    bias = torch.zeros(1, 7).index_fill(1, torch.tensor([0, 1, 5, 6]), -math.inf).requires_grad_()
    out, lse = band_attention(q, k, v, left=3, right=3, bias=bias, return_lse=True)
    narrow, narrow_lse = band_attention(q, k, v, left=1, right=1, return_lse=True)
    assert_close(out, narrow)
    assert_close(lse, narrow_lse)
    out.sum().backward()
    assert bool(bias.grad.isfinite().all())
    assert bias.grad[0, [0, 1, 5, 6]].tolist() == [0] * 4
    nothing = band_attention(q, k, v, left=3, right=3, bias=torch.full((1, 7), -math.inf))
    assert bool((nothing == 0).all())


def test_packed_sequences():
    lengths = torch.tensor([5, 0, 70, 1, 33])
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    q, k, v = (torch.randn(109, 2, 8) for _ in range(3))
    bias = torch.randn(2, 11)
    out = band_attention(q, k, v, left=7, right=3, cu_seqlens=bounds, bias=bias)
    for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        alone = [t[a:b].transpose(0, 1)[None] for t in (q, k, v)]
        assert_close(out[a:b], band_attention(*alone, left=7, right=3, bias=bias)[0].transpose(0, 1))


def test_same_bits_for_every_number_of_threads():
    q, k, v = (torch.randn(1, 4, 3000, 16, requires_grad=True) for _ in range(3))
    bias = torch.randn(4, 51, requires_grad=True)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = band_attention(q, k, v, left=30, right=20, bias=bias)
        results.append(torch.autograd.grad(out.square().sum(), [q, k, v, bias]))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_without_queries():
    q, k, v = (torch.randn(0, 2, 9, 4, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 3, requires_grad=True)
    band_attention(q, k, v, left=1, right=1, bias=bias).sum().backward()
    assert bias.grad.tolist() == [[0] * 3] * 2


def test_opcheck():
    q, k, v = (torch.randn(2, 2, 30, 8, dtype=torch.float64) for _ in range(3))
    low, high = band(30, 30, 4, 3, False, 1, None, "cpu")
    args = q, k, v, low, high, *(None,) * 5, 0.3, 0.0, None, torch.randn(2, 8, dtype=torch.float64), 1, 4
    torch.library.opcheck(torch.ops.innerloop.band_attention.default, args)
    out, lse = torch.ops.innerloop.band_attention(*args)
    torch.library.opcheck(
        torch.ops.innerloop.band_attention_backward.default, (torch.ones_like(out), None, out, lse, *args)
    )


@pytest.mark.filterwarnings("ignore")
def test_compiles_with_one_tensor_in_every_place():
    x = torch.randn(1, 2, 30, 8, requires_grad=True)
    bias = torch.randn(2, 9, requires_grad=True)

    def f(x, bias):
        return band_attention(x, x, x, left=5, right=3, bias=bias).square().sum()

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    for a, e in zip(*(torch.autograd.grad(g(x, bias), [x, bias]) for g in (compiled, f)), strict=True):
        assert_close(a, e)


BAD = [
    ({"bias": [1.0]}, TypeError, "bias is list, expected a tensor"),
    ({"bias": torch.ones(2, 4)}, ValueError, r"bias has shape \(2, 4\), expected \(H, left \+ 1 \+ right\) = \(2, 3\)"),
    ({"bias": torch.ones(1, 3)}, ValueError, r"bias has shape \(1, 3\)"),
    ({"bias": torch.ones(2, 3).double()}, ValueError, "bias is torch.float64 on cpu, expected torch.float32"),
    ({"left": -1}, ValueError, "bias is given with left -1 and right 1, expected both limited"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text for *_, text in BAD])
def test_bad_arguments(change, error, text):
    x = torch.ones(1, 2, 10, 8)
    with pytest.raises(error, match=text):
        band_attention(x, x, x, **{"left": 1, "right": 1, "bias": torch.ones(2, 3)} | change)


def test_the_kernel_checks_its_columns():
    """A hand-made band that reaches beyond the table is an error, not a read outside it."""
    q = torch.ones(1, 1, 10, 4)
    low, high = band(10, 10, 3, 3, False, 1, None, "cpu")
    with pytest.raises(ValueError, match=r"bias has shape \(1, 6\), expected a column for every key that query"):
        torch.ops.innerloop.band_attention(q, q, q, low, high, *(None,) * 5, 0.5, 0.0, None, torch.ones(1, 6), 1, 3)


def test_pooled_keys():
    """Column m of the table is the m-th pooled key seen, for all queries of a stride."""
    q, k, v = (torch.randn(1, 2, 40, 8) for _ in range(3))
    options = {"kernel": 4, "stride": 4, "mode": "mean"}
    bias = torch.full((2, 5), -math.inf).index_fill(1, torch.tensor([2]), 0.0)
    own = pooling_attention(q, k, v, radius=0, **options)
    assert_close(pooling_attention(q, k, v, radius=2, bias=bias, **options), own)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_parameter_beside_half_types(dtype):
    """Under autocast q, k, v are of a half type and a parameter is not; its gradient is of its own dtype."""
    q, k, v = (torch.randn(1, 2, 30, 8).to(dtype) for _ in range(3))
    bias = torch.randn(2, 9, requires_grad=True)
    out = band_attention(q, k, v, left=5, right=3, bias=bias)
    assert out.dtype == dtype
    out.float().sum().backward()
    assert bias.grad.dtype == torch.float32
    exact = bias.detach().double().requires_grad_()
    band_attention(q.double(), k.double(), v.double(), left=5, right=3, bias=exact).sum().backward()
    assert_close(bias.grad, exact.grad.float(), dtype=dtype, op="attention")


def test_definition_of_rows_that_a_bias_blinds():
    """What runs on devices without a kernel: no NaN either."""
    tensors = [torch.randn(1, 2, 9, 4, requires_grad=True) for _ in range(3)]
    bias = torch.randn(2, 3).index_fill(1, torch.tensor([2]), -math.inf).requires_grad_()  # strictly past
    low, high = band(9, 9, 2, 0, False, 1, None, "cpu")
    plain, _ = reference.band_attention(*tensors, low, high, scale=0.5, bias=bias, bias_shift=2)
    kernel = band_attention(*tensors, left=2, right=0, scale=0.5, bias=bias)
    assert_close(plain, kernel)
    for a, e in zip(*(torch.autograd.grad(o.sum(), [*tensors, bias]) for o in (plain, kernel)), strict=True):
        assert bool(a.isfinite().all())
        assert_close(a, e)
