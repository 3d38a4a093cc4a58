# SPDX-License-Identifier: Apache-2.0
"""infonce and its relatives: in-batch contrastive losses without the matrix of all scores."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

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
    check_queue_labels,
    check_scalar,
)
from ._infonce_common import EPS, MEMORY_BUDGET, SOFTPLUS, accumulator, inverse_norms, one_dtype
from ._infonce_ops import Sums, fits, mean_loss, sums_of
from ._registry import wants_grad, warn_no_kernel

__all__ = ["ckd", "infonce", "ntxent", "siglip", "supcon"]

Reduction = Literal["mean", "sum", "none"]

_FEW = 512  # rows up to which calls cost more than products: one call for all pairs beats several for half of them
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
    labels_queue: Tensor | None = None,
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
        q: (B, D), float32, float64, bfloat16 or float16. k: (N, D) of its dtype. Half types are computed in float32;
            under autocast they may stand beside float32. The last dimension is copied where it is not contiguous.
        log_scale, bias: numbers or 0-d tensors, which get gradients; none is 0. CLIP: log_scale = ln(1 / T), learned.
        normalize: divide each row of q, k, queue and hard_negatives by max(‖row‖, 1e-12).
        symmetric: the mean of both directions (CLIP); False: rows only (LiT, CKD, MoCo).
        targets: int64 (B,), p, the positive column of each row, all different if symmetric. Default: 0 .. B - 1.
        labels_q: integers (B,). labels_k: integers (N,), by default labels_q where N == B.
        weights: (B,), ω: the mean is Σωl / Σω (0 where Σω = 0), the sum Σωl, and "none" ωl.
        negatives_mask: "same_label" drops negatives of k with labels_k[j] == labels_q[i]; "margin" negatives, queue and
            hard_negatives too, whose similarity (S without scale and bias) is above the positive's plus `margin`, by
            more than (D + 16) ε ‖q_i‖ ‖k_p(i)‖, what rounding can make of equal ones: a copy of the positive stays for
            every margin >= 0. ε is that of float32 (float64 for float64).
        exclude_diagonal: drop the entries (i, i), none of which may be a target.
        queue: (K, D), further columns of every row, without gradient (MoCo); see `nn.EmbeddingQueue`.
        labels_queue: integers (K,): "same_label" drops those of the queue too. Without, none of the queue is dropped.
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
        For q, k, log_scale, bias, weights and hard_negatives. A second derivative raises. `torch.func.vmap` makes one
        call for each sample.

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
    q, k, queue, hard_negatives = one_dtype(q, k, queue, hard_negatives)
    check_infonce(
        q, k, log_scale, bias, targets, labels_q, labels_k, weights, negatives_mask, margin, exclude_diagonal, queue,
        labels_queue, hard_negatives, tau_plus, reduction, memory_budget, symmetric,
    )  # fmt: skip
    if _without_kernel("infonce", q):
        return _plain_infonce(
            q, k, log_scale=log_scale, bias=bias, normalize=normalize, symmetric=symmetric, targets=targets,
            labels_q=labels_q, labels_k=labels_k, weights=weights, negatives_mask=negatives_mask, margin=margin,
            exclude_diagonal=exclude_diagonal, queue=queue, labels_queue=labels_queue, hard_negatives=hard_negatives,
            tau_plus=tau_plus, decoupled=decoupled, reduction=reduction, return_lse=return_lse,
        )  # fmt: skip
    B, N = len(q), len(k)
    acc = accumulator(q.dtype)
    same = negatives_mask == "same_label"
    labels = (labels_q.long(), (labels_q if labels_k is None else labels_k).long()) if same else (None, None)
    plain = weights is queue is hard_negatives is None and not (tau_plus or decoupled or exclude_diagonal or return_lse)
    # A bias drops out of a softmax; only its own gradient, 0, would be missing.
    if plain and reduction == "mean" and negatives_mask != "margin" and not _wants_scalar(bias):
        learned = log_scale if isinstance(log_scale, Tensor) else None
        if fits(q, k, learned, symmetric, memory_budget):
            fixed = 1.0 if learned is not None or log_scale is None else math.exp(log_scale)
            return mean_loss(q, k, learned, fixed, targets, labels, normalize, symmetric)
    p = torch.arange(B, device=q.device) if targets is None else targets
    log_scale, bias = (_scalar(x, acc, q) for x in (log_scale, bias))
    scale = log_scale.double().exp().to(acc)
    inverse = (inverse_norms(q), inverse_norms(k)) if normalize else (None, None)
    limits = (None, None)
    if negatives_mask == "margin":
        limit = _limit(q, k, p, *inverse, margin)
        limits = limit, limit.new_full((N,), math.inf).scatter(0, p, limit) if symmetric else limit.new_full((N,), 0)
    counted = tau_plus > 0
    sums = sums_of(
        q, k, inverse, log_scale, targets=p, labels=labels, limits=limits, skip_diagonal=exclude_diagonal,
        columns=symmetric, counts=counted, budget=memory_budget,
    )  # fmt: skip
    positive = sums.positive * scale + bias
    lses, counts = [sums.row + bias], [sums.row_count]
    if queue is not None and len(queue):
        queue = queue.detach()
        of_queue = sums_of(
            q, queue, (inverse[0], inverse_norms(queue) if normalize else None), log_scale,
            labels=(None, None) if labels_queue is None else (labels[0], labels_queue.long()),
            limits=(limits[0], limits[0].new_full((len(queue),), 0)) if limits[0] is not None else (None, None),
            counts=counted, budget=max(0, memory_budget - 4 * B * N),
        )  # fmt: skip
        lses.append(of_queue.row + bias)
        counts.append(of_queue.row_count)
    if hard_negatives is not None:
        rows = F.normalize(q.to(acc), dim=-1, eps=EPS) if normalize else q.to(acc)
        hard = F.normalize(hard_negatives.to(acc), dim=-1, eps=EPS) if normalize else hard_negatives.to(acc)
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
    z1, z2 = one_dtype(z1, z2)
    check_matrices("ntxent", {"z1": z1, "z2": z2}, same_shape=True)
    check_number("ntxent", "temperature", temperature)
    check_choice("ntxent", "reduction", reduction, _REDUCTIONS)
    _check_budget("ntxent", memory_budget)
    if _without_kernel("ntxent", z1):
        return _plain_ntxent(z1, z2, temperature=temperature, normalize=normalize, reduction=reduction)
    z, B = torch.cat([z1, z2]), len(z1)
    partner = torch.arange(2 * B, device=z.device).roll(B)
    if reduction == "mean" and 2 * B <= _FEW and 4 * B * B * z.element_size() <= memory_budget:
        return mean_loss(z, z, None, 1 / temperature, partner, (None, None), normalize, False, skip_diagonal=True)
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
    queue: Tensor | None = None,
    labels_queue: Tensor | None = None,
    reduction: Reduction = "mean",
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Supervised contrastive loss: -1/|P(i)| Σ_{p∈P(i)} (S_ip - lse_{a≠i} S_ia), P(i) the others with i's label.

    The sum over positives is a product with the sum of their rows, so only the lse needs all pairs; of those half.
    With a queue, the others are those of the batch and of the queue.

    Args:
        z: (B, D), float32, float64, bfloat16 or float16. labels: integers (B,).
        temperature: above 0. base_temperature: multiply by temperature / base_temperature; none does not.
        normalize: the rows first.
        queue: (K, D), embeddings of earlier batches, without gradient; see `nn.EmbeddingQueue`.
        labels_queue: integers (K,), their labels.
        reduction: "mean" over the rows with a positive, "sum" or "none". memory_budget: see :func:`infonce`.

    Returns:
        0-d or (B,), 0 for a row without a positive.

    Raises:
        TypeError, ValueError: as :func:`infonce`.

    Source: Khosla et al., Supervised Contrastive Learning (NeurIPS 2020), equation 2 (L_out); the queue: Wang et al.,
    Cross-Batch Memory (CVPR 2020).
    """
    z, queue = one_dtype(z, queue)
    check_matrices("supcon", {"z": z, "queue": queue})
    check_labels("supcon", "labels", labels, len(z), z)
    check_number("supcon", "temperature", temperature)
    if base_temperature is not None:
        check_number("supcon", "base_temperature", base_temperature)
    if queue is not None and labels_queue is None:
        raise ValueError(f"supcon: labels_queue is None, expected the labels of the {len(queue)} rows of queue")
    check_queue_labels("supcon", queue, labels_queue, z)
    check_choice("supcon", "reduction", reduction, _REDUCTIONS)
    _check_budget("supcon", memory_budget)
    if _without_kernel("supcon", z):
        return _plain_supcon(
            z, labels, temperature=temperature, base_temperature=base_temperature, normalize=normalize, queue=queue,
            labels_queue=labels_queue, reduction=reduction,
        )  # fmt: skip
    lse = _lse_of_both(_of_itself(z, normalize, temperature, None, memory_budget))
    rows = z.to(accumulator(z.dtype))
    rows = F.normalize(rows, dim=-1, eps=EPS) if normalize else rows
    everyone = rows
    if queue is not None and len(queue):
        queue = queue.detach()
        lse = torch.logaddexp(lse, _against_queue(z, queue, normalize, temperature, memory_budget))
        queue = queue.to(rows.dtype)
        everyone = torch.cat([rows, F.normalize(queue, dim=-1, eps=EPS) if normalize else queue])
        labels = torch.cat([labels, labels_queue])
    # Groups are numbered by sorting, not by torch.unique, whose result has a size that depends on values.
    ordered, order = labels.sort(stable=True)
    group = F.pad((ordered[1:] != ordered[:-1]).long().cumsum(0), (1, 0))[: len(labels)]
    group = torch.zeros_like(group).scatter(0, order, group)
    of_z = group[: len(z)]
    total = torch.zeros_like(everyone).index_add(0, group, everyone)[of_z]
    count = torch.zeros_like(group).index_add(0, group, torch.ones_like(group))[of_z] - 1
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
    q, k = one_dtype(q, k)
    check_matrices("siglip", {"q": q, "k": k})
    check_scalar("siglip", "log_scale", log_scale, q)
    check_scalar("siglip", "bias", bias, q)
    check_choice("siglip", "reduction", reduction, _REDUCTIONS)
    _check_budget("siglip", memory_budget)
    if _without_kernel("siglip", q):
        return _plain_siglip(q, k, log_scale, bias, normalize=normalize, reduction=reduction)
    acc = accumulator(q.dtype)
    log_scale, bias = (_scalar(x, acc, q) for x in (log_scale, bias))
    position = torch.arange(len(q), device=q.device)
    there = position < len(k)
    inverse = (inverse_norms(q), inverse_norms(k)) if normalize else (None, None)
    sums = sums_of(
        q, k, inverse, log_scale, bias=bias, targets=position.where(there, -1), budget=memory_budget, kind=SOFTPLUS
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
    student, teacher = one_dtype(student, teacher)
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
    if plain and fits(teacher, student, None, symmetric, memory_budget):
        return mean_loss(teacher, student, None, 1 / temperature, None, labels, True, symmetric)
    position = torch.arange(len(student), device=student.device)
    log_scale = _scalar(-math.log(temperature), accumulator(student.dtype), student)
    inverse_s, inverse_t = inverse_norms(student), inverse_norms(teacher)
    options = {"targets": position, "labels": labels, "budget": memory_budget}
    columns = symmetric and negatives == "teacher_student"
    sums = sums_of(teacher, student, (inverse_t, inverse_s), log_scale, columns=columns, **options)
    positive, row = sums.positive / temperature, sums.row
    if negatives == "student_student":  # a symmetric matrix: both directions are one
        row = sums_of(student, student, (inverse_s, inverse_s), log_scale, **options).row
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


def _lse_of_both(sums: Sums) -> Tensor:
    """lse of each row of a symmetric matrix from what is right of its diagonal and what is above it."""
    both = torch.stack([sums.row, sums.column], 1)
    return logsumexp(both, both != -math.inf)


def _of_itself(z: Tensor, normalize: bool, temperature: float, targets: Tensor | None, budget: int) -> Sums:
    inverse = inverse_norms(z) if normalize else None
    log_scale = _scalar(-math.log(temperature), accumulator(z.dtype), z)
    return sums_of(z, z, (inverse, inverse), log_scale, targets=targets, columns=True, upper=True, budget=budget)


def _against_queue(z: Tensor, queue: Tensor, normalize: bool, temperature: float, budget: int) -> Tensor:
    """lse of each row's scores with all of a queue."""
    inverse = (inverse_norms(z), inverse_norms(queue)) if normalize else (None, None)
    log_scale = _scalar(-math.log(temperature), accumulator(z.dtype), z)
    return sums_of(z, queue, inverse, log_scale, budget=max(0, budget - 4 * len(z) ** 2)).row


def _limit(
    q: Tensor, k: Tensor, targets: Tensor, inverse_q: Tensor | None, inverse_k: Tensor | None, margin: float
) -> Tensor:
    """The greatest similarity that is no false negative of each row, without gradient, a few rows at a time."""
    acc = accumulator(q.dtype)
    # A sum of D products is off by less than half of this, in any order and with factors rounded before.
    rounding = (q.shape[1] + 16) * torch.finfo(acc).eps
    parts = [q.new_empty(0, dtype=acc)]
    with torch.no_grad():
        for rows, p in zip(q.split(1024), targets.split(1024), strict=True):
            rows, positives = rows.to(acc), k[p].to(acc)
            parts.append((rows * positives).sum(1) + rounding * rows.norm(dim=1) * positives.norm(dim=1))
        limit = torch.cat(parts)
        return (limit if inverse_q is None else limit * inverse_q * inverse_k[targets]) + margin


def _scalar(value: Tensor | float | None, acc: torch.dtype, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(like.device, acc)
    return torch.full((), 0.0 if value is None else float(value), dtype=acc, device=like.device)


def _wants_scalar(value: Tensor | float | None) -> bool:
    return isinstance(value, Tensor) and wants_grad(value)


def _without_kernel(op: str, x: Tensor) -> bool:
    if x.is_cpu or x.device.type == "meta" or (x.is_cuda and _GPU_KERNELS == "triton"):
        return False
    warn_no_kernel(op, x.device.type)
    return True


def _check_budget(op: str, budget: int) -> None:
    check_number(op, "memory_budget", budget, at_least=0)
