# SPDX-License-Identifier: Apache-2.0
"""Plain definition of the in-batch contrastive losses: form every score, mask, log-sum-exp."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-12  # of the norms


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
    negatives_mask: str = "none",
    margin: float = 0.1,
    exclude_diagonal: bool = False,
    queue: Tensor | None = None,
    labels_queue: Tensor | None = None,
    hard_negatives: Tensor | None = None,
    tau_plus: float = 0.0,
    decoupled: bool = False,
    reduction: str = "mean",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor | None]:
    """Cross entropy of each row of S = e^log_scale q kᵀ + bias against its target, and of the target columns.

    row_i = lse_j S_ij - S_ip(i),  column_i = lse_j S_jp(i) - S_ip(i),  loss_i = (row_i + column_i) / 2.

    van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, eq. 4; both directions:
    Radford et al., CLIP, ICML 2021. Allocates the (B, N) scores that the kernels avoid. Half types are computed, and
    the results returned, in float32.

    Args:
        q: (B, D), any floating dtype. k: (N, D).
        log_scale, bias: numbers or 0-d tensors; none is 0.
        normalize: divide each row of q, k, queue and hard_negatives by max(‖row‖, 1e-12).
        symmetric: the mean of both directions; False: rows only.
        targets: int64 (B,), p, the positive column of each row, all different if symmetric. Default: 0 .. B - 1.
        labels_q: integers (B,). labels_k: integers (N,), by default labels_q where N == B.
        weights: (B,), ω: the mean is Σωl / Σω (0 where Σω = 0), the sum Σωl, and "none" ωl.
        negatives_mask: "same_label" drops negatives of k with labels_k[j] == labels_q[i]; "margin" negatives, queue and
            hard_negatives too, whose similarity (S without scale and bias) is above the positive's plus `margin`, by
            more than (D + 16) ε ‖q_i‖ ‖k_p(i)‖, what rounding can make of equal ones: these stay.
        exclude_diagonal: drop the entries (i, i), none of which may be a target.
        queue: (K, D), further columns of every row, without gradient (He et al., MoCo, CVPR 2020).
        labels_queue: integers (K,): "same_label" drops those of the queue too.
        hard_negatives: (B, K, D), further columns of one row each.
        tau_plus: τ₊, share of the negatives that are false (Chuang et al., "Debiased Contrastive Learning", NeurIPS
            2020, eq. 7 and 8): the sum Σ of the N⁻ visible negatives becomes
            N⁻ max((Σ / N⁻ - τ₊ e^S_ip(i)) / (1 - τ₊), e^-scale).
        decoupled: leave the positive out of its denominators (Yeh et al., "Decoupled Contrastive Learning", ECCV 2022).
        reduction: "mean", "sum" or "none".
        return_lse: also return the logarithms of the denominators.

    Returns:
        The loss, 0-d or (B,); with return_lse also those of the rows (B,) and of the target columns (B,), none if not
        symmetric. An empty denominator (-inf) counts as loss 0 without gradient.
    """
    q, k, queue, hard_negatives = (_rows(x, normalize) for x in (q, k, queue, hard_negatives))
    scale, bias = _scalar(log_scale, q).exp(), _scalar(bias, q)
    (B, _), N = q.shape, len(k)
    targets = torch.arange(B, device=q.device) if targets is None else targets

    visible = torch.ones(B, N, dtype=torch.bool, device=q.device)
    if exclude_diagonal:
        visible = visible.fill_diagonal_(False)
    if negatives_mask == "same_label":
        visible = visible & (labels_q[:, None] != (labels_q if labels_k is None else labels_k))
    of_queue = visible.new_ones(B, 0 if queue is None else len(queue))
    if labels_queue is not None:
        of_queue = labels_q[:, None] != labels_queue
    if negatives_mask == "margin":
        lengths = q.norm(dim=1) * k[targets].norm(dim=1)
        margin = margin + (q.shape[1] + 16) * torch.finfo(q.dtype).eps * lengths[:, None]
    options = {
        "scale": scale,
        "bias": bias,
        "margin": margin if negatives_mask == "margin" else math.inf,
        "tau_plus": tau_plus,
        "decoupled": decoupled,
    }

    blocks = [q @ k.T]
    if queue is not None:
        blocks.append(q @ queue.detach().T)
    if hard_negatives is not None:
        blocks.append(torch.einsum("bd,bkd->bk", q, hard_negatives))
    row_similarity = torch.cat(blocks, 1)
    row_visible = torch.cat([visible, of_queue], 1)
    row_visible = F.pad(row_visible, (0, row_similarity.shape[1] - row_visible.shape[1]), value=True)
    loss, row_lse = _direction(row_similarity, row_visible, targets, **options)
    column_lse = None
    if symmetric:
        position = torch.arange(B, device=q.device)
        column, column_lse = _direction(blocks[0][:, targets].T, visible[:, targets].T, position, **options)
        loss = (loss + column) / 2
    loss = reduced(loss, reduction, weights)
    return (loss, row_lse, column_lse) if return_lse else loss


def ntxent(
    z1: Tensor, z2: Tensor, *, temperature: float = 0.5, normalize: bool = True, reduction: str = "mean"
) -> Tensor:
    """NT-Xent of two views: row i of Z = [z1; z2] against its other view, among all rows but itself.

    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR), ICML 2020, eq. 1.

    Args:
        z1, z2: (B, D).
        temperature: above 0. normalize: the rows first. reduction: "mean", "sum" or "none".

    Returns:
        0-d or (2B,), in the order of Z.
    """
    z, B = torch.cat([z1, z2]), len(z1)
    partner = torch.arange(2 * B, device=z.device).roll(B)
    return infonce(
        z, z, log_scale=-math.log(temperature), normalize=normalize, symmetric=False, targets=partner,
        exclude_diagonal=True, reduction=reduction,
    )  # fmt: skip


def supcon(
    z: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.07,
    base_temperature: float | None = None,
    normalize: bool = True,
    queue: Tensor | None = None,
    labels_queue: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Supervised contrastive loss: -1/|P(i)| Σ_{p∈P(i)} (S_ip - lse_{a≠i} S_ia), P(i) the others with i's label.

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, eq. 2 (L_out). With a queue the others are those of
    the batch and of the queue (Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020).

    Args:
        z: (B, D). labels: integers (B,).
        temperature: above 0. base_temperature: multiply by temperature / base_temperature; none does not.
        normalize: the rows first.
        queue: (K, D), without gradient. labels_queue: integers (K,).
        reduction: "mean" over the rows with a positive, "sum" or "none".

    Returns:
        0-d or (B,), 0 for a row without a positive.
    """
    z = _rows(z, normalize)
    columns, column_labels = z, labels
    if queue is not None:
        columns = torch.cat([z, _rows(queue, normalize).detach()])
        column_labels = torch.cat([labels, labels_queue])
    score = z @ columns.T / temperature
    others = torch.ones_like(score, dtype=torch.bool).fill_diagonal_(False)
    positive = others & (labels[:, None] == column_labels)
    count = positive.sum(1)
    log_p = score - logsumexp(score, others)[:, None]
    loss = -log_p.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    if base_temperature is not None:
        loss = loss * (temperature / base_temperature)
    return reduced(loss, reduction, count > 0)


