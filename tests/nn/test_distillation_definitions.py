# SPDX-License-Identifier: Apache-2.0
"""Distillation losses against loops over numpy, the golden numbers of the spec, and where the usual code gives NaN."""

import math

import numpy as np
import pytest
import torch
from innerloop.nn.distillation import DKDLoss, KDLoss, cosine_kd, dkd, kd
from innerloop.nn.distillation_features import PKTLoss, RKDLoss, SPLoss, hcl, pkt, rkd, sp
from nn.distillation_cases import FLOAT32, LABELS, PKT_EPS, golden_logits, gradient, numpy, pair
from tolerances import assert_close
from torch import Tensor
from torch.nn import functional as F

# Loss and norm of the gradient are given to ten digits or more, the one entry to ten decimals.
GOLDEN = {"loss": 1e-12, "norm": 1e-10, "entry": 1e-10}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (kd, (1.101789525966, 0.2052588124, -0.0089931568)),
        (lambda s, t: dkd(s, t, LABELS), (8.628288138295, 1.7525418865, -0.0089931568)),
    ],
    ids=["kd", "dkd"],
)
def test_golden(loss, expected):
    student, teacher = golden_logits()
    value = loss(student, teacher)
    grad = gradient(value, student)
    assert value.item() == pytest.approx(expected[0], abs=GOLDEN["loss"])
    assert grad.norm().item() == pytest.approx(expected[1], abs=GOLDEN["norm"])
    assert grad[0, 0].item() == pytest.approx(expected[2], abs=GOLDEN["entry"])


# The definitions, one number at a time.


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def plain_kd(s: np.ndarray, t: np.ndarray, temperature: float, standardize: bool) -> float:
    if standardize:
        s, t = ([(row - row.mean()) / (row.std(ddof=1) + 1e-7) for row in x] for x in (s, t))
    rows = [kl(softmax(b / temperature), softmax(a / temperature)) for a, b in zip(s, t, strict=True)]
    return temperature**2 * float(np.mean(rows))


def plain_dkd(s: np.ndarray, t: np.ndarray, labels: list[int], alpha: float, beta: float, temperature: float) -> float:
    total = 0.0
    for a, b, y in zip(s, t, labels, strict=True):
        q, p = softmax(a / temperature), softmax(b / temperature)
        total += alpha * kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        total += beta * kl(*(softmax(np.delete(x, y) / temperature) for x in (b, a)))
    return temperature**2 * total / len(labels)


def plain_cosine(s: np.ndarray, t: np.ndarray) -> float:
    return float(np.mean([1 - a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(s, t, strict=True)]))


def smooth_l1(a: float, b: float) -> float:
    d = abs(a - b)
    return d - 0.5 if d > 1 else d * d / 2


def plain_rkd(s: np.ndarray, t: np.ndarray) -> float:
    n = len(s)
    distances, angles = [], []
    for x in (s, t):
        d = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
        distances.append(d / d[d > 0].mean())
        of_x = np.zeros((n, n, n))
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    if i not in (j, k):
                        of_x[i, j, k] = (x[j] - x[i]) @ (x[k] - x[i]) / (d[i, j] * d[i, k])
        angles.append(of_x)
    distance = np.mean([smooth_l1(a, b) for a, b in zip(*(d.flat for d in distances), strict=True)])
    angle = np.mean([smooth_l1(a, b) for a, b in zip(*(x.flat for x in angles), strict=True)])
    return 25 * float(distance) + 50 * float(angle)


def plain_sp(s: np.ndarray, t: np.ndarray) -> float:
    total = 0.0
    for i in range(len(s)):
        of_s, of_t = (np.array([x[i] @ x[j] for j in range(len(x))]) for x in (s, t))
        total += ((of_s / np.sqrt((of_s**2).sum()) - of_t / np.sqrt((of_t**2).sum())) ** 2).sum()
    return 3000 * total / len(s) ** 2


def plain_pkt(s: np.ndarray, t: np.ndarray) -> float:
    total, n = 0.0, len(s)
    for i in range(n):
        q, p = ([(x[i] @ x[j] / np.sqrt((x[i] @ x[i]) * (x[j] @ x[j])) + 1) / 2 for j in range(n)] for x in (s, t))
        for a, b in zip(np.array(q) / sum(q), np.array(p) / sum(p), strict=True):
            total += b * math.log((b + PKT_EPS) / (a + PKT_EPS))
    return 30000 * total / n**2


