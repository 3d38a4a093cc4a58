# SPDX-License-Identifier: Apache-2.0
"""MA-GCNN and M-GCNN against NumPy in float64, written down from the definition with all N × N scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from innerloop.nn.ma_gcnn import MAGCNN, MGCNN
from numpy.typing import NDArray
from tolerances import assert_close
from torch import Tensor

B, N, S, C, K = 3, 18, 15, 2, 3
Arrays = dict[str, NDArray]


def relu(x: NDArray) -> NDArray:
    return np.maximum(x, 0)


def softmax(x: NDArray) -> NDArray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def cross_entropy(logits: NDArray, y: NDArray) -> float:
    return -np.log(softmax(logits)[np.arange(len(y)), y]).mean()


def convolved(p: Arrays, x: NDArray) -> NDArray:
    """(B, S, N, 64) from grids (B, F, K·S, K·N)."""
    blocks = x.reshape(*x.shape[:2], x.shape[2] // K, K, x.shape[3] // K, K)  # b f s row n column
    w1, b1 = p["convolutions.conv1.weight"], p["convolutions.conv1.bias"]
    w2, b2 = p["convolutions.conv2.weight"], p["convolutions.conv2.bias"]
    rows = relu(np.einsum("bfsrnc,ofc->bsnro", blocks, w1[:, :, 0]) + b1)
    return relu(np.einsum("bsnri,oir->bsno", rows, w2[..., 0]) + b2)


def head(z: NDArray, weight: NDArray, score_weight: NDArray, score_bias: NDArray, bias: NDArray) -> NDArray:
    v = z @ weight.T
    e, g = (v @ a + b for a, b in zip(score_weight, score_bias, strict=True))
    out = softmax(relu(e[:, :, None] + g[:, None])) @ v + bias
    return np.where(out > 0, out, np.expm1(np.minimum(out, 0)))


def heads(p: Arrays, name: str, z: NDArray) -> NDArray:
    weights = (p[f"{name}.{part}"] for part in ("weight", "score_weight", "score_bias", "bias"))
    weight, score_weight, score_bias, bias = weights
    return np.concatenate(
        [head(z, weight[h], score_weight[:, h], score_bias[:, h], bias[h]) for h in range(len(weight))], -1
    )


def ma_gcnn(p: Arrays, x: NDArray, features: NDArray | None) -> tuple[NDArray, NDArray]:
    """Logits of the nodes, votes."""
    z = convolved(p, x).transpose(0, 2, 3, 1)  # b n channel s
    z = z.reshape(*z.shape[:2], -1)
    z = z if features is None else np.concatenate([z, features], -1)
    logits = heads(p, "output", heads(p, "attention", z))
    return logits, softmax(softmax(logits)).sum(1)


def m_gcnn(p: Arrays, x: NDArray, features: NDArray | None) -> NDArray:
    z = convolved(p, x).reshape(len(x), -1)
    z = z if features is None else np.concatenate([z, features.reshape(len(x), -1)], -1)
    for i in (1, 2, 3):
        z = z @ p[f"fc{i}.weight"].T + p[f"fc{i}.bias"]
        z = z if i == 3 else relu(z)
    return z


def make(kind: type, channels: int = 1, node_features: int = 0) -> tuple[torch.nn.Module, list[Tensor], Tensor]:
    """A model with biases that are not 0, its inputs with empty blocks as grids have them, and classes.

    The classes are those that the model does not choose: of a loss near 0 the gradient is a difference of numbers near
    1, and float32 alone loses digits there.
    """
    torch.manual_seed(0)
    options = {"in_channels": channels, "node_features": node_features}
    model = kind(N, S, C, **options) if kind is MGCNN else kind(S, C, **options)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bias" in name:
                p.uniform_(-0.3, 0.3)
    x = torch.randn(B, channels, K * S, K * N)
    x[..., K * (N - 4) :] = 0
    x[:, :, K * 9 :] = 0
    inputs = [x, torch.randn(B, N, node_features)] if node_features else [x]
    return model, inputs, model(*inputs).argmin(1)


def arrays(model: torch.nn.Module) -> Arrays:
    return {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}


def objective(kind: type, p: Arrays, x: NDArray, features: NDArray | None, y: NDArray) -> float:
    if kind is MGCNN:
        return cross_entropy(m_gcnn(p, x, features), y)
    return cross_entropy(ma_gcnn(p, x, features)[1], y) + 0.01 * sum((a**2).sum() / 2 for a in p.values())


def value_and_gradients(model: torch.nn.Module, inputs: list[Tensor], y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    value = model.loss(inputs[0], y, *inputs[1:])
    if isinstance(model, MAGCNN):
        value = value + model.l2()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return value.detach(), dict(zip(names, torch.autograd.grad(value, parameters), strict=True))


def assert_within(actual: Tensor, expected: Tensor | NDArray | float, relative: float = 1e-6) -> None:
    """Acceptance of the model: the error's norm is at most 1e-6 of the value's."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    assert (actual.double() - expected).norm() <= relative * expected.norm()


