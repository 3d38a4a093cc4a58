# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses as modules, a queue of embeddings, and gradients of batches that do not fit into memory."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..ops._checks import readable
from ..ops._infonce_checks import check_choice, check_labels, check_matrices, check_number
from ..ops._infonce_common import one_dtype
from ..ops._infonce_distributed import gather_keys, infonce_distributed
from ..ops.infonce import Reduction, ckd, infonce, ntxent, siglip, supcon

__all__ = [
    "CKDLoss",
    "ClipLoss",
    "EmbeddingQueue",
    "InfoNCELoss",
    "NTXentLoss",
    "SigLipLoss",
    "SupConLoss",
]


class InfoNCELoss(nn.Module):
    """:func:`innerloop.infonce` with a temperature, learned or not.

    Args:
        temperature: T > 0; the scale is 1 / T.
        learned: log_scale = -ln T is a parameter. Calls use min(log_scale, ln max_scale) and leave the parameter alone:
            it may lie above by what the optimiser overshot. There its gradient is kept where descent leads down, else
            0 (projected gradient descent), so that it comes back.
        max_scale: above 0. normalize, symmetric, negatives_mask, margin, tau_plus, decoupled, reduction: see
            :func:`innerloop.infonce`.

    Forward:
        q, k and, by name, targets, labels_q, labels_k, weights, queue, labels_queue, hard_negatives, as
        :func:`innerloop.infonce`.

    Raises:
        ValueError: a number or name that does not fit.

    Example:
        >>> import torch
        >>> from innerloop.nn.contrastive import EmbeddingQueue, InfoNCELoss
        >>> loss, queue = InfoNCELoss(0.2, symmetric=False), EmbeddingQueue(4096, 64)
        >>> q, k = torch.randn(2, 32, 64)
        >>> value = loss(q, k, queue=queue.embeddings)
        >>> queue.push(k)
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learned: bool = False,
        max_scale: float = 100.0,
        normalize: bool = True,
        symmetric: bool = True,
        negatives_mask: Literal["none", "same_label", "margin"] = "none",
        margin: float = 0.1,
        tau_plus: float = 0.0,
        decoupled: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_options("InfoNCELoss", temperature, reduction)
        check_number("InfoNCELoss", "max_scale", max_scale)
        check_choice("InfoNCELoss", "negatives_mask", negatives_mask, ("none", "same_label", "margin"))
        if not 0 <= tau_plus < 1:
            raise ValueError(f"InfoNCELoss: tau_plus is {tau_plus!r}, expected a share in [0, 1)")
        log_scale = -math.log(temperature)
        self.log_scale = nn.Parameter(torch.tensor(log_scale)) if learned else log_scale
        self.max_scale = max_scale
        self.options = {
            "normalize": normalize, "symmetric": symmetric, "negatives_mask": negatives_mask, "margin": margin,
            "tau_plus": tau_plus, "decoupled": decoupled, "reduction": reduction,
        }  # fmt: skip

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        *,
        targets: Tensor | None = None,
        labels_q: Tensor | None = None,
        labels_k: Tensor | None = None,
        weights: Tensor | None = None,
        queue: Tensor | None = None,
        labels_queue: Tensor | None = None,
        hard_negatives: Tensor | None = None,
    ) -> Tensor:
        log_scale = self.log_scale
        if isinstance(log_scale, Tensor):  # not the parameter itself under torch.func.functional_call
            log_scale = _AtMost.apply(log_scale, math.log(self.max_scale))
        return infonce(
            q, k, log_scale=log_scale, targets=targets, labels_q=labels_q, labels_k=labels_k, weights=weights,
            queue=queue, labels_queue=labels_queue, hard_negatives=hard_negatives, **self.options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        log_scale = self.log_scale
        if isinstance(log_scale, Tensor):
            log_scale = min(log_scale.item(), math.log(self.max_scale))
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"temperature={math.exp(-log_scale):.6g}, {options}"


class _AtMost(torch.autograd.Function):
    """min(x, ceiling), whose gradient leads down from above the ceiling, not up; that of clamp would hold x there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, ceiling: float) -> Tensor:
        return x.clamp(max=ceiling)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.ceiling = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad.masked_fill((x >= ctx.ceiling) & (grad < 0), 0), None


