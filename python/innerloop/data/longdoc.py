# SPDX-License-Identifier: Apache-2.0
"""Long documents: question answering, summarisation and plain text, read from files on this machine.

Documents are bytes (UTF-8) and all spans are byte offsets ``(start, end)`` with ``end`` excluded, so that answers are
compared as TyDi QA compares them. Line formats (``.jsonl``, plain or ``.gz``) are read as streams: one document is in
memory at a time, and errors come when the iteration gets there. An error of a file's content is a ``ValueError`` whose
message starts with ``path:line``.
"""

from __future__ import annotations

import json
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from innerloop.data._text_files import json_lines, naming, text_lines, text_of
from innerloop.data.question_answering import (
    NQAnnotation,
    NQExample,
    NQSpan,
    PageQuestions,
    TydiAnnotation,
    TydiExample,
    read_leval,
    read_nq,
    read_tydiqa,
)

__all__ = [
    "BYTE_VOCABULARY_SIZE",
    "CLS",
    "IGNORE",
    "MASK",
    "PAD",
    "SEP",
    "Article",
    "LongQuestion",
    "NQAnnotation",
    "NQExample",
    "NQSpan",
    "PageQuestions",
    "Summary",
    "TydiAnnotation",
    "TydiExample",
    "decode_bytes",
    "encode_bytes",
    "mask_tokens",
    "read_arxiv",
    "read_leval",
    "read_nq",
    "read_sotu",
    "read_tydiqa",
    "read_wikitext",
    "read_xquad_long",
    "windows",
]

#: Ids of the byte-level vocabulary: four of its own, then byte b as b + 4.
PAD, CLS, SEP, MASK = range(4)
BYTE_VOCABULARY_SIZE = 260
#: Label of positions without a loss (the default of ``torch.nn.functional.cross_entropy``).
IGNORE = -100


def encode_bytes(text: str | bytes) -> Tensor:
    """Ids of a text's UTF-8 bytes, int64 (n,): byte b is b + 4."""
    data = text.encode() if isinstance(text, str) else text
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).astype(np.int64) + 4)


def decode_bytes(tokens: Tensor) -> str:
    """The text of ids (n,); PAD, CLS, SEP and MASK are left out, bytes that are no UTF-8 replaced."""
    return bytes((tokens[tokens >= 4] - 4).tolist()).decode(errors="replace")


# --- text for masked language modelling -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Article:
    """One document of plain text.

    Attributes:
        id: the file's own, or a title.
        text: the whole text.
        year: of a speech, else None.
        author: of a speech, else "".
        party: the author's, else "".
    """

    id: str
    text: str
    year: int | None = None
    author: str = ""
    party: str = ""


def read_sotu(path: str | Path) -> Iterator[Article]:
    """State of the Union addresses, one JSON object a line: ``id``, ``year``, ``name``, ``party``, ``text``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed.
    """
    for where, row in json_lines(path):
        with naming(where):
            speech = Article(
                text_of(row, "id"), text_of(row, "text"), int(row["year"]), text_of(row, "name"), text_of(row, "party")
            )
        yield speech


def read_wikitext(path: str | Path) -> Iterator[Article]:
    """Articles of a wikitext file (word level, plain or ``.gz``); a line `` = Title = `` begins one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is text before the first title.
    """
    title, lines = None, []
    for number, line in text_lines(path):
        # Titles of sections have further signs: "= = Section = =".
        if match := re.fullmatch(r"= ([^=].*[^=]|[^=]) =", line.strip()):
            if title is not None:
                yield Article(title, "\n".join(lines).strip())
            title, lines = match[1], []
        elif title is not None:
            lines.append(line.strip())
        elif line.strip():
            raise ValueError(f"{path}:{number}: {line.strip()[:60]!r}, expected a title, = Title =, before any text")
    if title is not None:
        yield Article(title, "\n".join(lines).strip())


