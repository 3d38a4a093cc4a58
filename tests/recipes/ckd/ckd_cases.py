# SPDX-License-Identifier: Apache-2.0
"""Shared material of the distillation recipe's tests: small settings, images to learn from."""

from pathlib import Path

import numpy as np
from innerloop.recipes.ckd import Config, make_config

QUIET = {"accelerator": "cpu", "progress": False}
TINY = {
    "dataset": "fashion-mnist",
    "student_model": "mlp-6",
    "teacher_model": "cnn-4-8",
    "epochs": 2,
    "teacher_epochs": 1,
    "batch_size": 8,
    "teacher_batch_size": 16,
    "eval_batch_size": 16,
    "cache_teacher_logits": False,
}
# Smaller than the published ones, so that every method learns in a few steps.
WEIGHTS = {"sp": 10.0, "pkt": 10.0, "rkd": 0.1}


def tiny(method: str = "ckd", **changes) -> Config:
    weight = {"kd_weight": WEIGHTS[method]} if method in WEIGHTS else {}
    return make_config("digits", method, **{"warmup_epochs": 4.0, "beta": 2.0, **TINY, **weight, **changes})


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_fashion(folder: Path, seed: int = 0) -> Path:
    """52 training and 37 test images, 8×8 and noisy; the class is a bright row or column."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for split, n in (("train", 52), ("t10k", 37)):
        labels = np.arange(n) % 10
        images = rng.integers(0, 100, (n, 8, 8))
        for image, label in zip(images, labels, strict=True):
            (image if label < 5 else image.T)[label % 5 + 1] += 150
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels)
    return folder