class ClipLoss(nn.Module):
    """The loss of CLIP: both directions of InfoNCE at a learned scale. A drop-in for open_clip's `ClipLoss`.

    With `world_size` processes of torch.distributed each gives its part of the batch, and calls backward. The mean of
    their gradients, as DistributedDataParallel takes it, is the gradient of the loss of the whole batch, as open_clip's
    is with gather_with_grad=True. :func:`innerloop.infonce_distributed` has more: a ring, groups, uneven batches.

    Args:
        local_loss: return the mean over the pairs of this process, else over all pairs; where all processes have as
            many, the mean of the gradients is the same.
        gather_with_grad: has to be True with several processes: without, the gradients of features are 1 / world_size
            of those of the loss in open_clip, and with local_loss lack a part.
        cache_labels: accepted; no labels are needed.
        rank, world_size: in the default process group. use_horovod: has to be False.

    Forward:
        image_features, text_features: (B, D), normalised by the caller, of one dtype; under autocast a half type may
        stand beside float32. logit_scale: e^log_scale, a number or a tensor
        of one element. logit_bias: the like, or None; drops out of a softmax. output_dict: return
        {"contrastive_loss": loss}.

    Raises:
        ValueError, TypeError: as :func:`innerloop.infonce`, or an option that is not supported. RuntimeError: several
        processes, but torch.distributed is not initialised.

    Source: Radford et al., CLIP (ICML 2021), figure 3.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("ClipLoss: use_horovod is True, expected False: processes are those of torch.distributed")
        if world_size > 1 and not gather_with_grad:
            raise ValueError(
                f"ClipLoss: gather_with_grad is False with world_size={world_size}, expected True: without it the "
                "gradients are not those of the loss"
            )
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size = rank, world_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        scale, bias = _log("ClipLoss", logit_scale), _scalar("ClipLoss", "logit_bias", logit_bias)
        features = image_features, text_features
        if self.world_size == 1:
            loss = infonce(*features, log_scale=scale, bias=bias)
        else:
            _check_processes("ClipLoss", self.rank, self.world_size)
            if self.local_loss:
                # The gradient is that of the sum of the processes' means already, so DDP's mean needs no factor.
                each = infonce_distributed(*features, log_scale=scale, bias=bias, grad_scale="sum", reduction="none")
                loss = each.sum() / max(len(each), 1)
            else:
                loss = infonce_distributed(*features, log_scale=scale, bias=bias)
        return {"contrastive_loss": loss} if output_dict else loss

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The matrices of scores that the loss does without: of images against texts, and texts against images.

        (B, N) each. With several processes N are the pairs of all, in the order of the processes; B those of this
        process with local_loss, else also all. Gradients of features are summed over the processes.
        """
        scale, bias = _scalar("ClipLoss", "logit_scale", logit_scale), _scalar("ClipLoss", "logit_bias", logit_bias)
        image, text = one_dtype(image_features, text_features)
        check_matrices("ClipLoss", {"image_features": image, "text_features": text}, same_shape=True)
        all_image, all_text = image, text
        if self.world_size > 1:
            _check_processes("ClipLoss", self.rank, self.world_size)
            all_image, all_text = (gather_keys("ClipLoss", x, x, own_first=False) for x in (image, text))
        if not self.local_loss:
            image, text = all_image, all_text
        per_image, per_text = scale * image @ all_text.T, scale * text @ all_image.T
        return (per_image, per_text) if bias is None else (per_image + bias, per_text + bias)

    def extra_repr(self) -> str:
        return _named(self, "local_loss", "gather_with_grad", "rank", "world_size")


