# SPDX-License-Identifier: Apache-2.0
"""What the recipe can train on: sequences in batches, the model's head, its loss, and sums that make metrics.

Every metric is a ratio of sums over examples, so processes and batches only have to add theirs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from innerloop.data import listops, longdoc
from innerloop.nn import (
    PoolingformerEncoder,
    PoolingformerForMaskedLM,
    PoolingformerForQuestionAnswering,
    PoolingformerForSequenceClassification,
    QuestionAnsweringLogits,
    global_positions,
)
from innerloop.recipes._batches import step_generator
from innerloop.recipes.poolingformer.config import Config

__all__ = ["ListOpsProblem", "MaskedProblem", "Problem", "QuestionProblem", "best_span", "make_problem"]

SPLITS = ("train", "valid", "test")
GENERATED = "generated"  # in place of a digest, where the settings say it all
_LONGEST_ANSWER = 128  # bytes; the longest answer of XQuAD in any language has 441, 1 of 50 has more than 128

Batch = dict[str, Tensor]


class Problem:
    """A task on its data.

    Attributes:
        name: of the data, for tables.
        columns: names of the sums that ``totals`` returns; the first is the number of examples.
    """

    name: str
    columns: ClassVar[tuple[str, ...]]

    def size(self, split: str) -> int:
        """Number of examples."""
        raise NotImplementedError

    def digest(self) -> str:
        """Of data that was read, so that a run is not continued or compared on other data of the same name."""
        raise NotImplementedError

    def lengths(self, split: str) -> Tensor | None:
        """Tokens of each example, int64; None where all have as many."""
        return None

    def model(self, config: Config) -> nn.Module:
        """Encoder and head."""
        raise NotImplementedError

    def batch(self, split: str, items: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        """Examples as tensors. ``generator``: of what is drawn anew in every epoch; None draws alike every time."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        raise NotImplementedError

    def totals(self, model: nn.Module, batch: Batch) -> list[float]:
        """One sum per column."""
        raise NotImplementedError

    def metrics(self, totals: dict[str, float]) -> dict[str, float]:
        """Name -> value, from sums over a split."""
        raise NotImplementedError


