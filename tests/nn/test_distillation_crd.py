# SPDX-License-Identifier: Apache-2.0
"""CRD against a loop over numpy: its state over batches, draws, half types, errors."""

import copy
import math

import numpy as np
import pytest
import torch
from innerloop.nn.distillation_features import CRDLoss
from nn.distillation_cases import FLOAT32, make_crd, numpy
from tolerances import assert_close
from torch import Tensor
from torch.nn import functional as F

# CRD forms all scores of few samples, and gathers some of many.
every_path = pytest.mark.parametrize("n", [8, 500], ids=["all_scores", "gathered"])


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
