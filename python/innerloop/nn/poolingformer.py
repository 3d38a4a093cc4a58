# SPDX-License-Identifier: Apache-2.0
"""Poolingformer (Zhang et al., ICML 2021): windowed attention, two-level pooling attention and the layer.

Every radius counts tokens on one side, the token itself not included; transformers' `attention_window` counts both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.band_attention import band_attention
from ..ops.pool_kv import pool_kv, pooled_valid

__all__ = [
    "PoolingAttention",
    "PoolingformerLayer",
    "SlidingWindowAttention",
    "global_positions",
]

_INIT_STD = 0.02
_MAX_HEAD_DIM = 256  # of the ops
_LEVEL1 = ("query", "key", "value")
_GLOBAL = tuple(f"{name}_global" for name in _LEVEL1)


def global_positions(mask: Tensor) -> Tensor:
    """`global_index` of a mask: int64 (B, G), the True positions of bool (B, L) in order; -1 fills the shorter rows.

    G is the largest count in the batch, so this reads the mask on the host; call it outside `torch.compile`.
    """
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise ValueError(
            f"global_positions: mask is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool (B, L)"
        )
    most = int(mask.sum(1).max()) if mask.numel() else 0
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return order.masked_fill(~mask.gather(1, order), -1)


class SlidingWindowAttention(nn.Module):
    """Level 1: each token attends to a window around it, and to global tokens; in linear time and memory.

    y_i = Σ_j softmax_j(q_i · k_j / √D) v_j over the tokens j in [i - left, i + right] that are neither padding nor
    global, and over all global tokens. A global token instead attends to all tokens, with projections of its own.
    There is no output projection: as in transformers, that is the layer's.

    Args:
        dim: d. heads: H, divides d; D = d / H is at most 256.
        window: (left, right), tokens on each side, -1 for no limit.
        dropout: of the attention weights, in training.
        global_tokens: have `query_global`, `key_global` and `value_global`, which start as copies of `query`, `key` and
            `value`. False: no such parameters, and `global_index` is refused.
        relative_bias: add a learned number for each head and distance to the scores (`relative_bias`, (H, left + 1 +
            right), which starts as 0), as T5 and Swin do; the window must be limited. Scores of global tokens get none.

    Shapes:
        x (B, L, d); key_valid bool (B, L), False for padding; global_index int64 (B, G), -1 for none, see
        :func:`global_positions`. Returns (B, L, d), 0 where a token is padding.

    Raises:
        ValueError: sizes that do not fit; the message names the argument.

    Source: Zhang et al. 2021; Beltagy et al., Longformer (2020). The same numbers as transformers'
    `LongformerSelfAttention` with attention_window = 2 · left = 2 · right.

    Example:
        >>> import torch
        >>> from innerloop.nn import SlidingWindowAttention
        >>> attention = SlidingWindowAttention(64, heads=4, window=(16, 16))
        >>> attention(torch.randn(2, 100, 64), global_index=torch.tensor([[0, 1], [0, -1]])).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: tuple[int, int],
        *,
        dropout: float = 0.0,
        global_tokens: bool = True,
        relative_bias: bool = False,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_heads(owner, dim, heads)
        if not isinstance(window, Sequence) or len(window) != 2 or any(not _is_radius(r) for r in window):
            raise ValueError(
                f"{owner}: window is {window!r}, expected (left, right): tokens on each side, each at least 0, or -1 "
                "for no limit"
            )
        if relative_bias and min(window) < 0:
            raise ValueError(f"{owner}: relative_bias is True with window {tuple(window)}, expected a limited one")
        check_dropout(owner, dropout)
        self.dim, self.heads, self.window = dim, heads, tuple(window)
        self.dropout, self.global_tokens = dropout, global_tokens
        for name in _LEVEL1 + (_GLOBAL if global_tokens else ()):
            self.add_module(name, linear(dim, dim))
        self.relative_bias = nn.Parameter(torch.zeros(heads, sum(window) + 1)) if relative_bias else None
        self.derive_from_level1()

    @torch.no_grad()
    def derive_from_level1(self) -> None:
        """Copies level 1 to what starts as its copy; to be called after other weights were put into level 1."""
        if self.global_tokens:
            for name in _LEVEL1:
                _copy(getattr(self, name), getattr(self, f"{name}_global"))

    @classmethod
    def from_longformer(cls, module: nn.Module, **options: object) -> SlidingWindowAttention:
        """With the weights, window, dropout, dtype and device of transformers' `LongformerSelfAttention` (or LED's).

        Args:
            module: anything with `query`, `key`, `value` and their `_global` as Linear, `num_heads` and
                `one_sided_attn_window_size`; transformers is not imported.
            options: other arguments of the class, which win over what is read.
        """
        missing = [n for n in _LEVEL1 + _GLOBAL if not isinstance(getattr(module, n, None), nn.Linear)]
        missing += [n for n in ("num_heads", "one_sided_attn_window_size") if not hasattr(module, n)]
        if missing:
            raise TypeError(
                f"{cls.__name__}.from_longformer: {type(module).__name__} lacks {', '.join(missing)}, expected a "
                "module like LongformerSelfAttention"
            )
        radius, weight = module.one_sided_attn_window_size, module.query.weight
        read = {"window": (radius, radius), "dropout": float(getattr(module, "dropout", 0.0))}
        new = cls(weight.shape[1], module.num_heads, **{**read, **options}).to(weight.device, weight.dtype)
        for name in _LEVEL1:
            _copy(getattr(module, name), getattr(new, name))
        new.derive_from_level1()
        for name in _GLOBAL if new.global_tokens else ():
            _copy(getattr(module, name), getattr(new, name))
        return new.train(module.training)

    def forward(self, x: Tensor, key_valid: Tensor | None = None, global_index: Tensor | None = None) -> Tensor:
        global_index = self._check(x, key_valid, global_index)
        return self._merge(self._level1(x, key_valid, global_index), key_valid)

    def _check(self, x: Tensor, key_valid: Tensor | None, global_index: Tensor | None) -> Tensor | None:
        """`global_index`, None where it is empty."""
        owner = type(self).__name__
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise ValueError(f"{owner}: x has shape {tuple(x.shape)}, expected (B, L, {self.dim})")
        check_mask(owner, key_valid, x.shape[:2])
        if global_index is None:
            return None
        if not self.global_tokens:
            raise ValueError(f"{owner}: global_index is given, expected None with global_tokens=False")
        if global_index.dtype != torch.int64 or global_index.dim() != 2 or len(global_index) != len(x):
            raise ValueError(
                f"{owner}: global_index is {global_index.dtype} of shape {tuple(global_index.shape)}, expected "
                f"torch.int64 of shape ({len(x)}, G)"
            )
        return global_index if global_index.shape[1] else None

    def _level1(self, x: Tensor, key_valid: Tensor | None, global_index: Tensor | None) -> Tensor:
        """y (B, H, L, D); rows of padding hold anything finite."""
        q, k, v = (split_heads(getattr(self, name)(x), self.heads) for name in _LEVEL1)
        left, right = self.window
        y = band_attention(
            q, k, v, left=left, right=right, key_valid=key_valid, global_index=global_index, dropout_p=self._dropout_p,
            bias=self.relative_bias,
        )  # fmt: skip
        if global_index is None:
            return y
        at, counts = _each_once(global_index, key_valid)
        q = split_heads(self.query_global(_take(x, at)), self.heads)
        k, v = (split_heads(getattr(self, name)(x), self.heads) for name in _GLOBAL[1:])
        rows = band_attention(q, k, v, left=-1, right=-1, key_valid=key_valid, dropout_p=self._dropout_p)
        # Rows are added to zeros, not written: an index that does not count adds 0 to some row.
        is_global = torch.zeros(x.shape[:2], dtype=torch.int32, device=x.device).scatter_add(1, at, counts.int()) > 0
        rows = rows.masked_fill(~counts[:, None, :, None], 0)
        y = y.masked_fill(is_global[:, None, :, None], 0)
        return y.scatter_add(2, at[:, None, :, None].expand_as(rows), rows)

    def _merge(self, y: Tensor, key_valid: Tensor | None) -> Tensor:
        y = merge_heads(y)
        return y if key_valid is None else y.masked_fill(~key_valid[:, :, None], 0)

    @property
    def _dropout_p(self) -> float:
        return self.dropout if self.training else 0.0

    def extra_repr(self) -> str:
        bias = "" if self.relative_bias is None else ", relative_bias=True"
        return f"{self.dim}, heads={self.heads}, window={self.window}, dropout={self.dropout}{bias}"


