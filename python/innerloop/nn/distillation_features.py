# SPDX-License-Identifier: Apache-2.0
"""Distillation losses on the features of a batch: CRD, RKD, SP, PKT and ReviewKD's pyramid.

What `distillation` says of all losses holds here. Products are not lowered to a half type under autocast. The features
(B, ...) are flattened to (B, D); but for `hcl` those of teacher and student may differ in width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .distillation import (
    check_floating,
    check_index,
    check_positive,
    check_tensor,
    check_weights,
    mean,
    norm,
    unit,
    widen,
)
from .poolingformer import check_counts

__all__ = ["CRDLoss", "PKTLoss", "RKDLoss", "SPLoss", "hcl", "pkt", "rkd", "sp"]

_PKT_EPS = 1e-7  # of the authors' code; it is part of the loss


def rkd(student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Relational distillation: distances and angles within the batch, compared by smooth L1 (β = 1).

    distance: mean_ij smooth_l1(d_ij / mean d of the student, the same of the teacher), d_ij = ‖x_j - x_i‖, its mean
        over i ≠ j
    angle: mean_ijk smooth_l1(<e_ij, e_ik> of the student, the same of the teacher), e_ij = (x_j - x_i) / d_ij

    This forms the differences (B, B, D) and the angles (B, B, B) of both. Distances come from differences, not from the
    Gram matrix, whose cancellation makes up distances between equal rows; between these e_ij = 0. Where all rows are
    equal, as for B = 1, all distances and angles are 0.

    Args:
        student: floating (B, ...). teacher: (B, ...).
        distance_weight, angle_weight: not negative; the defaults are those of the published CIFAR-100 comparisons.

    Returns:
        A scalar, distance_weight · distance + angle_weight · angle.

    Raises:
        TypeError: an argument that is no tensor, or an integer dtype. ValueError: shapes or weights that do not fit.

    Source: Park et al., "Relational knowledge distillation", CVPR 2019, eq. 5 and 7.
    """
    student, teacher = _features("rkd", student, teacher)
    check_weights("rkd", distance_weight=distance_weight, angle_weight=angle_weight)
    with torch.autocast(student.device.type, enabled=False):
        (d_s, a_s), (d_t, a_t) = _relations(student), _relations(teacher)
    distance, angle = (mean(F.smooth_l1_loss(*pair, reduction="none")) for pair in ((d_s, d_t), (a_s, a_t)))
    return distance_weight * distance + angle_weight * angle


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (B, B) over their mean, angles (B, B, B)."""
    difference = x[None] - x[:, None]
    distance = norm(difference).squeeze(2)
    average = distance.sum() / max(len(x) * (len(x) - 1), 1)
    direction = unit(difference)
    return distance / average.masked_fill(average == 0, 1), direction @ direction.mT


class RKDLoss(nn.Module):
    """:func:`rkd` as a module: forward(student, teacher)."""

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        check_weights("RKDLoss", distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return rkd(student, teacher, distance_weight=self.distance_weight, angle_weight=self.angle_weight)

    def extra_repr(self) -> str:
        return f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}"


def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation: ‖G(t) - G(s)‖²_F / B², G(x) = x xᵀ with each row divided by its norm.

    Args:
        student: floating (B, ...), published: the last feature map. teacher: (B, ...).

    Returns:
        A scalar. A row of zeros in x is one in G, and gets a gradient only from the other rows.

    Raises:
        TypeError: an argument that is no tensor, or an integer dtype. ValueError: shapes that do not fit.

    Source: Tung and Mori, "Similarity-preserving knowledge distillation", ICCV 2019, eq. 4.
    """
    student, teacher = _features("sp", student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        return mean((unit(teacher @ teacher.T) - unit(student @ student.T)).square())


class SPLoss(nn.Module):
    """`weight` · :func:`sp` as a module: forward(student, teacher). The default is the published weight."""

    def __init__(self, weight: float = 3000.0) -> None:
        super().__init__()
        check_weights("SPLoss", weight=weight)
        self.weight = weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * sp(student, teacher)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: mean_ij p_ij log((p_ij + ε) / (q_ij + ε)), ε = 1e-7.

    p of the teacher and q of the student are k_ij / Σ_j k_ij with k_ij = (cos(x_i, x_j) + 1) / 2. The cosine with a row
    of zeros is 0.

    Args:
        student: floating (B, ...), published: the pooled features. teacher: (B, ...).

    Returns:
        A scalar; it may be slightly negative where the two agree, because of ε.

    Raises:
        TypeError: an argument that is no tensor, or an integer dtype. ValueError: shapes that do not fit.

    Source: Passalis and Tefas, "Learning deep representations with probabilistic knowledge transfer", ECCV 2018.
    """
    student, teacher = _features("pkt", student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        p, q = _affinity(teacher), _affinity(student)
    return mean(p * ((p + _PKT_EPS).log() - (q + _PKT_EPS).log()))


def _affinity(x: Tensor) -> Tensor:
    x = unit(x)
    # Opposite rows may round to a cosine below -1, and by more than ε.
    kernel = ((x @ x.T + 1) / 2).clamp(min=0)
    return kernel / kernel.sum(1, keepdim=True)


class PKTLoss(nn.Module):
    """`weight` · :func:`pkt` as a module: forward(student, teacher). The default is the published weight."""

    def __init__(self, weight: float = 30000.0) -> None:
        super().__init__()
        check_weights("PKTLoss", weight=weight)
        self.weight = weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * pkt(student, teacher)

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


def hcl(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """ReviewKD's hierarchical context loss: squared errors of the maps and of their average pools.

    Σ over the pairs of (Σ_l w_l · mse(pool_l(s), pool_l(t))) / Σ_l w_l, with w = 1 for the map itself and ½, ¼, ⅛ for
    pools to 4×4, 2×2 and 1×1; a pool as high as the map, or higher, is left out and the weights after it move up.

    Args:
        student_features: floating (B, C, H, W) each, published: what the fusion modules of ReviewKD return.
        teacher_features: as many, each of the same shape as its partner.

    Returns:
        A scalar.

    Raises:
        TypeError: a feature that is no tensor, or an integer dtype. ValueError: numbers or shapes that do not fit.

    Source: Chen et al., "Distilling knowledge via knowledge review", CVPR 2021.
    """
    if not student_features or len(student_features) != len(teacher_features):
        raise ValueError(
            f"hcl: student_features has {len(student_features)} maps and teacher_features {len(teacher_features)}, "
            "expected as many, at least one"
        )
    return sum(_pyramid(i, s, t) for i, (s, t) in enumerate(zip(student_features, teacher_features, strict=True)))


def _pyramid(i: int, student: Tensor, teacher: Tensor) -> Tensor:
    names = f"student_features[{i}]", f"teacher_features[{i}]"
    check_floating("hcl", **dict(zip(names, (student, teacher), strict=True)))
    if student.dim() != 4:
        raise ValueError(f"hcl: {names[0]} has shape {tuple(student.shape)}, expected (B, C, H, W)")
    if teacher.shape != student.shape:
        raise ValueError(
            f"hcl: {names[1]} has shape {tuple(teacher.shape)}, expected {tuple(student.shape)} as {names[0]}"
        )
    error = widen(student) - widen(teacher.detach())  # pooling is linear: one pool of the difference is enough
    loss, weight, total = mean(error.square()), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            loss = loss + weight * mean(F.adaptive_avg_pool2d(error, size).square())
            total += weight
    return loss / total


class CRDLoss(nn.Module):
    """Contrastive representation distillation: noise-contrastive estimation against memory banks.

    v_s = n(W_s f_s), v_t = n(W_t f_t), n the L2 norm to 1; the banks hold v_s and v_t of all n samples, from when they
    were last seen. Per side, with u the vectors that the other side's bank holds of the positive (k = 0) and of K
    negatives, h_k = e^(<v, u_k> / T) / Z and P_n = 1 / n:

    L = -mean_i [ log(h_0 / (h_0 + K P_n)) + Σ_k>0 log(K P_n / (h_k + K P_n)) ],  the loss is the sum of both sides' L

    Z is n times the mean of e^(<v, u> / T) over the first batch in training, and stays. Both maps W are trained. In
    training the banks then move, u_i ← n(momentum · u_i + (1 - momentum) · v_i). All is in log space: any T will do,
    and the quotients need no 1e-7 as in the authors' code.

    Args:
        student_dim, teacher_dim: widths of the flattened features.
        num_samples: n.
        dim: of the vectors.
        num_negatives: K, drawn uniformly where forward gets no `contrast_index`.
        temperature: T.
        momentum: in [0, 1]. The published weight of the loss is 0.8.

    Forward:
        f_s, f_t: floating (B, ...). index: int64 (B,), each sample's number in [0, n).
        contrast_index: int64 (B, 1 + K), any K >= 1, column 0 the positive; for the published CIFAR-100 numbers the
            others are of other classes. Default: :meth:`sample` with `generator`, a torch.Generator on index's device.
        Returns a scalar. Per side this holds the smaller of (n, dim) + (B, n) and (B, 1 + K, dim).

    Buffers are `memory_student`, `memory_teacher` (n, dim) and `log_z` (2,), NaN until the first batch in training. Of
    a sample that is twice in a batch the banks keep one vector, on a GPU either. Each process has banks of its own:
    keep them from the buffers that DistributedDataParallel broadcasts.

    Raises:
        TypeError: an argument that is no tensor, or integer features. ValueError: shapes, dtypes or numbers that do not
            fit; the message names the argument. A sample's number out of [0, n) is torch's own error.

    Source: Tian et al., "Contrastive representation distillation", ICLR 2020, and its supplement for the banks.

    Example:
        >>> import torch
        >>> from innerloop.nn.distillation_features import CRDLoss
        >>> crd = CRDLoss(64, 256, num_samples=1000, num_negatives=32)
        >>> crd(torch.randn(4, 64), torch.randn(4, 256), index=torch.arange(4)).shape
        torch.Size([])
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        num_samples: int,
        dim: int = 128,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        check_counts(
            "CRDLoss", student_dim=student_dim, teacher_dim=teacher_dim, num_samples=num_samples, dim=dim,
            num_negatives=num_negatives,
        )  # fmt: skip
        check_positive("CRDLoss", temperature=temperature)
        if not 0 <= momentum <= 1:
            raise ValueError(f"CRDLoss: momentum is {momentum!r}, expected a number in [0, 1]")
        self.num_samples, self.num_negatives = num_samples, num_negatives
        self.temperature, self.momentum = temperature, momentum
        self.embed_student, self.embed_teacher = nn.Linear(student_dim, dim), nn.Linear(teacher_dim, dim)
        bound = math.sqrt(3 / dim)  # rows of length 1 in the mean square
        for name in ("memory_student", "memory_teacher"):
            self.register_buffer(name, torch.empty(num_samples, dim).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), math.nan))

    def sample(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """int64 (B, 1 + K): `index` (B,), then uniform draws from all samples, the positive too, with replacement."""
        shape = len(index), self.num_negatives
        drawn = torch.randint(self.num_samples, shape, generator=generator, device=index.device)
        return torch.cat([index[:, None], drawn], dim=1)

    def forward(
        self,
        f_s: Tensor,
        f_t: Tensor,
        index: Tensor,
        contrast_index: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        contrast_index = self._check(f_s, f_t, index, contrast_index, generator)
        v_s, v_t = self._embed(self.embed_student, f_s), self._embed(self.embed_teacher, f_t.detach())
        sides = (v_s, self.memory_teacher), (v_t, self.memory_student)
        scores = torch.stack([self._scores(v, bank, contrast_index) for v, bank in sides])
        if not len(index):
            return scores.sum()
        flat = scores.detach().flatten(1)
        log_z = flat.logsumexp(1) - math.log(flat.shape[1]) + math.log(self.num_samples)
        log_z = torch.where(self.log_z.isnan(), log_z, self.log_z)
        if self.training:
            self.log_z.copy_(log_z)
            self._remember(self.memory_student, index, v_s)
            self._remember(self.memory_teacher, index, v_t)
        # log h_k / (K P_n), whose logistic function is the probability that u_k is no noise.
        log_ratio = scores - log_z[:, None, None] - math.log((scores.shape[2] - 1) / self.num_samples)
        positive, noise = F.logsigmoid(log_ratio[..., 0]), F.logsigmoid(-log_ratio[..., 1:])
        return -(positive.sum() + noise.sum()) / len(index)

    def _check(
        self,
        f_s: Tensor,
        f_t: Tensor,
        index: Tensor,
        contrast_index: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """`contrast_index`, sampled where it is None."""
        check_floating("CRDLoss", f_s=f_s, f_t=f_t)
        for name, f, embed in (("f_s", f_s, self.embed_student), ("f_t", f_t, self.embed_teacher)):
            if f.dim() < 2 or math.prod(f.shape[1:]) != embed.in_features or len(f) != len(f_s):
                raise ValueError(
                    f"CRDLoss: {name} has shape {tuple(f.shape)}, expected (B, ...) with {embed.in_features} features "
                    "in each row, B that of f_s"
                )
        check_index("CRDLoss", "index", index, (len(f_s),))
        if contrast_index is None:
            return self.sample(index, generator)
        check_tensor("CRDLoss", "contrast_index", contrast_index)
        contrasts = contrast_index.shape
        if contrast_index.dtype != torch.int64 or len(contrasts) != 2 or contrasts[0] != len(f_s) or contrasts[1] < 2:
            raise ValueError(
                f"CRDLoss: contrast_index is {contrast_index.dtype} of shape {tuple(contrasts)}, expected torch.int64 "
                f"of ({len(f_s)}, 1 + K) with K at least 1"
            )
        return contrast_index

    def _embed(self, embed: nn.Linear, f: Tensor) -> Tensor:
        return unit(widen(embed(f.flatten(1).to(embed.weight.dtype))))

    def _scores(self, v: Tensor, bank: Tensor, contrast_index: Tensor) -> Tensor:
        """<v_i, bank[contrast_index[i, k]]> / T, (B, 1 + K)."""
        (n, dim), contrasts = bank.shape, contrast_index.numel()
        with torch.autocast(v.device.type, enabled=False):
            if n * (dim + len(v)) <= contrasts * dim:
                # A copy, for the backward pass: the bank itself is about to change.
                dots = F.linear(v, bank.to(v.dtype, copy=True)).gather(1, contrast_index)
            else:
                dots = (F.embedding(contrast_index, bank).to(v.dtype) @ v[:, :, None]).squeeze(2)
        return dots / self.temperature

    @torch.no_grad()
    def _remember(self, bank: Tensor, index: Tensor, v: Tensor) -> None:
        moved = unit(self.momentum * F.embedding(index, bank).to(v.dtype) + (1 - self.momentum) * v)
        bank.index_copy_(0, index, moved.to(bank.dtype))

    def extra_repr(self) -> str:
        return (
            f"num_samples={self.num_samples}, num_negatives={self.num_negatives}, temperature={self.temperature}, "
            f"momentum={self.momentum}"
        )


def _features(owner: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both checked, flattened to (B, D) and widened, the teacher detached."""
    check_floating(owner, student=student, teacher=teacher)
    if student.dim() < 2:
        raise ValueError(f"{owner}: student has shape {tuple(student.shape)}, expected (B, ...)")
    if teacher.dim() < 2 or len(teacher) != len(student):
        raise ValueError(f"{owner}: teacher has shape {tuple(teacher.shape)}, expected ({len(student)}, ...)")
    return widen(student.flatten(1)), widen(teacher.detach().flatten(1))
