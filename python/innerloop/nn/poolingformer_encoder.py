# SPDX-License-Identifier: Apache-2.0
"""The Poolingformer encoder, and weights of RoBERTa for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .poolingformer import (
    PoolingAttention,
    PoolingformerLayer,
    SlidingWindowAttention,
    check_counts,
    check_dropout,
    check_mask,
)

__all__ = ["PoolingformerEncoder", "load_roberta", "position_copies"]

# Ours and transformers' names inside a layer.
_ROBERTA = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}


def position_copies(weight: Tensor, length: int) -> Tensor:
    """(length, d): the rows of a learned position table (P, d), repeated from the first or cut off.

    Source: Beltagy et al., Longformer (2020), which reaches 4096 positions with copies of RoBERTa's 512.
    """
    if weight.dim() != 2 or not len(weight) or length < 1:
        raise ValueError(
            f"position_copies: weight has shape {tuple(weight.shape)} and length is {length}, expected (P, d) with "
            "P >= 1, and at least 1"
        )
    return weight.repeat(-(-length // len(weight)), 1)[:length]


class PoolingformerEncoder(nn.Module):
    """Embeddings with learned positions, then layers of windowed attention, some of them with the pooled second level.

    Args:
        vocab_size: V. dim: d. num_layers, heads: of the encoder. ffn_dim: default 4 d.
        window: (left, right) of level 1 in every layer, tokens on each side.
        two_level: the layers with :class:`PoolingAttention`, counted from 0; the others have one level. Default: the
            last quarter, at least one (of 24 layers the paper found 6 to be best).
        max_length: rows of the position table.
        dropout: of embeddings, attention weights and layers.
        padding_idx: token whose embedding is 0 and gets no gradient, or None. What is padding, `key_valid` says alone.
        checkpoint: keep only the input of each layer for the backward pass, and run the layer again there.
        eps: of the LayerNorms.
        global_tokens, relative_bias: see :class:`SlidingWindowAttention`.
        level2: other arguments of :class:`PoolingAttention`, for the two-level layers.

    Shapes:
        input_ids (B, L) integers; key_valid bool (B, L), False for padding; global_index int64 (B, G), -1 for none.
        Returns (B, L, d). Positions count the tokens that are not padding. Rows of padding mean nothing.

    Raises:
        ValueError: sizes that do not fit, or a sequence longer than `max_length`; the message names the argument.

    Source: Zhang et al. 2021; layers as in RoBERTa (post-norm).
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 768,
        num_layers: int = 12,
        heads: int = 12,
        *,
        window: tuple[int, int] = (128, 128),
        two_level: Iterable[int] | None = None,
        max_length: int = 4096,
        ffn_dim: int | None = None,
        dropout: float = 0.1,
        padding_idx: int | None = None,
        global_tokens: bool = True,
        relative_bias: bool = False,
        checkpoint: bool = False,
        eps: float = 1e-5,
        **level2: object,
    ) -> None:
        super().__init__()
        check_counts("PoolingformerEncoder", vocab_size=vocab_size, num_layers=num_layers, max_length=max_length)
        check_dropout("PoolingformerEncoder", dropout)
        chosen = range(num_layers - max(1, num_layers // 4), num_layers) if two_level is None else two_level
        self.two_level = tuple(sorted(set(chosen)))
        if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < num_layers for i in self.two_level):
            raise ValueError(
                f"PoolingformerEncoder: two_level is {self.two_level}, expected layers in [0, {num_layers})"
            )
        if padding_idx is not None and not 0 <= padding_idx < vocab_size:
            raise ValueError(
                f"PoolingformerEncoder: padding_idx is {padding_idx}, expected a token in [0, {vocab_size})"
            )
        shared = {"dropout": dropout, "global_tokens": global_tokens, "relative_bias": relative_bias}
        self.layers = nn.ModuleList(
            PoolingformerLayer(
                PoolingAttention(dim, heads, window, **shared, **level2)
                if i in self.two_level
                else SlidingWindowAttention(dim, heads, window, **shared),
                4 * dim if ffn_dim is None else ffn_dim,
                dropout=dropout,
                eps=eps,
            )
            for i in range(num_layers)
        )
        self.dim, self.heads, self.max_length = dim, heads, max_length
        self.checkpoint = checkpoint
        self.words = nn.Embedding(vocab_size, dim, padding_idx)
        self.positions = nn.Embedding(max_length, dim)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        if padding_idx is not None:
            nn.init.zeros_(self.words.weight[padding_idx])
        self.norm, self.dropout = nn.LayerNorm(dim, eps), nn.Dropout(dropout)

    def forward(self, input_ids: Tensor, key_valid: Tensor | None = None, global_index: Tensor | None = None) -> Tensor:
        if input_ids.dim() != 2 or input_ids.shape[1] > self.max_length:
            raise ValueError(
                f"PoolingformerEncoder: input_ids has shape {tuple(input_ids.shape)}, expected (B, L) with L at most "
                f"max_length ({self.max_length})"
            )
        check_mask("PoolingformerEncoder", key_valid, input_ids.shape)
        if key_valid is None:
            position = torch.arange(input_ids.shape[1], device=input_ids.device)
        else:
            position = (key_valid.cumsum(1) - 1).clamp(min=0)
        x = self.dropout(self.norm(self.words(input_ids) + self.positions(position)))
        for layer in self.layers:
            if self.checkpoint and torch.is_grad_enabled():
                x = checkpoint(layer, x, key_valid, global_index, use_reentrant=False)
            else:
                x = layer(x, key_valid, global_index)
        return x


@torch.no_grad()
def load_roberta(encoder: PoolingformerEncoder, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Loads a RoBERTa or XLM-R checkpoint of transformers into the encoder, and so puts two levels into that model.

    | here | there, after any prefix such as "roberta." |
    |---|---|
    | words, norm | embeddings.word_embeddings, embeddings.LayerNorm |
    | positions | embeddings.position_embeddings from row padding_idx + 1 = 2 on, copied up to `max_length`, plus row 0 of embeddings.token_type_embeddings |
    | layers.i.attention.{query, key, value} | encoder.layer.i.attention.self.{query, key, value} |
    | layers.i.{output, attention_norm} | encoder.layer.i.attention.output.{dense, LayerNorm} |
    | layers.i.{up, down, norm} | encoder.layer.i.intermediate.dense, encoder.layer.i.output.{dense, LayerNorm} |

    The global projections become copies of the local ones. Level 2 keeps its initialisation ("copy_level1" copies what was
    loaded); with `zero_value=True` and sequences no longer than the window the result is that of the loaded model.

    Args:
        encoder: of the checkpoint's shape, and with its `eps` (1e-5 in the released ones), which no state dict holds.
        state_dict: of `RobertaModel`, `XLMRobertaModel`, or a model that holds one.

    Returns:
        The names in `state_dict` that were not used (heads, the pooler).

    Raises:
        ValueError: a tensor that is missing or has another shape, or another number of layers. The encoder is then as
            it was.
    """  # noqa: E501  a table row is one line
    anchor = "embeddings.word_embeddings.weight"
    prefix = next((name[: -len(anchor)] for name in state_dict if name.endswith(anchor)), None)
    if prefix is None:
        raise ValueError(f"load_roberta: state_dict has no {anchor}, expected the names of transformers' RobertaModel")
    used = set()

    def take(name: str) -> Tensor:
        if prefix + name not in state_dict:
            raise ValueError(f"load_roberta: state_dict has no {prefix + name}")
        used.add(prefix + name)
        return state_dict[prefix + name]

    new = {"words.weight": take(anchor)}
    # RoBERTa numbers its positions from padding_idx + 1, and padding_idx is 1 in every checkpoint.
    table = take("embeddings.position_embeddings.weight")[2:] + take("embeddings.token_type_embeddings.weight")[:1]
    new["positions.weight"] = position_copies(table, encoder.max_length)
    for kind in ("weight", "bias"):
        new[f"norm.{kind}"] = take(f"embeddings.LayerNorm.{kind}")
        for i in range(len(encoder.layers)):
            for ours, theirs in _ROBERTA.items():
                new[f"layers.{i}.{ours}.{kind}"] = take(f"encoder.layer.{i}.{theirs}.{kind}")
    if any(name.startswith(f"{prefix}encoder.layer.{len(encoder.layers)}.") for name in state_dict):
        raise ValueError(
            f"load_roberta: encoder has {len(encoder.layers)} layers, expected as many as state_dict, which has more"
        )
    parameters = dict(encoder.named_parameters())
    for name, tensor in new.items():
        if tensor.shape != parameters[name].shape:
            raise ValueError(
                f"load_roberta: {name} would get shape {tuple(tensor.shape)}, expected "
                f"{tuple(parameters[name].shape)} as in the encoder"
            )
    for name, tensor in new.items():
        parameters[name].copy_(tensor)
    for layer in encoder.layers:
        layer.attention.derive_from_level1()
    return [name for name in state_dict if name not in used]
