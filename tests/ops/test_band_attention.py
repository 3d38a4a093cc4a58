# SPDX-License-Identifier: Apache-2.0
"""band_attention against masked dense softmax, and what it promises at its edges."""

import itertools
import math
import random
import sys

import innerloop
import pytest
import torch
from cases import Largest
from innerloop import band_attention, pooling_attention, reference
from innerloop.ops.band_attention import _globals, band
from processes import run_python
from tolerances import assert_close, assert_close_to_truth

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


class Problem:
    """Random operands and options of one call."""

    def __init__(self, rng: random.Random, dtype=torch.float64, **given):
        def pick(name, *values):
            return given.get(name, rng.choice(values))

        self.stride = pick("stride", 1, 1, 1, 2, 4)
        L = pick("L", rng.randint(1, 300), rng.randint(1, 40))
        Lk = -(-L // self.stride)
        if self.stride == 1:
            Lk = pick("Lk", L, L, rng.randint(1, 300))
        B, Hkv, group = pick("B", 1, 2, 3), pick("Hkv", 1, 2), pick("group", 1, 2, 4)
        D = pick("D", 8, 16, 40, 64, 111, 128)
        self.q = torch.randn(B, Hkv * group, L, D, dtype=torch.float64).to(dtype)
        self.k, self.v = (torch.randn(B, Hkv, Lk, D, dtype=torch.float64).to(dtype) for _ in range(2))
        self.left, self.right = pick("left", rng.randint(0, L), -1), pick("right", rng.randint(0, L), -1)
        self.causal = pick("causal", False, False, True)
        self.valid = torch.rand(B, Lk) > 0.3 if pick("pad", False, True) else None
        self.residual = torch.randn_like(self.q) if pick("residual", False, True) else None
        G = min(pick("G", 0, 0, 1, 5), Lk)
        self.index = torch.stack([torch.randperm(Lk)[:G] for _ in range(B)]) if G else None
        if G > 1:
            self.index[0, 1] = rng.choice([-1, int(self.index[0, 0])])  # none, or the same again

    def tensors(self):
        return [t for t in (self.q, self.k, self.v, self.residual) if t is not None]

    def call(self, q, k, v, residual=None, return_lse=True):
        return band_attention(
            q, k, v, left=self.left, right=self.right, causal=self.causal, kv_stride=self.stride, key_valid=self.valid,
            global_index=self.index, residual=residual, return_lse=return_lse,
        )  # fmt: skip

    def reference(self, q, k, v, residual=None):
        low, high = band(q.shape[2], k.shape[2], self.left, self.right, self.causal, self.stride, None, "cpu")
        global_k = global_v = global_valid = None
        valid = self.valid
        if self.index is not None:
            global_k, global_v, global_valid, valid = _globals(k, v, valid, self.index)
        return reference.band_attention(
            q, k, v, low, high, scale=q.shape[3] ** -0.5, key_valid=valid, global_k=global_k, global_v=global_v,
            global_valid=global_valid, residual=residual,
        )  # fmt: skip


def with_gradients(f, tensors):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out, lse = f(*tensors)
    seen = lse.isfinite()
    generator = torch.Generator().manual_seed(0)
    g, gl = (torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (out, lse))
    grads = torch.autograd.grad([out, lse], tensors, [g, torch.where(seen, gl, 0)])
    # Plain softmax has NaN gradients of rows that see nothing; a kernel must not.
    return [out, torch.where(seen, lse, 0), *grads], seen


@pytest.mark.parametrize("seed", range(40))
def test_equals_masked_softmax(seed):
    p = Problem(random.Random(seed))
    actual, seen = with_gradients(p.call, p.tensors())
    expected, seen_expected = with_gradients(p.reference, p.tensors())
    assert torch.equal(seen, seen_expected)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e.nan_to_num(0))
    if p.residual is None:
        assert bool((actual[0][~seen] == 0).all())


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_dtypes(seed, dtype):
    p = Problem(random.Random(100 + seed), dtype=dtype)
    actual, _ = with_gradients(p.call, p.tensors())
    eager, _ = with_gradients(p.reference, p.tensors())
    truth, _ = with_gradients(p.reference, [t.double() for t in p.tensors()])
    assert actual[0].dtype == dtype
    for a, e, t in zip(actual, eager, truth, strict=True):
        assert_close_to_truth(a, e.nan_to_num(0), t.nan_to_num(0))


