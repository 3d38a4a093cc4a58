# SPDX-License-Identifier: Apache-2.0
"""Shared material of the Poolingformer tests: sizes, large weights, dense attention."""

import math

import torch
from torch import Tensor, nn

DIM, HEADS = 16, 2


def randomize(module: nn.Module) -> nn.Module:
    """Weights large enough for every one to matter."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 0.4)
    return module


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax attention over the keys of the mask (B, Lq, Lk); 0 for a query without a key."""
    score = (q @ k.mT / math.sqrt(q.shape[-1]) + bias).masked_fill(~seen[:, None], -torch.inf)
    return score.softmax(-1).nan_to_num(0.0) @ v