class PoolingAttention(SlidingWindowAttention):
    """Both levels: windowed attention, then attention of its result to pooled keys of a wider window.

    Y = level 1 (x), see :class:`SlidingWindowAttention`
    K̄, V̄ = Pool(Y W_k2 + b_k2), Pool(Y W_v2 + b_v2)            kernel κ, stride ξ, see :func:`innerloop.pool_kv`
    z_i = Σ_m softmax_m(q2_i · k̄_m / √D) v̄_m                   ⌊i / ξ⌋ - w2 / ξ <= m <= ⌊i / ξ⌋ + w2 / ξ
    o_i = y_i + z_i

    With mean pooling Y is pooled before it is projected, which gives the same K̄ and V̄ from ξ times fewer rows.

    Args:
        dim, heads, window, dropout, global_tokens, relative_bias: see :class:`SlidingWindowAttention`; both levels drop
            out alike, and level 2 has a bias of its own, by distance in pooled entries (`relative_bias_pool`).
        pool_window: w2, tokens on each side, a multiple of `stride`; -1 for no limit.
        kernel, stride: κ and ξ.
        pooling: "ldconv" (weights `weight_k` and `weight_v`, which start as 0, that is as the mean), "mean", "max", or
            "none": a plain window of radius w2, `kernel` and `stride` being 1.
        per_head: LDConv weights (H, κ, D), else (κ, D) shared by the heads.
        level2_input: "output", or "input" for x in place of Y (the paper's ablation "mix").
        share_weights: level 2 projects with `query`, `key`, `value` too (ablation); else with `query_pool`, `key_pool`,
            `value_pool`.
        global_level2: "none", or "keys": level 2 also sees the global tokens, unpooled.
        init: of the level-2 projections: "normal", N(0, 0.02²) and bias 0, or "copy_level1".
        zero_value: `value_pool` starts as 0, and so o = y exactly at step 0.

    Shapes:
        As :class:`SlidingWindowAttention`. Padding after a sequence changes nothing, nor does padding before it by a
        multiple of `stride`.

    Raises:
        ValueError: sizes or options that do not fit; the message names the argument.

    Source: Zhang et al. 2021. One grid of pooled keys serves all queries.

    Example:
        >>> import torch
        >>> from innerloop.nn import PoolingAttention
        >>> attention = PoolingAttention(64, 4, (16, 16), pool_window=64, pooling="mean")
        >>> attention(torch.randn(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: tuple[int, int] = (128, 128),
        *,
        pool_window: int = 512,
        kernel: int = 5,
        stride: int = 4,
        pooling: Literal["ldconv", "mean", "max", "none"] = "ldconv",
        per_head: bool = False,
        level2_input: Literal["output", "input"] = "output",
        share_weights: bool = False,
        global_level2: Literal["none", "keys"] = "none",
        init: Literal["normal", "copy_level1"] = "normal",
        zero_value: bool = False,
        dropout: float = 0.0,
        global_tokens: bool = True,
        relative_bias: bool = False,
    ) -> None:
        for name, value, known in (
            ("pooling", pooling, ("ldconv", "mean", "max", "none")),
            ("level2_input", level2_input, ("output", "input")),
            ("global_level2", global_level2, ("none", "keys")),
            ("init", init, ("normal", "copy_level1")),
        ):
            if value not in known:
                raise ValueError(f"PoolingAttention: {name} is {value!r}, expected one of {', '.join(known)}")
        if pooling == "none":
            kernel = stride = 1
        check_counts("PoolingAttention", kernel=kernel, stride=stride)
        if not _is_radius(pool_window) or (pool_window > 0 and pool_window % stride):
            raise ValueError(
                f"PoolingAttention: pool_window is {pool_window!r}, expected tokens on each side, a multiple of stride "
                f"({stride}), or -1 for no limit"
            )
        if relative_bias and pool_window < 0:
            raise ValueError(
                f"PoolingAttention: relative_bias is True with pool_window {pool_window}, expected a limited one"
            )
        if share_weights and (zero_value or init != "normal"):
            raise ValueError(
                f"PoolingAttention: share_weights is True with zero_value={zero_value} and init={init!r}, expected "
                "False and 'normal': level 2 has no projections of its own to initialise"
            )
        super().__init__(dim, heads, window, dropout=dropout, global_tokens=global_tokens, relative_bias=relative_bias)
        self.pool_window, self.kernel, self.stride, self.pooling = pool_window, kernel, stride, pooling
        self.level2_input, self.share_weights, self.global_level2 = level2_input, share_weights, global_level2
        self.init, self.zero_value = init, zero_value
        if not share_weights:
            for name in _LEVEL1:
                self.add_module(f"{name}_pool", linear(dim, dim))
            if zero_value:
                nn.init.zeros_(self.value_pool.weight)
            self.derive_from_level1()
        if pooling == "ldconv":
            shape = (*((heads,) if per_head else ()), kernel, dim // heads)
            self.weight_k, self.weight_v = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
        shape = (heads, 2 * (pool_window // stride) + 1)
        self.relative_bias_pool = nn.Parameter(torch.zeros(shape)) if relative_bias else None

    @torch.no_grad()
    def derive_from_level1(self) -> None:
        super().derive_from_level1()
        # The base class calls this first, before there is a level 2.
        if hasattr(self, "value_pool") and self.init == "copy_level1":
            for name in _LEVEL1[: 2 if self.zero_value else 3]:
                _copy(getattr(self, name), getattr(self, f"{name}_pool"))

    def forward(self, x: Tensor, key_valid: Tensor | None = None, global_index: Tensor | None = None) -> Tensor:
        global_index = self._check(x, key_valid, global_index)
        y = self._level1(x, key_valid, global_index)
        return self._merge(self._level2(x, y, key_valid, global_index), key_valid)

    def _level2(self, x: Tensor, y: Tensor, key_valid: Tensor | None, global_index: Tensor | None) -> Tensor:
        """y + z, (B, H, L, D)."""
        source = merge_heads(y) if self.level2_input == "output" else x
        k, v, valid = self._pooled(source, key_valid)
        index = None
        if global_index is not None and self.global_level2 == "keys":
            if self.pooling == "none":
                index = global_index
            else:
                k, v, valid, index = self._append_globals(k, v, valid, source, key_valid, global_index)
        radius = self.pool_window if self.pool_window < 0 else self.pool_window // self.stride
        return band_attention(
            self._project("query", source), k, v, left=radius, right=radius, kv_stride=self.stride, key_valid=valid,
            global_index=index, dropout_p=self._dropout_p, residual=y, bias=self.relative_bias_pool,
        )  # fmt: skip

    def _project(self, name: str, x: Tensor) -> Tensor:
        return split_heads(getattr(self, name if self.share_weights else f"{name}_pool")(x), self.heads)

    def _pooled(self, source: Tensor, key_valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """k̄ and v̄ (B, H, M, D), and which entries count."""
        if self.pooling == "none":
            return self._project("key", source), self._project("value", source), key_valid
        grid = {"kernel": self.kernel, "stride": self.stride, "mode": self.pooling, "valid": key_valid}
        valid = None if key_valid is None else pooled_valid(key_valid, self.kernel, self.stride)
        if self.pooling == "mean":
            # The weights of a mean add up to 1, so it commutes with a linear map and its bias. The two tensors that
            # pool_kv takes are the two halves of the heads.
            halves = split_heads(source, self.heads).tensor_split(2, dim=1)
            source = merge_heads(torch.cat(pool_kv(*halves, **grid), dim=1))
            return self._project("key", source), self._project("value", source), valid
        k, v = self._project("key", source), self._project("value", source)
        if self.pooling == "ldconv":
            grid |= {"weight_k": self.weight_k.to(k.dtype), "weight_v": self.weight_v.to(v.dtype)}
        return *pool_kv(k, v, **grid), valid

    def _append_globals(self, k, v, valid, source, key_valid, global_index):
        """The global tokens as further keys, and their positions among them."""
        at, counts = _each_once(global_index, key_valid)
        tokens = _take(source, at)
        pooled, num_globals = k.shape[2], at.shape[1]
        if valid is None:
            valid = torch.ones(len(k), pooled, dtype=torch.bool, device=k.device)
        # Before the others for ξ = 1, where band_attention puts the last query at the last key.
        first = self.stride == 1

        def join(ours: Tensor, theirs: Tensor, dim: int) -> Tensor:
            return torch.cat([theirs, ours] if first else [ours, theirs], dim)

        k, v = (join(t, self._project(name, tokens), 2) for t, name in ((k, "key"), (v, "value")))
        index = torch.arange(num_globals, device=k.device) + (0 if first else pooled)
        return k, v, join(valid, counts, 1), index.where(counts, -1)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, pool_window={self.pool_window}, kernel={self.kernel}, stride={self.stride}, "
            f"pooling={self.pooling}, level2_input={self.level2_input}, share_weights={self.share_weights}"
        )


class PoolingformerLayer(nn.Module):
    """A RoBERTa layer around any attention of this module.

    h = LayerNorm(x + W_o attention(x)),  out = LayerNorm(h + W_down gelu(W_up h)), with dropout after W_o and W_down.

    Args:
        attention: :class:`PoolingAttention` (two levels) or :class:`SlidingWindowAttention` (one).
        ffn_dim: rows of W_up. dropout: after the two linear maps. eps: of the LayerNorms.

    Shapes:
        x, key_valid, global_index as the attention; returns (B, L, d).
    """

    def __init__(
        self, attention: SlidingWindowAttention, ffn_dim: int, *, dropout: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        check_counts("PoolingformerLayer", ffn_dim=ffn_dim)
        check_dropout("PoolingformerLayer", dropout)
        dim = attention.dim
        self.attention = attention
        self.output, self.attention_norm = linear(dim, dim), nn.LayerNorm(dim, eps)
        self.up, self.down, self.norm = linear(dim, ffn_dim), linear(ffn_dim, dim), nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, key_valid: Tensor | None = None, global_index: Tensor | None = None) -> Tensor:
        attended = self.attention(x, key_valid, global_index)
        x = self.attention_norm(x + self.dropout(self.output(attended)))
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


def linear(inputs: int, outputs: int) -> nn.Linear:
    """As RoBERTa initialises: N(0, 0.02²), bias 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=_INIT_STD)
    nn.init.zeros_(layer.bias)
    return layer


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, d) as (B, H, L, D), without a copy."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, L, D) to (B, L, d)."""
    return x.transpose(1, 2).flatten(2)