def test_gradcheck():
    p = Problem(
        random.Random(1), L=12, D=8, stride=1, B=1, Hkv=1, group=2, left=3, right=2, residual=True, pad=False, G=2
    )
    tensors = [t.requires_grad_() for t in p.tensors()]
    assert torch.autograd.gradcheck(p.call, tensors)


def test_rank_of_windows():
    """A window over everything is scaled_dot_product_attention; -1 and a large radius are the same."""
    q, k, v = (torch.randn(2, 3, 50, 16) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for radius in (49, 1000, -1):
        assert_close(band_attention(q, k, v, left=radius, right=radius), expected)
    causal = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_close(band_attention(q, k, v, left=-1, right=0), causal)
    assert_close(band_attention(q, k, v, left=-1, right=-1, causal=True), causal)


def test_pooled_keys_and_causality():
    """A causal query sees a pooled window only when the whole of it lies at or before the query."""
    low, high = band(10, 3, -1, -1, True, 4, None, "cpu")
    assert low.tolist() == [0] * 10
    assert high.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(("kernel", "stride"), [(5, 4), (4, 4), (3, 1), (9, 4), (2, 3)])
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_causal_pooling_sees_no_future(kernel, stride, mode):
    q, k, v = (torch.randn(1, 1, 20, 4, dtype=torch.float64) for _ in range(3))
    options = {"radius": -1, "kernel": kernel, "stride": stride, "mode": mode, "causal": True}
    before = pooling_attention(q, k, v, **options)
    assert before.abs().sum() > 0
    for t in range(20):
        later = [x.clone() for x in (k, v)]
        for x in later:
            x[:, :, t:] += 10
        assert torch.equal(pooling_attention(q, *later, **options)[:, :, :t], before[:, :, :t])


@pytest.mark.parametrize(("kernel", "stride", "length"), [(9, 4, 16), (8, 2, 13), (5, 4, 9)])
@pytest.mark.parametrize("mode", ["mean", "max", "ldconv"])
def test_padding_adds_no_pooled_key(kernel, stride, length, mode):
    q, k, v = (torch.randn(1, 2, 32, 4, dtype=torch.float64) for _ in range(3))
    k[:, :, length:], v[:, :, length:] = torch.nan, torch.nan
    weight = torch.randn(kernel, 4, dtype=torch.float64) if mode == "ldconv" else None
    options = {"radius": 2, "kernel": kernel, "stride": stride, "mode": mode, "weight_k": weight, "weight_v": weight}
    padded = pooling_attention(q, k, v, key_valid=torch.arange(32)[None] < length, **options)
    alone = pooling_attention(*(x[:, :, :length] for x in (q, k, v)), **options)
    assert_close(padded[:, :, :length], alone)


@pytest.mark.parametrize("radius", [2**31, 2**62, sys.maxsize])
def test_huge_radii_are_no_limit(radius):
    q, k, v = (torch.randn(1, 1, 9, 4) for _ in range(3))
    for left, right in ((radius, radius), (0, radius), (radius, 2)):
        limits = (-1 if x == radius else x for x in (left, right))
        expected = band_attention(q, k, v, **dict(zip(("left", "right"), limits, strict=True)))
        assert torch.equal(band_attention(q, k, v, left=left, right=right), expected)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_residual_does_not_disturb_gradients(size):
    q, k, v, residual = (torch.randn(1, 2, 60, 16).bfloat16() for _ in range(4))
    grads = []
    for f in (lambda r: r, lambda r: None):
        tensors = [t.clone().requires_grad_() for t in (q, k, v)]
        r = f(residual * size)
        out = band_attention(*tensors, left=5, right=5, residual=r)
        grads.append(torch.autograd.grad(out, tensors, torch.ones_like(out)))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_rows_that_see_nothing_pass_no_nan_on():
    q, k, v = (torch.randn(1, 1, 40, 8, requires_grad=True) for _ in range(3))
    valid = torch.arange(40)[None] >= 20
    out, lse = band_attention(q, k, v, left=2, right=2, key_valid=valid, return_lse=True)
    blind = lse.detach().isinf()
    grads = torch.autograd.grad([out, lse], [q, k, v], [torch.ones_like(out), torch.where(blind, torch.nan, 1.0)])
    assert all(bool(g.isfinite().all()) for g in grads)


def test_checks_do_not_read_what_has_no_values():
    q, k, v = (torch.randn(1, 1, 6, 4, device="meta") for _ in range(3))
    index = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    assert band_attention(q, k, v, left=1, right=1, global_index=index).shape == q.shape


def test_packed_sequences():
    lengths, H, D = (5, 0, 70, 1, 33), 3, 16
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = (torch.randn(int(bounds[-1]), H, D, dtype=torch.float64, requires_grad=True) for _ in range(3))
    out, lse = band_attention(q, k, v, left=7, right=3, cu_seqlens=bounds.int(), return_lse=True)
    parts = []
    for a, b in itertools.pairwise(bounds.tolist()):
        x = (t[a:b].transpose(0, 1)[None] for t in (q, k, v))
        parts.append(band_attention(*x, left=7, right=3)[0].transpose(0, 1))
    expected = torch.cat(parts)
    assert_close(out, expected)
    assert lse.shape == (109, H)
    g = torch.randn_like(out)
    for a, e in zip(torch.autograd.grad(out, [q, k, v], g), torch.autograd.grad(expected, [q, k, v], g), strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("layout", ["blhd", "slice", "expanded", "last"])
def test_strides(layout):
    B, H, L, D = 2, 3, 40, 16

    def make():
        if layout == "blhd":
            return torch.randn(B, L, H, D).transpose(1, 2)
        if layout == "slice":
            return torch.randn(B, H, 2 * L, 3 * D)[:, :, 1::2, D : 2 * D]
        if layout == "expanded":
            return torch.randn(1, 1, L, D).expand(B, H, L, D)
        return torch.randn(B, H, D, L).transpose(2, 3)  # copied: channels do not lie side by side

    q, k, v = make(), make(), make()
    dense = [t.contiguous() for t in (q, k, v)]
    assert torch.equal(band_attention(q, k, v, left=5, right=9), band_attention(*dense, left=5, right=9))
    grads = []
    for tensors in ((q, k, v), dense):
        tensors = [t.detach().requires_grad_() for t in tensors]
        grads.append(torch.autograd.grad(band_attention(*tensors, left=5, right=9).sin().sum(), tensors))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 0, 5, 8), (2, 2, 0, 8), (1, 1, 1, 1)])