def in_numpy(inputs: list[Tensor]) -> tuple[NDArray, NDArray | None]:
    x, *features = (t.double().numpy() for t in inputs)
    return x, *(features or [None])


KINDS = [(kind, channels, extra) for kind in (MAGCNN, MGCNN) for channels, extra in ((1, 0), (4, 5))]


@pytest.mark.parametrize(("kind", "channels", "node_features"), KINDS)
def test_parity(kind, channels, node_features):
    """float64 and float32 against NumPy in float64: what comes out, and the loss."""
    model, inputs, y = make(kind, channels, node_features)
    p, (x, features) = arrays(model), in_numpy(inputs)
    if kind is MAGCNN:
        logits, expected = ma_gcnn(p, x, features)
        assert_within(model.node_logits(*inputs), logits)
        assert_within(model(*inputs), expected)
    else:
        expected = m_gcnn(p, x, features)
        # 17 000 products of both signs add up to numbers near 0: float32 comes no nearer.
        assert_within(model(*inputs), expected, 3e-6)
    assert_within(model.loss(inputs[0], y, *inputs[1:]), cross_entropy(expected, y.numpy()))
    assert_within(value_and_gradients(model, inputs, y)[0], objective(kind, p, x, features, y.numpy()))
    assert_within(model.double()(*(t.double() for t in inputs)), expected, 1e-12)


@pytest.mark.parametrize(("kind", "channels", "node_features"), KINDS)
def test_gradients(kind, channels, node_features):
    """float64 against differences of NumPy's loss, along a direction for each parameter; float32 against float64."""
    model, inputs, y = make(kind, channels, node_features)
    p, (x, features) = arrays(model), in_numpy(inputs)
    _, single = value_and_gradients(model, inputs, y)
    _, double = value_and_gradients(model.double(), [t.double() for t in inputs], y)
    for name, gradient in double.items():
        # The gradient's own direction is in it, so that the derivative is not small by chance.
        direction = torch.randn_like(gradient) + gradient * (gradient.numel() ** 0.5 / gradient.norm())
        step = 1e-7 / direction.norm().item()
        up, down = (
            objective(kind, p | {name: p[name] + s * direction.numpy()}, x, features, y.numpy()) for s in (step, -step)
        )
        assert_within((gradient * direction).sum(), (up - down) / (2 * step), 1e-5)
        assert_within(single[name], gradient, 1e-5)
    whole = [torch.cat([g.flatten() for g in gradients.values()]) for gradients in (single, double)]
    assert_within(*whole)


@pytest.mark.parametrize("kind", [MAGCNN, MGCNN])
def test_shapes_and_initial_values(kind):
    model, _, _ = make(kind)
    expected = {
        "convolutions.conv1.weight": (32, 1, 1, 3),
        "convolutions.conv1.bias": (32,),
        "convolutions.conv2.weight": (64, 32, 3, 1),
        "convolutions.conv2.bias": (64,),
    }
    if kind is MAGCNN:
        for name, inputs, heads, dim in (("attention", 960, 8, 16), ("output", 128, 1, C)):
            expected |= {
                f"{name}.weight": (heads, dim, inputs),
                f"{name}.score_weight": (2, heads, dim),
                f"{name}.score_bias": (2, heads),
                f"{name}.bias": (heads, dim),
            }
    else:
        for i, (inputs, outputs) in enumerate(((64 * S * N, 128), (128, 64), (64, C)), 1):
            expected |= {f"fc{i}.weight": (outputs, inputs), f"fc{i}.bias": (outputs,)}
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected
    model = kind(N, S, C) if kind is MGCNN else kind(S, C)
    for name, p in model.named_parameters():
        if "bias" in name:
            assert not p.any()
    bounds = {"convolutions.conv1.weight": (3, 96), "convolutions.conv2.weight": (96, 192)}  # fan in, fan out
    bounds |= {"attention.weight": (960, 16), "attention.score_weight": (16, 1), "fc1.weight": (64 * S * N, 128)}
    for name, fans in bounds.items():
        if name in expected:
            bound = (6 / sum(fans)) ** 0.5
            assert 0.9 * bound < model.get_parameter(name).abs().max() <= bound


