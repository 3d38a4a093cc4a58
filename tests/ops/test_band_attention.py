# SPDX-License-Identifier: Apache-2.0
"""band_attention against masked dense softmax, and golden values made from formulas."""

import itertools
import math
import random
import sys

import innerloop
import pytest
import torch
from cases import run_python
from innerloop import band_attention, pool_kv, pooling_attention, reference
from innerloop.ops.band_attention import _globals, band
from tolerances import assert_close, assert_close_to_truth, tolerance
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def grid(*axes: int) -> list[torch.Tensor]:
    return torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in axes), indexing="ij")


def formula_inputs(H: int, L: int, D: int) -> tuple[torch.Tensor, ...]:
    """q, k, v and the gradient of the output, (1, H, L, D)."""
    h, i, d = grid(H, L, D)
    q = torch.sin(0.37 * i + 0.11 * d + 1.3 * h)
    k = torch.cos(0.23 * i - 0.07 * d + 0.9 * h)
    v = torch.sin(0.05 * i * (d + 1) + 0.5 * h)
    g = torch.cos(0.3 * i + 0.2 * d - h)
    return tuple(t[None] for t in (q, k, v, g))


def formula_weight(kernel: int, D: int) -> torch.Tensor:
    u, d = grid(kernel, D)
    return 0.1 * torch.cos(u + d)


