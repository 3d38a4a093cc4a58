# SPDX-License-Identifier: Apache-2.0
"""Settings, batches, losses and metrics of the Poolingformer tasks, against recomputation in plain Python."""

import gzip
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from innerloop.data import listops, longdoc
from innerloop.data.longdoc import decode_bytes
from innerloop.nn import PoolingAttention, SlidingWindowAttention
from innerloop.nn.poolingformer_heads import QuestionAnsweringLogits
from innerloop.recipes._batches import step_generator
from innerloop.recipes.poolingformer import PRESETS, PUBLISHED, VARIANTS, Config, make_config, make_problem
from innerloop.recipes.poolingformer.tasks import best_span

MODEL = {"dim": 8, "num_layers": 2, "heads": 2, "window": 2, "two_level": 1}
MODEL |= {"pool_window": 4, "kernel": 3, "stride": 2}
LISTOPS = Config(length=16, min_length=3, train=30, valid=12, test=13, **MODEL)
QA = Config(task="qa", length=64, **MODEL)
MLM = Config(task="mlm", length=32, **MODEL)
SPLITS = ("train", "valid", "test")
WORDS = ("naïve", "ไทย", "Москва", "blue", "größe", "数学", "🙂", "x")


def write_xquad(path: Path, seed: int = 0, articles: int = 8) -> Path:
    """Articles of two paragraphs of three words, two questions each; the answer is one of the last two words."""
    rng = random.Random(seed)
    data = []
    for a in range(articles):
        paragraphs = []
        for p in range(2):
            words = rng.sample(WORDS, 3)
            context, qas = " ".join(words), []
            for q in range(2):
                answer = {"text": words[1 + q], "answer_start": len(" ".join(words[: 1 + q])) + 1}
                qas.append({"id": f"{seed}-{a}-{p}-{q}", "question": f"où{'?' * rng.randint(1, 3)}", "answers": [answer]})
            paragraphs.append({"context": context, "qas": qas})
        data.append({"title": str(a), "paragraphs": paragraphs})
    text = json.dumps({"data": data}, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_wikitext(path: Path, articles: int = 20) -> Path:
    """Article i holds 70 + i copies of a letter of its own."""
    path.write_text("".join(f" = Title {i} = \n {chr(65 + i) * (70 + i)} \n" for i in range(articles)))
    return path


def source_of(path: Path) -> dict[str, tuple[int, str, str, str]]:
    """{question id: (position of its article, context, question, answer)}, from the file itself."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return {
        qa["id"]: (a, paragraph["context"], qa["question"], qa["answers"][0]["text"])
        for a, article in enumerate(json.loads(text)["data"])
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    }


def wild(model: torch.nn.Module) -> torch.nn.Module:
    """In evaluation, with parameters so large that its answers differ between examples."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def xquad(tmp_path_factory) -> Path:
    return write_xquad(tmp_path_factory.mktemp("xquad") / "xquad.xx.json")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_wikitext(tmp_path_factory.mktemp("text") / "letters.txt")


# --- settings ---


@pytest.mark.parametrize(("task", "preset"), PRESETS)
def test_presets_make_models(task, preset):
    config = make_config(task, preset)
    assert config.task == task
    with torch.device("meta"):
        if task == "listops":
            config = make_config(task, preset, train=1, valid=1, test=1)
            model = make_problem(config).model(config)
        else:
            problem = type(make_problem_class(task))
            model = problem.model(config)
    layers = [type(layer.attention) for layer in model.encoder.layers]
    level1 = config.num_layers - config.two_level
    assert layers == [SlidingWindowAttention] * level1 + [PoolingAttention] * config.two_level
    assert model.encoder.max_length == config.length