@pytest.mark.parametrize("kind", [MAGCNN, MGCNN])
def test_state_dict_round_trip(kind, tmp_path):
    model, inputs, _ = make(kind, node_features=5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(1)
    other = kind(N, S, C, node_features=5) if kind is MGCNN else kind(S, C, node_features=5)
    assert not torch.equal(other(*inputs), model(*inputs))
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(other(*inputs), model(*inputs))


def test_padding_without_part_does_not_vote():
    model, (x,), y = make(MAGCNN)
    few = x[..., : K * 11]
    valid = (torch.arange(N) < 11).expand(B, N)
    assert_close(model(x, valid=valid), model(few))
    assert_close(model.loss(x, y, valid=valid), model.loss(few, y))
    assert (model(x) - model(few)).abs().max() > 0.1


@pytest.mark.parametrize("training", [True, False])
def test_scores_of_graph_features_are_added_to_the_mean_vote(training):
    plain, (x,), y = make(MAGCNN)
    torch.manual_seed(0)
    model = MAGCNN(S, C, graph_features=7, graph_hidden=5, graph_dropout=0.0).train(training)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"graph_head"}
    assert not unexpected
    model.graph_head.norm.running_mean.uniform_(-1, 1)
    model.graph_head.norm.running_var.uniform_(0.5, 2)
    p = arrays(model)
    g = torch.randn(B, 7)
    batch = [g.double().mean(0), g.double().var(0, correction=0)]
    kept = [model.graph_head.norm.running_mean.double(), model.graph_head.norm.running_var.double()]
    center, variance = (t.numpy() for t in (batch if training else kept))
    z = (g.double().numpy() - center) / np.sqrt(variance + 1e-3)
    hidden = relu(z @ p["graph_head.fc1.weight"].T + p["graph_head.fc1.bias"])
    scores = hidden @ p["graph_head.fc2.weight"].T + p["graph_head.fc2.bias"]
    scores += ma_gcnn(p, x.double().numpy(), None)[1] / N
    assert_within(model(x, graph_features=g), scores)
    assert_within(model.loss(x, y, graph_features=g), cross_entropy(scores, y.numpy()))
    few, valid = x[..., : K * 11], (torch.arange(N) < 11).expand(B, N)
    if not training:  # the running statistics change
        assert_close(model(x, valid=valid, graph_features=g), model(few, graph_features=g))


def test_a_batch_of_one_graph_is_normalised_as_in_evaluation():
    _, (x,), _ = make(MAGCNN)
    model, g = MAGCNN(S, C, graph_features=7, graph_dropout=0.0), torch.randn(B, 7)
    model(x, graph_features=g)
    before = model.graph_head.norm.running_mean.clone()
    alone = model(x[:1], graph_features=g[:1])
    assert torch.equal(model.graph_head.norm.running_mean, before)
    assert before.any()
    assert_close(alone, model.eval()(x, graph_features=g)[:1])


def test_bins_of_graph_features():
    """Against the definition: of each feature the share of every bin between its quantiles that it is through."""
    bins, train = 4, torch.randn(41, 3).double().float()
    train[:, 1] = (train[:, 1] > 1).float()  # nearly always 0
    train[:, 2] = 5  # always
    model = MAGCNN(S, C, graph_features=3, graph_bins=bins)
    with pytest.raises(RuntimeError, match="expected fit_bins to be called before"):
        model(GRID, graph_features=torch.zeros(B, 3))
    model.fit_bins(train)
    g = torch.cat([train[:9], torch.tensor([[-1e9, 0.5, 4.0], [1e9, 1.0, 6.0]])])
    encoded = model.graph_head.bins(g)
    ordered = np.sort(train.numpy(), 0)[[0, 10, 20, 30, 40]]
    expected = np.zeros((len(g), 3, bins))
    for i, j, t in itertools.product(range(len(g)), range(3), range(bins)):
        low, high = ordered[t : t + 2, j].astype(float)
        if high > low:
            expected[i, j, t] = min(max((float(g[i, j]) - low) / (high - low), 0), 1)
    assert_within(encoded, expected.reshape(len(g), -1))
    assert not encoded.view(-1, 3, bins)[:, 2].any()
    assert encoded[-1].view(3, bins)[0].tolist() == [1, 1, 1, 1]
    torch.manual_seed(0)
    plain = MAGCNN(S, C, graph_features=3 * bins).eval()
    kept = {name: value for name, value in model.state_dict().items() if "bins" not in name}
    plain.load_state_dict(kept)
    assert_close(model.eval()(GRID, graph_features=g[:B]), plain(GRID, graph_features=encoded[:B]))
    again = MAGCNN(S, C, graph_features=3, graph_bins=bins).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(GRID, graph_features=g[:B]), model(GRID, graph_features=g[:B]))
    model.fit_bins(train[:1])  # no bin has a width
    assert not model.graph_head.bins(g).any()