def _copy(source: nn.Linear, target: nn.Linear) -> None:
    target.load_state_dict(source.state_dict())


def _take(x: Tensor, at: Tensor) -> Tensor:
    """x[b, at[b, g]] as (B, G, d)."""
    return x.gather(1, at[:, :, None].expand(-1, -1, x.shape[2]))


def _each_once(index: Tensor, key_valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions (B, G) that can be gathered, and which of them count: no -1, no padding, of equal ones the first."""
    at = index.clamp(min=0)
    counts = (index >= 0) & ~(index[:, :, None] == index[:, None, :]).tril(-1).any(2)
    return at, counts if key_valid is None else counts & key_valid.gather(1, at)


def _is_radius(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= -1


def check_counts(owner: str, **values: int) -> None:
    """Raises ValueError where a value is not an int of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{owner}: {name} is {value!r}, expected an int of at least 1")


def check_heads(owner: str, dim: int, heads: int) -> None:
    check_counts(owner, dim=dim, heads=heads)
    if dim % heads or dim // heads > _MAX_HEAD_DIM:
        raise ValueError(
            f"{owner}: heads is {heads}, expected a divisor of dim ({dim}) that leaves at most {_MAX_HEAD_DIM} "
            "channels each"
        )


def check_dropout(owner: str, dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"{owner}: dropout is {dropout!r}, expected a number in [0, 1)")


def check_mask(owner: str, mask: Tensor | None, shape: Sequence[int], name: str = "key_valid") -> None:
    if mask is not None and (mask.dtype != torch.bool or mask.shape != shape):
        raise ValueError(
            f"{owner}: {name} is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool of shape {tuple(shape)}"
        )
