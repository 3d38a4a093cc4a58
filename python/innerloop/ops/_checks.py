# SPDX-License-Identifier: Apache-2.0
"""What the checks of several ops share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

__all__ = ["as_int", "batched", "differentiated", "readable"]


def as_int(x: object) -> int | None:
    """An int, or what NumPy calls one, as an int; None for anything else, bools too."""
    # Dynamo makes arrays of NumPy's numbers.
    if isinstance(x, np.integer) or (isinstance(x, np.ndarray) and x.ndim == 0 and x.dtype.kind in "iu"):
        return int(x)
    return x if isinstance(x, int) and not isinstance(x, bool) else None


def batched(t: Tensor) -> bool:
    """Whether `t` is a sample of `torch.func.vmap`."""
    return not torch.compiler.is_compiling() and any(map(torch._C._functorch.is_batchedtensor, _layers(t)))


def differentiated(t: Tensor) -> bool:
    """Whether a derivative of `t` can be asked for: what torch.func wraps may hide it from `t.requires_grad`."""
    if t.requires_grad or torch.compiler.is_compiling():
        return t.requires_grad
    return any(
        layer.requires_grad
        # vmap has no rule for this; the layer below has the tangent.
        or (not torch._C._functorch.is_batchedtensor(layer) and forward_ad.unpack_dual(layer).tangent is not None)
        for layer in _layers(t)
    )


def _layers(t: Tensor) -> Iterator[Tensor]:
    """`t`, and what torch.func has wrapped in it."""
    yield t
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
        yield t


def readable(t: Tensor) -> bool:
    """Whether the values can be looked at: not while traced, batched or captured, nor where there are none."""
    if torch.compiler.is_compiling() or t.is_meta or isinstance(t, FakeTensor):
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(t) or torch._C._get_tracing_state() is not None:
        return False
    return not (t.is_cuda and torch.cuda.is_current_stream_capturing())
