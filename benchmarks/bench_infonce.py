# SPDX-License-Identifier: Apache-2.0
"""In-batch contrastive losses, forward and backward: innerloop against what users have today."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from harness import OURS, Work, assert_near, free_memory, path_taken, peer
from innerloop import ckd, infonce, ntxent, reference
from innerloop.ops._infonce_common import MEMORY_BUDGET
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07
GATE_ROWS = 256  # of the comparison with the definition in float64
HALF = 2e-2  # tolerance in bfloat16: others return the value itself in it, a sum of two rounded ones
BATCHES = {  # by default, and with --full
    "batch": ((512, 4096), (512, 1024, 2048, 4096, 8192, 16384)),
    "gpu_batch": ((32768, 65536), (32768, 65536, 131072, 1048576)),
}

Loss = Callable[..., Tensor]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, (default, full) in BATCHES.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, full if metafunc.config.getoption("--full") else default)


# ---- one implementation, many implementations ----


def train(loss: Loss, inputs: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """A call that gives the value and the gradients of those inputs that want one."""
    leaves = [t for t in inputs if t.requires_grad]

    def call() -> list[Tensor]:
        value = loss(*inputs)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    return call


def checked(losses: dict[str, Loss], truth: Loss, inputs: Sequence[Tensor], tolerance: float) -> dict[str, list]:
    """The calls of all losses, which agree with `truth` in float64 on some of the rows, and with ours on all."""
    part = [(t[:GATE_ROWS] if t.dim() else t).detach().requires_grad_(t.requires_grad) for t in inputs]
    expected = train(truth, [t.detach().double().requires_grad_(t.requires_grad) for t in part])()
    for name, loss in losses.items():
        assert_same(train(loss, part)(), expected, tolerance, f"{name}, {len(part[0])} rows")
    calls = {name: [train(loss, inputs)] for name, loss in losses.items()}
    expected = calls[OURS][0]()
    for name, (call,) in calls.items():
        assert_same(call(), expected, tolerance, name)
    return calls


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float, what: str) -> None:
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_near(a.double(), e.double(), tolerance, f"{what}, {f'gradient {i}' if i else 'value'}")


def present(candidates: dict[str, Loss | str]) -> tuple[dict[str, Loss], dict[str, str]]:
    """The candidates that can run, and why the others can not."""
    losses = {name: c for name, c in candidates.items() if not isinstance(c, str)}
    return losses, {name: c for name, c in candidates.items() if isinstance(c, str)}


def no_room(needed: int, device: str = "cpu") -> str:
    return f"would need about {needed / 1e9:.0f} GB of memory" if needed > 0.6 * free_memory(device) else ""


def compiled(loss: Loss) -> Loss:
    torch._dynamo.reset()
    return torch.compile(loss, dynamic=False)  # the gate's shape and the timed one, each for itself


# ---- CLIP: q and k (B, D), log_scale () ----


def clip(q: Tensor, k: Tensor, log_scale: Tensor) -> Tensor:
    return infonce(q, k, log_scale=log_scale)


def recomputing(q: Tensor, k: Tensor, log_scale: Tensor) -> Tensor:
    return infonce(q, k, log_scale=log_scale, memory_budget=0)


def clip_truth(q: Tensor, k: Tensor, log_scale: Tensor) -> Tensor:
    return reference.infonce(q, k, log_scale=log_scale)


def eager_clip(q: Tensor, k: Tensor, log_scale: Tensor) -> Tensor:
    """Both directions from one matrix of scores, as one writes it by hand."""
    scores = (log_scale.exp() * q) @ k.T
    target = torch.arange(len(q), device=q.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def linear_cross_entropy() -> Loss | None:
    """torch's loss without logits, once for each direction; torch 2.13 has it."""
    if not hasattr(F, "linear_cross_entropy"):
        return None
    options = torch.nn.LinearCrossEntropyOptions()

    def run(q: Tensor, k: Tensor, log_scale: Tensor) -> Tensor:
        q, target = log_scale.exp() * q, torch.arange(len(q), device=q.device)
        rows = F.linear_cross_entropy(q, k, target, options=options)
        return (rows + F.linear_cross_entropy(k, q, target, options=options)) / 2

    return run


