# SPDX-License-Identifier: Apache-2.0
"""Poolingformer's attention layers against dense definitions, golden values and transformers."""

import pytest
import torch
from cases import filter_torch_warnings
from innerloop import pooled_valid, reference
from innerloop.nn import PoolingAttention, PoolingformerLayer, SlidingWindowAttention, global_positions
from nn.poolingformer_cases import DIM, HEADS, dense, heads, merge, randomize
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

# Every way to run level 2.
VARIANTS = {
    "ldconv": {},
    "per_head": {"per_head": True},
    "mean": {"pooling": "mean"},
    "max": {"pooling": "max"},
    "none": {"pooling": "none"},
    "input": {"level2_input": "input"},
    "shared": {"share_weights": True},
    "mean_input_shared": {"pooling": "mean", "level2_input": "input", "share_weights": True},
    "copied": {"init": "copy_level1"},
    "wide": {"kernel": 9},
    "narrow": {"kernel": 3, "pooling": "mean"},
    "unlimited": {"pool_window": -1},
    "global_keys": {"global_level2": "keys"},
    "global_keys_mean": {"global_level2": "keys", "pooling": "mean"},
    "global_keys_none": {"global_level2": "keys", "pooling": "none"},
    "global_keys_stride_1": {"global_level2": "keys", "stride": 1, "kernel": 3},
    "relative_bias": {"relative_bias": True},
    "relative_bias_global_keys": {"relative_bias": True, "global_level2": "keys", "pooling": "mean"},
    "relative_bias_global_keys_stride_1": {"relative_bias": True, "global_level2": "keys", "stride": 1, "kernel": 3},
}


def two_level(variant: str, **options) -> PoolingAttention:
    options = {"pool_window": 8, **VARIANTS[variant], **options}
    return randomize(PoolingAttention(DIM, HEADS, (3, 2), **options).double())


def example(batch=3, length=41) -> tuple[Tensor, Tensor, Tensor]:
    """x, key_valid with an element without padding, and global_index with an element without globals."""
    x = torch.randn(batch, length, DIM, dtype=torch.float64)
    valid = torch.arange(length) < torch.tensor([length, length - 7, length - 18])[:, None]
    return x, valid, torch.tensor([[0, 1, 9], [5, 0, -1], [-1, -1, -1]])


def of_distance(table: Tensor | None, own: Tensor, keys: int, left: int) -> Tensor:
    """(H, Lq, keys): the column of the table that is `left` + key - own position of the query; 0 without a table."""
    if table is None:
        return torch.zeros(HEADS, len(own), keys, dtype=torch.float64)
    return table[:, (torch.arange(keys) - own[:, None] + left).clamp(0, table.shape[1] - 1)]


def plain_level1(m: SlidingWindowAttention, x: Tensor, valid: Tensor, index: Tensor) -> Tensor:
    """(B, L, d) by the rules of Longformer."""
    B, L, _ = x.shape
    is_global = torch.zeros(B, L, dtype=torch.bool)
    for b in range(B):
        is_global[b, index[b][index[b] >= 0]] = True
    is_global &= valid
    i = torch.arange(L)
    left, right = (L if r < 0 else r for r in m.window)
    window = (i >= i[:, None] - left) & (i <= i[:, None] + right)
    seen = (window & ~is_global[:, None] | is_global[:, None]) & valid[:, None]
    bias = of_distance(m.relative_bias, i, L, m.window[0]) * ~is_global[:, None, None]
    local = merge(dense(*(heads(p(x)) for p in (m.query, m.key, m.value)), seen, bias))
    everything = valid[:, None].expand(B, L, L)
    full = merge(dense(*(heads(p(x)) for p in (m.query_global, m.key_global, m.value_global)), everything))
    return torch.where(is_global[..., None], full, local).masked_fill(~valid[..., None], 0)


