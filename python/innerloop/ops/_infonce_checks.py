# SPDX-License-Identifier: Apache-2.0
"""Checks of what the contrastive losses are called with; every message names function, argument, value, expectation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ._checks import readable

__all__ = [
    "check_choice",
    "check_infonce",
    "check_labels",
    "check_matrices",
    "check_number",
    "check_queue_labels",
    "check_scalar",
]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_infonce(
    q, k, log_scale, bias, targets, labels_q, labels_k, weights, negatives_mask, margin, exclude_diagonal, queue,
    labels_queue, hard_negatives, tau_plus, reduction, memory_budget, symmetric,
) -> None:  # fmt: skip
    op = "infonce"
    check_matrices(op, {"q": q, "k": k, "queue": queue})
    B, N = len(q), len(k)
    for name, value in (("log_scale", log_scale), ("bias", bias)):
        check_scalar(op, name, value, q)
    check_choice(op, "negatives_mask", negatives_mask, ("none", "same_label", "margin"))
    check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
    check_number(op, "memory_budget", memory_budget, at_least=0)
    check_number(op, "tau_plus", tau_plus, at_least=0)
    if not 0 <= tau_plus < 1:
        raise ValueError(f"{op}: tau_plus is {tau_plus!r}, expected a share in [0, 1)")
    if not isinstance(margin, int | float):
        raise TypeError(f"{op}: margin is {type(margin).__name__}, expected a number")
    if margin != margin:  # NaN; math.isnan is not traced by torch.compile(dynamic=True), nor math.isfinite
        raise ValueError(f"{op}: margin is {margin!r}, expected a number")
    if targets is None and N < B:
        raise ValueError(f"{op}: k has {N} rows, expected at least {B} like q without targets")
    if B and not N:
        raise ValueError(f"{op}: k has 0 rows, expected at least 1")
    _check_targets(op, targets, q, N, symmetric, exclude_diagonal)
    if negatives_mask == "same_label":
        if labels_q is None:
            raise ValueError(f"{op}: labels_q is None, expected labels with negatives_mask='same_label'")
        if labels_k is None and N != B:
            raise ValueError(f"{op}: labels_k is None, expected the labels of the {N} rows of k, q having {B}")
    elif any(labels is not None for labels in (labels_q, labels_k, labels_queue)):
        raise ValueError(f"{op}: labels are given with negatives_mask {negatives_mask!r}, expected 'same_label'")
    for name, labels, size in (("labels_q", labels_q, B), ("labels_k", labels_k, N)):
        if labels is not None:
            check_labels(op, name, labels, size, q)
    check_queue_labels(op, queue, labels_queue, q)
    if weights is not None:
        _check_vector(op, "weights", weights, B, q)
        if readable(weights) and bool(weights.sum() < 0):
            raise ValueError(f"{op}: weights add up to {float(weights.sum()):.6g}, expected at least 0")
    if hard_negatives is not None:
        _check_tensor(op, "hard_negatives", hard_negatives, q, "q")
        if hard_negatives.dim() != 3 or hard_negatives.shape[::2] != q.shape:
            raise ValueError(
                f"{op}: hard_negatives has shape {tuple(hard_negatives.shape)}, expected ({B}, K, {q.shape[1]})"
            )


def _check_targets(op: str, targets, q: Tensor, N: int, symmetric: bool, exclude_diagonal: bool) -> None:
    B = len(q)
    if targets is not None:
        if not isinstance(targets, Tensor):
            raise TypeError(f"{op}: targets is {type(targets).__name__}, expected a tensor")
        if targets.dtype != torch.int64:
            raise ValueError(f"{op}: targets is {targets.dtype}, expected torch.int64")
        _check_vector(op, "targets", targets, B, q)
        if readable(targets) and B:
            bad = targets[(targets < 0) | (targets >= N)]
            if len(bad):
                raise ValueError(f"{op}: targets holds {int(bad[0])}, expected columns in [0, {N})")
            if symmetric and len(targets.unique()) < B:
                raise ValueError(f"{op}: targets repeat a column, expected all different with symmetric=True")
        elif torch.compiler.is_compiling():
            _assert_targets(op, targets, N, symmetric, exclude_diagonal)
    if exclude_diagonal and B:
        on_diagonal = targets is None or (
            readable(targets) and bool((targets == torch.arange(B, device=targets.device)).any())
        )
        if on_diagonal:
            raise ValueError(f"{op}: exclude_diagonal is True with targets on the diagonal, expected them off it")


def _assert_targets(op: str, targets: Tensor, N: int, symmetric: bool, exclude_diagonal: bool) -> None:
    """The same in the graph of torch.compile, as a RuntimeError; on a GPU it arrives when the stream does."""
    inside = (targets >= 0) & (targets < N)
    torch._assert_async(inside.all(), f"{op}: targets holds what is no column of k, expected columns in [0, len(k))")
    if symmetric:
        ordered = targets.sort().values
        differ = ordered[1:] != ordered[:-1]
        torch._assert_async(differ.all(), f"{op}: targets repeat a column, expected all different with symmetric=True")
    if exclude_diagonal:
        off = targets != torch.arange(len(targets), device=targets.device)
        torch._assert_async(
            off.all(), f"{op}: exclude_diagonal is True with targets on the diagonal, expected them off it"
        )


def check_matrices(op: str, tensors: Mapping[str, Tensor | None], *, same_shape: bool = False) -> None:
    """Tensors of rows: of the dtype, device and width of the first; those that are None are passed over."""
    (first_name, first), *_ = tensors.items()
    for name, t in tensors.items():
        if t is None and name == "queue":
            continue
        _check_tensor(op, name, t, first, first_name)
        if t.dim() != 2 or (same_shape and t.shape != first.shape) or t.shape[1] != first.shape[1] or not t.shape[1]:
            expected = tuple(first.shape) if same_shape and t is not first and first.dim() == 2 else "(rows, D), D >= 1"
            like = "" if t is first else f" with the D of {first_name}, {tuple(first.shape)}"
            raise ValueError(f"{op}: {name} has shape {tuple(t.shape)}, expected {expected}{like}")


def _check_tensor(op: str, name: str, t: Tensor, first: Tensor, first_name: str) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} is {type(t).__name__}, expected a tensor")
    if t.dtype not in _DTYPES:
        raise TypeError(f"{op}: {name} has dtype {t.dtype}, expected float32, float64, bfloat16 or float16")
    if t.dtype != first.dtype:
        raise ValueError(f"{op}: {name} has dtype {t.dtype}, expected {first.dtype} like {first_name}")
    if t.device != first.device:
        raise ValueError(f"{op}: {name} is on {t.device}, expected {first.device} like {first_name}")


def _check_vector(op: str, name: str, t: Tensor, size: int, like: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: {name} is {type(t).__name__}, expected a tensor")
    if tuple(t.shape) != (size,):
        raise ValueError(f"{op}: {name} has shape {tuple(t.shape)}, expected {(size,)}")
    if t.device != like.device:
        raise ValueError(f"{op}: {name} is on {t.device}, expected {like.device}")


def check_labels(op: str, name: str, labels: Tensor, size: int, like: Tensor) -> None:
    _check_vector(op, name, labels, size, like)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{op}: {name} has dtype {labels.dtype}, expected integers")


def check_queue_labels(op: str, queue: Tensor | None, labels_queue: Tensor | None, like: Tensor) -> None:
    if labels_queue is None:
        return
    if queue is None:
        raise ValueError(f"{op}: labels_queue is given without queue, expected both")
    check_labels(op, "labels_queue", labels_queue, len(queue), like)


def check_scalar(op: str, name: str, value: Tensor | float | None, like: Tensor) -> None:
    """A finite number, a 0-d tensor, or None."""
    if isinstance(value, Tensor):
        if value.dim():
            raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, expected a number or a 0-d tensor")
        if readable(value) and not math.isfinite(float(value.detach())):
            raise ValueError(f"{op}: {name} is {float(value.detach())}, expected a finite number")
    elif value is not None:
        if not isinstance(value, int | float | torch.SymInt | torch.SymFloat):
            raise TypeError(f"{op}: {name} is {type(value).__name__}, expected a number or a 0-d tensor")
        if not -math.inf < value < math.inf:
            raise ValueError(f"{op}: {name} is {value!r}, expected a finite number")
    if name == "log_scale" and value is not None and (not isinstance(value, Tensor) or readable(value)):
        largest = math.log(torch.finfo(torch.float64 if like.dtype == torch.float64 else torch.float32).max)
        value = float(value.detach() if isinstance(value, Tensor) else value)
        if value > largest:
            raise ValueError(
                f"{op}: log_scale is {value:.6g}, expected at most {largest:.5g}: its exponential overflows"
            )


def check_number(op: str, name: str, value: float, *, at_least: float | None = None) -> None:
    """A finite number above 0, or at least `at_least`."""
    if isinstance(value, Tensor) or not isinstance(value, int | float | torch.SymInt | torch.SymFloat):
        hint = "; for a learned temperature use infonce(log_scale=...)" if isinstance(value, Tensor) else ""
        raise TypeError(f"{op}: {name} is {type(value).__name__}, expected a number{hint}")
    fits = value > 0 if at_least is None else value >= at_least
    if not (value < math.inf and fits):
        least = "above 0" if at_least is None else f"of at least {at_least}"
        raise ValueError(f"{op}: {name} is {value!r}, expected a number {least}")


def check_choice(op: str, name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{op}: {name} is {value!r}, expected one of {', '.join(known)}")