def open_clip() -> Loss | None:
    """open_clip's ClipLoss, by its file alone: the package imports torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        return None
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.ClipLoss(cache_labels=True)
    return lambda q, k, log_scale: loss(q, k, log_scale.exp())


def inf_cl() -> Loss | None:
    """Inf-CLIP's Triton kernels, once for each direction. A scale of its own would want a process group."""
    module = peer("inf_cl.ring")
    if module is None:
        return None

    def run(q: Tensor, k: Tensor, log_scale: Tensor) -> Tensor:
        q = log_scale.exp() * q
        return (module.cal_inf_loss(q, k) + module.cal_inf_loss(k, q)) / 2

    return run


def clip_candidates(batch: int, dtype: torch.dtype, device: str, full: bool) -> dict[str, Loss | str]:
    matrix = dtype.itemsize * batch**2  # scores, softmaxes and their gradients are some of these
    return {
        OURS: clip,
        "innerloop, recomputing": recomputing,
        "eager, one matrix": no_room(9 * matrix, device) or eager_clip,
        "torch.compile": no_room(3 * matrix, device) or (compiled(eager_clip) if full else "only with --full"),
        "open_clip": no_room(8 * matrix, device) or open_clip() or "not installed",
        "linear_cross_entropy, twice": linear_cross_entropy() or "not in this torch",
    }


def clip_inputs(batch: int, dim: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    rows = (F.normalize(torch.randn(batch, dim, device=device)).to(dtype) for _ in range(2))
    return [t.requires_grad_() for t in (*rows, torch.tensor(-math.log(TEMPERATURE), device=device))]


def clip_work(batch: int, dim: int, dtype: torch.dtype = torch.float32) -> Work:
    """Inputs read and gradients written; three products of size B · B · D, or four where scores are not kept."""
    products = 3 if 4 * batch**2 <= MEMORY_BUDGET else 4
    return Work(4 * batch * dim * dtype.itemsize, 2 * products * batch**2 * dim, str(dtype).removeprefix("torch."))


NOTE = "% of limit counts 6·B²·D operations where the scores fit in 64 MiB, else 8·B²·D; recomputing always does 8"


@pytest.mark.parametrize("dim", [256, 512])
def test_clip(batch, dim, full, quick, compare):
    """Goals: 75 % of the limit, faster than all others from 512 rows on, twice open_clip at 16384."""
    batch, dim = (96, 32) if quick else (batch, dim)
    losses, absent = present(clip_candidates(batch, torch.float32, "cpu", full))
    compare(
        f"infonce, both directions, forward+backward, B={batch}, D={dim}, cpu",
        checked(losses, clip_truth, clip_inputs(batch, dim), 1e-4),
        clip_work(batch, dim),
        absent=absent,
        note=NOTE,
        path=path_taken("infonce", "cpu"),
    )


def test_bfloat16(full, quick, compare):
    """Goal: at most 1.15 times as long as float32."""
    batch, dim = (96, 32) if quick else (4096, 256)
    half = clip_inputs(batch, dim, torch.bfloat16)
    single = [t.detach().float().requires_grad_() for t in half]
    losses, absent = present(clip_candidates(batch, torch.bfloat16, "cpu", full))
    calls = checked(losses, clip_truth, half, HALF)
    calls["innerloop, float32"] = checked({OURS: clip}, clip_truth, single, 1e-4)[OURS]
    assert_same(calls[OURS][0](), calls["innerloop, float32"][0](), 1e-2, "bfloat16 beside float32")
    compare(
        f"infonce, both directions, forward+backward, bfloat16, B={batch}, D={dim}, cpu",
        calls,
        clip_work(batch, dim, torch.bfloat16),
        absent=absent,
        note=NOTE,
        path=path_taken("infonce", "cpu"),
    )


# ---- CKD: student and teacher (B, C) ----


def eager_ckd(student: Tensor, teacher: Tensor) -> Tensor:
    scores = F.normalize(teacher) @ F.normalize(student).T
    return F.cross_entropy(scores, torch.arange(len(scores)))


@pytest.mark.parametrize(("rows", "classes", "times"), [(64, 100, 1000), (4096, 81, 1)])
def test_ckd(rows, classes, times, full, quick, compare):
    """A step on CIFAR-100, and the box head of a detector. Goals: 60 µs, and 5 times eager."""
    rows, classes, times = (16, 10, 2) if quick else (rows, classes, times)
    inputs = [torch.randn(rows, classes, requires_grad=True), torch.randn(rows, classes)]
    candidates = {OURS: ckd, "eager": eager_ckd, "torch.compile": compiled(eager_ckd) if full else "only with --full"}
    losses, absent = present(candidates)
    calls = checked(losses, reference.ckd, inputs, 1e-4)

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                call()

        return run

    compare(
        f"ckd forward+backward, {rows}×{classes}, cpu",
        {name: [repeated(call)] for name, (call,) in calls.items()},
        # Scores and the gradient of one side.
        Work(4 * 3 * rows * classes, 2 * 2 * rows**2 * classes, calls=times),
        absent=absent,
        path=path_taken("infonce", "cpu"),
    )


# ---- NT-Xent: two views (B, D) ----


def ntxent_ours(z1: Tensor, z2: Tensor) -> Tensor:
    return ntxent(z1, z2, temperature=TEMPERATURE)


def ntxent_truth(z1: Tensor, z2: Tensor) -> Tensor:
    return reference.ntxent(z1, z2, temperature=TEMPERATURE)


def eager_ntxent(z1: Tensor, z2: Tensor) -> Tensor:
    z = F.normalize(torch.cat([z1, z2]))
    scores = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(len(z)).roll(len(z1)))


