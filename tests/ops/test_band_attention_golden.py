# SPDX-License-Identifier: Apache-2.0
"""band_attention, pooling_attention and pool_kv against golden values made from formulas."""

import pytest
import torch
from innerloop import band_attention, pool_kv, pooling_attention
from tolerances import assert_close, tolerance


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
