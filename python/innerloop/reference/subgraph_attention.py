# SPDX-License-Identifier: Apache-2.0
"""Plain definition of subgraph attention: the matrix of all scores, its softmax, one product."""

import torch
from torch import Tensor
from torch.nn import functional as F


def subgraph_attention(
    v: Tensor, e: Tensor, g: Tensor, bias: Tensor | None = None, *, activation: str = "elu", valid: Tensor | None = None
) -> Tensor:
    """Attention with scores ReLU(e_i + g_j); see ``ops.subgraph_attention``.

    Args:
        v: (B, H, N, D). e, g: (B, H, N). bias: (H, D).
        activation: "elu" or "none".
        valid: bool (B, N).

    Returns:
        (B, H, N, D).
    """
    if valid is not None:
        absent = ~valid[:, None, :]
        v, e, g = v.masked_fill(absent[..., None], 0), e.masked_fill(absent, 0), g.masked_fill(absent, 0)
    score = F.relu(e[..., :, None] + g[..., None, :])
    if valid is not None:
        score = score.masked_fill(absent[:, :, None] & ~absent[..., None], -torch.inf)
    out = score.softmax(-1) @ v
    if bias is not None:
        out = out + bias[:, None]
    if activation == "elu":
        out = F.elu(out)
    return out if valid is None else out.masked_fill(absent[..., None], 0)