def test_empty_and_tiny(shape):
    heads = max(shape[1], 1)
    q = torch.randn(shape, requires_grad=True)
    k, v = (torch.randn(shape[0], heads, shape[2], shape[3], requires_grad=True) for _ in range(2))
    out, lse = band_attention(q, k, v, left=1, right=1, return_lse=True)
    assert out.shape == shape
    assert lse.shape == shape[:3]
    out.sum().backward()
    assert q.grad.shape == shape
    if shape == (1, 1, 1, 1):
        assert_close(out, v)


def test_no_keys_at_all():
    q = torch.randn(1, 1, 3, 4, requires_grad=True)
    k = torch.randn(1, 1, 0, 4, requires_grad=True)
    out, lse = band_attention(q, k, k, left=1, right=1, return_lse=True)
    out.sum().backward()
    assert out.abs().sum() == 0
    assert lse.tolist() == [[[-math.inf] * 3]]
    assert q.grad.abs().sum() == 0


def test_padding_may_hold_anything():
    q, k, v = (torch.randn(1, 2, 90, 16) for _ in range(3))
    valid = torch.arange(90)[None] < 60
    clean = band_attention(q, k, v, left=20, right=20, key_valid=valid)
    k[:, :, 60:], v[:, :, 60:] = torch.nan, torch.inf
    tensors = [t.requires_grad_() for t in (q, k, v)]
    out = band_attention(*tensors, left=20, right=20, key_valid=valid)
    assert torch.equal(out, clean)
    out.sum().backward()
    assert bool(k.grad[:, :, 60:].eq(0).all())
    assert bool(q.grad.isfinite().all())


def test_nan_reaches_its_queries():
    q, k, v = (torch.randn(1, 1, 200, 8) for _ in range(3))
    k[0, 0, 100, 3] = torch.nan
    out = band_attention(q, k, v, left=10, right=10)
    assert out.isnan().any(-1)[0, 0].nonzero().flatten().tolist() == list(range(90, 111))


def test_nan_alone_in_a_window():
    """A query whose only key is NaN gets NaN, not the 0 of a query without keys."""
    q, k, v = (torch.randn(1, 1, 50, 8) for _ in range(3))
    k[0, 0, 20] = torch.nan
    out, lse = band_attention(q, k, v, left=0, right=0, return_lse=True)
    assert out.isnan().any(-1)[0, 0].nonzero().flatten().tolist() == [20]
    assert lse.isnan()[0, 0].nonzero().flatten().tolist() == [20]


