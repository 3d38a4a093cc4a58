# SPDX-License-Identifier: Apache-2.0
"""Distillation losses against loops over numpy, the golden numbers of the spec, and where the usual code gives NaN."""

import copy
import math

import numpy as np
import pytest
import torch
from innerloop.nn.distillation import DKDLoss, KDLoss, cosine_kd, dkd, kd
from innerloop.nn.distillation_features import CRDLoss, PKTLoss, RKDLoss, SPLoss, hcl, pkt, rkd, sp
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

# Loss and norm of the gradient are given to ten digits or more, the one entry to ten decimals.
GOLDEN = {"loss": 1e-12, "norm": 1e-10, "entry": 1e-10}
FLOAT32 = 1e-5  # relative, of a loss against float64
FLOAT32_GRADIENT = 1e-4  # relative, of its norm: terms of alike size cancel
PKT_EPS = 1e-7

B, C = 8, 6
LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])


def golden_logits() -> tuple[Tensor, Tensor]:
    j = torch.arange(B * C, dtype=torch.float64).view(B, C)
    student = 2 * (0.3 * j).cos() + (1 + 0.7 * j).sin()
    return student.requires_grad_(), 3 * (1 + 0.7 * j).sin()


def pair(*shape: int, width: int | None = None, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A student with gradient and a teacher, of another width where one is given."""
    teacher = shape if width is None else (shape[0], width)
    return torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(teacher, dtype=dtype)


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss, student)[0]


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
# CRD forms all scores of few samples, and gathers some of many.
every_path = pytest.mark.parametrize("n", [8, 500], ids=["all_scores", "gathered"])


def make_crd(n: int = 20, **options) -> CRDLoss:
    options = {"student_dim": 5, "teacher_dim": 7, "num_samples": n, "dim": 4, "num_negatives": 6, **options}
    return CRDLoss(**options).double()


# Golden numbers.


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


def numpy(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.detach().numpy() for t in tensors)


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


# CRD.


def plain_crd(crd: CRDLoss, f_s: Tensor, f_t: Tensor, contrast_index: Tensor, z: list[float] | None) -> tuple:
    """The loss and both Z, in the form of the paper with probabilities."""
    banks = numpy(crd.memory_teacher, crd.memory_student)
    n, loss, found = crd.num_samples, 0.0, []
    for side, (embed, f, bank) in enumerate(
        zip((crd.embed_student, crd.embed_teacher), (f_s, f_t), banks, strict=True)
    ):
        weight, bias, x = numpy(embed.weight, embed.bias, f)
        v = [weight @ row + bias for row in x]
        v = [row / np.sqrt(row @ row) for row in v]
        contrasts = zip(v, contrast_index.tolist(), strict=True)
        out = np.array([[math.exp(bank[k] @ row / crd.temperature) for k in ks] for row, ks in contrasts])
        found.append(out.mean() * n if z is None else z[side])
        h, noise = out / found[-1], (out.shape[1] - 1) / n
        for row in h:
            loss -= (math.log(row[0] / (row[0] + noise)) + sum(math.log(noise / (x + noise)) for x in row[1:])) / len(h)
    return loss, found


@every_path
def test_crd_is_its_definition(n):
    """Over two batches: Z is that of the first, the banks have moved before the second."""
    crd, z = make_crd(n), None
    for index in (torch.tensor([0, 3, 5]), torch.tensor([5, 2, 3])):
        f_s, f_t = torch.randn(3, 5).double(), torch.randn(3, 7).double()
        contrast_index = crd.sample(index)
        expected, z = plain_crd(crd, f_s, f_t, contrast_index, z)
        before = crd.memory_student.clone()
        loss = crd(f_s, f_t, index, contrast_index)
        assert loss.item() == pytest.approx(expected, rel=1e-10)
        assert_close(crd.log_z, torch.tensor(z).double().log())
        v = F.normalize(crd.embed_student(f_s), dim=1)
        before[index] = F.normalize(0.5 * before[index] + 0.5 * v.detach(), dim=1)
        assert_close(crd.memory_student, before)
        loss.backward()  # the banks have changed by now
    assert crd.embed_teacher.weight.grad.abs().sum() > 0


@every_path
def test_crd_gradient(n):
    crd = make_crd(n)
    index = torch.tensor([0, 3, 5])
    contrast_index = crd.sample(index)
    crd(torch.randn(3, 5).double(), torch.randn(3, 7).double(), index, contrast_index)
    crd.eval()
    f_s, f_t = torch.randn(3, 5).double().requires_grad_(), torch.randn(3, 7).double().requires_grad_()
    weights = crd.embed_student.weight, crd.embed_teacher.weight
    assert torch.autograd.gradcheck(lambda f, *_: crd(f, f_t, index, contrast_index), (f_s, *weights))
    crd(f_s, f_t, index, contrast_index).backward()
    assert f_t.grad is None


def test_crd_in_evaluation_keeps_its_state():
    crd = make_crd().eval()
    state = copy.deepcopy(crd.state_dict())
    loss = crd(torch.randn(3, 5), torch.randn(3, 7), torch.arange(3))
    assert loss.isfinite()
    for name, value in crd.state_dict().items():
        assert_close(value, state[name])


def test_crd_samples():
    crd = CRDLoss(5, 7, num_samples=1000, num_negatives=50)
    index = torch.tensor([4, 999, 0])
    draws = [crd.sample(index, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0].shape == (3, 51)
    assert torch.equal(draws[0][:, 0], index)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].min() >= 0
    assert draws[0].max() < 1000
    f_s, f_t = torch.randn(3, 5), torch.randn(3, 7)
    seeded = copy.deepcopy(crd)(f_s, f_t, index, generator=torch.Generator().manual_seed(1))
    assert torch.equal(seeded, crd(f_s, f_t, index, draws[0]))


def test_crd_at_a_low_temperature():
    """exp(1 / T) overflows float32, and the quotients of the usual form with it."""
    crd = CRDLoss(5, 7, num_samples=20, num_negatives=30, temperature=0.001)
    f_s, f_t, index = torch.randn(3, 5), torch.randn(3, 7), torch.arange(3)
    assert (F.normalize(crd.embed_student(f_s), dim=1) @ crd.memory_teacher.T / crd.temperature).exp().isinf().any()
    for _ in range(2):
        contrast_index = crd.sample(index)
        crd.zero_grad()
        loss = crd(f_s, f_t, index, contrast_index)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in crd.parameters())


def test_crd_edges():
    crd = CRDLoss(5, 7, num_samples=20, num_negatives=3)
    for index in ([], [2], [1, 1]):  # none, one, the same sample twice
        rows = len(index)
        f_s = torch.zeros(rows, 5, requires_grad=True)
        loss = crd(f_s, torch.zeros(rows, 7, 1), torch.tensor(index, dtype=torch.int64))
        loss.backward()
        assert loss.isfinite()
        assert f_s.grad.isfinite().all()
        assert bool(crd.log_z.isnan().all()) == (rows == 0)
    assert crd.memory_student.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_crd_half(dtype):
    crd = CRDLoss(5, 7, num_samples=20, num_negatives=6)
    f_s, f_t, index = (
        torch.randn(3, 5, dtype=dtype, requires_grad=True),
        torch.randn(3, 7, dtype=dtype),
        torch.arange(3),
    )
    contrast_index = crd.sample(index)
    exact = copy.deepcopy(crd).double()(f_s.double(), f_t.double(), index, contrast_index)
    in_half = copy.deepcopy(crd).to(dtype)(f_s, f_t, index, contrast_index)
    loss = crd(f_s, f_t, index, contrast_index)
    loss.backward()
    assert f_s.grad.dtype == dtype
    assert loss.dtype == in_half.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=FLOAT32)
    assert in_half.isfinite()


# What holds for all losses.


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


@every_path
def test_compile_crd(n):
    crd = make_crd(n)
    other = copy.deepcopy(crd)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        f_s, f_t, index = torch.randn(3, 5), torch.randn(3, 7), torch.randperm(8)[:3]
        contrast_index = crd.sample(index)
        crd(f_s, f_t, index, contrast_index).backward()
        compiled(f_s, f_t, index, contrast_index).backward()
        for ours, theirs in zip(crd.state_dict().values(), other.state_dict().values(), strict=True):
            assert_close(theirs, ours)
        for ours, theirs in zip(crd.parameters(), other.parameters(), strict=True):
            assert_close(theirs.grad, ours.grad)
    assert compiled(f_s, f_t, index).isfinite()


def test_compile_modules():
    student, teacher = golden_logits()
    loss = DKDLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for epoch in (1, 2, 3, 30):
        assert_close(compiled(student, teacher, LABELS, epoch), loss(student, teacher, LABELS, epoch))
    for module in (KDLoss(standardize=True), RKDLoss(), SPLoss(), PKTLoss()):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_close(compiled(student, teacher), module(student, teacher))


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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_samples": 0}, "CRDLoss: num_samples is 0, expected an int of at least 1"),
        ({"dim": 2.5}, "CRDLoss: dim is 2.5"),
        ({"temperature": 0}, "CRDLoss: temperature is 0"),
        ({"momentum": 1.5}, r"CRDLoss: momentum is 1.5, expected a number in \[0, 1\]"),
    ],
)
def test_crd_option_errors(options, text):
    with pytest.raises(ValueError, match=text):
        make_crd(**options)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"f_s": torch.zeros(3, 6)},
            ValueError,
            r"CRDLoss: f_s has shape \(3, 6\), expected \(B, ...\) with 5 features",
        ),
        ({"f_s": torch.zeros(())}, ValueError, r"CRDLoss: f_s has shape \(\)"),
        ({"f_t": torch.zeros(2, 7)}, ValueError, r"CRDLoss: f_t has shape \(2, 7\), expected .* B that of f_s"),
        ({"f_t": torch.zeros(3, 7).int()}, TypeError, r"CRDLoss: f_t has dtype torch.int32"),
        ({"index": torch.arange(2)}, ValueError, r"CRDLoss: index is torch.int64 of shape \(2,\), expected .*\(3,\)"),
        ({"index": torch.zeros(3)}, ValueError, r"CRDLoss: index is torch.float32"),
        ({"index": [1, 2, 3]}, TypeError, r"CRDLoss: index is list"),
        ({"index": torch.tensor([0, 1, 20])}, (IndexError, RuntimeError), "out of (range|bounds)"),
        ({"index": torch.tensor([0, 1, -1])}, (IndexError, RuntimeError), "out of (range|bounds)"),
        ({"contrast_index": torch.zeros(3, 1).long()}, ValueError, r"of \(3, 1 \+ K\) with K at least 1"),
        ({"contrast_index": torch.zeros(2, 4).long()}, ValueError, r"contrast_index is torch.int64 of shape \(2, 4\)"),
        ({"contrast_index": torch.zeros(3, 4)}, ValueError, r"contrast_index is torch.float32"),
        ({"contrast_index": [[1, 2]] * 3}, TypeError, r"contrast_index is list"),
    ],
)
def test_crd_input_errors(change, error, text):
    inputs = {"f_s": torch.zeros(3, 5), "f_t": torch.zeros(3, 7), "index": torch.arange(3)} | change
    with pytest.raises(error, match=text):
        make_crd()(**inputs)


@every_path
@pytest.mark.parametrize("wrong", [-1, 500])
def test_crd_contrast_out_of_range(n, wrong):
    contrast_index = torch.zeros(3, 7, dtype=torch.int64)
    contrast_index[1, 2] = wrong
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        make_crd(n)(torch.zeros(3, 5), torch.zeros(3, 7), torch.arange(3), contrast_index)


def test_repr():
    modules = nn.ModuleList([KDLoss(), DKDLoss(), RKDLoss(), SPLoss(), PKTLoss(), make_crd()])
    text = repr(modules)
    for part in ("KDLoss(temperature=4.0, standardize=False)", "beta=8.0", "angle_weight=50.0", "num_negatives=6"):
        assert part in text
