# SPDX-License-Identifier: Apache-2.0
"""Tasks on the Poolingformer encoder: question answering, classification, masked words, summarization."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .poolingformer import check_counts, check_heads, check_mask, linear, merge_heads, split_heads
from .poolingformer_encoder import PoolingformerEncoder

__all__ = [
    "PoolingformerForMaskedLM",
    "PoolingformerForQuestionAnswering",
    "PoolingformerForSequenceClassification",
    "PoolingformerForSummarization",
    "QuestionAnsweringLogits",
]


class QuestionAnsweringLogits(NamedTuple):
    """Logits for :func:`torch.nn.functional.cross_entropy`; -inf for what cannot be chosen."""

    start: Tensor
    """(B, L): first token of the short answer; padding is -inf."""
    end: Tensor
    """(B, L): its last token."""
    passage: Tensor | None
    """(B, 1 + P): column 0 is no long answer, 1 + p passage p, -inf where it has no token; None without passages."""


class PoolingformerForQuestionAnswering(nn.Module):
    """Start and end of the short answer, and the passage with the long one, from question and document in one sequence.

    start_i, end_i = W h_i + b;  passage_p = w · tanh(W' mean of h over p), the first token standing for "no answer".

    Args:
        encoder: gives h (B, L, d).
        dropout: before the maps to logits.

    Shapes:
        input_ids, key_valid, global_index: see :class:`PoolingformerEncoder`; the question's tokens are to be global.
        passage: int64 (B, L), the passage of each token in [0, P), -1 for none. num_passages: P.
        Returns :class:`QuestionAnsweringLogits`.

    Source: Zhang et al. 2021, for long (passage) and short (minimal) answers of Natural Questions and TyDi QA. The form
        of the passage head is ours.
    """

    def __init__(self, encoder: PoolingformerEncoder, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.span = linear(encoder.dim, 2)
        self.passage, self.passage_score = linear(encoder.dim, encoder.dim), linear(encoder.dim, 1)

    def forward(
        self,
        input_ids: Tensor,
        key_valid: Tensor | None = None,
        global_index: Tensor | None = None,
        *,
        passage: Tensor | None = None,
        num_passages: int | None = None,
    ) -> QuestionAnsweringLogits:
        owner = "PoolingformerForQuestionAnswering"
        if (passage is None) != (num_passages is None):
            given, absent = ("passage", "num_passages") if num_passages is None else ("num_passages", "passage")
            raise ValueError(f"{owner}: {given} is given without {absent}, expected both or neither")
        if passage is not None and (passage.dtype != torch.int64 or passage.shape != input_ids.shape):
            raise ValueError(
                f"{owner}: passage is {passage.dtype} of shape {tuple(passage.shape)}, expected torch.int64 of shape "
                f"{tuple(input_ids.shape)}"
            )
        hidden = self.dropout(self.encoder(input_ids, key_valid, global_index))
        start, end = self.span(hidden).unbind(-1)
        if key_valid is not None:
            start, end = (t.masked_fill(~key_valid, -torch.inf) for t in (start, end))
        if passage is None:
            return QuestionAnsweringLogits(start, end, None)
        member = passage[:, None] == torch.arange(num_passages, device=passage.device)[:, None]  # (B, P, L)
        if key_valid is not None:
            member = member & key_valid[:, None]
        size = member.sum(2, keepdim=True)
        # Shares before the product, not sums after it, which half types may not hold.
        means = (member / size.clamp(min=1)).to(hidden.dtype) @ hidden
        score = self.passage_score(torch.tanh(self.passage(torch.cat([hidden[:, :1], means], 1)))).squeeze(-1)
        there = F.pad(size.squeeze(2) > 0, (1, 0), value=True)
        return QuestionAnsweringLogits(start, end, score.masked_fill(~there, -torch.inf))


class PoolingformerForSequenceClassification(nn.Module):
    """Logits (B, num_labels) from the first token: W' tanh(W h_0), with dropout before each, as RoBERTa's head.

    Args:
        encoder: gives h (B, L, d). num_labels: classes. dropout: see above.
    """

    def __init__(self, encoder: PoolingformerEncoder, num_labels: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        check_counts("PoolingformerForSequenceClassification", num_labels=num_labels)
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.dense, self.score = linear(encoder.dim, encoder.dim), linear(encoder.dim, num_labels)

    def forward(self, input_ids: Tensor, key_valid: Tensor | None = None, global_index: Tensor | None = None) -> Tensor:
        first = self.encoder(input_ids, key_valid, global_index)[:, 0]
        return self.score(self.dropout(torch.tanh(self.dense(self.dropout(first)))))


class PoolingformerForMaskedLM(nn.Module):
    """Logits over the vocabulary, E LayerNorm(gelu(W h)) + b, with the embedding table E of the encoder.

    Shapes:
        input_ids, key_valid, global_index: see :class:`PoolingformerEncoder`. at: bool (B, L) or None.
        Returns (B, L, V), or (n, V) for the n tokens of `at` in order, without forming the others.
    """

    def __init__(self, encoder: PoolingformerEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.dense, self.norm = linear(encoder.dim, encoder.dim), nn.LayerNorm(encoder.dim, encoder.norm.eps)
        self.bias = nn.Parameter(torch.zeros(encoder.words.num_embeddings))

    def forward(
        self,
        input_ids: Tensor,
        key_valid: Tensor | None = None,
        global_index: Tensor | None = None,
        *,
        at: Tensor | None = None,
    ) -> Tensor:
        check_mask("PoolingformerForMaskedLM", at, input_ids.shape, name="at")
        hidden = self.encoder(input_ids, key_valid, global_index)
        hidden = hidden if at is None else hidden[at]
        return F.linear(self.norm(F.gelu(self.dense(hidden))), self.encoder.words.weight, self.bias)


class _DecoderLayer(nn.Module):
    """A post-norm decoder layer: causal attention, attention to the source, FFN."""

    def __init__(self, dim: int, heads: int, ffn_dim: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.heads, self.dropout_p = heads, dropout
        self.query_key_value, self.output = linear(dim, 3 * dim), linear(dim, dim)
        self.source_query, self.source_key_value = linear(dim, dim), linear(dim, 2 * dim)
        self.source_output = linear(dim, dim)
        self.up, self.down = linear(dim, ffn_dim), linear(ffn_dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor, source_valid: Tensor | None) -> Tensor:
        q, k, v = self.query_key_value(x).chunk(3, -1)
        x = self.norms[0](x + self.dropout(self.output(self._attend(q, k, v, is_causal=True))))
        k, v = self.source_key_value(source).chunk(2, -1)
        mask = None if source_valid is None else source_valid[:, None, None, :]
        attended = self._attend(self.source_query(x), k, v, attn_mask=mask)
        x = self.norms[1](x + self.dropout(self.source_output(attended)))
        return self.norms[2](x + self.dropout(self.down(F.gelu(self.up(x)))))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, **mask: object) -> Tensor:
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))
        dropout_p = self.dropout_p if self.training else 0.0
        return merge_heads(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, **mask))


class PoolingformerForSummarization(nn.Module):
    """Poolingformer encoder and a plain decoder, whose words are those of the encoder, in and out.

    Args:
        encoder: reads the document.
        num_layers: of the decoder. heads, ffn_dim: default: those of the encoder, and 4 d.
        max_length: of a summary, rows of the decoder's position table.
        dropout: in the decoder.

    Shapes:
        input_ids, key_valid, global_index: see :class:`PoolingformerEncoder`. decoder_input_ids (B, T), the summary
        shifted right by its start token, padding at its end only. Returns logits (B, T, V) of the next token.

    Source: Zhang et al. 2021: the encoder's attention is replaced, the decoder is not.
    """

    def __init__(
        self,
        encoder: PoolingformerEncoder,
        *,
        num_layers: int = 6,
        heads: int | None = None,
        ffn_dim: int | None = None,
        max_length: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        dim, eps = encoder.dim, encoder.norm.eps
        heads, ffn_dim = encoder.heads if heads is None else heads, 4 * dim if ffn_dim is None else ffn_dim
        check_counts("PoolingformerForSummarization", num_layers=num_layers, max_length=max_length, ffn_dim=ffn_dim)
        check_heads("PoolingformerForSummarization", dim, heads)
        self.encoder, self.max_length = encoder, max_length
        self.positions = nn.Embedding(max_length, dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.norm, self.dropout = nn.LayerNorm(dim, eps), nn.Dropout(dropout)
        self.layers = nn.ModuleList(_DecoderLayer(dim, heads, ffn_dim, dropout, eps) for _ in range(num_layers))
        self.bias = nn.Parameter(torch.zeros(encoder.words.num_embeddings))

    def forward(
        self,
        input_ids: Tensor,
        decoder_input_ids: Tensor,
        key_valid: Tensor | None = None,
        global_index: Tensor | None = None,
    ) -> Tensor:
        return self.decode(self.encoder(input_ids, key_valid, global_index), decoder_input_ids, key_valid)

    def decode(self, source: Tensor, decoder_input_ids: Tensor, source_valid: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) from the encoder's output (B, L, d)."""
        return self._logits(self._decode(source, decoder_input_ids, source_valid))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        *,
        start: int,
        end: int,
        max_length: int | None = None,
        key_valid: Tensor | None = None,
        global_index: Tensor | None = None,
    ) -> Tensor:
        """The likeliest next token, again and again: int64 (B, T), T <= `max_length`, filled up with `end`.

        `start` is not part of it. Each step runs the decoder on the whole summary so far; the document is encoded once.
        """
        limit = self.max_length if max_length is None else max_length
        if not 1 <= limit <= self.max_length:
            raise ValueError(
                f"PoolingformerForSummarization: max_length is {limit}, expected a number in [1, {self.max_length}]"
            )
        source = self.encoder(input_ids, key_valid, global_index)
        tokens = input_ids.new_full((len(input_ids), 1), start, dtype=torch.int64)
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for _ in range(limit):
            best = self._logits(self._decode(source, tokens, key_valid)[:, -1]).argmax(-1).masked_fill(done, end)
            tokens = torch.cat([tokens, best[:, None]], 1)
            done = done | (best == end)
            if bool(done.all()):
                break
        return tokens[:, 1:]

    def _decode(self, source: Tensor, ids: Tensor, source_valid: Tensor | None) -> Tensor:
        if ids.dim() != 2 or len(ids) != len(source) or ids.shape[1] > self.max_length:
            raise ValueError(
                f"PoolingformerForSummarization: decoder_input_ids has shape {tuple(ids.shape)}, expected "
                f"({len(source)}, T) with T at most max_length ({self.max_length})"
            )
        position = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.norm(self.encoder.words(ids) + self.positions(position)))
        for layer in self.layers:
            x = layer(x, source, source_valid)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.encoder.words.weight, self.bias)