def plain_two_level(m: PoolingAttention, x: Tensor, valid: Tensor, index: Tensor) -> Tensor:
    """(B, L, d), every token projected before it is pooled; each element alone, without its padding."""
    y = plain_level1(m, x, valid, index)
    out = torch.zeros_like(y)
    suffix = "" if m.share_weights else "_pool"
    for b in range(len(x)):
        n = int(valid[b].sum())  # padding is at the end
        source = (y if m.level2_input == "output" else x)[b : b + 1, :n]
        q, k, v = (heads(getattr(m, name + suffix)(source)) for name in ("query", "key", "value"))
        globals_ = index[b][(index[b] >= 0) & (index[b] < n)]
        i = torch.arange(n)[:, None]
        entry = torch.arange(-(-n // m.stride))
        radius = n if m.pool_window < 0 else m.pool_window // m.stride
        seen = (entry >= i // m.stride - radius) & (entry <= i // m.stride + radius)
        bias = of_distance(m.relative_bias_pool, i[:, 0] // m.stride, len(entry), radius)
        own_k, own_v = k[:, :, globals_], v[:, :, globals_]
        if m.pooling == "none" and m.global_level2 == "keys":
            seen[:, globals_] = False  # counted once, below
        elif m.pooling != "none":
            weights = (m.weight_k, m.weight_v) if m.pooling == "ldconv" else (None, None)
            k, v = (
                reference.pool_kv(t, w, kernel=m.kernel, stride=m.stride, mode=m.pooling)
                for t, w in zip((k, v), weights, strict=True)
            )
        if m.global_level2 == "keys":
            k, v = torch.cat([k, own_k], 2), torch.cat([v, own_v], 2)
            seen = torch.cat([seen, torch.ones(n, len(globals_), dtype=torch.bool)], 1)
            bias = F.pad(bias, (0, len(globals_)))
        out[b, :n] = (y[b : b + 1, :n] + merge(dense(q, k, v, seen[None], bias)))[0]
    return out


def test_golden_case_j():
    L, d = 48, 16
    i, c = torch.arange(L, dtype=torch.float64)[:, None], torch.arange(d, dtype=torch.float64)
    x = torch.sin(0.13 * i * (1 + 0.1 * c) + 0.3 * c)[None]
    m = PoolingAttention(d, 2, (4, 4), pool_window=12, kernel=5, stride=4).double()
    names = ["query", "key", "value", "query_pool", "key_pool", "value_pool"]
    with torch.no_grad():
        for s, name in enumerate(names):
            weight = 0.25 * torch.sin(0.7 * c[:, None] + 1.1 * c * (s + 1) + s)
            getattr(m, name).weight.copy_(weight)
            getattr(m, name).bias.zero_()
        for p in (m.weight_k, m.weight_v):
            p.copy_(0.1 * torch.cos(torch.arange(5.0).double()[:, None] + torch.arange(8.0).double()))
    one_level = SlidingWindowAttention(d, 2, (4, 4)).double()
    one_level.load_state_dict({n: p for n, p in m.state_dict().items() if n in one_level.state_dict()})
    y, o = one_level(x)[0], m(x)[0]
    actual = torch.stack([y.sum(), (o - y).sum(), o.sum(), o.square().sum(), *o[0, :4], *o[47, :4]])
    expected = [0.0279685804, -0.0153804993, 0.0125880811, 5.9521389716]
    expected += [-0.0676707031, -0.0550515934, -0.0165408591, 0.0297492997]
    expected += [-0.0353013639, -0.0052607712, 0.0272540444, 0.0469508570]
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), op="attention")


@pytest.mark.parametrize("window", [(3, 2), (0, 0), (-1, 4), (64, 64)], ids=str)
def test_longformer_semantics(window):
    m = randomize(SlidingWindowAttention(DIM, HEADS, window).double())
    x, valid, index = example()
    assert_close(m(x, valid, index), plain_level1(m, x, valid, index))
    none = torch.full((3, 1), -1)
    assert_close(m(x, valid), plain_level1(m, x, valid, none))
    assert_close(m(x, None, index), plain_level1(m, x, torch.ones_like(valid), index))
    assert torch.equal(m(x, valid, none), m(x, valid))
    assert torch.equal(m(x, valid, none[:, :0]), m(x, valid))


def test_global_gradients_equal_the_plain_ones():
    m = randomize(SlidingWindowAttention(DIM, HEADS, (3, 2)).double())
    x, valid, index = example()
    repeated = torch.cat([index, index[:, :1], torch.full((3, 1), 40)], 1)  # 40 is padding in two elements
    index = torch.cat([index, torch.full((3, 1), 40)], 1)
    g = torch.randn_like(x)
    arguments = [x.requires_grad_(), *m.parameters()]
    expected = torch.autograd.grad(plain_level1(m, x, valid, index), arguments, g)
    for actual, want in zip(torch.autograd.grad(m(x, valid, repeated), arguments, g), expected, strict=True):
        assert_close(actual, want)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_levels_equal_the_plain_definition(variant):
    m = two_level(variant)
    x, valid, index = example()
    g = torch.randn_like(x)
    arguments = [x.requires_grad_(), *m.parameters()]
    out, expected = m(x, valid, index), plain_two_level(m, x, valid, index)
    assert_close(out, expected)
    wanted = torch.autograd.grad(expected, arguments, g)
    for actual, want in zip(torch.autograd.grad(out, arguments, g), wanted, strict=True):
        assert_close(actual, want)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant):
    m = two_level(variant)
    for length in range(17, 23):  # every phase of the grid
        x = torch.randn(2, length, DIM, dtype=torch.float64)
        index = torch.tensor([[0, 4], [2, -1]])
        padded = torch.cat([x, 1e3 * torch.randn(2, 9, DIM, dtype=torch.float64)], 1)
        valid = (torch.arange(length + 9) < length).expand(2, -1)
        out = m(padded, valid, index)
        assert_close(out[:, :length], m(x, None, index))
        assert bool((out[:, length:] == 0).all())


@pytest.mark.parametrize("heads", [1, 3])
def test_a_mean_commutes_with_its_projections(heads):
    m = randomize(PoolingAttention(12, heads, (3, 3), pool_window=8, pooling="mean").double())
    x = torch.randn(2, 30, 12, dtype=torch.float64)
    # LDConv projects first, and its weights of 0 are a mean.
    late = PoolingAttention(12, heads, (3, 3), pool_window=8).double()
    late.load_state_dict(m.state_dict() | {name: getattr(late, name) for name in ("weight_k", "weight_v")})
    rows = {}
    for model in (m, late):
        model.key_pool.register_forward_hook(lambda _, args, __, model=model: rows.update({model: args[0].shape[1]}))
    valid = torch.arange(30) < torch.tensor([[30], [19]])
    assert_close(m(x, valid), late(x, valid))
    assert rows == {m: 8, late: 30}


def test_a_pooled_entry_without_tokens_stays_masked():
    m = two_level("mean", pool_window=-1)
    x, _, _ = example(1)
    valid = (torch.arange(41) < 4)[None]
    assert pooled_valid(valid, 5, 4)[0].sum() == 1
    alone = m(x[:, :4])
    assert_close(m(x, valid)[:, :4], alone)
    with torch.no_grad():
        m.key_pool.bias.add_(100)  # would draw all weight to an entry that is the bias alone
    assert_close(m(x, valid)[:, :4], alone)


def test_ablations_differ():
    torch.manual_seed(0)
    x, valid, index = example()
    weights = two_level("ldconv").state_dict()
    results = {}
    for variant in VARIANTS:
        if variant in ("per_head", "copied", "global_keys_stride_1", "wide", "narrow"):
            continue  # other shapes of weights, or those of "ldconv"
        if variant.startswith("relative_bias"):
            continue  # more weights
        m = two_level(variant)
        m.load_state_dict({name: weights[name] for name in m.state_dict()})
        results[variant] = m(x, valid, index)
    names = list(results)
    same = [(a, b) for n, a in enumerate(names) for b in names[:n] if torch.allclose(results[a], results[b], atol=1e-3)]
    assert same == []


@pytest.mark.parametrize("variant", ["ldconv", "mean", "max", "none", "input", "copied", "global_keys"])
def test_zero_value_leaves_level_1_as_it_is(variant):
    options = {"pool_window": 8, **VARIANTS[variant], "zero_value": True}
    m = PoolingAttention(DIM, HEADS, (3, 2), **options)
    x, valid, index = (t.float() if t.is_floating_point() else t for t in example())
    one_level = SlidingWindowAttention(DIM, HEADS, (3, 2))
    one_level.load_state_dict({name: m.state_dict()[name] for name in one_level.state_dict()})
    y = one_level(x, valid, index)
    assert bool(y.any())
    assert torch.equal(m(x, valid, index), y)
    (gradient,) = torch.autograd.grad(m(x, valid, index).square().sum(), m.value_pool.weight)
    assert bool(gradient.any())  # and so it can leave 0


def test_initial_values():
    torch.manual_seed(0)
    m = PoolingAttention(256, 4, (2, 2))
    for name in ("query", "value", "query_pool", "value_pool"):
        assert getattr(m, name).weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not bool(getattr(m, name).bias.any())
    assert torch.equal(m.key_global.weight, m.key.weight)
    assert not torch.equal(m.key_pool.weight, m.key.weight)
    assert not bool(m.weight_k.any() | m.weight_v.any())
    copied = PoolingAttention(256, 4, (2, 2), init="copy_level1", zero_value=True, per_head=True)
    assert torch.equal(copied.key_pool.weight, copied.key.weight)
    assert not bool(copied.value_pool.weight.any())
    assert copied.weight_k.shape == (4, 5, 64)
    # A relative bias starts as none.
    biased = PoolingAttention(256, 4, (2, 3), pool_window=8, relative_bias=True)
    assert (biased.relative_bias.shape, biased.relative_bias_pool.shape) == ((4, 6), (4, 5))
    assert not bool(biased.relative_bias.any() | biased.relative_bias_pool.any())
    # LDConv starts as the mean.
    mean = PoolingAttention(256, 4, (2, 2), pooling="mean")
    mean.load_state_dict({name: m.state_dict()[name] for name in mean.state_dict()})
    x = torch.randn(1, 50, 256)
    assert_close(m(x), mean(x))


@pytest.mark.parametrize("shape", [(0, 9), (2, 0), (2, 1)], ids=str)
@pytest.mark.parametrize("variant", ["ldconv", "mean", "max", "none"])
def test_empty_and_short(variant, shape):
    m = two_level(variant)
    x = torch.randn(*shape, DIM, dtype=torch.float64, requires_grad=True)
    out = m(x, torch.ones(shape, dtype=torch.bool))
    assert_close(out, m(x))
    out.sum().backward()
    assert x.grad.shape == out.shape == x.shape


def test_an_element_of_padding_alone_is_zero():
    m = two_level("ldconv")
    x, _, _ = example(2)
    valid = torch.tensor([[True], [False]]).expand(-1, 41)
    out = m(x.requires_grad_(), valid)
    assert_close(out[:1], m(x[:1]))
    assert not bool(out[1].any())
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert bool(gradient.isfinite().all())
    assert not bool(gradient[1].any())


def test_padding_before_the_text():
    for variant in ("ldconv", "mean", "max", "none", "wide"):
        m = two_level(variant)
        x = torch.randn(1, 22, DIM, dtype=torch.float64)
        valid = (torch.arange(30) >= 8)[None]
        assert_close(m(F.pad(x, (0, 0, 8, 0), value=5.0), valid)[:, 8:], m(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant):
    layer = PoolingformerLayer(two_level(variant), 32).double().eval()
    x, valid, index = example()
    layer(x, valid, index).square().mul(torch.randn_like(x)).sum().backward()
    # A constant added to all scores of a query changes nothing; LDConv's weights do see the bias of the keys.
    keys = "key" if layer.attention.share_weights else "key_pool"
    blind = {"attention.key.bias", "attention.key_global.bias", f"attention.{keys}.bias"}
    if layer.attention.pooling == "ldconv":
        blind.remove(f"attention.{keys}.bias")
    reached = {name for name, p in layer.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-12}
    assert {name for name, _ in layer.named_parameters()} - reached == blind


def test_dropout():
    m = two_level("ldconv", dropout=0.5)
    x, valid, index = example()
    torch.manual_seed(1)
    first = m(x, valid, index)
    assert not torch.equal(first, m(x, valid, index))
    torch.manual_seed(1)
    assert torch.equal(first, m(x, valid, index))
    m.eval()
    assert_close(m(x, valid, index), plain_two_level(m, x, valid, index))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", ["ldconv", "mean", "max", "none", "input", "global_keys_mean", "relative_bias"])
def test_half_and_autocast(variant, dtype):
    layer = PoolingformerLayer(two_level(variant).float(), 32, dropout=0.0)
    x, valid, index = (t.float() if t.is_floating_point() else t for t in example())
    expected = layer(x, valid, index)
    with torch.autocast("cpu", dtype):
        mixed = layer(x, valid, index)
    mixed.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
    layer.to(dtype)
    half = layer(x.to(dtype), valid, index)
    assert half.dtype == dtype
    for actual in (mixed, half):
        # A dozen products rounded to 8 bits, then two LayerNorms, of values up to 3.
        assert_close(actual.float(), expected, dtype=dtype, op="attention_module")


@filter_torch_warnings
@pytest.mark.parametrize("variant", ["ldconv", "none", "global_keys", "relative_bias"])
def test_compile(variant):
    torch._dynamo.reset()
    layer = PoolingformerLayer(two_level(variant), 32, dropout=0.0).double()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, valid, index = example()
    arguments = [x.requires_grad_(), *layer.parameters()]
    for inputs in ((x, valid, index), (x,))[: 2 if variant == "ldconv" else 1]:
        out, expected = compiled(*inputs), layer(*inputs)
        assert_close(out, expected)
        g = torch.randn_like(out)
        wanted = torch.autograd.grad(expected, arguments, g, allow_unused=True)
        for actual, want in zip(torch.autograd.grad(out, arguments, g, allow_unused=True), wanted, strict=True):
            assert (actual is None) == (want is None)
            if want is not None:
                assert_close(actual, want)


def test_global_positions():
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    assert global_positions(mask).tolist() == [[0, 2], [3, -1], [-1, -1]]
    assert global_positions(mask[2:]).shape == (1, 0)
    assert global_positions(mask[:0]).shape == (0, 0)
    with pytest.raises(ValueError, match=r"global_positions: mask is torch\.int64"):
        global_positions(mask.long())


def test_equals_longformer_of_transformers():
    longformer = pytest.importorskip("transformers.models.longformer.modeling_longformer")
    config = longformer.LongformerConfig(
        hidden_size=32, num_attention_heads=4, attention_window=[8], attention_probs_dropout_prob=0.0
    )
    theirs = randomize(longformer.LongformerSelfAttention(config, 0)).eval()
    ours = SlidingWindowAttention.from_longformer(theirs)
    assert ours.window == (4, 4)
    x = torch.randn(2, 40, 32)
    mask = torch.zeros(2, 40)
    mask[0, 33:] = mask[1, 38:] = -10000
    mask[0, [0, 7]] = mask[1, 3] = 10000
    (expected, *_) = theirs(
        x, attention_mask=mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0, is_global_attn=True
    )
    actual = ours(x, mask >= 0, global_positions(mask > 0))
    assert_close(actual, expected.masked_fill((mask < 0)[..., None], 0), op="transformers")


class LikeLongformer(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("query", "key", "value"):
            for suffix in ("", "_global"):
                self.add_module(name + suffix, nn.Linear(DIM, DIM))
        self.num_heads, self.one_sided_attn_window_size, self.dropout = HEADS, 3, 0.25


def test_from_longformer():
    theirs = LikeLongformer().double()
    ours = PoolingAttention.from_longformer(theirs, pool_window=8, init="copy_level1", dropout=0.0)
    assert (ours.window, ours.dropout, ours.query.weight.dtype) == ((3, 3), 0.0, torch.float64)
    for name in ("query", "key", "value"):
        for suffix in ("", "_global"):
            assert torch.equal(getattr(ours, name + suffix).weight, getattr(theirs, name + suffix).weight)
        assert torch.equal(getattr(ours, f"{name}_pool").bias, getattr(theirs, name).bias)
    assert SlidingWindowAttention.from_longformer(theirs).dropout == 0.25
    del theirs.key_global
    with pytest.raises(TypeError, match=r"SlidingWindowAttention.from_longformer: LikeLongformer lacks key_global"):
        SlidingWindowAttention.from_longformer(theirs)


BAD = [
    (lambda: SlidingWindowAttention(10, 3, (1, 1)), "SlidingWindowAttention: heads is 3, expected a divisor of dim"),
    (lambda: SlidingWindowAttention(600, 2, (1, 1)), "leaves at most 256 channels"),
    (lambda: SlidingWindowAttention(8, 2, 4), r"window is 4, expected \(left, right\)"),
    (lambda: SlidingWindowAttention(8, 2, (4, -2)), r"window is \(4, -2\)"),
    (lambda: SlidingWindowAttention(8, 2, (4, 4), dropout=1.0), "dropout is 1.0"),
    (
        lambda: SlidingWindowAttention(8, 2, (4, -1), relative_bias=True),
        r"relative_bias is True with window \(4, -1\), expected a limited one",
    ),
    (
        lambda: PoolingAttention(8, 2, pool_window=-1, relative_bias=True),
        "relative_bias is True with pool_window -1, expected a limited one",
    ),
    (lambda: PoolingAttention(8, 2, pool_window=10), "pool_window is 10, expected tokens .* multiple of stride"),
    (lambda: PoolingAttention(8, 2, kernel=0), "PoolingAttention: kernel is 0"),
    (lambda: PoolingAttention(8, 2, pooling="sum"), "pooling is 'sum', expected one of ldconv, mean, max, none"),
    (lambda: PoolingAttention(8, 2, level2_input="x"), "level2_input is 'x'"),
    (lambda: PoolingAttention(8, 2, share_weights=True, zero_value=True), "share_weights is True with zero_value=True"),
    (lambda: PoolingformerLayer(SlidingWindowAttention(8, 2, (1, 1)), 0), "ffn_dim is 0"),
    (
        lambda: two_level("mean")(torch.ones(2, 5, 8)),
        r"PoolingAttention: x has shape \(2, 5, 8\), expected \(B, L, 16\)",
    ),
    (lambda: two_level("mean")(example()[0], example()[1][:2]), r"key_valid is torch.bool of shape \(2, 41\)"),
    (lambda: two_level("mean")(example()[0], None, torch.zeros(3)), "global_index is torch.float32"),
    (lambda: two_level("mean")(example()[0], None, torch.full((3, 1), 41)), "global_index holds 41"),
    (
        lambda: two_level("mean", global_tokens=False)(example()[0], None, example()[2]),
        "global_index is given, expected None with global_tokens=False",
    ),
]


@pytest.mark.parametrize(("call", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_arguments(call, text):
    with pytest.raises(ValueError, match=text):
        call()