@pytest.mark.parametrize(
    ("options", "given", "text"),
    [
        ({"graph_features": 3}, torch.zeros(5, 3), "fit_bins of a model with graph_bins=0"),
        ({}, torch.zeros(5, 3), "fit_bins of a model with graph_bins=0"),
        ({"graph_features": 3, "graph_bins": 2}, torch.zeros(5, 2), r"has shape \(5, 2\), expected \(n, 3\)"),
        ({"graph_features": 3, "graph_bins": 2}, torch.zeros(0, 3), r"has shape \(0, 3\), expected \(n, 3\)"),
        ({"graph_features": 3, "graph_bins": 2}, torch.full((5, 3), torch.nan), "graph_features holds NaN or inf"),
        ({"graph_features": 3, "graph_bins": 2}, torch.full((5, 3), -torch.inf), "graph_features holds NaN or inf"),
        (
            {"graph_features": 3, "graph_bins": 2},
            torch.full((5, 3), 1e300, dtype=torch.float64),
            "finite numbers of torch.float32",
        ),
    ],
)
def test_wrong_bins(options, given, text):
    with pytest.raises(ValueError, match=f"^MAGCNN: .*{text}"):
        MAGCNN(S, C, **options).fit_bins(given)


def test_bins_that_come_with_the_parameters():
    model, g = MAGCNN(S, C, graph_features=3, graph_bins=2), torch.randn(B, 3)
    other = MAGCNN(S, C, graph_features=3, graph_bins=2).eval()
    model.fit_bins(g)
    state = dict(model.eval().state_dict())
    assert torch.equal(
        torch.func.functional_call(other, state, (GRID,), {"graph_features": g}), model(GRID, graph_features=g)
    )
    with pytest.raises(RuntimeError, match="expected fit_bins"):
        other(GRID, graph_features=g)
    for given in (None, [[1.0, 2.0, 3.0]], torch.ones(5, 3, dtype=torch.int64)):
        with pytest.raises(TypeError, match=r"graph_features is .*, expected a floating-point tensor"):
            model.fit_bins(given)


def test_dropout_of_graph_features():
    _, (x,), _ = make(MAGCNN)
    model, g = MAGCNN(S, C, graph_features=7), torch.randn(B, 7)
    assert not torch.equal(model(x, graph_features=g), model(x, graph_features=g))
    model.eval()
    assert torch.equal(model(x, graph_features=g), model(x, graph_features=g))


@pytest.mark.parametrize(
    ("width", "given", "text"),
    [
        (0, 7, "graph_features is a tensor in a model with graph_features=0"),
        (7, None, "graph_features is none in a model with graph_features=7"),
        (7, 6, r"graph_features has shape \(3, 6\), expected \(3, 7\)"),
    ],
)
def test_wrong_graph_features(width, given, text):
    model = MAGCNN(S, C, graph_features=width)
    with pytest.raises(ValueError, match=f"MAGCNN: {text}"):
        model(GRID, graph_features=None if given is None else torch.zeros(B, given))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": np.zeros((B, 1, K * S, K * N))}, "x is ndarray, expected a tensor"),
        ({"x": None}, "x is NoneType, expected a tensor"),
        ({"features": [1]}, "features is list, expected a tensor"),
        ({"graph_features": [1]}, "graph_features is list, expected a tensor"),
        ({"x": torch.zeros(B, 1, K * S, K * N).double()}, "x is torch.float64, expected torch.float32"),
        ({"features": torch.zeros(B, N, 5).double()}, "features is torch.float64, expected torch.float32"),
        ({"graph_features": torch.zeros(B, 7).long()}, "graph_features is torch.int64, expected torch.float32"),
    ],
)
def test_wrong_kinds(change, text):
    inputs = {"x": GRID, "features": FEATURES, "graph_features": torch.zeros(B, 7)}
    model = MAGCNN(S, C, node_features=5, graph_features=7)
    model(**inputs)
    with pytest.raises(TypeError, match=f"MAGCNN: {text}"):
        model(**inputs | change)