@pytest.mark.parametrize("scale", [0.0, 1e4, -3.0])
def test_scale(scale):
    q, k, v = (torch.randn(1, 1, 60, 8, dtype=torch.float64) for _ in range(3))
    low, high = band(60, 60, 9, 9, False, 1, None, "cpu")
    expected, _ = reference.band_attention(q, k, v, low, high, scale=scale)
    assert_close(band_attention(q, k, v, left=9, right=9, scale=scale), expected)


def test_same_bits_for_every_number_of_threads():
    p = Problem(
        random.Random(3), dtype=torch.float32, L=3000, Lk=3000, D=40, stride=1, left=30, right=20, B=1, Hkv=2, G=0
    )
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        results.append(with_gradients(p.call, p.tensors())[0])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_shift_by_padding():
    q, k, v = (torch.randn(1, 1, 70, 8) for _ in range(3))
    longer = [torch.cat([torch.zeros(1, 1, 1, 8), t], 2) for t in (q, k, v)]
    valid = (torch.arange(71) > 0)[None]
    shifted = band_attention(*longer, left=6, right=6, key_valid=valid)[:, :, 1:]
    assert_close(shifted, band_attention(q, k, v, left=6, right=6))


def test_dropout():
    q, k = (torch.randn(1, 2, 400, 8, dtype=torch.float64) for _ in range(2))
    v = torch.ones(1, 2, 400, 8, dtype=torch.float64)
    torch.manual_seed(0)
    out = band_attention(q, k, v, left=50, right=50, dropout_p=0.25)
    torch.manual_seed(0)
    assert torch.equal(out, band_attention(q, k, v, left=50, right=50, dropout_p=0.25))
    assert not torch.equal(out, band_attention(q, k, v, left=50, right=50, dropout_p=0.25))
    assert abs(out.mean() - 1) < 0.02  # a mean of 400 · 2 sums of about 100 weights
    assert out.std() > 0.02
    # The kept weights by themselves: v = identity. In the mean 3 of 4, and 1 / 0.75 times what they are without.
    q, k = (torch.randn(1, 1, 64, 64, dtype=torch.float64) / 4 for _ in range(2))
    v = torch.eye(64, dtype=torch.float64)[None, None]
    plain = band_attention(q, k, v, left=-1, right=-1)
    dropped = band_attention(q, k, v, left=-1, right=-1, dropout_p=0.25)
    kept = dropped != 0
    assert_close(dropped[kept], plain[kept] / 0.75)
    assert abs(kept.double().mean() - 0.75) < 0.03


def test_dropout_gradients():
    """The backward pass drops the same weights: with the mask read off a first call, it is plain torch."""
    L = 40
    q, k, v = (torch.randn(1, 2, L, L, dtype=torch.float64, requires_grad=True) for _ in range(3))
    eye = torch.eye(L, dtype=torch.float64).expand(1, 2, L, L)

    def run(values, call):
        torch.manual_seed(7)
        return call(q, k, values, left=9, right=4, dropout_p=0.3)

    kept = run(eye, band_attention).detach() != 0
    low, high = band(L, L, 9, 4, False, 1, None, "cpu")
    position = torch.arange(L)
    seen = (position >= low[:, None]) & (position < high[:, None])
    weight = (q @ k.transpose(2, 3) / L**0.5).masked_fill(~seen, -torch.inf).softmax(-1) * kept / 0.7
    out, expected = run(v, band_attention), weight @ v
    assert_close(out, expected)
    g = torch.randn_like(out)
    for a, e in zip(torch.autograd.grad(out, [q, k, v], g), torch.autograd.grad(expected, [q, k, v], g), strict=True):
        assert_close(a, e)


def test_dropout_of_the_definition():
    """Devices without a kernel drop out too: kept weights are as many, and scaled."""
    q, k = (torch.randn(1, 1, 64, 64, dtype=torch.float64) / 4 for _ in range(2))
    v = torch.eye(64, dtype=torch.float64)[None, None]
    low, high = band(64, 64, -1, -1, False, 1, None, "cpu")
    plain, _ = reference.band_attention(q, k, v, low, high, scale=1.0)
    dropped, _ = reference.band_attention(q, k, v, low, high, scale=1.0, dropout_p=0.25)
    kept = dropped != 0
    assert_close(dropped[kept], plain[kept] / 0.75)
    assert abs(kept.double().mean() - 0.75) < 0.03


