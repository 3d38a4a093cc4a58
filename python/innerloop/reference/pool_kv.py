# SPDX-License-Identifier: Apache-2.0
"""Plain definition of pooling along the sequence: every window gathered, then one reduction."""

import torch
from torch import Tensor


def pool_kv(
    x: Tensor, weight: Tensor | None = None, valid: Tensor | None = None, *, kernel: int, stride: int, mode: str
) -> Tensor:
    """Pools windows of `kernel` tokens, `stride` apart; see ``ops.pool_kv``.

    Args:
        x: (B, H, L, D).
        weight: (kernel, D) or (H, kernel, D), for mode "ldconv".
        valid: bool (B, L).
        mode: "mean", "max" or "ldconv".

    Returns:
        (B, H, ⌈L / stride⌉, D).
    """
    length = x.shape[2]
    pooled = -(-length // stride)
    first = torch.arange(pooled, device=x.device) * stride - max(0, (kernel - stride) // 2)
    token = first[:, None] + torch.arange(kernel, device=x.device)  # (M, kernel)
    inside = (token >= 0) & (token < length)
    token = token.clamp(0, max(length - 1, 0))
    counts = inside.expand(len(x), 1, *inside.shape)
    if valid is not None:
        counts = counts & valid[:, None, token]  # (B, 1, M, kernel)
    counts = counts[..., None]
    taps = x[:, :, token]  # (B, H, M, kernel, D)
    some = counts.any(3)
    if mode == "max":
        return torch.where(some, taps.masked_fill(~counts, -torch.inf).amax(3), 0)
    if mode == "mean":
        return taps.masked_fill(~counts, 0).sum(3) / counts.sum(3).clamp(min=1)
    # The middle tap, or the last before it that counts, or else the first behind it.
    u, middle = torch.arange(kernel, device=x.device), kernel // 2
    rank = torch.where(u <= middle, u + kernel, middle - u).masked_fill(~counts[..., 0], -2 * kernel)
    chosen = rank.argmax(-1)[..., None, None].expand(-1, x.shape[1], -1, 1, x.shape[3])
    center = taps.masked_fill(~counts, 0).gather(3, chosen).squeeze(3)  # (B, H, M, D)
    weight = weight if weight.dim() == 3 else weight.expand(x.shape[1], -1, -1)
    logit = torch.einsum("bhmd,hud->bhmu", center, weight)[..., None].masked_fill(~counts, -torch.inf)
    share = torch.where(some[..., None], logit, 0).softmax(3)
    return torch.where(some, (share * taps.masked_fill(~counts, 0)).sum(3), 0)