@pytest.mark.parametrize("kind", [MAGCNN, MGCNN])
def test_no_graphs_have_no_loss(kind):
    model, (x,), y = make(kind)
    with pytest.raises(ValueError, match=f"{kind.__name__}: y is empty, expected a class of at least one graph"):
        model.loss(x[:0], y[:0])


def test_only_what_is_trained_is_regularised():
    model = MAGCNN(S, C)
    assert_close(model.l2(), 0.005 * sum(p.square().sum() for p in model.parameters()))
    for p in model.convolutions.parameters():
        p.requires_grad_(False)
    parts = [*model.attention.parameters(), *model.output.parameters()]
    assert_close(model.l2(0.5), 0.25 * sum(p.square().sum() for p in parts))


def test_votes_lie_in_a_narrow_band():
    model, (x,), _ = make(MAGCNN)
    votes = model(10 * x)
    assert_close(votes.sum(1), torch.full((B,), float(N)))
    assert (votes.max(1).values - votes.min(1).values).max() <= N * (np.e - 1) / (np.e + C - 1)


def test_dropout_and_autocast():
    model, (x,), _ = make(MAGCNN)
    assert torch.equal(model(x), model.eval()(x))
    dropped = MAGCNN(S, C, dropout=0.5)
    assert not torch.equal(dropped(x), dropped(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(model(x).float(), model.float()(x), dtype=torch.bfloat16, op="autocast")


GRID, FEATURES = torch.zeros(B, 1, K * S, K * N), torch.zeros(B, N, 5)
CALLS = [
    (GRID.long(), None, 0, r"x is torch.int64 of shape .*, expected floating point \(B, 1, 45, "),
    (GRID[:, 0], None, 0, r"x is torch.float32 of shape \(3, 45, 54\), expected floating point \(B, 1, 45, "),
    (GRID.expand(-1, 2, -1, -1), None, 0, "x is torch.float32 of shape"),
    (GRID[:, :, :42], None, 0, "x is torch.float32 of shape"),
    (GRID[..., :53], None, 0, "x is torch.float32 of shape"),
    (GRID[..., :0], None, 0, r"x is torch.float32 of shape \(3, 1, 45, 0\), expected floating point \(B, 1, 45, "),
    (GRID, FEATURES, 0, "features is a tensor with node_features=0"),
    (GRID, None, 5, "features is none with node_features=5"),
    (GRID, FEATURES[:, :17], 5, r"features has shape \(3, 17, 5\), expected \(3, 18, 5\)"),
]


@pytest.mark.parametrize("kind", [MAGCNN, MGCNN])
@pytest.mark.parametrize(("x", "features", "width", "text"), CALLS, ids=[text for *_, text in CALLS])
def test_wrong_inputs(kind, x, features, width, text):
    model = kind(N, S, C, node_features=width) if kind is MGCNN else kind(S, C, node_features=width)
    with pytest.raises(ValueError, match=f"{kind.__name__}: {text}"):
        model(x, features)


ARGUMENTS = [
    (MAGCNN, {"num_slots": 0}, "num_slots is 0, expected an int of at least 1"),
    (MAGCNN, {"heads": 1.5}, "heads is 1.5, expected an int of at least 1"),
    (MAGCNN, {"node_features": -1}, "node_features is -1, expected an int of at least 0"),
    (MAGCNN, {"dropout": 1}, r"dropout is 1, expected a share in \[0, 1\)"),
    (MAGCNN, {"dropout": "a"}, r"dropout is 'a', expected a share in \[0, 1\)"),
    (MGCNN, {"dropout": False}, r"dropout is False, expected a share in \[0, 1\)"),
    (MAGCNN, {"graph_features": 1.0}, "graph_features is 1.0, expected an int of at least 0"),
    (MAGCNN, {"graph_bins": 2}, "graph_bins is 2, expected 0 without graph_features"),
    (MAGCNN, {"graph_bins": -1}, "graph_bins is -1, expected an int of at least 0"),
    (MAGCNN, {"graph_hidden": 0}, "graph_hidden is 0, expected an int of at least 1"),
    (MAGCNN, {"graph_dropout": -0.1}, r"graph_dropout is -0.1, expected a share in \[0, 1\)"),
    (MGCNN, {"num_nodes": True}, "num_nodes is True, expected an int of at least 1"),
]


@pytest.mark.parametrize(("kind", "change", "text"), ARGUMENTS, ids=[text for *_, text in ARGUMENTS])
def test_wrong_arguments(kind, change, text):
    options = {"num_slots": S, "num_classes": C} | ({"num_nodes": N} if kind is MGCNN else {}) | change
    with pytest.raises(ValueError, match=f"{kind.__name__}: {text}"):
        kind(**options)