def windows(texts: Iterable[str | bytes], length: int) -> Tensor:
    """Cuts texts into rows of a byte-level model.

    Args:
        texts: documents; a row never holds two of them.
        length: L, tokens of a row.

    Returns:
        int64 (N, L); each row begins with CLS, then come up to L - 1 bytes, then PAD.
    """
    if length < 2:
        raise ValueError(f"windows: length={length}, expected at least 2 (CLS and one byte)")
    rows = []
    for text in texts:
        for piece in encode_bytes(text).split(length - 1):
            if len(piece):
                row = torch.full((length,), PAD)
                row[0] = CLS
                row[1 : 1 + len(piece)] = piece
                rows.append(row)
    return torch.stack(rows) if rows else torch.empty(0, length, dtype=torch.int64)


def mask_tokens(
    tokens: Tensor, *, probability: float = 0.15, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Masks bytes as BERT masks words (Devlin et al., 2019, section 3.1).

    Each byte is chosen with ``probability``; a chosen one becomes MASK with probability 0.8, a uniform byte with 0.1,
    and stays with 0.1. PAD, CLS and SEP are never chosen.

    Args:
        tokens: int64, any shape, ids of the byte-level vocabulary.

    Returns:
        inputs and labels, both int64 of the shape of ``tokens``; labels are IGNORE where nothing was chosen.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"mask_tokens: probability={probability}, expected 0 to 1")
    chance = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    action = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    other = torch.randint(4, BYTE_VOCABULARY_SIZE, tokens.shape, generator=generator, device=tokens.device)
    chosen = (chance < probability) & (tokens >= 4)
    inputs = torch.where(chosen & (action < 0.8), MASK, tokens)
    inputs = torch.where(chosen & (action >= 0.9), other, inputs)
    return inputs, torch.where(chosen, tokens, IGNORE)


# --- XQuAD, joined to long documents --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LongQuestion:
    """A question, a document of several passages, and the passage and span that answer it.

    Attributes:
        id: of the question; equal in all languages.
        question: text.
        document: UTF-8, the passages with one line feed between.
        passages: (start, end) of each passage in ``document``.
        passage: position in ``passages`` of the one with the answer.
        answer: (start, end) of the answer in ``document``.
    """

    id: str
    question: str
    document: bytes
    passages: tuple[tuple[int, int], ...]
    passage: int
    answer: tuple[int, int]

    @property
    def document_start(self) -> int:
        """Position of the document's first byte in ``tokens()``; add it to a byte offset."""
        return len(self.question.encode()) + 2

    def tokens(self) -> Tensor:
        """Input of a byte-level model, int64 (L,): CLS, question, SEP, document."""
        return torch.cat(
            [torch.tensor([CLS]), encode_bytes(self.question), torch.tensor([SEP]), encode_bytes(self.document)]
        )


class _Paragraph(NamedTuple):
    text: bytes
    questions: list[tuple[str, str, int, int]]  # id, question, start and end of the answer in text


#: Articles of a split, by position modulo 8. XQuAD is parallel, so no article is in two splits in any language.
_SPLITS = {"train": range(6), "valid": (6,), "test": (7,)}


