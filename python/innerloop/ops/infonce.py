# SPDX-License-Identifier: Apache-2.0
"""infonce and its relatives: in-batch contrastive losses without the matrix of all scores."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _cpu
from ..reference.infonce import ckd as _plain_ckd
from ..reference.infonce import debiased, logsumexp, reduced
from ..reference.infonce import infonce as _plain_infonce
from ..reference.infonce import ntxent as _plain_ntxent
from ..reference.infonce import siglip as _plain_siglip
from ..reference.infonce import supcon as _plain_supcon
from ..system import gpu_kernels
from ._infonce_checks import (
    check_choice,
    check_infonce,
    check_labels,
    check_matrices,
    check_number,
    check_scalar,
)
from ._registry import apply, define, last_derivative, wants_grad, warn_no_kernel

__all__ = ["ckd", "infonce", "ntxent", "siglip", "supcon"]

Reduction = Literal["mean", "sum", "none"]

#: Bytes of scores that are kept between forward and backward; a larger matrix is computed again.
MEMORY_BUDGET = 40 << 20
_EPS = 1e-12  # of the norms
_CHUNK = 48  # least rows whose scores csrc/cpu/infonce.cpp keeps in one direction
_FEW = 512  # rows up to which calls cost more than products: one call for all pairs beats several for half of them
_LSE, _SOFTPLUS = 0, 1
# Read when the module is: torch.compile cannot trace a look into the environment and at what is installed.
_GPU_KERNELS = gpu_kernels()
_REDUCTIONS = ("mean", "sum", "none")


def infonce(
    q: Tensor,
    k: Tensor,
    *,
    log_scale: Tensor | float | None = None,
    bias: Tensor | float | None = None,
    normalize: bool = False,
    symmetric: bool = True,
    targets: Tensor | None = None,
    labels_q: Tensor | None = None,
    labels_k: Tensor | None = None,
    weights: Tensor | None = None,
    negatives_mask: Literal["none", "same_label", "margin"] = "none",
    margin: float = 0.1,
    exclude_diagonal: bool = False,
    queue: Tensor | None = None,
    hard_negatives: Tensor | None = None,
    tau_plus: float = 0.0,
    decoupled: bool = False,
    reduction: Reduction = "mean",
    return_lse: bool = False,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor | tuple[Tensor, Tensor, Tensor | None]:
    """InfoNCE: cross entropy of each row of S = e^log_scale q kᵀ + bias against its target, and of the target columns.

    row_i = lse_j S_ij - S_ip(i),  column_i = lse_j S_jp(i) - S_ip(i),  loss_i = (row_i + column_i) / 2.

    S is formed tile by tile, forward and backward: beside gradients extra memory is O(B + N), about 30 MiB of panels,
    and at most `memory_budget`. The same bits in every run; sums over scores do not depend on the number of threads
    (torch's own sum over more than some ten thousand losses may).

    Args:
        q: (B, D), float32, float64, bfloat16 or float16. k: (N, D) of its dtype. Half types are computed in float32.
            The last dimension is copied where it is not contiguous.
        log_scale, bias: numbers or 0-d tensors, which get gradients; none is 0. CLIP: log_scale = ln(1 / T), learned.
        normalize: divide each row of q, k, queue and hard_negatives by max(‖row‖, 1e-12).
        symmetric: the mean of both directions (CLIP); False: rows only (LiT, CKD, MoCo).
        targets: int64 (B,), p, the positive column of each row, all different if symmetric. Default: 0 .. B - 1.
        labels_q: integers (B,). labels_k: integers (N,), by default labels_q where N == B.
        weights: (B,), ω: the mean is Σωl / Σω (0 where Σω = 0), the sum Σωl, and "none" ωl.
        negatives_mask: "same_label" drops negatives of k with labels_k[j] == labels_q[i]; "margin" negatives, queue and
            hard_negatives too, whose similarity (S without scale and bias) is above the positive's plus `margin`.
        exclude_diagonal: drop the entries (i, i), none of which may be a target.
        queue: (K, D), further columns of every row, without gradient (MoCo); see `nn.EmbeddingQueue`.
        hard_negatives: (B, K, D), further columns of one row each.
        tau_plus: τ₊ in [0, 1), the share of false negatives (Chuang et al. 2020): the sum Σ of the N⁻ visible negatives
            becomes N⁻ max((Σ / N⁻ - τ₊ e^S_ip(i)) / (1 - τ₊), e^-scale).
        decoupled: leave the positive out of its denominators (Yeh et al. 2022).
        reduction: "mean", "sum" or "none".
        return_lse: also return the logarithms of the denominators.
        memory_budget: bytes; scores of at most that size are kept for the backward pass, which then skips a product.

    Returns:
        The loss, 0-d or (B,), float32 (float64 for float64); with return_lse also the denominators of the rows (B,) and
        of the target columns (B,), none if not symmetric. An empty denominator (-inf) counts as loss 0, no gradient.

    Gradients:
        For q, k, log_scale, bias, weights and hard_negatives. A second derivative raises.

    Raises:
        TypeError: an argument that is no tensor, or an integer dtype.
        ValueError: shapes, dtypes or devices that do not fit, or a number out of its range; the message names the
            argument.

    Source: van den Oord et al. 2018, equation 4; both directions: Radford et al., CLIP (ICML 2021).

    Example:
        >>> import torch, innerloop
        >>> q, k = torch.randn(2, 1000, 64)
        >>> loss = innerloop.infonce(q, k, log_scale=2.66, normalize=True)
    """
    check_infonce(
        q, k, log_scale, bias, targets, labels_q, labels_k, weights, negatives_mask, margin, exclude_diagonal, queue,
        hard_negatives, tau_plus, reduction, memory_budget, symmetric,
    )  # fmt: skip
    if _without_kernel("infonce", q):
        return _plain_infonce(
            q, k, log_scale=log_scale, bias=bias, normalize=normalize, symmetric=symmetric, targets=targets,
            labels_q=labels_q, labels_k=labels_k, weights=weights, negatives_mask=negatives_mask, margin=margin,
            exclude_diagonal=exclude_diagonal, queue=queue, hard_negatives=hard_negatives, tau_plus=tau_plus,
            decoupled=decoupled, reduction=reduction, return_lse=return_lse,
        )  # fmt: skip
    B, N = len(q), len(k)
    acc = _accumulator(q.dtype)
    same = negatives_mask == "same_label"
    labels = (labels_q.long(), (labels_q if labels_k is None else labels_k).long()) if same else (None, None)
    plain = weights is queue is hard_negatives is None and not (tau_plus or decoupled or exclude_diagonal or return_lse)
    # A bias drops out of a softmax; only its own gradient, 0, would be missing.
    if plain and reduction == "mean" and negatives_mask != "margin" and not _wants_scalar(bias):
        learned = log_scale if isinstance(log_scale, Tensor) else None
        if _fits(q, k, learned, symmetric, memory_budget):
            fixed = 1.0 if learned is not None or log_scale is None else math.exp(log_scale)
            return _mean(q, k, learned, fixed, targets, labels, normalize, symmetric)
    p = torch.arange(B, device=q.device) if targets is None else targets
    log_scale, bias = (_scalar(x, acc, q) for x in (log_scale, bias))
    scale = log_scale.double().exp().to(acc)
    inverse = (_inverse_norms(q), _inverse_norms(k)) if normalize else (None, None)
    limits = (None, None)
    if negatives_mask == "margin":
        limit = _similarity(q, k, p, *inverse) + margin
        limits = limit, limit.new_full((N,), math.inf).scatter(0, p, limit) if symmetric else limit.new_full((N,), 0)
    counted = tau_plus > 0
    sums = _sums(
        q, k, inverse, log_scale, targets=p, labels=labels, limits=limits, skip_diagonal=exclude_diagonal,
        columns=symmetric, counts=counted, budget=memory_budget,
    )  # fmt: skip
    positive = sums.positive * scale + bias
    lses, counts = [sums.row + bias], [sums.row_count]
    if queue is not None and len(queue):
        queue = queue.detach()
        of_queue = _sums(
            q, queue, (inverse[0], _inverse_norms(queue) if normalize else None), log_scale,
            limits=(limits[0], limits[0].new_full((len(queue),), 0)) if limits[0] is not None else (None, None),
            counts=counted, budget=max(0, memory_budget - 4 * B * N),
        )  # fmt: skip
        lses.append(of_queue.row + bias)
        counts.append(of_queue.row_count)
    if hard_negatives is not None:
        rows = F.normalize(q.to(acc), dim=-1, eps=_EPS) if normalize else q.to(acc)
        hard = F.normalize(hard_negatives.to(acc), dim=-1, eps=_EPS) if normalize else hard_negatives.to(acc)
        similarity = (rows[:, None] * hard).sum(2)  # not a product, which autocast would round
        seen = torch.ones_like(similarity, dtype=torch.bool)
        if limits[0] is not None:
            seen = ~(similarity > limits[0][:, None])
        lses.append(logsumexp(scale * similarity + bias, seen))
        counts.append(seen.sum(1))
    row = lses[0] if len(lses) == 1 else logsumexp(torch.stack(lses, 1), torch.stack(lses, 1) != -math.inf)
    loss, row_lse = _cross_entropy(row, positive, sum(counts) if counted else None, -scale, tau_plus, decoupled)
    column_lse = None
    if symmetric:
        column_count = sums.column_count[p] if counted else None
        column, column_lse = _cross_entropy(sums.column[p] + bias, positive, column_count, -scale, tau_plus, decoupled)
        loss = (loss + column) / 2
    loss = _reduce(loss, reduction, weights)
    return (loss, row_lse, column_lse) if return_lse else loss


def ntxent(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float = 0.5,
    normalize: bool = True,
    reduction: Reduction = "mean",
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """NT-Xent of two views: row i of Z = [z1; z2] against its other view, among all rows but itself.

    Only the tiles above the diagonal of Z Zᵀ are formed: half the products.

    Args:
        z1, z2: (B, D), float32, float64, bfloat16 or float16.
        temperature: above 0. normalize: the rows first.
        reduction: "mean", "sum" or "none". memory_budget: see :func:`infonce`.

    Returns:
        0-d or (2B,), in the order of Z.

    Raises:
        TypeError, ValueError: as :func:`infonce`.

    Source: Chen et al., SimCLR (ICML 2020), equation 1.
    """
    check_matrices("ntxent", {"z1": z1, "z2": z2}, same_shape=True)
    check_number("ntxent", "temperature", temperature)
    check_choice("ntxent", "reduction", reduction, _REDUCTIONS)
    _check_budget("ntxent", memory_budget)
    if _without_kernel("ntxent", z1):
        return _plain_ntxent(z1, z2, temperature=temperature, normalize=normalize, reduction=reduction)
    z, B = torch.cat([z1, z2]), len(z1)
    partner = torch.arange(2 * B, device=z.device).roll(B)
    if reduction == "mean" and 2 * B <= _FEW and 4 * B * B * z.element_size() <= memory_budget:
        return _mean(z, z, None, 1 / temperature, partner, (None, None), normalize, False, skip_diagonal=True)
    sums = _of_itself(z, normalize, temperature, partner, memory_budget)
    positive = sums.positive[:B].repeat(2) / temperature
    loss, _ = _cross_entropy(_lse_of_both(sums), positive)
    return _reduce(loss, reduction)


def supcon(
    z: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.07,
    base_temperature: float | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Supervised contrastive loss: -1/|P(i)| Σ_{p∈P(i)} (S_ip - lse_{a≠i} S_ia), P(i) the others with i's label.

    The sum over positives is a product with the sum of their rows, so only the lse needs all pairs; of those half.

    Args:
        z: (B, D), float32, float64, bfloat16 or float16. labels: integers (B,).
        temperature: above 0. base_temperature: multiply by temperature / base_temperature; none does not.
        normalize: the rows first.
        reduction: "mean" over the rows with a positive, "sum" or "none". memory_budget: see :func:`infonce`.

    Returns:
        0-d or (B,), 0 for a row without a positive.

    Raises:
        TypeError, ValueError: as :func:`infonce`.

    Source: Khosla et al., Supervised Contrastive Learning (NeurIPS 2020), equation 2 (L_out).
    """
    check_matrices("supcon", {"z": z})
    check_labels("supcon", "labels", labels, len(z), z)
    check_number("supcon", "temperature", temperature)
    if base_temperature is not None:
        check_number("supcon", "base_temperature", base_temperature)
    check_choice("supcon", "reduction", reduction, _REDUCTIONS)
    _check_budget("supcon", memory_budget)
    if _without_kernel("supcon", z):
        return _plain_supcon(
            z, labels, temperature=temperature, base_temperature=base_temperature, normalize=normalize,
            reduction=reduction,
        )  # fmt: skip
    lse = _lse_of_both(_of_itself(z, normalize, temperature, None, memory_budget))
    rows = z.to(_accumulator(z.dtype))
    rows = F.normalize(rows, dim=-1, eps=_EPS) if normalize else rows
    # Groups are numbered by sorting, not by torch.unique, whose result has a size that depends on values.
    ordered, order = labels.sort(stable=True)
    group = F.pad((ordered[1:] != ordered[:-1]).long().cumsum(0), (1, 0))[: len(labels)]
    group = torch.zeros_like(group).scatter(0, order, group)
    total = torch.zeros_like(rows).index_add(0, group, rows)[group]
    count = torch.zeros_like(group).index_add(0, group, torch.ones_like(group))[group] - 1
    positives = (rows * (total - rows)).sum(1) / temperature / count.clamp(min=1)
    loss = (lse.masked_fill(count == 0, 0) - positives).masked_fill(count == 0, 0)
    if base_temperature is not None:
        loss = loss * (temperature / base_temperature)
    return _reduce(loss, reduction, count > 0)


def siglip(
    q: Tensor,
    k: Tensor,
    log_scale: Tensor | float,
    bias: Tensor | float,
    *,
    normalize: bool = False,
    reduction: Reduction = "mean",
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Sigmoid loss of every pair: -Σ_j log σ(z_ij (e^log_scale q_i · k_j + bias)), z = 1 for j = i and else -1.

    Args:
        q: (B, D). k: (N, D), of one dtype: float32, float64, bfloat16 or float16.
        log_scale, bias: numbers or 0-d tensors, which get gradients; the paper starts from ln 10 and -10.
        normalize: the rows first.
        reduction: "mean" over the rows, "sum" or "none". memory_budget: see :func:`infonce`.

    Returns:
        0-d or (B,).

    Raises:
        TypeError, ValueError: as :func:`infonce`.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training (ICCV 2023), section 3.2.
    """
    check_matrices("siglip", {"q": q, "k": k})
    check_scalar("siglip", "log_scale", log_scale, q)
    check_scalar("siglip", "bias", bias, q)
    check_choice("siglip", "reduction", reduction, _REDUCTIONS)
    _check_budget("siglip", memory_budget)
    if _without_kernel("siglip", q):
        return _plain_siglip(q, k, log_scale, bias, normalize=normalize, reduction=reduction)
    acc = _accumulator(q.dtype)
    log_scale, bias = (_scalar(x, acc, q) for x in (log_scale, bias))
    position = torch.arange(len(q), device=q.device)
    there = position < len(k)
    inverse = (_inverse_norms(q), _inverse_norms(k)) if normalize else (None, None)
    sums = _sums(
        q, k, inverse, log_scale, bias=bias, targets=position.where(there, -1), budget=memory_budget, kind=_SOFTPLUS
    )
    # -log σ(x) = softplus(x) - x, and every pair's softplus(x) is in the sum.
    positive = sums.positive * log_scale.double().exp().to(acc) + bias
    return _reduce(sums.row - positive.masked_fill(~there, 0), reduction)


def ckd(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    negatives: Literal["teacher_student", "student_student"] = "teacher_student",
    labels: Tensor | None = None,
    symmetric: bool = False,
    reduction: Reduction = "mean",
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Contrastive distillation: the teacher's logits t of a sample against the students' s of all, by cosine.

    loss_i = lse_j S_ij - S_ii with S_ij = cos(t_i, s_j) / temperature.

    Args:
        student, teacher: (B, C), of one dtype: float32, float64, bfloat16 or float16; no gradient reaches the teacher.
        temperature: above 0.
        negatives: "teacher_student" (the authors' code), or "student_student": S_ij = cos(s_i, s_j) / temperature for
            j ≠ i.
        labels: integers (B,): samples with i's label are no negatives of i (ours, not the paper's).
        symmetric: the mean of that and of the same for the columns of S (ours).
        reduction: "mean", "sum" or "none". memory_budget: see :func:`infonce`.

    Returns:
        0-d or (B,).

    Raises:
        TypeError, ValueError: as :func:`infonce`.

    Source: Zhu et al., Contrastive Knowledge Distillation (arXiv 2404.14109), as in the authors' code.
    """
    check_matrices("ckd", {"student": student, "teacher": teacher}, same_shape=True)
    check_number("ckd", "temperature", temperature)
    check_choice("ckd", "negatives", negatives, ("teacher_student", "student_student"))
    if labels is not None:
        check_labels("ckd", "labels", labels, len(student), student)
    check_choice("ckd", "reduction", reduction, _REDUCTIONS)
    _check_budget("ckd", memory_budget)
    if _without_kernel("ckd", student):
        return _plain_ckd(
            student, teacher, temperature=temperature, negatives=negatives, labels=labels, symmetric=symmetric,
            reduction=reduction,
        )  # fmt: skip
    teacher = teacher.detach()
    labels = (None, None) if labels is None else (labels.long(), labels.long())
    plain = negatives == "teacher_student" and reduction == "mean"
    if plain and _fits(teacher, student, None, symmetric, memory_budget):
        return _mean(teacher, student, None, 1 / temperature, None, labels, True, symmetric)
    position = torch.arange(len(student), device=student.device)
    log_scale = _scalar(-math.log(temperature), _accumulator(student.dtype), student)
    inverse_s, inverse_t = _inverse_norms(student), _inverse_norms(teacher)
    options = {"targets": position, "labels": labels, "budget": memory_budget}
    columns = symmetric and negatives == "teacher_student"
    sums = _sums(teacher, student, (inverse_t, inverse_s), log_scale, columns=columns, **options)
    positive, row = sums.positive / temperature, sums.row
    if negatives == "student_student":  # a symmetric matrix: both directions are one
        row = _sums(student, student, (inverse_s, inverse_s), log_scale, **options).row
    loss, _ = _cross_entropy(row, positive)
    if columns:
        loss = (loss + _cross_entropy(sums.column, positive)[0]) / 2
    return _reduce(loss, reduction)


# ---- from sums to losses ----


def _cross_entropy(
    negatives: Tensor,
    positive: Tensor,
    count: Tensor | None = None,
    floor: Tensor | float = 0.0,
    tau_plus: float = 0.0,
    decoupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss and logarithm of the denominator, from lse of the negatives and the positive score, all (B,)."""
    if tau_plus:
        negatives = debiased(negatives, count, positive, floor, tau_plus)
    lse = negatives if decoupled else torch.logaddexp(negatives, positive)
    return (lse - positive).masked_fill(lse == -math.inf, 0), lse


def _reduce(loss: Tensor, reduction: str, weights: Tensor | None = None) -> Tensor:
    if reduction == "mean" and weights is None:
        return loss.mean() if len(loss) else loss.sum()
    return reduced(loss, reduction, weights)


def _lse_of_both(sums: _Sums) -> Tensor:
    """lse of each row of a symmetric matrix from what is right of its diagonal and what is above it."""
    both = torch.stack([sums.row, sums.column], 1)
    return logsumexp(both, both != -math.inf)


def _of_itself(z: Tensor, normalize: bool, temperature: float, targets: Tensor | None, budget: int) -> _Sums:
    inverse = _inverse_norms(z) if normalize else None
    log_scale = _scalar(-math.log(temperature), _accumulator(z.dtype), z)
    return _sums(z, z, (inverse, inverse), log_scale, targets=targets, columns=True, upper=True, budget=budget)


def _similarity(q: Tensor, k: Tensor, targets: Tensor, inverse_q: Tensor | None, inverse_k: Tensor | None) -> Tensor:
    """Similarity of each row and its target, without gradient, a few rows at a time."""
    acc = _accumulator(q.dtype)
    with torch.no_grad():
        parts = [(a.to(acc) * k[p].to(acc)).sum(1) for a, p in zip(q.split(1024), targets.split(1024), strict=True)]
        dot = torch.cat(parts) if parts else q.new_empty(0, dtype=acc)
        return dot if inverse_q is None else dot * inverse_q * inverse_k[targets]


def _inverse_norms(x: Tensor) -> Tensor:
    acc = _accumulator(x.dtype)
    with torch.no_grad():
        return torch.linalg.vector_norm(x, dim=1, dtype=acc).clamp(min=_EPS).reciprocal()


def _scalar(value: Tensor | float | None, acc: torch.dtype, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(like.device, acc)
    return torch.full((), 0.0 if value is None else float(value), dtype=acc, device=like.device)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _wants_scalar(value: Tensor | float | None) -> bool:
    return isinstance(value, Tensor) and wants_grad(value)


def _without_kernel(op: str, x: Tensor) -> bool:
    if x.is_cpu or x.device.type == "meta" or (x.is_cuda and _GPU_KERNELS == "triton"):
        return False
    warn_no_kernel(op, x.device.type)
    return True


def _check_budget(op: str, budget: int) -> None:
    check_number(op, "memory_budget", budget, at_least=0)


# ---- the ops ----


class _Sums(NamedTuple):
    positive: Tensor
    """(B,): similarity of each row and its target; 0 where there is none."""
    row: Tensor
    """(B,): lse of the visible scores of each row, bias not included; or Σ softplus."""
    column: Tensor
    """(N,), or empty."""
    row_count: Tensor
    """int64 (B,): visible scores, or empty."""
    column_count: Tensor
    scores: Tensor
    """(B, N), or empty: kept for the backward pass."""


_ARGS = (
    "Tensor q, Tensor k, Tensor? inverse_q, Tensor? inverse_k, Tensor log_scale, Tensor? bias, Tensor? targets, "
    "Tensor? labels_q, Tensor? labels_k, Tensor? limit_q, Tensor? limit_k, int kind, bool skip_diagonal, bool upper, "
    "bool columns"
)
_forward = define(
    f"infonce({_ARGS}, bool counts, bool keep_scores) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_backward = define(
    "infonce_backward(Tensor grad_positive, Tensor grad_row, Tensor? grad_column, Tensor positive, Tensor row, "
    f"Tensor column, Tensor scores, {_ARGS}, bool want_q, bool want_k) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _sums(
    q, k, inverse, log_scale, *, bias=None, targets=None, labels=(None, None), limits=(None, None), skip_diagonal=False,
    upper=False, columns=False, counts=False, budget=MEMORY_BUDGET, kind=_LSE,
) -> _Sums:  # fmt: skip
    grad = wants_grad(q, k, log_scale, bias)
    keep = grad and q.shape[0] * k.shape[0] * _accumulator(q.dtype).itemsize <= budget
    options = (*inverse, log_scale, bias, targets, *labels, *limits, kind, skip_diagonal, upper, columns, counts, keep)
    if not grad:
        return _Sums(*_forward(q, k, *options))
    if torch.compiler.is_compiling():  # Dynamo refuses one tensor in two places of a Function
        k = k.view_as(k)
        inverse_k = None if inverse[1] is None else inverse[1].view_as(inverse[1])
        labels_k = None if labels[1] is None else labels[1].view_as(labels[1])
        options = (inverse[0], inverse_k, log_scale, bias, targets, labels[0], labels_k, *options[7:])
    return _Sums(*apply(_Infonce, q, k, *options))


def _operands(q, k, inverse_q, inverse_k, log_scale, bias, targets, labels_q, labels_k, limit_q, limit_k, kind,
              skip_diagonal, upper, columns) -> tuple:  # fmt: skip
    vectors = (None if t is None else t.contiguous() for t in (inverse_q, inverse_k, targets, labels_q, labels_k))
    limits = (None if t is None else t.contiguous() for t in (limit_q, limit_k))
    return (
        _rows(q), _rows(k), *vectors, *limits, math.exp(float(log_scale)), 0.0 if bias is None else float(bias), kind,
        skip_diagonal, upper, columns, torch.get_num_threads(),
    )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """Channels side by side; rows may lie apart."""
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


def _empty_results(q, k, columns, counts, keep_scores) -> tuple[Tensor, ...]:
    B, N, acc = q.shape[0], k.shape[0], _accumulator(q.dtype)
    many = N if columns else 0
    floats = [torch.empty(n, dtype=acc, device=q.device) for n in (B, B, many)]
    ints = [torch.empty(n if counts else 0, dtype=torch.int64, device=q.device) for n in (B, many)]
    return (*floats, *ints, torch.empty((B, N) if keep_scores else (0, 0), dtype=acc, device=q.device))


def _or_none(t: Tensor, there: bool) -> Tensor | None:
    return t if there else None


@_forward.cpu
def _(q, k, *args):
    *rest, columns, counts, keep_scores = args
    positive, row, column, row_count, column_count, scores = results = _empty_results(
        q, k, columns, counts, keep_scores
    )
    _cpu.infonce(
        positive, row, _or_none(column, columns), _or_none(row_count, counts),
        _or_none(column_count, counts and columns), _or_none(scores, keep_scores), *_operands(q, k, *rest, columns),
    )  # fmt: skip
    return results


@_forward.cuda
def _(*args):
    from . import _infonce_triton as gpu

    return gpu.forward(*args)


@_forward.fake
def _(q, k, *args):
    return _empty_results(q, k, *args[-3:])


def _empty_gradients(q, k, want_q, want_k) -> tuple[Tensor, ...]:
    acc = _accumulator(q.dtype)
    grad_q = torch.empty(q.shape if want_q else (0, 0), dtype=acc, device=q.device)
    grad_k = torch.zeros(k.shape if want_k else (0, 0), dtype=acc, device=q.device)
    dot = torch.empty(q.shape[0] if want_q else 0, dtype=acc, device=q.device)
    return grad_q, grad_k, dot, torch.empty(q.shape[0], dtype=acc, device=q.device)


@_backward.cpu
def _(grad_positive, grad_row, grad_column, positive, row, column, scores, q, k, *args):
    *rest, columns, want_q, want_k = args
    grad_q, grad_k, dot, total = _empty_gradients(q, k, want_q, want_k)
    _cpu.infonce_backward(
        _or_none(grad_q, want_q), _or_none(grad_k, want_k), _or_none(dot, want_q), total, grad_positive.contiguous(),
        grad_row.contiguous(), grad_column.contiguous() if columns and grad_column is not None else None, positive, row,
        _or_none(column, columns), _or_none(scores, scores.numel() > 0), *_operands(q, k, *rest, columns),
    )  # fmt: skip
    return grad_q.to(q.dtype), grad_k.to(k.dtype), dot, total


@_backward.cuda
def _(*args):
    from . import _infonce_triton as gpu

    return gpu.backward(*args)


@_backward.fake
def _(grad_positive, grad_row, grad_column, positive, row, column, scores, q, k, *args):
    grad_q, grad_k, dot, total = _empty_gradients(q, k, *args[-2:])
    return grad_q.to(q.dtype), grad_k.to(k.dtype), dot, total


class _Infonce(torch.autograd.Function):
    @staticmethod
    def forward(*args):
        return _forward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        tensors, ctx.flags = inputs[:11], inputs[11:15]
        positive, row, column, row_count, column_count, scores = output
        ctx.mark_non_differentiable(row_count, column_count, scores)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, positive, row, column, scores)

    @staticmethod
    def backward(ctx, grad_positive, grad_row, grad_column, *_):
        *tensors, positive, row, column, scores = ctx.saved_tensors
        grad_positive, grad_row = (torch.zeros_like(row) if g is None else g for g in (grad_positive, grad_row))
        needs = ctx.needs_input_grad
        # An empty row has no gradient whatever comes from above: -inf meets no number there.
        if ctx.flags[0] == _LSE:
            grad_row = grad_row.masked_fill(row == -math.inf, 0)
            grad_column = None if grad_column is None else grad_column.masked_fill(column == -math.inf, 0)
        backward = _InfonceBackward.apply if torch.is_grad_enabled() else _backward
        grad_q, grad_k, dot, total = backward(
            grad_positive, grad_row, grad_column, positive, row, column, scores, *tensors, *ctx.flags,
            needs[0] or needs[4], needs[1],
        )  # fmt: skip
        log_scale, bias = tensors[4:6]
        grad_scale = grad_bias = None
        if needs[4]:
            grad_scale = (dot.double() - grad_positive.double() * positive.double()).sum().to(log_scale.dtype)
        if bias is not None and needs[5]:
            grad_bias = total.double().sum().to(bias.dtype)
        return (
            grad_q if needs[0] else None, grad_k if needs[1] else None, None, None, grad_scale, grad_bias, *(None,) * 11
        )  # fmt: skip


_InfonceBackward = last_derivative("infonce", _backward)


# ---- the mean loss and its gradients in one go ----

_mean_forward = define(
    "infonce_mean(Tensor q, Tensor k, Tensor? log_scale, Tensor? targets, Tensor? labels_q, Tensor? labels_k, "
    "float scale, bool normalize, bool skip_diagonal, bool symmetric, bool want_q, bool want_k) "
    "-> (Tensor, Tensor, Tensor)"
)


def _fits(q: Tensor, k: Tensor, log_scale: Tensor | None, symmetric: bool, budget: int) -> bool:
    """Whether the scores that gradients need at a time may be there: all for both directions, else those of a chunk."""
    rows = q.shape[0] if symmetric else min(q.shape[0], _CHUNK)
    return not wants_grad(q, k, log_scale) or rows * k.shape[0] * _accumulator(q.dtype).itemsize <= budget


def _mean(
    q, k, log_scale, scale: float, targets, labels, normalize: bool, symmetric: bool, skip_diagonal: bool = False
) -> Tensor:
    """The scale is `scale` times e^log_scale, a 0-d tensor or None."""
    want_q, want_k = wants_grad(q, log_scale), wants_grad(k)
    options = (log_scale, targets, *labels, scale, normalize, skip_diagonal, symmetric, want_q, want_k)
    if not (want_q or want_k):
        return _mean_forward(q, k, *options)[0][0]
    if torch.compiler.is_compiling():  # Dynamo refuses one tensor in two places of a Function
        k, labels_k = k.view_as(k), None if labels[1] is None else labels[1].view_as(labels[1])
        options = (log_scale, targets, labels[0], labels_k, *options[4:])
    return apply(_InfonceMean, q, k, *options)[0]


def _empty_mean(q, k, want_q, want_k) -> tuple[Tensor, ...]:
    acc = _accumulator(q.dtype)
    return (
        torch.empty(2, dtype=acc, device=q.device),
        torch.empty(q.shape if want_q else 0, dtype=acc, device=q.device),
        torch.empty(k.shape if want_k else 0, dtype=acc, device=q.device),
    )


@_mean_forward.cpu
def _(q, k, log_scale, targets, labels_q, labels_k, scale, normalize, skip_diagonal, symmetric, want_q, want_k):
    sums, grad_q, grad_k = results = _empty_mean(q, k, want_q, want_k)
    vectors = (None if t is None else t.contiguous() for t in (targets, labels_q, labels_k))
    scale = scale if log_scale is None else scale * math.exp(float(log_scale))
    _cpu.infonce_mean(
        sums, _or_none(grad_q, want_q), _or_none(grad_k, want_k), _rows(q), _rows(k), *vectors, scale, normalize,
        skip_diagonal, *((0.5, 0.5) if symmetric else (1.0, 0.0)), want_q or want_k, torch.get_num_threads(),
    )  # fmt: skip
    return results


@_mean_forward.cuda
def _(*args):
    from . import _infonce_triton as gpu

    return gpu.mean(*args)


@_mean_forward.fake
def _(q, k, log_scale, targets, labels_q, labels_k, scale, normalize, skip_diagonal, symmetric, want_q, want_k):
    return _empty_mean(q, k, want_q, want_k)


class _InfonceMean(torch.autograd.Function):
    @staticmethod
    def forward(*args):
        sums, grad_q, grad_k = _mean_forward(*args)
        return *sums.unbind(), grad_q, grad_k

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, grad_scale, grad_q, grad_k = output
        ctx.mark_non_differentiable(grad_scale, grad_q, grad_k)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:3], grad_q, grad_k, grad_scale)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        if grad_loss is None:
            return (None,) * 12
        # With what the gradients belong to, so that a second derivative arrives at the node and raises.
        scaled = _Scaled.apply if torch.is_grad_enabled() else _scaled
        return *scaled(ctx.needs_input_grad, grad_loss, *ctx.saved_tensors), *(None,) * 9


def _scaled(needed: tuple[bool, ...], factor: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The needed gradients times `factor`, in the dtypes of what they belong to."""
    return tuple((factor * tensors[3 + i]).to(tensors[i].dtype) if needed[i] else None for i in range(3))


_Scaled = last_derivative("infonce", _scaled)