class ListOpsProblem(Problem):
    """ListOps of Long Range Arena, drawn from the seed 0, whatever the seed of the run.

    One draw is cut into train, valid and test, so other counts give other splits: compare runs of the same counts.
    """

    columns = ("count", "correct", "loss")

    def __init__(self, config: Config) -> None:
        self.name = f"listops-{config.length}"
        counts = {split: getattr(config, split) for split in SPLITS}
        bounds = {"min_length": config.min_length, "max_length": config.length}  # CLS makes up for the excluded bound
        self.splits = listops.listops_splits(**counts, **bounds, progress=True)

    def size(self, split: str) -> int:
        return len(self.splits[split])

    def digest(self) -> str:
        return GENERATED

    def lengths(self, split: str) -> Tensor:
        return self.splits[split].offsets.diff()

    def model(self, config: Config) -> nn.Module:
        encoder = PoolingformerEncoder(len(listops.VOCABULARY), padding_idx=listops.PAD, **config.encoder_arguments())
        return PoolingformerForSequenceClassification(encoder, 10, dropout=config.dropout)

    def batch(self, split: str, items: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        tokens, valid, labels = self.splits[split].batch(items)
        return {"tokens": tokens, "valid": valid, "label": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(self._logits(model, batch), batch["label"])

    def totals(self, model: nn.Module, batch: Batch) -> list[float]:
        logits, label = self._logits(model, batch).float(), batch["label"]
        correct = (logits.argmax(1) == label).sum()
        return [len(label), float(correct), float(F.cross_entropy(logits, label, reduction="sum"))]

    def metrics(self, totals: dict[str, float]) -> dict[str, float]:
        return {name: totals[key] / totals["count"] for name, key in (("accuracy", "correct"), ("loss", "loss"))}

    @staticmethod
    def _logits(model: nn.Module, batch: Batch) -> Tensor:
        first = batch["tokens"].new_zeros(len(batch["tokens"]), 1)  # <cls>, the only global token
        return model(batch["tokens"], batch["valid"], first)


class QuestionProblem(Problem):
    """XQuAD joined to long documents: which passage answers the question, and which bytes of it.

    Args:
        data: an XQuAD (SQuAD 1.1) file, or a folder of such files: all languages together.
    """

    columns = ("count", "passage", "f1", "exact", "passage_loss", "span_loss")

    def __init__(self, config: Config, data: Path) -> None:
        files = _files(data, (".json", ".json.gz"))
        self.name = f"{_stem(data)}-{config.length}"
        self.splits = {
            split: [q for file in files for q in longdoc.read_xquad_long(file, config.length, split=split)]
            for split in SPLITS
        }
        _check_sizes(data, self)

    def size(self, split: str) -> int:
        return len(self.splits[split])

    def digest(self) -> str:
        return _digest(repr((q.id, q.answer)).encode() + q.document for s in SPLITS for q in self.splits[s])

    def lengths(self, split: str) -> Tensor:
        return torch.tensor([q.document_start + len(q.document) for q in self.splits[split]])

    def model(self, config: Config) -> nn.Module:
        encoder = PoolingformerEncoder(
            longdoc.BYTE_VOCABULARY_SIZE, padding_idx=longdoc.PAD, **config.encoder_arguments()
        )
        return PoolingformerForQuestionAnswering(encoder, dropout=config.dropout)

    def batch(self, split: str, items: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        questions = [self.splits[split][int(i)] for i in items]
        tokens = nn.utils.rnn.pad_sequence([q.tokens() for q in questions], True, longdoc.PAD)
        passage = torch.full_like(tokens, -1)
        for row, q in zip(passage, questions, strict=True):
            for p, (start, end) in enumerate(q.passages):
                row[q.document_start + start : q.document_start + end] = p
        starts = torch.tensor([q.document_start for q in questions])
        answer = torch.tensor([q.answer for q in questions]) + starts[:, None]
        return {
            "tokens": tokens,
            "valid": tokens != longdoc.PAD,
            "global": global_positions(torch.arange(tokens.shape[1]) < starts[:, None]),  # [CLS], question, [SEP]
            "passage": passage,
            "answer_passage": torch.tensor([q.passage for q in questions]),
            "start": answer[:, 0],
            "end": answer[:, 1] - 1,
        }

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return sum(self._losses(self._logits(model, batch), batch))

    @staticmethod
    def _losses(logits: QuestionAnsweringLogits, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the passage, and of the span: the mean of its two ends."""
        start, end = (F.cross_entropy(getattr(logits, x).float(), batch[x]) for x in ("start", "end"))
        return F.cross_entropy(logits.passage.float(), batch["answer_passage"] + 1), (start + end) / 2

    def totals(self, model: nn.Module, batch: Batch) -> list[float]:
        logits = self._logits(model, batch)
        chosen = logits.passage[:, 1:].argmax(1)  # every question has an answer
        right = f1 = exact = 0.0
        for i in range(len(chosen)):
            right += float(chosen[i] == batch["answer_passage"][i])
            start, end = best_span(logits.start[i], logits.end[i], batch["passage"][i] == chosen[i])
            gold = int(batch["start"][i]), int(batch["end"][i])
            common = max(0, min(end, gold[1]) - max(start, gold[0]) + 1)
            f1 += 2 * common / (end - start + 1 + gold[1] - gold[0] + 1)
            exact += (start, end) == gold
        passage_loss, span_loss = (float(x) * len(chosen) for x in self._losses(logits, batch))
        return [len(chosen), right, f1, exact, passage_loss, span_loss]

    def metrics(self, totals: dict[str, float]) -> dict[str, float]:
        names = {"passage_accuracy": "passage", "span_f1": "f1", "span_exact": "exact"}
        names |= {name: name for name in ("passage_loss", "span_loss")}
        return {name: totals[key] / totals["count"] for name, key in names.items()}

    @staticmethod
    def _logits(model: nn.Module, batch: Batch) -> QuestionAnsweringLogits:
        num_passages = int(batch["passage"].max()) + 1
        return model(
            batch["tokens"], batch["valid"], batch["global"], passage=batch["passage"], num_passages=num_passages
        )


def best_span(start: Tensor, end: Tensor, allowed: Tensor, longest: int = _LONGEST_ANSWER) -> tuple[int, int]:
    """First and last position of the span with the greatest start + end logit.

    Args:
        start, end: logits (L,). allowed: bool (L,), positions the whole span lies in; one run of them, not empty.
        longest: positions of a span.
    """
    first, last = (int(i) for i in allowed.nonzero().flatten()[[0, -1]])
    start, end = start[first : last + 1].float(), end[first : last + 1].float()
    ends = F.pad(end, (0, longest - 1), value=-torch.inf).unfold(0, longest, 1)  # (n, longest)
    best = int((start[:, None] + ends).argmax())
    return first + best // longest, first + best // longest + best % longest


class MaskedProblem(Problem):
    """Bytes of a text, 15 % of them masked as BERT masks words.

    Every tenth document is for testing, the one before it for validation.

    Args:
        data: State of the Union (``.jsonl``, ``.jsonl.gz``), or wikitext (any other name).
    """

    columns = ("count", "correct", "loss")

    def __init__(self, config: Config, data: Path) -> None:
        read = longdoc.read_sotu if ".jsonl" in data.suffixes else longdoc.read_wikitext
        texts = [article.text for article in read(data)]
        self.name = f"{_stem(data)}-{config.length}"
        of = {"train": set(range(8)), "valid": {8}, "test": {9}}
        self.splits = {
            split: longdoc.windows([t for i, t in enumerate(texts) if i % 10 in of[split]], config.length)
            for split in SPLITS
        }
        _check_sizes(data, self)

    def size(self, split: str) -> int:
        return len(self.splits[split])

    def digest(self) -> str:
        return _digest(self.splits[s].numpy().tobytes() for s in SPLITS)

    def model(self, config: Config) -> nn.Module:
        encoder = PoolingformerEncoder(
            longdoc.BYTE_VOCABULARY_SIZE, padding_idx=longdoc.PAD, **config.encoder_arguments()
        )
        return PoolingformerForMaskedLM(encoder)

    def batch(self, split: str, items: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        items = [int(i) for i in items]
        rows = self.splits[split][items]
        if generator is None:  # each row the same bytes, whatever the batch
            masked = [longdoc.mask_tokens(row, generator=step_generator(i)) for row, i in zip(rows, items, strict=True)]
            tokens, labels = (torch.stack(column) for column in zip(*masked, strict=True))
        else:
            tokens, labels = longdoc.mask_tokens(rows, generator=generator)
        return {"tokens": tokens, "valid": rows != longdoc.PAD, "label": labels}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, label = self._logits(model, batch)
        return F.cross_entropy(logits, label) if len(label) else logits.sum()  # no byte was chosen

    def totals(self, model: nn.Module, batch: Batch) -> list[float]:
        logits, label = self._logits(model, batch)
        loss = F.cross_entropy(logits.float(), label, reduction="sum")
        return [len(label), float((logits.argmax(1) == label).sum()), float(loss)]

    def metrics(self, totals: dict[str, float]) -> dict[str, float]:
        count = max(totals["count"], 1)
        return {"accuracy": totals["correct"] / count, "bits_per_byte": totals["loss"] / count / math.log(2)}

    @staticmethod
    def _logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        at = batch["label"] != longdoc.IGNORE
        first = batch["tokens"].new_zeros(len(batch["tokens"]), 1)
        return model(batch["tokens"], batch["valid"], first, at=at), batch["label"][at]


def make_problem(config: Config, data: Path | None = None) -> Problem:
    """The task of ``config`` on ``data``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``data`` is missing, or given for a task that draws its own; a file that holds something else.
    """
    data = None if data is None else Path(data)
    if config.task == "listops":
        if data is not None:
            raise ValueError(f"data is {str(data)!r}, expected none: listops is generated")
        return ListOpsProblem(config)
    if data is None:
        what = "an XQuAD file or a folder of them" if config.task == "qa" else "a State of the Union or wikitext file"
        raise ValueError(f"data is missing, expected {what} for task {config.task}")
    return (QuestionProblem if config.task == "qa" else MaskedProblem)(config, data)


def _digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def _stem(path: Path) -> str:
    """The name without what tells the format."""
    name = path.name.removesuffix(".gz")
    for suffix in (".json", ".jsonl", ".txt"):
        name = name.removesuffix(suffix)
    return name


def _files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.iterdir() if p.name.startswith("xquad") and p.name.endswith(suffixes))
    if not files:
        raise FileNotFoundError(f"{path}: holds no xquad*.json or xquad*.json.gz file")
    return files


def _check_sizes(data: Path, problem: Problem) -> None:
    sizes = {split: problem.size(split) for split in SPLITS}
    if not all(sizes.values()):
        counts = ", ".join(f"{split} {size}" for split, size in sizes.items())
        raise ValueError(f"{data}: examples per split are {counts}, expected at least one in each")
