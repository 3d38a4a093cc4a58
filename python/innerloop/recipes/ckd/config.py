# SPDX-License-Identifier: Apache-2.0
"""Settings of the distillation recipe, the published ones by name, and the published rows to compare with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from innerloop.nn.cifar import MODELS
from innerloop.recipes._settings import UsageError, check_choices, check_integers, check_numbers

Dataset = Literal["digits", "omniglot-200", "fashion-mnist", "cifar", "folder"]
Method = Literal[
    "plain", "kd", "dkd", "ckd", "ckd-masked", "ckd-symmetric", "cosine", "rkd", "sp", "pkt", "crd"
]  # fmt: skip
Schedule = Literal["cosine", "cosine-epoch", "step"]
Augmentation = Literal["crop-flip", "pool", "none"]

DATASETS = Dataset.__args__
#: Methods that compare features, not logits.
ON_FEATURES = ("rkd", "sp", "pkt", "crd")

#: {method: weights and temperature}, those published for CIFAR-100; in "rkd" the weights 25 and 50 are inside the loss.
METHODS: Mapping[str, Mapping[str, float]] = {
    "plain": {"kd_weight": 0},
    "kd": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4},
    "dkd": {"kd_weight": 1, "temperature": 4},
    "ckd": {"kd_weight": 10},
    "ckd-masked": {"kd_weight": 10},
    "ckd-symmetric": {"kd_weight": 10},
    "cosine": {"kd_weight": 10},
    "rkd": {"kd_weight": 1},
    "sp": {"kd_weight": 3000},
    "pkt": {"kd_weight": 30000},
    "crd": {"kd_weight": 0.8, "temperature": 0.07},
}


@dataclass(frozen=True)
class Config:
    """One run: ce_weight · cross entropy + kd_weight · the method's loss, by SGD.

    A model is a name in ``innerloop.nn.cifar.MODELS``, cnn-W-W-… (``small_cnn`` of these widths) or mlp-W-W-… (ReLU
    layers of these widths).

    Attributes:
        dataset: digits (of scikit-learn), omniglot-200, fashion-mnist, cifar (10 or 100), or folder (of image files).
        train_size: the student learns from the first so many training images at most; 0 takes all.
        holdout: training images of each class kept for validation; of Omniglot the last drawers. 0 for none.
        image_size: side to which the files of a folder are brought.
        augmentation: crop-flip (drawn anew in every epoch), pool (fixed: each image and 3 distorted copies) or none.
        method: a key of ``METHODS``; ckd-masked drops negatives of the same class.
        temperature: of kd, dkd, crd and the three ckd. beta, warmup_epochs: of dkd.
        schedule: the learning rate falls to 0 by a cosine, in every step or after every epoch; or by steps, to 1/10
            after 5/8, 6/8 and 7/8 of the epochs (of 240: 150, 180 and 210).
        drop_last: leaves out the last batch of an epoch if it is smaller.
        cache_teacher_logits: of a fixed training set, once. Methods on features run the teacher in every step.
        teacher_*: the training of the teacher, from the labels alone, with all else as for the student.
        teacher_digest: of the teacher's parameters; ``fit`` fills it in.
        limit: training steps in an epoch at most.
    """

    dataset: Dataset = "digits"
    train_size: int = 0
    holdout: int = 0
    image_size: int = 32
    augmentation: Augmentation = "none"
    student_model: str = "mlp-8"
    method: Method = "ckd"
    ce_weight: float = 1.0
    kd_weight: float = 10.0
    temperature: float = 1.0
    beta: float = 8.0
    warmup_epochs: float = 20.0
    epochs: int = 60
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    drop_last: bool = False
    seed: int = 0
    cache_teacher_logits: bool = False
    teacher_model: str = "mlp-256-256"
    teacher_train_size: int = 0
    teacher_epochs: int = 60
    teacher_batch_size: int = 64
    teacher_lr: float = 0.05
    teacher_schedule: Schedule = "cosine"
    teacher_seed: int = 0
    teacher_digest: str = ""
    eval_batch_size: int = 256
    limit: int | None = None

    def __post_init__(self) -> None:
        choices = {"method": METHODS, "dataset": DATASETS, "augmentation": Augmentation.__args__}
        choices |= dict.fromkeys(("schedule", "teacher_schedule"), Schedule.__args__)
        check_choices(self, choices)
        for name in ("student_model", "teacher_model"):
            value = getattr(self, name)
            if value not in MODELS and not re.fullmatch(r"(cnn|mlp)(-[1-9]\d*)+", value):
                raise UsageError(
                    f"{name} is {value!r}, expected widths such as cnn-8-16-32 or mlp-8, or one of {', '.join(MODELS)}"
                )
        limit = () if self.limit is None else ("limit",)
        check_integers(
            self,
            1,
            ("epochs", "batch_size", "teacher_epochs", "teacher_batch_size", "eval_batch_size", "image_size", *limit),
        )
        check_integers(self, 0, ("train_size", "teacher_train_size", "holdout", "seed", "teacher_seed"))
        check_numbers(self, ("ce_weight", "kd_weight", "beta", "warmup_epochs", "momentum", "weight_decay"))
        check_numbers(self, ("lr", "teacher_lr", "temperature"), positive=True)
        if self.cache_teacher_logits and self.augmentation == "crop-flip":
            raise UsageError(
                "cache_teacher_logits is True, expected False with augmentation crop-flip: every epoch has new images"
            )


def _cifar(teacher: str, student: str, batch_size: int, lr: float) -> dict[str, Any]:
    """What the official configs share; their teachers are those of the harness, trained for 240 epochs."""
    return {
        "dataset": "cifar",
        "teacher_model": teacher,
        "student_model": student,
        "augmentation": "crop-flip",
        "epochs": 480,
        "batch_size": batch_size,
        "lr": lr,
        "schedule": "cosine-epoch",
        "teacher_epochs": 240,
        "teacher_schedule": "step",
    }


# teacher, student, batch size, learning rate, weight and temperature of CKD, β of DKD
_OFFICIAL = (
    ("resnet56", "resnet20", 64, 0.05, 10, 1, 2),
    ("resnet110", "resnet32", 64, 0.05, 10, 1, 2),
    ("resnet32x4", "resnet8x4", 64, 0.05, 100, 1, 8),
    ("wrn_40_2", "wrn_16_2", 64, 0.05, 100, 1, 6),
    ("wrn_40_2", "wrn_40_1", 32, 0.05, 50, 2, 6),
    ("vgg13", "vgg8", 64, 0.05, 100, 1, 6),
    ("resnet32x4", "ShuffleV1", 32, 0.01, 100, 1, 8),
    ("wrn_40_2", "ShuffleV1", 32, 0.01, 100, 1, 6),
    ("resnet32x4", "ShuffleV2", 64, 0.01, 100, 1, 8),
    ("vgg13", "MobileNetV2", 32, 0.01, 50, 2, 6),
    ("ResNet50", "MobileNetV2", 32, 0.01, 100, 1, 8),
)

_CNN: dict[str, Any] = {"teacher_model": "cnn-32-64-128", "drop_last": True, "cache_teacher_logits": True}

#: {preset: settings of all methods}. digits ends in a minute on one CPU core; omniglot-200 and fashion-mnist are the
#: studies of docs/ckd.md; the others, teacher-student, are the official configs for CIFAR-100.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "digits": {"cache_teacher_logits": True},
    "omniglot-200": _CNN
    | {
        "dataset": "omniglot-200",
        "student_model": "cnn-8-16-32",
        "augmentation": "pool",
        "epochs": 10,
        "teacher_epochs": 12,
    },
    "fashion-mnist": _CNN
    | {
        "dataset": "fashion-mnist",
        "student_model": "cnn-8-16-16",
        "train_size": 4000,
        "teacher_train_size": 20_000,
        "epochs": 15,
        "teacher_epochs": 8,
    },
    **{f"{teacher}-{student}": _cifar(teacher, student, *rest[:2]) for teacher, student, *rest in _OFFICIAL},
}

#: {(preset, method): settings of that method only}.
TUNED: Mapping[tuple[str, str], Mapping[str, float]] = {
    **{(preset, "dkd"): {"beta": 2, "warmup_epochs": 0} for preset in ("digits", "omniglot-200", "fashion-mnist")},
    **{(f"{teacher}-{student}", "dkd"): {"beta": beta} for teacher, student, *_, beta in _OFFICIAL},
    **{
        (f"{teacher}-{student}", method): {"kd_weight": weight, "temperature": temperature}
        for teacher, student, _, _, weight, temperature, _ in _OFFICIAL
        for method in ("ckd", "ckd-masked", "ckd-symmetric")
    },
}

_PAIRS = ("resnet56-resnet20", "resnet110-resnet32", "resnet32x4-resnet8x4", "wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1",
          "vgg13-vgg8")  # fmt: skip
_MIXED = ("vgg13-MobileNetV2", "ResNet50-MobileNetV2", "resnet32x4-ShuffleV1", "resnet32x4-ShuffleV2",
          "wrn_40_2-ShuffleV1")  # fmt: skip
_ACCURACIES = (
    (_PAIRS, "teacher", (72.34, 74.31, 79.42, 75.61, 75.61, 74.64)),
    (_PAIRS, "plain", (69.06, 71.14, 72.50, 73.26, 71.98, 70.36)),
    (_PAIRS, "KD", (70.66, 73.08, 73.33, 74.92, 73.54, 72.98)),
    (_PAIRS, "SP", (69.67, 72.69, 72.94, 73.83, 72.43, 72.68)),
    (_PAIRS, "RKD", (69.61, 71.82, 71.90, 73.35, 72.22, 71.48)),
    (_PAIRS, "PKT", (70.34, 72.61, 73.64, 74.54, 73.45, 72.88)),
    (_PAIRS, "CRD", (71.16, 73.48, 75.51, 75.48, 74.14, 73.94)),
    (_PAIRS, "DKD", (71.97, 74.11, 76.32, 76.24, 74.81, 74.68)),
    (_MIXED, "teacher", (74.64, 79.34, 79.42, 79.42, 75.61)),
    (_MIXED, "plain", (64.60, 64.60, 70.50, 71.82, 70.50)),
    (_MIXED, "KD", (67.37, 67.35, 74.07, 74.45, 74.83)),
    (_MIXED, "SP", (66.30, 68.08, 73.48, 74.56, 74.52)),
    (_MIXED, "CRD", (69.73, 69.11, 75.11, 75.65, 76.05)),
    (_MIXED, "DKD", (69.71, 70.35, 76.45, 77.07, 76.70)),
)

#: {preset: {method: {"accuracy": of the student on CIFAR-100}}}: 240 epochs, the best epoch on the test split, from the
#: READMEs of HobbitLong/RepDistiller and megvii-research/mdistiller. CKD's own tables could not be read.
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    preset: {
        f"{method}, best of 240 epochs": {"accuracy": values[presets.index(preset)] / 100}
        for presets, method, values in _ACCURACIES
        if preset in presets
    }
    for preset in (*_PAIRS, *_MIXED)
}


def make_config(preset: str = "digits", method: str = "ckd", **overrides: Any) -> Config:
    """The settings of a method in a preset, with ``overrides`` (fields of ``Config``; None means "not given")."""
    if preset not in PRESETS:
        raise UsageError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}")
    if method not in METHODS:
        raise UsageError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    values = {**PRESETS[preset], **METHODS[method], **TUNED.get((preset, method), {}), "method": method}
    values |= {key: value for key, value in overrides.items() if value is not None}
    unknown = values.keys() - {field.name for field in fields(Config)}
    if unknown:
        raise TypeError(f"make_config() got unknown settings {sorted(unknown)}")
    return Config(**values)


def teacher_config(config: Config) -> Config:
    """How the teacher of ``config`` is trained: what concerns only the student has its default."""
    shared = ("dataset", "holdout", "image_size", "augmentation", "momentum", "weight_decay", "drop_last", "limit")
    own = ("train_size", "epochs", "batch_size", "lr", "schedule", "seed")
    settings = {name: getattr(config, name) for name in shared}
    settings |= {name: getattr(config, f"teacher_{name}") for name in own}
    return Config(method="plain", kd_weight=0.0, student_model=config.teacher_model, **settings)
