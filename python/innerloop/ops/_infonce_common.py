# SPDX-License-Identifier: Apache-2.0
"""What the contrastive losses share with their kernels: constants, norms, layouts and empty results."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "EPS",
    "LSE",
    "MEMORY_BUDGET",
    "SOFTPLUS",
    "accumulator",
    "empty_results",
    "inverse_norms",
    "one_dtype",
    "rows_of",
]

#: Bytes of scores that are kept between forward and backward; a larger matrix is computed again.
MEMORY_BUDGET = 40 << 20
EPS = 1e-12  # of the norms
#: Kinds of sums, as csrc/cpu/infonce.h numbers them.
LSE, SOFTPLUS = 0, 1


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def one_dtype(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, where one encoder's rows may be of a half type and stored ones float32: all float32 then."""
    given = [t for t in tensors if isinstance(t, Tensor)]
    dtypes = {t.dtype for t in given}
    if len(dtypes) < 2 or not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        return tensors
    device = given[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    return tuple(t.float() if isinstance(t, Tensor) else t for t in tensors)


def inverse_norms(x: Tensor) -> Tensor:
    acc = accumulator(x.dtype)
    with torch.no_grad():
        return torch.linalg.vector_norm(x, dim=1, dtype=acc).clamp(min=EPS).reciprocal()


def rows_of(x: Tensor) -> Tensor:
    """Channels side by side; rows may lie apart."""
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


def empty_results(q, k, columns, counts, keep_scores) -> tuple[Tensor, ...]:
    B, N, acc = q.shape[0], k.shape[0], accumulator(q.dtype)
    many = N if columns else 0
    floats = [torch.empty(n, dtype=acc, device=q.device) for n in (B, B, many)]
    ints = [torch.empty(n if counts else 0, dtype=torch.int64, device=q.device) for n in (B, many)]
    return (*floats, *ints, torch.empty((B, N) if keep_scores else (0, 0), dtype=acc, device=q.device))
