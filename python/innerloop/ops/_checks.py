# SPDX-License-Identifier: Apache-2.0
"""What the checks of several ops share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["readable"]


def readable(t: Tensor) -> bool:
    """Whether the values can be looked at: not while traced, batched or captured, nor where there are none."""
    if torch.compiler.is_compiling() or t.is_meta or isinstance(t, FakeTensor):
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(t) or torch._C._get_tracing_state() is not None:
        return False
    return not (t.is_cuda and torch.cuda.is_current_stream_capturing())
