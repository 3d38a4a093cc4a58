# SPDX-License-Identifier: Apache-2.0
"""Shared material of the Poolingformer recipe's tests: small settings, a data set, a stored model."""

import json
import random
from pathlib import Path

from innerloop.recipes._run import load_checkpoint
from innerloop.recipes.poolingformer import Config, make_problem
from innerloop.recipes.poolingformer.module import PoolingformerTask

TASKS = ("listops", "qa", "mlm")
MODEL = {"dim": 8, "num_layers": 2, "heads": 2, "window": 2, "two_level": 1, "pool_window": 4, "kernel": 3, "stride": 2}
SMALL = MODEL | {"epochs": 2, "batch_size": 8, "eval_batch_size": 5, "lr": 0.01}
CONFIGS = {
    "listops": Config(length=16, min_length=3, train=40, valid=12, test=13, **SMALL),
    "qa": Config(task="qa", length=64, **SMALL),
    "mlm": Config(task="mlm", length=32, **SMALL),
}
METRICS = {
    "listops": {"accuracy", "loss"},
    "qa": {"passage_accuracy", "span_f1", "span_exact", "passage_loss", "span_loss"},
    "mlm": {"accuracy", "bits_per_byte"},
}
QUIET = {"accelerator": "cpu", "progress": False}


def write_xquad(path: Path, articles: int = 16) -> Path:
    """Paragraphs of three words, one of which answers."""
    rng = random.Random(0)
    data = []
    for a in range(articles):
        words = rng.sample(["naïve", "ไทย", "Москва", "blue", "größe", "数学", "x"], 3)
        answer = {"text": words[1], "answer_start": len(words[0]) + 1}
        qas = [{"id": f"{a}-{q}", "question": "?" * (1 + q), "answers": [answer]} for q in range(3)]
        data.append({"title": "", "paragraphs": [{"context": " ".join(words), "qas": qas}]})
    path.write_text(json.dumps({"data": data}))
    return path


def saved_task(checkpoint: Path, data: Path | None) -> PoolingformerTask:
    saved = load_checkpoint(checkpoint, "poolingformer")
    config = Config(**saved["hyper_parameters"]["config"])
    task = PoolingformerTask(make_problem(config, data), config).eval()
    task.load_state_dict(saved["state_dict"])
    return task.requires_grad_(False)