def plain_hcl(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    total = 0.0
    for s, t in pairs:
        height, width = s.shape[2:]
        loss, weight, weights = float(np.mean((s - t) ** 2)), 1.0, 1.0
        for size in (4, 2, 1):
            if size >= height:
                continue
            error = np.zeros((*s.shape[:2], size, size))
            for i in range(size):
                for j in range(size):
                    rows = slice(i * height // size, -(-(i + 1) * height // size))
                    columns = slice(j * width // size, -(-(j + 1) * width // size))
                    error[:, :, i, j] = (s - t)[:, :, rows, columns].mean((2, 3))
            weight /= 2
            weights += weight
            loss += weight * float(np.mean(error**2))
        total += loss / weights
    return total


@pytest.mark.parametrize("temperature", [1, 4.0])
@pytest.mark.parametrize("standardize", [False, True])
def test_kd_is_its_definition(temperature, standardize):
    student, teacher = pair(5, 7)
    expected = plain_kd(*numpy(student, teacher), temperature, standardize)
    options = {"temperature": temperature, "standardize": standardize}
    assert kd(student, teacher, **options).item() == pytest.approx(expected, rel=1e-10)
    assert KDLoss(**options)(student, teacher).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_dkd_is_its_definition(num_classes):
    student, teacher = pair(9, num_classes)
    labels = torch.arange(9) % num_classes
    expected = plain_dkd(*numpy(student, teacher), labels.tolist(), 0.7, 3.0, 2.0)
    assert dkd(student, teacher, labels, alpha=0.7, beta=3.0, temperature=2.0).item() == pytest.approx(expected)
    assert DKDLoss(0.7, 3, 2, warmup_epochs=0)(student, teacher, labels).item() == pytest.approx(expected)


def test_cosine_is_its_definition():
    student, teacher = pair(5, 7)
    assert cosine_kd(student, teacher).item() == pytest.approx(plain_cosine(*numpy(student, teacher)))


@pytest.mark.parametrize(("module", "plain"), [(RKDLoss, plain_rkd), (SPLoss, plain_sp), (PKTLoss, plain_pkt)])
def test_relations_are_their_definition(module, plain):
    student, teacher = pair(6, 3, width=5)
    expected = plain(*numpy(student, teacher))
    assert module()(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert module()(student.view(6, 3, 1, 1), teacher).item() == pytest.approx(expected, rel=1e-10)  # (B, ...)


def test_weights():
    student, teacher = pair(6, 3)
    assert_close(SPLoss(2)(student, teacher), 2 * sp(student, teacher))
    assert_close(PKTLoss(2)(student, teacher), 2 * pkt(student, teacher))
    both = rkd(student, teacher, distance_weight=0, angle_weight=2) + RKDLoss(3, 0)(student, teacher)
    assert_close(RKDLoss(3, 2)(student, teacher), both)


def test_hcl_is_its_definition():
    shapes = [(2, 3, 8, 8), (2, 4, 7, 5), (2, 4, 4, 4), (2, 5, 2, 2), (2, 6, 1, 1)]
    pairs = [pair(*shape) for shape in shapes]
    expected = plain_hcl([numpy(*p) for p in pairs])
    assert hcl(*zip(*pairs, strict=True)).item() == pytest.approx(expected, rel=1e-10)


def test_warmup_is_linear():
    student, teacher = golden_logits()
    full = dkd(student, teacher, LABELS)
    loss = DKDLoss()
    for epoch, share in ((0, 0), (1, 0.05), (10.5, 0.525), (20, 1), (200, 1)):
        assert_close(loss(student, teacher, LABELS, epoch), share * full)


# Where the usual code fails. It is written down here as the harnesses have it.


def usual_dkd(s: Tensor, t: Tensor, labels: Tensor, temperature: float = 4.0) -> Tensor:
    mask = F.one_hot(labels, s.shape[1]).bool()

    def binary(logits: Tensor) -> Tensor:
        p = F.softmax(logits / temperature, dim=1)
        return torch.stack([(p * mask).sum(1), (p * ~mask).sum(1)], dim=1)

    tckd = F.kl_div(binary(s).log(), binary(t), reduction="sum")
    rest = [logits / temperature - 1000.0 * mask for logits in (s, t)]
    nckd = F.kl_div(F.log_softmax(rest[0], dim=1), F.softmax(rest[1], dim=1), reduction="sum")
    return temperature**2 * (tckd + 8 * nckd) / len(s)


def usual_pkt(s: Tensor, t: Tensor) -> Tensor:
    q, p = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-7) for x in (s, t))
    q, p = ((x @ x.T + 1) / 2 for x in (q, p))
    q, p = (x / x.sum(1, keepdim=True) for x in (q, p))
    return (p * ((p + PKT_EPS) / (q + PKT_EPS)).log()).mean()


def usual_rkd_distance(s: Tensor, t: Tensor) -> Tensor:
    of_both = []
    for x in (s, t):
        square = x.square().sum(1)
        d = (square[:, None] + square - 2 * x @ x.T).clamp(min=1e-12).sqrt()
        d = d * (1 - torch.eye(len(x), dtype=x.dtype))
        of_both.append(d / d[d > 0].mean())
    return F.smooth_l1_loss(*of_both)


def test_agrees_with_the_usual_code():
    student, teacher = (x.detach() for x in pair(6, 5))
    labels = torch.arange(6) % 5
    assert_close(dkd(student, teacher, labels), usual_dkd(student, teacher, labels))
    assert pkt(student, teacher).item() == pytest.approx(usual_pkt(student, teacher).item(), rel=1e-6)  # its eps
    distance = rkd(student, teacher, distance_weight=1, angle_weight=0)
    assert_close(distance, usual_rkd_distance(student, teacher))


def test_dkd_of_saturated_logits():
    """Probabilities underflow; and a shift of 1000 does not remove a target logit of 1e4 / 4."""
    labels = torch.tensor([0, 1, 2])
    student = torch.tensor([[1e4, -1e4, 0], [1e4, -1e4, 5], [0, 1, -1e4]], requires_grad=True)
    teacher = torch.tensor([[1e4, 1, -1e4], [-1e4, 1e4, 0], [-1e4, 0, 1e4]])
    assert not usual_dkd(student, teacher, labels).isfinite()
    loss = dkd(student, teacher, labels)
    grad = gradient(loss, student)
    wide = student.detach().double().requires_grad_()
    truth = dkd(wide, teacher.double(), labels)
    assert loss.item() == pytest.approx(truth.item(), rel=FLOAT32)
    assert_close(grad.double(), gradient(truth, wide), dtype=torch.float32)
    # Row 0 by hand: no TCKD; the teacher's others are all class 1, the student's all class 2, 1e4 / T apart.
    assert dkd(student[:1], teacher[:1], labels[:1]).item() == pytest.approx(16 * 8 * 1e4 / 4, rel=FLOAT32)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_dkd_of_two_classes(scale):
    student, teacher = pair(6, 2, dtype=torch.float32)
    student, teacher = (scale * student).detach().requires_grad_(), scale * teacher
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    nckd = dkd(student, teacher, labels, alpha=0)
    assert nckd.item() == 0
    assert not gradient(nckd, student).any()
    # And TCKD is all of KD.
    loss, expected = dkd(student, teacher, labels), kd(student, teacher)
    assert_close(loss, expected)
    assert_close(gradient(loss, student), gradient(expected, student))
    if scale > 1:
        assert not usual_dkd(student, teacher, labels).isfinite()


def test_kd_of_classes_ruled_out():
    student, teacher = pair(4, 5)
    out = torch.arange(5) == 3
    ruled = student.masked_fill(out, -torch.inf), teacher.masked_fill(out, -torch.inf)
    assert F.kl_div(ruled[0].log_softmax(1), ruled[1].softmax(1), reduction="batchmean").isnan()
    loss, expected = kd(*ruled), kd(student[:, ~out], teacher[:, ~out])
    assert_close(loss, expected)
    assert_close(gradient(loss, student), gradient(expected, student))
    assert kd(student, ruled[1]).isfinite()


@pytest.mark.parametrize("value", [0.0, 0.1, -3e3])
def test_standardized_constant_row(value):
    """As of a classifier that starts at 0: the usual gradient is 1 / eps times too large."""
    student, teacher = torch.full((2, 7), value, requires_grad=True), torch.randn(2, 7)
    loss = kd(student, teacher, temperature=2, standardize=True)
    assert not gradient(loss, student).any()
    assert loss.item() == pytest.approx(plain_kd(np.zeros((2, 7)), teacher.double().numpy(), 2, True), rel=FLOAT32)


def test_standardized_single_class():
    student = torch.randn(3, 1, requires_grad=True)
    loss = kd(student, torch.randn(3, 1), standardize=True)
    assert loss.item() == 0
    assert not gradient(loss, student).any()


@pytest.mark.parametrize("width", [7, 1000, 20000])
def test_pkt_of_opposite_rows(width):
    """Cosines that round below -1, by more than ε, make the usual logarithm NaN."""
    x = torch.ones(1, width)
    student = torch.cat([x, -x]).requires_grad_()
    loss = pkt(student, torch.randn(2, width))
    assert loss.isfinite()
    assert gradient(loss, student).isfinite().all()


def test_zero_rows_in_the_usual_code():
    student = torch.zeros(3, 4, requires_grad=True)
    teacher = torch.randn(3, 4)
    assert gradient(usual_pkt(student, teacher), student).isnan().any()
    assert usual_rkd_distance(student[:1], teacher[:1]).isnan()
    assert gradient((1 - F.cosine_similarity(student, teacher)).mean(), student).abs().max() > 1e6