# L, left, right, stride, kernel, mode; sums of out, out², lse; out[0, 0, :4]; out[-1, -1, :4]; Σ|dq|, Σ|dk|, Σ|dv|;
# dq[0, 5, :3]; dk[-1, 7, :3]; dv[0, -1, :3]
GOLDEN = {
    "A": (64, 3, 3, 1, 1, None, (118.8848270450, 404.4391781599, 291.2856907974),
          (0.0748328292, 0.1485605644, 0.2200990974, 0.2884058543),
          (-0.4221711219, 0.3622826415, -0.3005757108, 0.2378913963),
          (27.3895268326, 50.8987652359, 536.6145485929), (0.0252947636, 0.0230013584, 0.0205952925),
          (0.2687205363, 0.2687064051, 0.2654442036), (1.4912751532, 1.5660370570, 1.5783660052)),
    "B": (64, 5, 0, 1, 1, None, (134.9369185637, 429.2115296293, 252.6160366781), (0, 0, 0, 0),
          (-0.3812276954, 0.2774287384, -0.1715588958, 0.0671978731),
          (21.9350442379, 45.7071969251, 573.9586659775), (0.0780745422, 0.0676495818, 0.0568932737),
          (0.1982882662, 0.1675517211, 0.1347898436), (0.4563417939, 0.4426681407, 0.4113467056)),
    "C": (37, 4, 2, 1, 1, None, (122.0333018515, 251.2051092753, 146.4824945229),
          (0.0508283961, 0.1012759513, 0.1509653125, 0.1995260678),
          (0.8242033060, -0.6361710975, -0.6858098546, 0.7506773305),
          (22.5519350138, 41.6557383019, 305.7672326691), (0.0691658746, 0.0630201721, 0.0565657969),
          (0.3235798837, 0.3099810988, 0.2926353230), (-0.0853512770, -0.0545783414, -0.0216295396)),
    "D": (37, 64, 64, 1, 1, None, (105.4980645940, 111.4163126913, 319.5949390145),
          (0.6510846462, 0.3469505431, -0.1802279252, 0.0142536253),
          (0.8907012699, 0.2875442279, -0.4255710482, -0.3306004303),
          (37.6934336475, 60.0679835514, 131.7257140895), (0.0433289122, 0.0361813865, 0.0288566443),
          (0.1617019924, 0.1236131298, 0.0840300558), (-0.1805034661, -0.1829083279, -0.1780212120)),
    "E": (64, 2, 2, 4, 5, "mean", (106.2487751700, 263.9671903704, 263.2428314218),
          (0.2174829693, 0.4061885961, 0.5433819047, 0.6168588327),
          (-0.2771637586, 0.0674224071, 0.1223451501, -0.2694092830),
          (38.2961078080, 42.0861399317, 308.3462159310), (-0.0146791688, -0.0178084703, -0.0208505460),
          (0.2055794567, 0.1869342116, 0.1660293425), (0.5139977628, 0.5857352998, 0.6341214188)),
    "F": (64, 2, 2, 4, 5, "max", (387.3810757315, 365.3541885801, 257.8103603251),
          (0.3343697513, 0.6076886559, 0.7787863019, 0.8731232092),
          (-0.1938739757, 0.2405146384, 0.3455887884, 0.0162508668),
          (37.5963958289, 44.0590176594, 313.9862645457), (-0.0487336286, -0.0499404631, -0.0500120898),
          (0, 0, 0), (0, 1.9271466535, 0)),
    "G": (64, 2, 2, 4, 5, "ldconv", (104.9644586251, 263.1487657975, 263.6176838658),
          (0.2161285626, 0.4029112312, 0.5373619268, 0.6075331604),
          (-0.2785366510, 0.0701858050, 0.1184643764, -0.2649139609),
          (38.1751185037, 42.3424606051, 308.6473271254), (-0.0114571199, -0.0148756488, -0.0182213168),
          (0.2221912870, 0.2023655413, 0.1800936406), (0.5108097037, 0.5825722669, 0.6311095121)),
    "H": (37, 2, 2, 4, 5, "ldconv", (105.2878781531, 174.7440921254, 150.5843930226),
          (0.2161285626, 0.4029112312, 0.5373619268, 0.6075331604),
          (0.8743410340, -0.4500747361, -0.8293421017, 0.3868473536),
          (33.1309776843, 33.5973279822, 176.2993347854), (-0.0114571199, -0.0148756488, -0.0182213168),
          (0.2221912870, 0.2023655413, 0.1800936406), (-2.5627431088, -2.6520331988, -2.6355950943)),
    "I": (37, 1, 1, 4, 4, "mean", (110.6643967658, 209.1224792285, 98.7614453653),
          (0.1541442013, 0.2983995169, 0.4237659100, 0.5229304550),
          (0.7963192830, -0.7038677994, -0.5764922196, 0.8454447079),
          (29.1379804784, 33.2064906335, 208.5104350937), (0.0521898149, 0.0472831129, 0.0421448183),
          (0.2496410047, 0.2449032464, 0.2372051455), (-1.0062528987, -0.8589130388, -0.6773310265)),
}  # fmt: skip
# Σ|dWp| and dWp[0, :3], both weights being one tensor.
GOLDEN_WEIGHT = {
    "G": (36.5933662376, (-1.7781177440, -2.3553054961, -2.2555282992)),
    "H": (38.0174297249, (-1.7663152177, -2.3147257723, -2.6973812922)),
}
GOLDEN_KBAR = {
    "E": ((0.8493570128, 0.8767097892, 0.8997684415), (-0.7623475761, -0.7188443234, -0.6718201715)),
    "F": ((1.0, 0.9975510003, 0.9959527330), (-0.5335843866, -0.4731236971, -0.4103456479)),
    "G": ((0.8588640695, 0.8844546112, 0.9057130947), (-0.7740420523, -0.7315039801, -0.6853830018)),
    "H": ((0.8588640695, 0.8844546112, 0.9057130947), (-0.9701911581, -0.9508651469, -0.9268817987)),
    "I": ((0.9102412269, 0.9308914500, 0.9469821673), (-0.9701911581, -0.9508651469, -0.9268817987)),
}


