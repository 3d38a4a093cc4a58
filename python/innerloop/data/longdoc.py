# SPDX-License-Identifier: Apache-2.0
"""Long documents: question answering, summarisation and plain text, read from files on this machine.

Documents are bytes (UTF-8) and all spans are byte offsets ``(start, end)`` with ``end`` excluded, so that answers are
compared as TyDi QA compares them. Line formats (``.jsonl``, plain or ``.gz``) are read as streams: one document is in
memory at a time, and errors come when the iteration gets there. An error of a file's content is a ``ValueError`` whose
message starts with ``path:line``.
"""

from __future__ import annotations

import gzip
import json
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
    for where, row in _json_lines(path):
        with _naming(where):
            speech = Article(
                _text(row, "id"), _text(row, "text"), int(row["year"]), _text(row, "name"), _text(row, "party")
            )
        yield speech


def read_wikitext(path: str | Path) -> Iterator[Article]:
    """Articles of a wikitext file (word level, plain or ``.gz``); a line `` = Title = `` begins one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is text before the first title.
    """
    title, lines = None, []
    for number, line in _lines(path):
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
    text = "\n".join(line for _, line in _lines(path))
    try:
        data = json.loads(text)["data"]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: no JSON ({error.msg})") from None
    except (KeyError, TypeError):
        raise ValueError(f"{path}:1: expected a JSON object with data, as SQuAD 1.1") from None
    articles = []
    for a, article in enumerate(data):
        paragraphs = []
        with _naming(f"{path}: data[{a}]"):
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
    for where, row in _json_lines(path):
        with _naming(where):
            document = _text(row, "document_plaintext").encode()
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
            question, language = _text(row, "question_text"), _text(row, "language")
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
    for where, row in _json_lines(path):
        with _naming(where):
            if "document_tokens" in row:
                tokens = tuple(token["token"] for token in row["document_tokens"])
                is_html = torch.tensor([bool(token["html_token"]) for token in row["document_tokens"]])
                html = _text(row, "document_html").encode()
            else:
                # Not split(): it would also cut at other white space within a token.
                tokens, is_html, html = tuple(_text(row, "document_text").split(" ")), None, b""
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
                _text(row, "question_text"),
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
    for where, row in _json_lines(path):
        with _naming(where):
            questions, answers = tuple(row["instructions"]), tuple(row["outputs"])
            if len(questions) != len(answers):
                raise ValueError(f"{len(questions)} instructions and {len(answers)} outputs, expected as many")
            page = PageQuestions(_text(row, "input"), questions, answers)
        yield page


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
    for where, row in _json_lines(path):
        with _naming(where):
            if "article_text" in row:
                article = "\n".join(row["article_text"])
                abstract = "\n".join(re.sub(r"</?S>", "", s).strip() for s in row["abstract_text"])
            else:
                article, abstract = _text(row, "article"), _text(row, "abstract")
            summary = Summary(str(row.get("article_id", "")), article, abstract)
        yield summary


# --- files ----------------------------------------------------------------------------------------------------------


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a text file, plain or gzip."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):  # bytes: only a line feed ends a line
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: no UTF-8 ({error})") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}:{number + 1}: damaged gzip file ({error})") from None


def _json_lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """("path:line", object) of each line that is not empty; of all .jsonl and .jsonl.gz files of a folder."""
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz"))) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path}: holds no .jsonl or .jsonl.gz file")
    for file in files:
        for number, line in _lines(file):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{number}: no JSON ({error.msg} at column {error.colno})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{file}:{number}: {type(row).__name__}, expected a JSON object")
            yield f"{file}:{number}", row


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Puts the place in front of what is wrong with a record."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{where}: no field {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{where}: {error}") from None


def _text(row: dict, key: str) -> str:
    if not isinstance(row[key], str):
        raise ValueError(f"{key} is {type(row[key]).__name__}, expected text")
    return row[key]
