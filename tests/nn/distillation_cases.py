# SPDX-License-Identifier: Apache-2.0
"""Shared material of the distillation tests: inputs, gradients, tolerances."""

import numpy as np
import torch
from innerloop.nn.distillation_features import CRDLoss
from torch import Tensor

FLOAT32 = 1e-5  # relative, of a loss against float64
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


def numpy(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.detach().numpy() for t in tensors)


def make_crd(n: int = 20, **options) -> CRDLoss:
    options = {"student_dim": 5, "teacher_dim": 7, "num_samples": n, "dim": 4, "num_negatives": 6, **options}
    return CRDLoss(**options).double()
