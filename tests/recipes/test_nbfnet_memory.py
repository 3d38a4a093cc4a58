# SPDX-License-Identifier: Apache-2.0
"""Batches that memory does not hold: ranked in parts, explained in training."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")

from innerloop.data import read_kg
from innerloop.nn import NBFNet
from innerloop.recipes.nbfnet import Config, train
from innerloop.recipes.nbfnet.memory import InParts, explained, is_out_of_memory, node_state_text

ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] data. DefaultCPUAllocator: not enough memory: you tried"),
]
CONFIG = Config(epochs=1, batch_size=12, eval_batch_size=12, num_negative=2, dim=4, num_layers=1)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_failed_allocations_are_known(error):
    assert is_out_of_memory(error)


def test_other_errors_are_not_failed_allocations():
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_a_real_failed_allocation():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError, match="lower it"), explained(lambda: "lower it"):
        torch.empty(1 << 60, dtype=torch.uint8)


class Rows:
    """Doubles its rows; raises ``error`` for more than ``most`` of them."""

    def __init__(self, most: int, error: BaseException) -> None:
        self.most, self.error, self.calls = most, error, []

    def __call__(self, a, b):
        self.calls.append(len(a))
        if len(a) > self.most:
            raise self.error
        return torch.stack([2 * a, b], dim=1)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_batches_are_halved_until_they_fit(error):
    a, b = torch.arange(11), torch.arange(11) + 100
    function, in_parts = Rows(3, error), InParts()
    with pytest.warns(UserWarning, match="does not hold eval_batch_size 11 queries: ranking 3 at a time") as caught:
        first = in_parts(function, a, b)
    assert function.calls == [11, 6, 3, 3, 3, 2]
    assert torch.equal(first, torch.stack([2 * a, b], dim=1))
    assert torch.equal(in_parts(function, a, b), first)
    assert function.calls[6:] == [3, 3, 3, 2]  # the size that fitted, at once
    assert len(caught) == 1
    function.most = 1  # less memory later on: smaller parts, no second warning
    assert torch.equal(in_parts(function, a, b), first)
    assert in_parts.limit == 1


def test_rows_that_are_done_are_not_done_again():
    a = torch.arange(8)
    seen = []

    def function(a):
        if len(a) > (4 if 0 in a else 2):
            raise MemoryError
        seen.extend(a.tolist())
        return a

    with pytest.warns(UserWarning, match="ranking 2 at a time"):
        assert torch.equal(InParts()(function, a), a)
    assert seen == a.tolist()


def test_whole_batches_give_no_warning():
    function, in_parts = Rows(11, MemoryError()), InParts()
    in_parts(function, torch.arange(11), torch.arange(11))
    assert (function.calls, in_parts.limit) == ([11], None)


def test_one_row_that_does_not_fit_and_other_errors():
    function = Rows(0, MemoryError("kernel"))
    with pytest.raises(MemoryError, match="kernel"):
        InParts()(function, torch.arange(5), torch.arange(5))
    assert function.calls == [5, 3, 2, 1]
    function = Rows(0, RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match="shapes"):
        InParts()(function, torch.arange(5), torch.arange(5))
    assert function.calls == [5]


def test_size_of_a_node_state():
    """ogbl-biokg, a batch of the paper's run."""
    text = node_state_text(93_773, 8, 32, 6, 4)
    assert text == (
        "a node state takes 93,773 entities x 8 queries x 32 channels x 4 bytes = 91.6 MiB, 6 layers 549.5 MiB"
    )


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise ERRORS[2]


class Starved(torch.nn.Module):
    """An NBFNet that raises for more than some queries in training or evaluation, or in the backward pass."""

    def __init__(self, kg, training: int = 99, evaluation: int = 99, backward: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = NBFNet(kg.num_relations, dim=4, num_layers=1)
        self.most, self.backward = {True: training, False: evaluation}, backward

    def forward(self, graph, source, relation, target=None):
        if len(source) > self.most[self.training]:
            raise ERRORS[0]
        out = self.net(graph, source, relation, target)
        return out if self.backward or not self.training else FailsBackward.apply(out)


def starved(tiny: Path, output: Path, config: Config = CONFIG, **limits):
    kg = read_kg(tiny)
    return train(kg, config, output, data=tiny, progress=False, model=Starved(kg, **limits))


def test_ranking_in_parts_gives_the_same_metrics(tiny, tmp_path):
    whole = starved(tiny, tmp_path / "whole")
    with pytest.warns(UserWarning, match="does not hold eval_batch_size 12 queries: ranking 3 at a time") as caught:
        parts = starved(tiny, tmp_path / "parts", evaluation=5)
    assert parts["test"] == pytest.approx(whole["test"])
    assert len(caught) == 1  # for validation and test together


def test_one_query_that_does_not_fit_says_what_it_takes(tiny, tmp_path):
    expected = r"at one query at a time \(eval_batch_size is 12\): a node state takes 30 entities x 1 queries x 4 chan"
    with pytest.raises(MemoryError, match=expected + r".* lower is dim \(4\)"):
        starved(tiny, tmp_path, evaluation=0)


@pytest.mark.parametrize("limits", [{"training": 3}, {"backward": False}], ids=["forward", "backward"])
def test_training_says_what_it_takes_and_what_to_lower(tiny, tmp_path, limits):
    expected = (
        r"out of memory in a training step: a node state takes 30 entities x 12 queries x 4 channels x 4 bytes = 0\.0 "
        r"MiB, 1 layers .*; lower batch_size \(12\) or dim \(4\), or set checkpoint, which"
    )
    with pytest.raises(MemoryError, match=expected) as caught:
        starved(tiny, tmp_path, **limits)
    assert caught.value.__cause__ in ERRORS


def test_checkpointing_is_not_advised_twice(tiny, tmp_path):
    config = Config(**vars(CONFIG) | {"checkpoint": True})
    with pytest.raises(MemoryError, match=r"lower batch_size \(12\) or dim \(4\)$"):
        starved(tiny, tmp_path, config, training=3)


def test_checkpointing_trains_the_same_model(tiny, tmp_path):
    kg = read_kg(tiny)
    config = Config(epochs=1, batch_size=12, num_negative=2, dim=4, num_layers=2)
    plain = train(kg, config, tmp_path / "plain", data=tiny, progress=False)
    saving = train(kg, Config(**vars(config) | {"checkpoint": True}), tmp_path / "less", data=tiny, progress=False)
    assert saving["test"] == plain["test"]
    assert saving["epochs"][0]["loss"] == plain["epochs"][0]["loss"]
