# SPDX-License-Identifier: Apache-2.0
"""Grids as numbers of their distinct blocks, so that the convolutions of the models see each of these once.

Neither convolution overlaps blocks: the 64 channels of a 3 × 3 block depend on this block alone. The grids of a set of
molecules hold a hundred distinct ones, a batch thousands of blocks; a look-up replaces most of the work of the
convolutions and of the first layer behind them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from innerloop.nn.ma_gcnn import MAGCNN, MGCNN

__all__ = ["forward_blocks", "number_blocks"]

#: Range of the random weights of a key. Sums may pass 2⁵³ and be rounded, so that keys are not exact: two blocks of one
#: key are found by comparing blocks, and a block with two keys is only kept twice.
_KEYS = 1 << 38
_GRAPHS_AT_ONCE = 256


def number_blocks(x: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
    """The distinct blocks of grids, and the number of each block.

    Args:
        x: float32 (B, F, 3S, 3N), integral.
        most: gives up, with None, where there are more distinct blocks.

    Returns:
        blocks (1, F, 3, 3U), side by side as a grid; and int64 (B, N, S), positions among the U blocks.
    """
    channels, slots, nodes = x.shape[1], x.shape[2] // 3, x.shape[3] // 3
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(_KEYS, (1, channels, 3, 3), generator=generator).double()
    keys = torch.cat([F.conv2d(part.double(), weight, stride=3)[:, 0] for part in x.split(_GRAPHS_AT_ONCE)])
    distinct, code = torch.unique(keys, return_inverse=True)  # (B, S, N)
    if len(distinct) > most:
        return None
    where = torch.empty(len(distinct), dtype=torch.int64)
    where[code.flatten()] = torch.arange(code.numel())  # any one place of each
    graph, slot, node = where // (slots * nodes), where // nodes % slots, where % nodes
    tiles = x.view(len(x), channels, slots, 3, nodes, 3)
    blocks = tiles[graph, :, slot, :, node]  # (U, F, 3, 3)
    for part, number in zip(tiles.split(_GRAPHS_AT_ONCE), code.split(_GRAPHS_AT_ONCE), strict=True):
        if not torch.equal(blocks[number].permute(0, 3, 1, 4, 2, 5), part):  # two blocks with one key
            return None
    return blocks.permute(1, 2, 0, 3).reshape(1, channels, 3, -1), code.transpose(1, 2).contiguous()


def forward_blocks(
    model: MAGCNN | MGCNN, blocks: Tensor, code: Tensor, *, graph_features: Tensor | None = None
) -> Tensor:
    """``model(x, ...)`` for the grids x that ``number_blocks`` turned to ``blocks`` and ``code``.

    Args:
        blocks: (1, F, 3, 3U). code: int64 (B, N, S). graph_features: (B, G), of MAGCNN.

    Returns:
        (B, C).
    """
    table = model.convolutions(blocks)[0, :, 0].T  # (U, 64)
    if isinstance(model, MGCNN):
        z = F.embedding(code, table).transpose(1, 2).flatten(1)
        return model.fc3(F.relu(model.fc2(F.relu(model.fc1(z)))))
    # The first product of the attention is linear, so it is taken once for each block in each slot, and looked up.
    slots, distinct = code.shape[2], len(table)
    weight = model.attention.weight.flatten(0, 1).unflatten(1, (-1, slots))  # (H·d, 64, S)
    products = torch.einsum("uc,ocs->suo", table, weight).flatten(0, 1)  # (S·U, H·d)
    places = code + distinct * torch.arange(slots, device=code.device)
    values = F.embedding_bag(places.flatten(0, 1), products, mode="sum").unflatten(0, code.shape[:2])
    return model.count_votes(model.output(model.attention.attend(values)), graph_features=graph_features)