class SigLipLoss(nn.Module):
    """The loss of SigLIP: a sigmoid for every pair. A drop-in for open_clip's `SigLipLoss`.

    With `world_size` processes, each of equally many pairs, each has the scores of its own images and all texts; the
    mean over processes of their losses and, as DistributedDataParallel takes it, gradients is that of the whole batch.

    Args:
        cache_labels, rank, world_size: see :class:`ClipLoss`.
        dist_impl: None, "bidir", "shift", "reduce" or "gather": open_clip's ways to one result. Here all texts are
            gathered, memory O(D · texts).

    Forward:
        As :class:`ClipLoss`; the bias, learned from -10 on, matters here.

    Raises:
        As :class:`ClipLoss`.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training (ICCV 2023), section 3.2.
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        super().__init__()
        if dist_impl is not None:
            check_choice("SigLipLoss", "dist_impl", dist_impl, ("bidir", "shift", "reduce", "gather"))
        self.cache_labels, self.rank, self.world_size, self.dist_impl = cache_labels, rank, world_size, dist_impl

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        log_scale, bias = _log("SigLipLoss", logit_scale), _scalar("SigLipLoss", "logit_bias", logit_bias)
        if self.world_size > 1:
            _check_processes("SigLipLoss", self.rank, self.world_size)
            image_features, text_features = one_dtype(image_features, text_features)
            text_features = gather_keys("SigLipLoss", image_features, text_features)
        loss = siglip(image_features, text_features, log_scale, 0.0 if bias is None else bias)
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        return _named(self, "rank", "world_size", "dist_impl")


def _check_options(owner: str, temperature: float, reduction: str) -> None:
    check_number(owner, "temperature", temperature)
    check_choice(owner, "reduction", reduction, ("mean", "sum", "none"))


def _named(module: nn.Module, *names: str) -> str:
    return ", ".join(f"{name}={getattr(module, name)!r}" for name in names)


def _scalar(owner: str, name: str, value: Tensor | float | None) -> Tensor | float | None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{owner}: {name} has shape {tuple(value.shape)}, expected a number or one element")
        return value.reshape(())
    return value


def _log(owner: str, logit_scale: Tensor | float) -> Tensor | float:
    """The log_scale of an exponentiated one, in float64: that of a half type would be off by percents of the scale."""
    logit_scale = _scalar(owner, "logit_scale", logit_scale)
    if not isinstance(logit_scale, Tensor):
        check_number(owner, "logit_scale", logit_scale)
        return math.log(logit_scale)
    if readable(logit_scale):
        check_number(owner, "logit_scale", float(logit_scale.detach()))
    return logit_scale.double().log()


def _check_processes(owner: str, rank: int, world_size: int) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(f"{owner}: torch.distributed is not initialised, expected it to be with {world_size=}")
    group = dist.get_rank(), dist.get_world_size()
    if (rank, world_size) != group:
        raise ValueError(f"{owner}: rank and world_size are {(rank, world_size)}, expected the {group} of the group")


class NTXentLoss(nn.Module):
    """:func:`innerloop.ntxent` as a module: forward(z1, z2), the loss of SimCLR."""

    def __init__(self, temperature: float = 0.5, normalize: bool = True, reduction: Reduction = "mean") -> None:
        super().__init__()
        _check_options("NTXentLoss", temperature, reduction)
        self.temperature, self.normalize, self.reduction = temperature, normalize, reduction

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        return ntxent(z1, z2, temperature=self.temperature, normalize=self.normalize, reduction=self.reduction)

    def extra_repr(self) -> str:
        return _named(self, "temperature", "normalize", "reduction")


class SupConLoss(nn.Module):
    """:func:`innerloop.supcon` as a module.

    Args:
        temperature, base_temperature, normalize, reduction: see :func:`innerloop.supcon`; the authors' code has 0.07
            for both temperatures.

    Forward:
        z: (B, D), or (B, V, D): V views of each sample, which have one label. labels: integers (B,); views need none,
        each sample is then a class of its own. queue, labels_queue: see :func:`innerloop.supcon`; with labels only.

    Raises:
        TypeError, ValueError: as :func:`innerloop.supcon`, or no labels.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        base_temperature: float | None = None,
        normalize: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_options("SupConLoss", temperature, reduction)
        if base_temperature is not None:
            check_number("SupConLoss", "base_temperature", base_temperature)
        self.temperature, self.base_temperature = temperature, base_temperature
        self.normalize, self.reduction = normalize, reduction

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        queue: Tensor | None = None,
        labels_queue: Tensor | None = None,
    ) -> Tensor:
        views = z.dim() == 3
        if labels is None:
            if not views or queue is not None:
                beside = "a queue" if views else f"z of shape {tuple(z.shape)}"
                raise ValueError(f"SupConLoss: labels is None, expected labels with {beside}")
            labels = torch.arange(len(z), device=z.device)
        if views:
            labels, z = labels.repeat_interleave(z.shape[1]), z.flatten(0, 1)
        return supcon(
            z, labels, temperature=self.temperature, base_temperature=self.base_temperature, normalize=self.normalize,
            queue=queue, labels_queue=labels_queue, reduction=self.reduction,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return _named(self, "temperature", "base_temperature", "normalize", "reduction")


class CKDLoss(nn.Module):
    """:func:`innerloop.ckd` as a module: the contrast of a student's logits with a teacher's, without weight.

    Args:
        temperature, negatives, symmetric, reduction: see :func:`innerloop.ckd`. Published with weights of 10 to 100
            beside a cross entropy of weight 1.

    Forward:
        student, teacher: logits (B, C), of samples or of RoIs. labels: integers (B,) or None; samples of one label are
        no negatives of each other then (ours, not the paper's).
    """

    def __init__(
        self,
        temperature: float = 1.0,
        negatives: Literal["teacher_student", "student_student"] = "teacher_student",
        symmetric: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_options("CKDLoss", temperature, reduction)
        check_choice("CKDLoss", "negatives", negatives, ("teacher_student", "student_student"))
        self.temperature, self.negatives, self.symmetric, self.reduction = temperature, negatives, symmetric, reduction

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        return ckd(
            student, teacher, temperature=self.temperature, negatives=self.negatives, labels=labels,
            symmetric=self.symmetric, reduction=self.reduction,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return _named(self, "temperature", "negatives", "symmetric", "reduction")


class EmbeddingQueue(nn.Module):
    """The last `size` embeddings pushed: negatives of earlier batches (MoCo), or samples to compare with (XBM).

    A ring, part of the state_dict. `embeddings` and `labels`, what losses take as `queue` and `labels_queue`, are views
    of its filled part, in no particular order:
    push after the backward pass of a loss that saw them (before it, autograd refuses), or give the loss a clone.

    Args:
        size: at least 1. dim: D.
        labelled: keep an int64 label of each.
        dtype: what embeddings are kept in.

    Raises:
        ValueError, TypeError: sizes, or a push, that do not fit.

    Source: He et al., MoCo (CVPR 2020); Wang et al., Cross-Batch Memory (CVPR 2020).
    """

    def __init__(self, size: int, dim: int, *, labelled: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"EmbeddingQueue: {name} is {value!r}, expected an integer of at least 1")
        self.register_buffer("all_embeddings", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("all_labels", torch.zeros(size, dtype=torch.int64) if labelled else None)
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """How many there are."""
        return min(int(self.pushed), len(self.all_embeddings))

    @property
    def embeddings(self) -> Tensor:
        """(len, D)."""
        return self.all_embeddings[: len(self)]

    @property
    def labels(self) -> Tensor | None:
        """(len,), None without labels."""
        return None if self.all_labels is None else self.all_labels[: len(self)]

    @torch.no_grad()
    def push(self, embeddings: Tensor, labels: Tensor | None = None) -> None:
        """Puts them, (B, D) of any B, in the places of the oldest; labels, integers (B,), where the queue has them."""
        size, dim = self.all_embeddings.shape
        check_matrices("EmbeddingQueue", {"embeddings": embeddings})
        if embeddings.shape[1] != dim:
            raise ValueError(f"EmbeddingQueue: embeddings has shape {tuple(embeddings.shape)}, expected (B, {dim})")
        if (labels is None) != (self.all_labels is None):
            expected = "labels of a labelled queue" if labels is None else "None without labelled=True"
            raise ValueError(f"EmbeddingQueue: labels is {labels!r}, expected {expected}")
        count = len(embeddings)
        if labels is not None:
            check_labels("EmbeddingQueue", "labels", labels, count, embeddings)
        kept = min(count, size)
        places = (self.pushed + torch.arange(count - kept, count, device=self.pushed.device)) % size
        self.all_embeddings[places] = embeddings[count - kept :].to(self.all_embeddings)
        if labels is not None:
            self.all_labels[places] = labels[count - kept :].to(self.all_labels)
        self.pushed += count

    def extra_repr(self) -> str:
        size, dim = self.all_embeddings.shape
        return f"size={size}, dim={dim}, labelled={self.all_labels is not None}"
