# SPDX-License-Identifier: Apache-2.0
"""cached_contrastive_step against a step of the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from innerloop.nn.contrastive import InfoNCELoss
from innerloop.nn.grad_cache import cached_contrastive_step
from tolerances import assert_close
from torch import Tensor, nn

B, D = 7, 5


class Encoder(nn.Module):
    """With dropout; the scale is a plain argument."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, D))

    def forward(self, x: Tensor, scale: float = 1.0, shift: Tensor | None = None) -> Tensor:
        return self.layers(scale * x if shift is None else scale * x + shift)


def step_with_graph(encoders: list[nn.Module], inputs: list, loss: Callable, size: int) -> Tensor:
    """All micro-batches with their graphs at a time; inputs are lists of them."""
    value = loss(*(torch.cat([enc(*a, **kw) for a, kw in x]) for enc, x in zip(encoders, inputs, strict=True)))
    value.backward()
    return value.detach()


def gradients(*modules: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("shared", [False, True])
def test_cached_step_has_the_gradients_of_the_whole_batch(shared):
    """With dropout, a remainder, positional and named inputs, and a loss with a parameter and random numbers.

    Gradients are added up, and the random numbers that follow are the same.
    """
    torch.manual_seed(0)
    image = Encoder(6).double()
    text = image if shared else Encoder(6).double()
    info = InfoNCELoss(learned=True).double()
    x, y, shift = torch.randn(3, B, 6, dtype=torch.float64)
    whole = [(x, 2.0), {"x": y, "scale": 0.5, "shift": shift}]
    parts = [
        [((x[i : i + 3], 2.0), {}) for i in (0, 3, 6)],
        [((), {"x": y[i : i + 3], "scale": 0.5, "shift": shift[i : i + 3]}) for i in (0, 3, 6)],
    ]
    state = torch.get_rng_state()
    results = []

    def loss(q: Tensor, k: Tensor) -> Tensor:
        return torch.rand(()) * info(q, k)

    for step, inputs in ((step_with_graph, parts), (cached_contrastive_step, whole)):
        torch.set_rng_state(state)
        for p in (*image.parameters(), *text.parameters(), *info.parameters()):
            p.grad = torch.ones_like(p)
        value = step([image, text], inputs, loss, 3)
        results.append([value, *gradients(image, text, info), torch.get_rng_state().double()])
    for actual, expected in zip(*reversed(results), strict=True):
        assert_close(actual, expected)
    assert not results[1][0].requires_grad


def test_cached_step_of_one_micro_batch_and_of_none():
    x, y = torch.randn(2, B, 6)
    encoder, loss = nn.Linear(6, D), InfoNCELoss()
    loss(encoder(x), encoder(y)).backward()
    expected = gradients(encoder)
    encoder.zero_grad()
    cached_contrastive_step([encoder, encoder], [x, y], loss, micro_batch=100)
    for actual, truth in zip(gradients(encoder), expected, strict=True):
        assert_close(actual, truth)
    assert cached_contrastive_step([encoder, encoder], [x[:0], y[:0]], loss, micro_batch=4) == 0


def test_cached_step_with_a_frozen_encoder_and_an_unused_one():
    x, y = torch.randn(2, B, 6)
    frozen, encoder, unused = (nn.Linear(6, D) for _ in range(3))
    frozen.requires_grad_(False)
    loss = InfoNCELoss()
    loss(frozen(x), encoder(y)).backward()
    expected = gradients(encoder)
    encoder.zero_grad()
    cached_contrastive_step([frozen, encoder, unused], [x, y, y], lambda q, k, _: loss(q, k), 2)
    for actual, truth in zip(gradients(encoder), expected, strict=True):
        assert_close(actual, truth)
    assert not any(g.any() for g in gradients(unused))


def test_cached_step_under_autocast():
    """Weights that were cast without gradient in the first pass are not those of the second."""
    encoder = nn.Linear(6, D)
    with torch.autocast("cpu", torch.bfloat16):
        cached_contrastive_step([encoder, encoder], torch.randn(2, B, 6), InfoNCELoss(), 3)
    assert all(g.any() for g in gradients(encoder))


def test_cached_step_holds_one_micro_batch():
    """No activation of more rows than a micro-batch's is ever saved for the backward pass of an encoder."""
    saved = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.shape)
        return t

    encoder = Encoder(64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        cached_contrastive_step([encoder, encoder], torch.randn(2, 40, 64), lambda q, k: (q * k).sum(), 4)
    assert (4, 64) in saved
    assert (40, 64) not in saved


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (([nn.Identity()], [torch.ones(2, 2)], torch.sum, 0), ValueError, "micro_batch is 0, expected an integer of"),
        (([], [], torch.sum, 1), ValueError, "inputs has length 0, expected 0 like encoders, above 0"),
        (([nn.Identity()], [], torch.sum, 1), ValueError, "inputs has length 0, expected 1 like encoders"),
        (([nn.Identity()], [(torch.ones(2), torch.ones(3))], torch.sum, 1), ValueError, r"inputs\[0\] has tensors of"),
        (([nn.Identity()], [None], torch.sum, 1), ValueError, r"inputs\[0\] has tensors of \[\] rows"),
        (([torch.sum], [torch.ones(2, 2)], torch.sum, 1), ValueError, r"an encoder returned shape \(\), expected"),
        (([lambda x: None], [torch.ones(2, 2)], torch.sum, 1), ValueError, "an encoder returned NoneType, expected"),
        (([nn.Identity()], [torch.ones(2, 2)], lambda x: x, 1), ValueError, r"loss returned shape \(2, 2\), expected"),
    ],
)
def test_bad_cached_steps(arguments, kind, text):
    with pytest.raises(kind, match=f"cached_contrastive_step: {text}"):
        cached_contrastive_step(*arguments)
