# SPDX-License-Identifier: Apache-2.0
"""Distillation losses on the logits of a batch: KD, logit standardisation, DKD and the cosine.

All losses, also those of `distillation_features`: the teacher never gets a gradient; half types are computed in float32
and the loss is float32; an empty batch gives 0. Weights of a cross entropy on the labels are the caller's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["DKDLoss", "KDLoss", "cosine_kd", "dkd", "kd"]

_HALF = (torch.float16, torch.bfloat16)
_FLOATING = (torch.float32, torch.float64, *_HALF)


def kd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0, standardize: bool = False) -> Tensor:
    """Knowledge distillation: T² · mean_i KL(softmax(t_i / T) ‖ softmax(s_i / T)).

    A class that the teacher rules out with a logit of -inf costs nothing (without `standardize`).

    Args:
        student: logits s, floating (B, C). teacher: logits t, (B, C).
        temperature: T > 0. Published: 4 with weights 0.1 (cross entropy) and 0.9 on CIFAR-100, 1 with 0.5 and 0.5 on
            ImageNet; with `standardize` 2, the loss weighted by 9.
        standardize: replaces each row x of both by (x - mean(x)) / (std(x) + 1e-7) before. A constant row becomes 0 and
            gets no gradient.

    Returns:
        A scalar.

    Raises:
        TypeError: an argument that is no tensor, or an integer dtype. ValueError: shapes, or a temperature, that do not
            fit; the message names the argument.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015; Sun et al., "Logit standardization in
    knowledge distillation", CVPR 2024.

    Example:
        >>> import torch
        >>> from innerloop.nn.distillation import kd
        >>> logits = torch.randn(8, 10)
        >>> kd(logits, logits).item()
        0.0
    """
    student, teacher = _logits("kd", student, teacher)
    check_positive("kd", temperature=temperature)
    if standardize:
        student, teacher = _standardize(student), _standardize(teacher)
    return temperature**2 * mean(_kl(teacher / temperature, student / temperature))


class KDLoss(nn.Module):
    """:func:`kd` as a module: forward(student, teacher)."""

    def __init__(self, temperature: float = 4.0, standardize: bool = False) -> None:
        super().__init__()
        check_positive("KDLoss", temperature=temperature)
        self.temperature, self.standardize = temperature, standardize

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return kd(student, teacher, temperature=self.temperature, standardize=self.standardize)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, standardize={self.standardize}"


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled knowledge distillation: T² · mean_i (α TCKD_i + β NCKD_i).

    With y the label and p = softmax(· / T): TCKD is the KL divergence of the two-way distributions [p_y, 1 - p_y] of
    teacher and student, NCKD that of their distributions over the classes other than y. With two classes NCKD is 0.
    Everything stays in log space and the column y is left out, not shifted by -1000, so saturated logits cost no NaN.

    Args:
        student: logits, floating (B, C), C >= 2. teacher: (B, C). labels: int64 (B,), in [0, C).
        alpha, beta: weights, not negative. Published β on CIFAR-100: 8, but 2 for resnet56 → resnet20 and resnet110 →
            resnet32, 6 for the teachers vgg13 and wrn_40_2; on ImageNet 0.5, with T = 1.
        temperature: T > 0.

    Returns:
        A scalar.

    Raises:
        TypeError: an argument that is no tensor, or integer logits. ValueError: shapes, dtypes or numbers that do not
            fit; the message names the argument. A label out of range is torch's own error.

    Source: Zhao et al., "Decoupled knowledge distillation", CVPR 2022, eq. 7.
    """
    student, teacher = _logits("dkd", student, teacher)
    num_classes = student.shape[1]
    if num_classes < 2:
        raise ValueError(f"dkd: student has shape {tuple(student.shape)}, expected (B, C) with C at least 2")
    check_index("dkd", "labels", labels, (len(student),))
    check_positive("dkd", temperature=temperature)
    check_weights("dkd", alpha=alpha, beta=beta)
    label = labels[:, None]
    other = (label + torch.arange(1, num_classes, device=labels.device)) % num_classes
    binary, others = [], []
    for logits in (teacher / temperature, student / temperature):
        others.append(logits.gather(1, other))
        binary.append(torch.cat([logits.gather(1, label), others[-1].logsumexp(1, keepdim=True)], dim=1))
    return temperature**2 * mean(alpha * _kl(*binary) + beta * _kl(*others))


