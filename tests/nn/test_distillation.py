# SPDX-License-Identifier: Apache-2.0
"""What holds for all distillation losses: gradients, degenerate batches, dtypes, compile, errors."""

import math

import pytest
import torch
from innerloop.nn.distillation import DKDLoss, KDLoss, cosine_kd, dkd, kd
from innerloop.nn.distillation_features import PKTLoss, RKDLoss, SPLoss, hcl, pkt, rkd, sp
from nn.distillation_cases import FLOAT32, LABELS, PKT_EPS, golden_logits, gradient, make_crd, pair
from tolerances import assert_close
from torch import Tensor, nn

FLOAT32_GRADIENT = 1e-4  # relative, of its norm: terms of alike size cancel


def maps(tensors: list[Tensor]) -> list[Tensor]:
    return [t.view(len(t), 2, 5, 5) for t in tensors]


LOGIT_LOSSES = {
    "kd": kd,
    "kd_standardize": lambda s, t: kd(s, t, temperature=2, standardize=True),
    "dkd": lambda s, t: dkd(s, t, torch.arange(len(s)) % s.shape[1]),
    "cosine": cosine_kd,
}
FEATURE_LOSSES = {
    "rkd": rkd,
    "sp": lambda s, t: SPLoss()(s, t),
    "pkt": lambda s, t: PKTLoss()(s, t),
    "hcl": lambda s, t: hcl(maps([s]), maps([t])),
}
LOSSES = LOGIT_LOSSES | FEATURE_LOSSES
every_loss = pytest.mark.parametrize("name", LOSSES)


def inputs(name: str, rows: int = 4) -> tuple[Tensor, Tensor]:
    return pair(rows, 50) if name == "hcl" else pair(rows, 6)


@every_loss
def test_gradcheck(name):
    student, teacher = inputs(name)
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher), student)
    assert torch.autograd.gradgradcheck(lambda s: LOSSES[name](s, teacher), student)