def siglip(
    q: Tensor,
    k: Tensor,
    log_scale: Tensor | float,
    bias: Tensor | float,
    *,
    normalize: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid loss of every pair: -Σ_j log σ(z_ij (e^log_scale q_i · k_j + bias)), z = 1 for j = i and else -1.

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, sec. 3.2.

    Args:
        q: (B, D). k: (N, D).
        log_scale, bias: numbers or 0-d tensors; the paper starts from ln 10 and -10.
        normalize: the rows first. reduction: "mean" over the rows, "sum" or "none".

    Returns:
        0-d or (B,).
    """
    q, k = _rows(q, normalize), _rows(k, normalize)
    score = _scalar(log_scale, q).exp() * (q @ k.T) + _scalar(bias, q)
    sign = 2 * torch.eye(*score.shape, dtype=q.dtype, device=q.device) - 1
    return reduced(-F.logsigmoid(sign * score).sum(1), reduction)


def ckd(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    negatives: str = "teacher_student",
    labels: Tensor | None = None,
    symmetric: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Contrastive distillation: the teacher's logits t of a sample against the students' s of all, by cosine.

    loss_i = lse_j S_ij - S_ii with S_ij = cos(t_i, s_j) / temperature.

    Zhu et al., "Contrastive Knowledge Distillation from a Sample-wise Perspective", arXiv 2404.14109, as in the
    authors' code.

    Args:
        student, teacher: (B, C); no gradient reaches the teacher.
        temperature: above 0.
        negatives: "teacher_student", or "student_student": S_ij = cos(s_i, s_j) / temperature for j ≠ i.
        labels: integers (B,): samples with i's label are no negatives of i (not in the paper).
        symmetric: the mean of that and of the same for the columns of S.
        reduction: "mean", "sum" or "none".

    Returns:
        0-d or (B,).
    """
    student, teacher = _rows(student, True), _rows(teacher, True).detach()
    position = torch.arange(len(student), device=student.device)
    similarity = teacher @ student.T
    if negatives == "student_student":
        similarity = torch.where(position[:, None] == position, similarity, student @ student.T)
    visible = torch.ones_like(similarity, dtype=torch.bool) if labels is None else labels[:, None] != labels
    loss, _ = _direction(similarity, visible, position, scale=1 / temperature)
    if symmetric:
        column, _ = _direction(similarity.T, visible.T, position, scale=1 / temperature)
        loss = (loss + column) / 2
    return reduced(loss, reduction)


def _direction(
    similarity: Tensor,
    visible: Tensor,
    targets: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float = 0.0,
    margin: Tensor | float = math.inf,
    tau_plus: float = 0.0,
    decoupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss and logarithm of the denominator (B,) of each row; `targets` are seen whatever `visible` says."""
    targets = targets[:, None]
    too_close = similarity > similarity.gather(1, targets) + margin
    negative = visible.scatter(1, targets, False) & ~too_close
    score = scale * similarity + bias
    positive = score.gather(1, targets).squeeze(1)
    lse = logsumexp(score, negative)
    if tau_plus:
        lse = debiased(lse, negative.sum(1), positive, -scale, tau_plus)
    if not decoupled:
        lse = torch.logaddexp(lse, positive)
    return (lse - positive).masked_fill(lse == -torch.inf, 0), lse


def debiased(lse: Tensor, count: Tensor, positive: Tensor, floor: Tensor, tau_plus: float) -> Tensor:
    """log(N⁻ max((e^lse / N⁻ - τ₊ e^positive) / (1 - τ₊), e^floor)), N⁻ = count."""
    log_count = count.clamp(min=1).to(lse.dtype).log()
    mean = lse - log_count
    excess = positive + math.log(tau_plus) - mean
    above = excess < 0  # else the estimate is not positive
    estimate = mean + torch.log(-torch.expm1(excess.where(above, -1))) - math.log1p(-tau_plus)
    total = log_count + torch.where(above & (estimate > floor), estimate, floor)
    return total.masked_fill(count == 0, -torch.inf)


def logsumexp(score: Tensor, seen: Tensor) -> Tensor:
    """Over the seen entries of each row; -inf without gradient where there are none."""
    empty = ~seen.any(1)
    lse = score.masked_fill(~seen, -torch.inf).masked_fill(empty[:, None], 0).logsumexp(1)
    return lse.masked_fill(empty, -torch.inf)


def reduced(loss: Tensor, reduction: str, weights: Tensor | None = None) -> Tensor:
    weights = torch.ones_like(loss) if weights is None else weights.to(loss.dtype)
    if reduction == "none":
        return weights * loss
    total = (weights * loss).sum()
    if reduction == "sum":
        return total
    size = weights.sum()
    return total / size.where(size != 0, 1)


def _rows(x: Tensor | None, normalize: bool) -> Tensor | None:
    """In at least float32, and of length 1 if asked for."""
    if x is None:
        return None
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return F.normalize(x, dim=-1, eps=_EPS) if normalize else x


def _scalar(value: Tensor | float | None, like: Tensor) -> Tensor:
    return torch.as_tensor(0.0 if value is None else value, dtype=like.dtype, device=like.device)
