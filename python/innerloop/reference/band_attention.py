# SPDX-License-Identifier: Apache-2.0
"""Plain definition of attention to a band of keys: a dense mask and a softmax."""

import torch
from torch import Tensor


def band_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    scale: float,
    key_valid: Tensor | None = None,
    global_k: Tensor | None = None,
    global_v: Tensor | None = None,
    global_valid: Tensor | None = None,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    bias: Tensor | None = None,
    bias_stride: int = 1,
    bias_shift: int = 0,
) -> tuple[Tensor, Tensor]:
    """softmax over the keys j in [low_i, high_i) that are valid, and the valid global keys; see ``ops.band_attention``.

    Args:
        q: (B, H, Lq, D). k, v: (B, Hkv, Lk, D), Hkv divides H.
        low, high: integers (Lq,).
        key_valid: bool (B, Lk). global_k, global_v: (B, Hkv, G, D). global_valid: bool (B, G).
        residual: (B, H, Lq, D), added to the result.
        dropout_p: of the weights, drawn by torch.
        bias: (H, W), added to the scores: column j - i // bias_stride + bias_shift for query i and key j.

    Returns:
        out (B, H, Lq, D) and lse (B, H, Lq); 0 and -inf for a query that sees no key.
    """
    position = torch.arange(k.shape[2], device=q.device)
    added = 0
    if bias is not None:
        column = position - torch.arange(q.shape[2], device=q.device)[:, None] // bias_stride + bias_shift
        added = bias[:, column.clamp(0, bias.shape[1] - 1)]  # (H, Lq, Lk); clamped where nothing is seen
    seen = (position >= low[:, None]) & (position < high[:, None])  # (Lq, Lk)
    seen = seen.expand(len(q), 1, *seen.shape)
    if key_valid is not None:
        seen = seen & key_valid[:, None, None, :]
    if global_k is not None:
        k, v = torch.cat([global_k, k], 2), torch.cat([global_v, v], 2)
        added = 0 if bias is None else torch.nn.functional.pad(added, (global_k.shape[2], 0))
        everywhere = torch.ones(global_k.shape[0], global_k.shape[2], dtype=torch.bool, device=q.device)
        everywhere = everywhere if global_valid is None else global_valid
        seen = torch.cat([everywhere[:, None, None, :].expand(*seen.shape[:-1], -1), seen], -1)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    score = scale * q @ k.transpose(-1, -2) + added
    seen = seen & (score != -torch.inf)  # a bias may hide keys, too
    score = score.masked_fill(~seen, -torch.inf)
    lse = score.logsumexp(-1)
    weight = torch.where(seen, score - lse.masked_fill(lse == -torch.inf, 0)[..., None], -torch.inf).exp()
    weight = torch.nn.functional.dropout(weight, dropout_p) if dropout_p else weight
    out = weight @ v.masked_fill(~_any_valid(seen, v), 0)
    return (out if residual is None else out + residual), lse


def _any_valid(seen: Tensor, v: Tensor) -> Tensor:
    """Keys that some query sees; what lies in the others must not matter, not even NaN."""
    return seen.any(2)[..., None].expand_as(v)