def test_no_tensor_of_scores():
    L, w = 4096, 256
    q, k, v = (torch.randn(1, 1, L, 16, requires_grad=True) for _ in range(3))
    with Largest() as mode:
        band_attention(q, k, v, left=w, right=w).sum().backward()
    assert mode.largest == L * 16


MEMORY = """
import resource, torch
from innerloop import band_attention
torch.set_num_threads(2)
L = 65536
q, k, v = (torch.randn(1, 8, L, 64, requires_grad=True) for _ in range(3))
small = torch.randn(1, 8, 64, 64, requires_grad=True)
band_attention(small, small, small, left=256, right=256).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
band_attention(q, k, v, left=256, right=256).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (q.numel() * 4))
"""


@pytest.mark.slow
def test_memory_of_a_long_sequence():
    """Forward and backward at 65,536 tokens: output, its gradient, three gradients, and little more, in sizes of q."""
    assert float(run_python(MEMORY)) < 6


ONES = torch.ones(1, 2, 10, 8)
WIDE, THREE_HEADS = torch.ones(1, 2, 10, 257), torch.ones(1, 3, 10, 8)
BAD = [
    ({"k": torch.ones(2, 2, 10, 8), "v": torch.ones(2, 2, 10, 8)}, ValueError, "k has shape .* does not go with q"),
    ({"k": THREE_HEADS, "v": THREE_HEADS}, ValueError, "k has 3 heads, expected a number that divides the 2"),
    ({"v": torch.ones(1, 2, 9, 8)}, ValueError, "v has shape"),
    ({"left": -2}, ValueError, "left is -2, expected an int of at least 0, or -1"),
    ({"right": 1.5}, ValueError, "right is 1.5"),
    ({"kv_stride": 0}, ValueError, "kv_stride is 0"),
    ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0"),
    ({"scale": math.nan}, ValueError, "scale is nan"),
    ({"scale": torch.ones(())}, TypeError, "scale is a tensor"),
    ({"q": WIDE, "k": WIDE, "v": WIDE}, ValueError, "257 channels"),
    ({"q": ONES.long()}, TypeError, "q has dtype torch.int64"),
    ({"q": [1]}, TypeError, "q is list, expected a tensor"),
    ({"k": ONES.double()}, ValueError, "k has dtype torch.float64, expected torch.float32"),
    ({"k": ONES.to("meta")}, ValueError, "k is on meta, expected cpu like q"),
    ({"q": ONES[0]}, ValueError, r"q has shape \(2, 10, 8\), expected \(B, H, L, D\)"),
    ({"key_valid": torch.ones(1, 9, dtype=torch.bool)}, ValueError, "key_valid is torch.bool of shape"),
    ({"key_valid": torch.ones(1, 10)}, ValueError, "key_valid is torch.float32"),
    ({"global_index": torch.tensor([[10]])}, ValueError, "global_index holds 10"),
    ({"global_index": torch.tensor([0])}, ValueError, "global_index is torch.int64 of shape"),
    ({"residual": torch.ones(1, 2, 9, 8)}, ValueError, "residual has shape"),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text for *_, text in BAD])
def test_bad_arguments(change, error, text):
    args = {"q": ONES, "k": ONES, "v": ONES, "left": 1, "right": 1} | change
    with pytest.raises(error, match=text):
        band_attention(**args)


@pytest.mark.parametrize("bounds", [[0, 5, 4, 10], [0, 5], [1, 10], [0, 11]])
def test_bad_bounds(bounds):
    tensor = torch.ones(10, 2, 8)
    with pytest.raises(ValueError, match=r"cu_seqlens is .*, expected 0 first, 10 last, never falling"):
        band_attention(tensor, tensor, tensor, left=1, right=1, cu_seqlens=torch.tensor(bounds))


def test_exported():
    assert innerloop.band_attention is band_attention


@pytest.mark.parametrize("count", [0, 2])
def test_no_global_keys(count):
    """No index at all, indices that are all -1, and no key they could point at."""
    q, k, v = (torch.randn(1, 1, 6, 4) for _ in range(3))
    index = torch.full((1, count), -1)
    plain = band_attention(q, k, v, left=1, right=1)
    assert_close(band_attention(q, k, v, left=1, right=1, global_index=index), plain)
    none = band_attention(q, k[:, :, :0], v[:, :, :0], left=1, right=1, global_index=index)
    assert none.abs().sum() == 0
