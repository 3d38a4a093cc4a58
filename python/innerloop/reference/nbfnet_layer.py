# SPDX-License-Identifier: Apache-2.0
"""Plain definition of the PNA layer of NBFNet, with its 12-fold feature tensor."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .relational_spmm import relational_spmm


def nbfnet_layer(
    edge_index: Tensor,
    edge_type: Tensor,
    num_nodes: int,
    relation: Tensor,
    input: Tensor | None,
    source: Tensor,
    query: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    scalers: Tensor,
    *,
    mul: str = "mul",
    eps: float = 1e-5,
    relu: bool = True,
    residual: bool = True,
) -> Tensor:
    """One layer of NBFNet with PNA aggregation, Zhu et al. (NeurIPS 2021), section 3.3.

    Args:
        edge_index, edge_type, num_nodes, relation, input, mul: see ``reference.relational_spmm``. No input: the
            boundary is the input, as in the first layer.
        source: int64 (B,), the node at which each query starts; query: (B, d), its boundary there.
        weight: (D, 13·d), columns [input (d) | channel, statistic (mean, max, min, std), scaler].
        bias, norm_weight, norm_bias: (D,); no LayerNorm when ``norm_weight`` is None.
        scalers: (V, 3), degree scalers of PNA.
        eps, relu, residual: of the epilogue relu(LayerNorm(·)) + input.

    Returns:
        (V, B, D).
    """
    columns = torch.arange(len(source), device=source.device)
    boundary = query.new_zeros(num_nodes, *query.shape).index_put((source, columns), query)
    input = boundary if input is None else input
    features = relational_spmm(edge_index, edge_type, num_nodes, relation, input, sum="pna", mul=mul, boundary=boundary)
    features = features.transpose(-1, -2).flatten(-2)  # (V, B, 4 d), channel-major
    update = (features.unsqueeze(-1) * scalers[:, None, None, :]).flatten(-2)  # (V, B, 12 d)
    hidden = F.linear(torch.cat([input, update], dim=-1), weight, bias)
    if norm_weight is not None:
        hidden = F.layer_norm(hidden, hidden.shape[-1:], norm_weight, norm_bias, eps)
    if relu:
        hidden = F.relu(hidden)
    return hidden + input if residual else hidden
