# SPDX-License-Identifier: Apache-2.0
"""Settings of the Poolingformer recipe, and the published rows to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from innerloop.recipes._settings import UsageError, check_choices, check_integers, check_numbers

TASKS = ("listops", "qa", "mlm")


@dataclass(frozen=True)
class Config:
    """One run. Lengths and windows count tokens (bytes for qa and mlm); windows count them on one side.

    Attributes:
        task: listops (ten-way classification), qa (passage and span of the answer) or mlm (masked bytes).
        length: of the longest sequence. min_length: ListOps are longer than this.
        train, valid, test: ListOps to draw.
        dim, num_layers, heads, ffn_dim: of the encoder; ffn_dim 0 stands for 4 dim.
        window: w1. two_level: how many layers, the last ones, have the second level; 0 leaves one level everywhere.
        pool_window, kernel, stride, pooling, level2_input, share_weights, zero_value: of the second level.
        relative_bias: learn a number for each head and distance, in both levels.
        checkpoint: keep only the input of each layer for the backward pass.
        warmup: share of the steps in which the learning rate rises, before it falls linearly to 0.
        clip: largest norm of a gradient.
        limit: training steps in an epoch at most.
        eval_examples: validate and test on so many examples at most; 0 takes all.
    """

    task: Literal["listops", "qa", "mlm"] = "listops"
    length: int = 512
    min_length: int = 10
    train: int = 6_000
    valid: int = 1_000
    test: int = 1_000
    dim: int = 64
    num_layers: int = 4
    heads: int = 4
    ffn_dim: int = 0
    window: int = 16
    two_level: int = 2
    pool_window: int = 64
    kernel: int = 5
    stride: int = 4
    pooling: Literal["ldconv", "mean", "max", "none"] = "ldconv"
    level2_input: Literal["output", "input"] = "output"
    share_weights: bool = False
    zero_value: bool = False
    relative_bias: bool = False
    dropout: float = 0.1
    checkpoint: bool = False
    epochs: int = 3
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 1024
    eval_batch_size: int = 32
    limit: int | None = None
    eval_examples: int = 0

    def __post_init__(self) -> None:
        check_choices(self, {"task": TASKS})
        limit = () if self.limit is None else ("limit",)
        check_integers(self, 1, ("train", "valid", "test", "epochs", "batch_size", "eval_batch_size", "dim",
                                 "num_layers", "heads", *limit))  # fmt: skip
        check_integers(self, 0, ("seed", "eval_examples", "ffn_dim", "two_level"))
        check_integers(self, 8, ("length",))
        check_numbers(self, ("weight_decay", "dropout"))
        check_numbers(self, ("lr", "clip"), positive=True)
        if not 0 <= self.two_level <= self.num_layers:
            raise UsageError(f"two_level is {self.two_level}, expected 0 to num_layers ({self.num_layers})")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"warmup is {self.warmup}, expected a share in [0, 1)")

    def encoder_arguments(self) -> dict[str, Any]:
        """The part that ``innerloop.nn.PoolingformerEncoder`` takes."""
        names = ("dim", "num_layers", "heads", "dropout", "relative_bias", "checkpoint")
        arguments = {name: getattr(self, name) for name in names}
        arguments |= {
            "window": (self.window, self.window),
            "two_level": range(self.num_layers - self.two_level, self.num_layers),
            "ffn_dim": self.ffn_dim or 4 * self.dim,
            "max_length": self.length,
        }
        if self.two_level:
            names = ("pool_window", "kernel", "stride", "pooling", "level2_input", "share_weights", "zero_value")
            arguments |= {name: getattr(self, name) for name in names}
        return arguments


_LONG: dict[str, Any] = {
    "length": 4096,
    "dim": 128,
    "window": 128,
    "pool_window": 512,
    "two_level": 1,
    "lr": 3e-4,
    "batch_size": 4,
    "eval_batch_size": 4,
}

#: {(task, preset): settings}. quick ends in minutes on two CPU cores; study is what docs/poolingformer.md reports;
#: lra is the ListOps of Long Range Arena with its model size (our schedule).
PRESETS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("listops", "quick"): {},
    ("listops", "study"): {"train": 12_000, "test": 2_000, "epochs": 4, "dropout": 0.0},
    ("listops", "lra"): {
        "length": 2000,
        "min_length": 500,
        "train": 96_000,
        "valid": 2_000,
        "test": 2_000,
        "dim": 512,
        "heads": 8,
        "ffn_dim": 1024,
        "window": 128,
        "pool_window": 512,
        "epochs": 2,
        "lr": 3e-4,
    },
    ("qa", "quick"): _LONG | {"epochs": 1, "limit": 40, "eval_examples": 40},
    ("qa", "study"): _LONG | {"epochs": 1},
    ("mlm", "quick"): _LONG | {"epochs": 1, "limit": 40, "eval_examples": 40},
    ("mlm", "study"): _LONG | {"epochs": 3},
}

#: Rows of other models on the same task, accuracy; Tay et al., Long Range Arena (ICLR 2021), as recalled.
PUBLISHED: Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]] = {
    ("listops", "lra"): {
        "local attention (as recalled)": {"accuracy": 0.1582},
        "Longformer (as recalled)": {"accuracy": 0.3563},
        "BigBird (as recalled)": {"accuracy": 0.3605},
        "full attention (as recalled)": {"accuracy": 0.3637},
    },
}


def make_config(task: str, preset: str = "quick", **overrides: Any) -> Config:
    """The settings of a preset, with ``overrides`` (fields of ``Config``; None means "not given")."""
    if task not in TASKS:
        raise UsageError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    if (task, preset) not in PRESETS:
        known = ", ".join(p for t, p in PRESETS if t == task)
        raise UsageError(f"preset is {preset!r}, expected one of {known} for task {task}")
    values = {"task": task, **PRESETS[task, preset]}
    values |= {key: value for key, value in overrides.items() if value is not None}
    unknown = values.keys() - {field.name for field in fields(Config)}
    if unknown:
        raise TypeError(f"make_config() got unknown settings {sorted(unknown)}")
    return Config(**values)