@every_loss
def test_teacher_gets_no_gradient(name):
    student, teacher = inputs(name)
    teacher.requires_grad_()
    LOSSES[name](student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@every_loss
def test_nothing_to_learn_from_itself(name):
    student, _ = inputs(name)
    loss = LOSSES[name](student, student)
    assert loss.item() == pytest.approx(0, abs=1e-10)
    # PKT adds its ε to both, which moves its minimum.
    assert gradient(loss, student).abs().max() <= (30000 * PKT_EPS if name == "pkt" else 1e-10)


@every_loss
@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("case", ["random", "identical", "zero", "student_zero", "one_zero_row", "constant"])
def test_degenerate_batches(name, rows, case):
    student, teacher = (x.detach().float() for x in inputs(name, rows))
    if case == "identical":
        student, teacher = student[:1].expand_as(student).clone(), teacher[:1].expand_as(teacher)
    elif case == "constant":
        student = torch.full_like(student, 0.1)
    elif case == "one_zero_row":
        student[:1] = 0
    elif case in ("zero", "student_zero"):
        student = torch.zeros_like(student)
        teacher = teacher if case == "student_zero" else torch.zeros_like(teacher)
    student.requires_grad_()
    loss = LOSSES[name](student, teacher)
    grad = gradient(loss, student)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert grad.abs().max() < 1e6 if rows else loss == 0  # no 1 / eps


@pytest.mark.parametrize("name", ["rkd", "sp", "pkt"])
def test_relations_of_one_row(name):
    student, teacher = pair(1, 5)
    loss = FEATURE_LOSSES[name](student, teacher)
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert_close(gradient(loss, student), torch.zeros_like(student))


@every_loss
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_float32_at_extreme_scales(name, scale):
    student, teacher = (scale * x.detach() for x in inputs(name))
    results = []
    for dtype in (torch.float64, torch.float32):
        s = student.float().to(dtype).requires_grad_()  # the same numbers
        loss = LOSSES[name](s, teacher.float().to(dtype))
        results.append((loss.double(), gradient(loss, s).double()))
    (truth, true_grad), (loss, grad) = results
    assert loss.isfinite()
    # Near zero the terms of KL and of 1 - cos cancel: absolute errors count, of terms that are about 1.
    assert_close(loss, truth, dtype=torch.float32)
    if scale > 1:
        assert (grad - true_grad).norm() <= FLOAT32_GRADIENT * true_grad.norm()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(name, dtype):
    student, teacher = (x.detach().to(dtype) for x in inputs(name))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = LOSSES[name](student.float(), teacher.float())
    loss = LOSSES[name](student, teacher)
    truth = LOSSES[name](student.double(), teacher.double())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(truth.item(), rel=FLOAT32)
    assert lowered.item() == pytest.approx(truth.item(), rel=FLOAT32)
    grad = gradient(loss, student)
    assert grad.dtype == dtype
    assert grad.isfinite().all()
    mixed = LOSSES[name](student.double(), teacher)
    assert mixed.dtype == torch.float64


@every_loss
def test_nan_is_not_hidden(name):
    student, teacher = inputs(name)
    at = torch.zeros_like(teacher, dtype=torch.bool)
    at[1, 2] = True
    assert LOSSES[name](student.masked_fill(at, torch.nan), teacher).isnan()
    assert LOSSES[name](student, teacher.masked_fill(at, torch.nan)).isnan()


@every_loss
def test_compile(name):
    student, teacher = inputs(name)
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    loss = compiled(student, teacher)
    expected = LOSSES[name](student, teacher)
    assert_close(loss, expected)
    assert_close(gradient(loss, student), gradient(expected, student))


def test_compile_modules():
    student, teacher = golden_logits()
    loss = DKDLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for epoch in (1, 2, 3, 30):
        assert_close(compiled(student, teacher, LABELS, epoch), loss(student, teacher, LABELS, epoch))
    for module in (KDLoss(standardize=True), RKDLoss(), SPLoss(), PKTLoss()):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_close(compiled(student, teacher), module(student, teacher))


# Bad input.


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda s, t: kd(s, t[:3]), ValueError, r"kd: teacher has shape \(3, 6\), expected \(8, 6\) as student"),
        (lambda s, t: kd(s[0], t[0]), ValueError, r"kd: student has shape \(6,\), expected \(B, C\)"),
        (lambda s, t: kd(s.long(), t), TypeError, r"kd: student has dtype torch.int64"),
        (lambda s, t: kd(s, t.tolist()), TypeError, r"kd: teacher is list, expected a tensor"),
        (lambda s, t: kd(s, t, temperature=0), ValueError, r"kd: temperature is 0, expected a finite number above 0"),
        (lambda s, t: kd(s, t, temperature=math.nan), ValueError, r"kd: temperature is nan"),
        (lambda s, t: KDLoss(-1.0), ValueError, r"KDLoss: temperature is -1.0"),
        (lambda s, t: KDLoss("4"), ValueError, r"KDLoss: temperature is '4'"),
        (lambda s, t: cosine_kd(s, t[:, :5]), ValueError, r"cosine_kd: teacher has shape \(8, 5\)"),
        (
            lambda s, t: dkd(s, t, LABELS[:7]),
            ValueError,
            r"dkd: labels is torch.int64 of shape \(7,\), expected .*\(8,\)",
        ),
        (lambda s, t: dkd(s, t, LABELS.int()), ValueError, r"dkd: labels is torch.int32"),
        (lambda s, t: dkd(s, t, LABELS.tolist()), TypeError, r"dkd: labels is list"),
        (lambda s, t: dkd(s, t, LABELS + 1), RuntimeError, r"out of bounds"),
        (lambda s, t: dkd(s, t, LABELS - 1), RuntimeError, r"out of bounds"),
        (lambda s, t: dkd(s[:, :1], t[:, :1], LABELS), ValueError, r"dkd: student has shape \(8, 1\)"),
        (lambda s, t: dkd(s, t, LABELS, temperature=-4), ValueError, r"dkd: temperature is -4"),
        (
            lambda s, t: dkd(s, t, LABELS, beta=-1),
            ValueError,
            r"dkd: beta is -1, expected a finite number, not negative",
        ),
        (lambda s, t: DKDLoss(alpha=math.inf), ValueError, r"DKDLoss: alpha is inf"),
        (lambda s, t: DKDLoss()(s, t, LABELS), ValueError, r"DKDLoss: epoch is None, .* as warmup_epochs is 20"),
        (lambda s, t: DKDLoss()(s, t, LABELS, -1), ValueError, r"DKDLoss: epoch is -1"),
        (lambda s, t: rkd(s, t[:3]), ValueError, r"rkd: teacher has shape \(3, 6\), expected \(8, ...\)"),
        (lambda s, t: sp(s[:, 0], t), ValueError, r"sp: student has shape \(8,\), expected \(B, ...\)"),
        (lambda s, t: pkt(s, t.bool()), TypeError, r"pkt: teacher has dtype torch.bool"),
        (lambda s, t: RKDLoss(-1), ValueError, r"RKDLoss: distance_weight is -1"),
        (lambda s, t: SPLoss(math.nan), ValueError, r"SPLoss: weight is nan"),
        (lambda s, t: PKTLoss(None), ValueError, r"PKTLoss: weight is None"),
        (lambda s, t: hcl([], []), ValueError, r"hcl: student_features has 0 maps"),
        (lambda s, t: hcl([s], [t, t]), ValueError, r"has 1 maps and teacher_features 2, expected as many"),
        (
            lambda s, t: hcl([s], [t]),
            ValueError,
            r"hcl: student_features\[0\] has shape \(8, 6\), expected \(B, C, H, W\)",
        ),
        (
            lambda s, t: hcl([s.view(8, 6, 1, 1)], [t.view(8, 3, 2, 1)]),
            ValueError,
            r"hcl: teacher_features\[0\] has shape \(8, 3, 2, 1\), expected \(8, 6, 1, 1\) as student_features\[0\]",
        ),
    ],
)
def test_errors(call, error, text):
    student, teacher = golden_logits()
    with pytest.raises(error, match=text):
        call(student.detach(), teacher)


def test_repr():
    modules = nn.ModuleList([KDLoss(), DKDLoss(), RKDLoss(), SPLoss(), PKTLoss(), make_crd()])
    text = repr(modules)
    for part in ("KDLoss(temperature=4.0, standardize=False)", "beta=8.0", "angle_weight=50.0", "num_negatives=6"):
        assert part in text