def golden(actual, expected, rtol):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double().flatten(), expected.flatten(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case, dtype):
    rtol, _ = tolerance(dtype, "attention")
    L, left, right, stride, kernel, mode, sums, first, last, grad_sums, dq5, dk7, dv_last = GOLDEN[case]
    q, k, v, g = (t.to(dtype) for t in formula_inputs(2, L, 8))
    leaves = q, k, v = [t.requires_grad_() for t in (q, k, v)]
    weight = formula_weight(kernel, 8).to(dtype).requires_grad_() if mode == "ldconv" else None
    if mode is None:
        out, lse = band_attention(q, k, v, left=left, right=right, return_lse=True)
    else:
        out, lse = pooling_attention(
            q, k, v, radius=left, kernel=kernel, stride=stride, mode=mode, weight_k=weight, weight_v=weight,
            return_lse=True,
        )  # fmt: skip
        kbar, _ = pool_kv(k, v, kernel=kernel, stride=stride, mode=mode, weight_k=weight, weight_v=weight)
        golden(torch.stack([kbar[0, 0, 0, :3], kbar[0, -1, -1, :3]]), GOLDEN_KBAR[case], rtol)
    (out * g).sum().backward()
    golden(torch.stack([out.sum(), out.square().sum(), lse.sum()]), sums, 4 * rtol)
    golden(out[0, 0, 0, :4], first, rtol)
    golden(out[0, -1, -1, :4], last, rtol)
    golden(torch.stack([t.grad.abs().sum() for t in leaves]), grad_sums, 4 * rtol)
    golden(q.grad[0, 0, 5, :3], dq5, rtol)
    golden(k.grad[0, -1, 7, :3], dk7, rtol)
    golden(v.grad[0, 0, -1, :3], dv_last, rtol)
    if weight is not None:
        total, begin = GOLDEN_WEIGHT[case]
        golden(weight.grad.abs().sum(), [total], 4 * rtol)
        golden(weight.grad[0, :3], begin, 4 * rtol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_half(case, dtype):
    L, left, right, stride, kernel, mode, *_ = GOLDEN[case]
    q, k, v, _ = (t.to(dtype) for t in formula_inputs(2, L, 8))
    weight = formula_weight(kernel, 8).to(dtype) if mode == "ldconv" else None

    def run(convert):
        x = [convert(t) for t in (q, k, v)]
        if mode is None:
            return band_attention(*x, left=left, right=right)
        w = None if weight is None else convert(weight)
        return pooling_attention(*x, radius=left, kernel=kernel, stride=stride, mode=mode, weight_k=w, weight_v=w)

    assert_close(run(lambda t: t).float(), run(torch.Tensor.float), dtype=dtype, op="attention")


def test_golden_two_levels():
    """Case J: level 2 reads level 1's output, and is added to it."""
    L, d, H, kernel = 48, 16, 2, 5
    i, c = grid(L, d)
    x = torch.sin(0.13 * i * (1 + 0.1 * c) + 0.3 * c)
    a, b = grid(d, d)
    project = [0.25 * torch.sin(0.7 * a + 1.1 * b * (s + 1) + s) for s in range(6)]

    def heads(t, s):
        return (t @ project[s].T).view(1, L, H, d // H).transpose(1, 2)

    y = band_attention(*(heads(x, s) for s in range(3)), left=4, right=4)
    flat = y.transpose(1, 2).reshape(L, d)
    weight = formula_weight(kernel, d // H)
    args = {"radius": 3, "kernel": kernel, "stride": 4, "weight_k": weight, "weight_v": weight}
    z = pooling_attention(*(heads(flat, s) for s in range(3, 6)), **args)
    o = pooling_attention(*(heads(flat, s) for s in range(3, 6)), **args, residual=y)
    o = o.transpose(1, 2).reshape(L, d)
    sums = torch.stack([y.sum(), z.sum(), o.sum(), o.square().sum()])
    golden(sums, (0.0279685804, -0.0153804993, 0.0125880811, 5.9521389716), 1e-8)
    golden(o[0, :4], (-0.0676707031, -0.0550515934, -0.0165408591, 0.0297492997), 1e-9)
    golden(o[47, :4], (-0.0353013639, -0.0052607712, 0.0272540444, 0.0469508570), 1e-9)


# ---- random cases ----


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


# ---- torch's own contracts ----


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


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any op returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(result):
            if isinstance(t, torch.Tensor):
                self.largest = max(self.largest, t.numel())
        return result


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