def read_xquad_long(path: str | Path, length: int, *, split: str | None = None, seed: int = 0) -> list[LongQuestion]:
    """Joins XQuAD paragraphs (SQuAD 1.1 JSON, plain or ``.gz``) to one long document a question.

    A document takes the paragraph with the answer, then the other paragraphs of its article, then those of other
    articles in random order, until the next would make CLS, question, SEP and document longer than ``length``. Their
    order is then shuffled, so the answer's place says nothing.

    Args:
        length: greatest number of tokens of ``LongQuestion.tokens()``, in bytes.
        split: ``train`` (6 of 8 articles), ``valid`` or ``test`` (1 of 8 each; other articles are those of the split);
            None takes all.
        seed: of all shuffling. A document depends on the seed and its question's id, not on other questions.

    Returns:
        The questions in file order; the first answer of each counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an argument is out of range, or the file is no SQuAD JSON or an answer is not where it says.

    Warns:
        UserWarning: questions whose own paragraph does not fit ``length`` are left out.
    """
    if split is not None and split not in _SPLITS:
        raise ValueError(f"read_xquad_long: split={split!r}, expected {', '.join(_SPLITS)} or None")
    articles = _read_squad(Path(path))
    if split is not None:
        articles = [article for i, article in enumerate(articles) if i % 8 in _SPLITS[split]]
    flat = [paragraph.text for article in articles for paragraph in article]
    examples, left_out, first = [], 0, 0
    for article in articles:
        own = range(first, first + len(article))
        others = np.array([i for i in range(len(flat)) if i not in own], dtype=np.int64)
        for here, paragraph in zip(own, article, strict=True):
            for identity, question, start, end in paragraph.questions:
                budget = length - len(question.encode()) - 2
                if len(paragraph.text) > budget:
                    left_out += 1
                    continue
                rng = np.random.default_rng([seed, zlib.crc32(identity.encode())])
                order = [here, *(i for i in own if i != here), *rng.permutation(others).tolist()]
                sizes = np.cumsum([len(flat[i]) + 1 for i in order]) - 1  # of the document with its line feeds
                chosen = rng.permutation(order[: int(np.searchsorted(sizes, budget, side="right"))]).tolist()
                starts = np.cumsum([0, *(len(flat[i]) + 1 for i in chosen)]).tolist()
                passages = tuple((s, s + len(flat[i])) for s, i in zip(starts, chosen, strict=False))
                passage = chosen.index(here)
                shift = starts[passage]
                document = b"\n".join(flat[i] for i in chosen)
                examples.append(
                    LongQuestion(identity, question, document, passages, passage, (shift + start, shift + end))
                )
        first += len(article)
    if left_out:
        warnings.warn(
            f"{path}: {left_out} of {left_out + len(examples)} questions left out, "
            f"their paragraph does not fit length={length}",
            stacklevel=2,
        )
    return examples


def _read_squad(path: Path) -> list[list[_Paragraph]]:
    text = "\n".join(line for _, line in text_lines(path))
    try:
        data = json.loads(text)["data"]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: no JSON ({error.msg})") from None
    except (KeyError, TypeError):
        raise ValueError(f"{path}:1: expected a JSON object with data, as SQuAD 1.1") from None
    articles = []
    for a, article in enumerate(data):
        paragraphs = []
        with naming(f"{path}: data[{a}]"):
            for paragraph in article["paragraphs"]:
                context, questions = paragraph["context"], []
                for qa in paragraph["qas"]:
                    begin, answer = qa["answers"][0]["answer_start"], qa["answers"][0]["text"]
                    if context[begin : begin + len(answer)] != answer:
                        raise ValueError(f"question {qa['id']}: answer {answer!r} is not at character {begin}")
                    start = len(context[:begin].encode())  # SQuAD counts characters
                    questions.append((qa["id"], qa["question"], start, start + len(answer.encode())))
                paragraphs.append(_Paragraph(context.encode(), questions))
        articles.append(paragraphs)
    return articles


# --- summarisation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """An article and its abstract.

    Attributes:
        id: article id, "" if the file has none.
        article: text, one sentence a line where the file separates sentences.
        abstract: text, one sentence a line, as ROUGE-Lsum wants it.
    """

    id: str
    article: str
    abstract: str


def read_arxiv(path: str | Path) -> Iterator[Summary]:
    """Streams the arXiv summarisation set (Cohan et al., NAACL 2018), plain or ``.gz``.

    The official files have ``article_id``, ``article_text`` and ``abstract_text``, lists of sentences, those of the
    abstract between ``<S>`` and ``</S>``. ``article`` and ``abstract``, two texts, are read as well.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed.
    """
    for where, row in json_lines(path):
        with naming(where):
            if "article_text" in row:
                article = "\n".join(row["article_text"])
                abstract = "\n".join(re.sub(r"</?S>", "", s).strip() for s in row["abstract_text"])
            else:
                article, abstract = text_of(row, "article"), text_of(row, "abstract")
            summary = Summary(str(row.get("article_id", "")), article, abstract)
        yield summary
