# SPDX-License-Identifier: Apache-2.0
"""TyDi QA and Natural Questions: the official files, and pages with questions as L-Eval has them.

``innerloop.data.longdoc`` has the same names; what it says of bytes, streams and errors holds here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from innerloop.data._text_files import json_lines, naming, text_of

__all__ = [
    "NQAnnotation",
    "NQExample",
    "NQSpan",
    "PageQuestions",
    "TydiAnnotation",
    "TydiExample",
    "parse_yes_no",
    "read_leval",
    "read_nq",
    "read_tydiqa",
]

# --- TyDi QA --------------------------------------------------------------------------------------------------------

_YES_NO = ("none", "yes", "no")


@dataclass(frozen=True)
class TydiAnnotation:
    """What one annotator of TyDi QA said.

    Attributes:
        passage: position among the candidates, or -1 for none.
        answer: (start, end) of the minimal answer in bytes of the document, or None.
        yes_no: ``none``, ``yes`` or ``no``.
    """

    passage: int
    answer: tuple[int, int] | None
    yes_no: str


@dataclass(frozen=True)
class TydiExample:
    """A question of TyDi QA's primary tasks and its article.

    Attributes:
        id: example id.
        language: lower case name, such as ``finnish``.
        question: text.
        document: the article's plain text, UTF-8; all offsets count its bytes.
        candidates: (start, end) of each passage.
        annotations: three in the development set, one in training, none in the test set.
    """

    id: int | str
    language: str
    question: str
    document: bytes
    candidates: tuple[tuple[int, int], ...]
    annotations: tuple[TydiAnnotation, ...]


def read_tydiqa(path: str | Path) -> Iterator[TydiExample]:
    """Streams TyDi QA's official ``.jsonl`` or ``.jsonl.gz`` (or all of a folder, in the order of their names).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed, or an offset lies outside the article.
    """
    for where, row in json_lines(path):
        with naming(where):
            document = text_of(row, "document_plaintext").encode()
            candidates = tuple(
                _byte_span(candidate, len(document), "passage_answer_candidates")
                for candidate in row["passage_answer_candidates"]
            )
            annotations = []
            for annotation in row.get("annotations", []):
                passage = annotation["passage_answer"]["candidate_index"]
                if not -1 <= passage < len(candidates):
                    raise ValueError(f"candidate_index {passage}, expected -1 or one of {len(candidates)} candidates")
                minimal = annotation["minimal_answer"]
                none = (minimal["plaintext_start_byte"], minimal["plaintext_end_byte"]) == (-1, -1)
                span = None if none else _byte_span(minimal, len(document), "minimal_answer")
                annotations.append(TydiAnnotation(passage, span, parse_yes_no(annotation["yes_no_answer"])))
            question, language = text_of(row, "question_text"), text_of(row, "language")
            example = TydiExample(row["example_id"], language, question, document, candidates, tuple(annotations))
        yield example


def parse_yes_no(value: Any) -> str:
    """``none``, ``yes`` or ``no`` from any case."""
    if not isinstance(value, str) or value.lower() not in _YES_NO:
        raise ValueError(f"yes_no_answer {value!r}, expected NONE, YES or NO")
    return value.lower()


def _byte_span(span: dict, size: int, name: str) -> tuple[int, int]:
    start, end = span["plaintext_start_byte"], span["plaintext_end_byte"]
    if not 0 <= start <= end <= size:
        raise ValueError(f"{name} [{start}, {end}), expected offsets within the {size} bytes of the document")
    return start, end


# --- Natural Questions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NQSpan:
    """A span of Natural Questions: offsets into the HTML's bytes, into its tokens, or both; -1 where not given.

    Raises:
        ValueError: only one end of a pair is given, or a pair is empty or reversed.
    """

    start_byte: int = -1
    end_byte: int = -1
    start_token: int = -1
    end_token: int = -1

    def __post_init__(self) -> None:
        for unit, start, end in (("byte", *self.bytes), ("token", *self.tokens)):
            if (start < 0) != (end < 0) or 0 <= end <= start:
                raise ValueError(f"NQSpan: {unit}s [{start}, {end}), expected start < end, or both negative for none")

    @property
    def bytes(self) -> tuple[int, int]:
        return self.start_byte, self.end_byte

    @property
    def tokens(self) -> tuple[int, int]:
        return self.start_token, self.end_token

    @property
    def is_null(self) -> bool:
        return self.start_byte < 0 and self.start_token < 0

    @classmethod
    def from_json(cls, row: dict) -> NQSpan:
        """From the official keys ``start_byte``, ``end_byte``, ``start_token``, ``end_token``, each optional."""
        return cls(*(int(row.get(key, -1)) for key in ("start_byte", "end_byte", "start_token", "end_token")))

    def matches(self, other: NQSpan) -> bool:
        """Whether the bytes agree, or the tokens do, where both spans have them."""
        return (self.start_byte >= 0 and self.bytes == other.bytes) or (
            self.start_token >= 0 and self.tokens == other.tokens
        )


@dataclass(frozen=True)
class NQAnnotation:
    """What one annotator of Natural Questions said.

    Attributes:
        long: the long answer, a null span for none.
        candidate: its position among the candidates, or -1.
        short: the short answers, none to several.
        yes_no: ``none``, ``yes`` or ``no``.
    """

    long: NQSpan
    candidate: int
    short: tuple[NQSpan, ...]
    yes_no: str


@dataclass(frozen=True)
class NQExample:
    """A question of Natural Questions and its page.

    Attributes:
        id: example id.
        question: text.
        tokens: of the page, HTML tags among them. In the simplified format these are the pieces of the text between
            single blanks.
        is_html: bool (tokens,), True for tags; None in the simplified format, which does not say.
        html: the page as UTF-8 bytes, to which byte offsets refer; empty in the simplified format.
        candidates: the long-answer candidates.
        top_level: for each candidate, whether no other contains it.
        annotations: five in the development set, one in training, none in the test set.
    """

    id: int | str
    question: str
    tokens: tuple[str, ...]
    is_html: Tensor | None
    html: bytes
    candidates: tuple[NQSpan, ...]
    top_level: tuple[bool, ...]
    annotations: tuple[NQAnnotation, ...]

    def text(self, span: NQSpan) -> str:
        """Tokens of ``span`` with blanks between, tags left out where they are known."""
        chosen = range(*span.tokens) if span.start_token >= 0 else ()
        return " ".join(self.tokens[i] for i in chosen if self.is_html is None or not self.is_html[i])


def read_nq(path: str | Path) -> Iterator[NQExample]:
    """Streams Natural Questions, official ``.jsonl.gz`` or ``.jsonl``, in the original or the simplified format.

    A folder stands for all such files in it, in the order of their names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed, or a span lies outside the page.
    """
    for where, row in json_lines(path):
        with naming(where):
            if "document_tokens" in row:
                tokens = tuple(token["token"] for token in row["document_tokens"])
                is_html = torch.tensor([bool(token["html_token"]) for token in row["document_tokens"]])
                html = text_of(row, "document_html").encode()
            else:
                # Not split(): it would also cut at other white space within a token.
                tokens, is_html, html = tuple(text_of(row, "document_text").split(" ")), None, b""
            sizes = (len(html) if html else None, len(tokens))
            annotations = []
            for annotation in row.get("annotations", []):
                short = tuple(_nq_span(s, *sizes, "short_answers") for s in annotation["short_answers"])
                long = _nq_span(annotation["long_answer"], *sizes, "long_answer")
                candidate = annotation["long_answer"].get("candidate_index", -1)
                if not -1 <= candidate < len(row["long_answer_candidates"]):
                    raise ValueError(
                        f"candidate_index {candidate}, expected -1 or one of {len(row['long_answer_candidates'])}"
                    )
                annotations.append(NQAnnotation(long, candidate, short, parse_yes_no(annotation["yes_no_answer"])))
            example = NQExample(
                row["example_id"],
                text_of(row, "question_text"),
                tokens,
                is_html,
                html,
                tuple(_nq_span(c, *sizes, "long_answer_candidates") for c in row["long_answer_candidates"]),
                tuple(bool(c["top_level"]) for c in row["long_answer_candidates"]),
                tuple(annotations),
            )
        yield example


def _nq_span(row: dict, num_bytes: int | None, num_tokens: int, name: str) -> NQSpan:
    span = NQSpan.from_json(row)
    if span.end_token > num_tokens or (num_bytes is not None and span.end_byte > num_bytes):
        raise ValueError(f"{name} {span}, expected offsets within {num_tokens} tokens and {num_bytes} bytes")
    return span


@dataclass(frozen=True)
class PageQuestions:
    """A page with questions and answers as text (the layout of L-Eval's natural_question.jsonl).

    Attributes:
        page: blank-separated tokens, HTML tags among them.
        questions, answers: texts, one answer a question.
    """

    page: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]


def read_leval(path: str | Path) -> Iterator[PageQuestions]:
    """Streams L-Eval's ``.jsonl`` (or ``.gz``): ``input``, ``instructions``, ``outputs``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed, or has not one answer for each question.
    """
    for where, row in json_lines(path):
        with naming(where):
            questions, answers = tuple(row["instructions"]), tuple(row["outputs"])
            if len(questions) != len(answers):
                raise ValueError(f"{len(questions)} instructions and {len(answers)} outputs, expected as many")
            page = PageQuestions(text_of(row, "input"), questions, answers)
        yield page