def metric_learning() -> Loss | None:
    """pytorch-metric-learning's, of pairs by label."""
    module = peer("pytorch_metric_learning.losses")
    if module is None:
        return None
    loss = module.NTXentLoss(temperature=TEMPERATURE)
    return lambda z1, z2: loss(torch.cat([z1, z2]), torch.arange(len(z1)).repeat(2))


def lightly() -> Loss | None:
    module = peer("lightly.loss.ntx_ent_loss")
    return module and module.NTXentLoss(temperature=TEMPERATURE)


@pytest.mark.parametrize("views", [128, 1024])
def test_ntxent(views, full, quick, compare):
    batch, dim = (24, 16) if quick else (views, 128)
    inputs = [torch.randn(batch, dim, requires_grad=True) for _ in range(2)]
    candidates = {
        OURS: ntxent_ours,
        "eager": eager_ntxent,
        "torch.compile": compiled(eager_ntxent) if full else "only with --full",
        # It compares every pair of one image with every pair of different images, in about five matrices.
        "pytorch-metric-learning": no_room(5 * 4 * (2 * batch) ** 3) or metric_learning() or "not installed",
        "lightly": lightly() or "not importable",
    }
    losses, absent = present(candidates)
    compare(
        f"ntxent forward+backward, 2×{batch} rows, D={dim}, cpu",
        checked(losses, ntxent_truth, inputs, 1e-4),
        # Half of the scores and the product of all gradients.
        Work(4 * 4 * batch * dim, 3 * (2 * batch) ** 2 * dim),
        absent=absent,
        path=path_taken("ntxent", "cpu"),
    )


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [512, 1024])
def test_gpu(gpu_batch, dim, full, quick, compare):
    """bfloat16. Goals: 65536 rows of 1024 in 60 ms, and 1048576 on one card."""
    if path_taken("infonce", "cuda") != "Triton kernel":
        pytest.skip("tensors on a GPU take the Triton kernel with INNERLOOP_GPU=triton")
    batch = 1024 if quick else gpu_batch
    candidates = clip_candidates(batch, torch.bfloat16, "cuda", full)
    losses, absent = present(candidates | {"inf-cl, twice": inf_cl() or "not installed"})
    compare(
        f"infonce, both directions, forward+backward, bfloat16, B={batch}, D={dim}, cuda",
        checked(losses, clip_truth, clip_inputs(batch, dim, torch.bfloat16, "cuda"), HALF),
        clip_work(batch, dim, torch.bfloat16),
        device="cuda",
        absent=absent,
        note=NOTE,
        path=path_taken("infonce", "cuda"),
    )