class DKDLoss(nn.Module):
    """:func:`dkd` with a linear warm-up: min(epoch / warmup_epochs, 1) · dkd.

    Args:
        alpha, beta, temperature: see :func:`dkd`.
        warmup_epochs: 0 for none; published: 20 on CIFAR-100, 1 on ImageNet.

    Forward:
        student, teacher, labels as :func:`dkd`; `epoch` counts from 1, as published, and may be a fraction. It may be
        left out only where there is no warm-up.

    Raises:
        ValueError: a number that does not fit, or no epoch; the message names the argument.
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, warmup_epochs: float = 20
    ) -> None:
        super().__init__()
        check_weights("DKDLoss", alpha=alpha, beta=beta, warmup_epochs=warmup_epochs)
        check_positive("DKDLoss", temperature=temperature)
        self.alpha, self.beta, self.temperature, self.warmup_epochs = alpha, beta, temperature, warmup_epochs

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor, epoch: float | None = None) -> Tensor:
        loss = dkd(student, teacher, labels, alpha=self.alpha, beta=self.beta, temperature=self.temperature)
        if not self.warmup_epochs:
            return loss
        if epoch is None or not epoch >= 0:
            raise ValueError(
                f"DKDLoss: epoch is {epoch!r}, expected the epoch, from 1, as warmup_epochs is {self.warmup_epochs}"
            )
        return min(epoch / self.warmup_epochs, 1.0) * loss

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}, warmup_epochs={self.warmup_epochs}"
        )


def cosine_kd(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_i (1 - cos(t_i, s_i)): what is left of CKD without its negatives.

    A row of zeros has no direction: its cosine is 0, and it gets no gradient.

    Args:
        student: logits s, floating (B, C). teacher: logits t, (B, C).

    Returns:
        A scalar in [0, 2].

    Raises:
        TypeError: an argument that is no tensor, or an integer dtype. ValueError: shapes that differ.
    """
    student, teacher = _logits("cosine_kd", student, teacher)
    return mean(1 - (unit(teacher) * unit(student)).sum(1))


def _logits(owner: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both checked, widened, the teacher detached."""
    check_floating(owner, student=student, teacher=teacher)
    if student.dim() != 2:
        raise ValueError(f"{owner}: student has shape {tuple(student.shape)}, expected (B, C)")
    if teacher.shape != student.shape:
        raise ValueError(
            f"{owner}: teacher has shape {tuple(teacher.shape)}, expected {tuple(student.shape)} as student"
        )
    return widen(student), widen(teacher.detach())


def _standardize(x: Tensor) -> Tensor:
    # Shifted first: a constant row is then exactly 0, whatever its mean would round to.
    x = x - x.detach().amax(1, keepdim=True)
    x = x - x.mean(1, keepdim=True)
    variance = x.square().sum(1, keepdim=True) / max(x.shape[1] - 1, 1)
    constant = variance == 0
    return (x / (variance.masked_fill(constant, 1).sqrt() + 1e-7)).masked_fill(constant, 0)


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) of each row, (B,)."""
    log_p, log_q = teacher.log_softmax(1), student.log_softmax(1)
    p = log_p.exp()
    return torch.where(p == 0, 0, p * (log_p - log_q)).sum(1)


def widen(x: Tensor) -> Tensor:
    """Half types as float32."""
    return x.float() if x.dtype in _HALF else x


def mean(x: Tensor) -> Tensor:
    """The mean of all elements, 0 of none."""
    return x.sum() / max(x.numel(), 1)


def norm(x: Tensor) -> Tensor:
    """‖x‖ along the last dimension, which is kept; at 0 all derivatives are 0, where those of sqrt are infinite."""
    square = x.square().sum(-1, keepdim=True)
    zero = square == 0
    return square.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def unit(x: Tensor) -> Tensor:
    """x / ‖x‖ along the last dimension; 0, and without gradient, where x is 0."""
    length = norm(x)
    zero = length == 0
    return (x / length.masked_fill(zero, 1)).masked_fill(zero, 0)


def check_tensor(owner: str, name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{owner}: {name} is {type(t).__name__}, expected a tensor")


def check_floating(owner: str, **tensors: Tensor) -> None:
    for name, t in tensors.items():
        check_tensor(owner, name, t)
        if t.dtype not in _FLOATING:
            raise TypeError(f"{owner}: {name} has dtype {t.dtype}, expected float32, float64, bfloat16 or float16")


def check_index(owner: str, name: str, t: Tensor, shape: tuple[int, ...]) -> None:
    check_tensor(owner, name, t)
    if t.dtype != torch.int64 or t.shape != shape:
        raise ValueError(f"{owner}: {name} is {t.dtype} of shape {tuple(t.shape)}, expected torch.int64 of {shape}")


def check_positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{owner}: {name} is {value!r}, expected a finite number above 0")


def check_weights(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{owner}: {name} is {value!r}, expected a finite number, not negative")
