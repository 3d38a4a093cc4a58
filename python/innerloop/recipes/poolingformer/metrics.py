# SPDX-License-Identifier: Apache-2.0
"""Metrics of Natural Questions, TyDi QA and summarisation, by the rules of their official scripts.

A system gives each example an answer (or none) and a score. Answers that score below a threshold t count as none:

    P(t) = Σ_{score ≥ t} f1 / #{score ≥ t, answered}    R(t) = Σ_{score ≥ t} f1 / #{gold has an answer}
    F1 = max_t 2 P(t) R(t) / (P(t) + R(t))

where f1 of one example is 1 or 0 in exact matching and a fraction where answers overlap in part. The threshold is
chosen on the scored set itself, as the official scripts do. Gold has an answer if at least two annotators gave one (of
five in Natural Questions, of three in TyDi QA), and an answer is then compared with each of theirs.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from innerloop.data.question_answering import NQAnnotation, NQSpan, TydiAnnotation, parse_yes_no

__all__ = [
    "AnswerMetrics",
    "NQPrediction",
    "Outcome",
    "RougeScore",
    "TydiMetrics",
    "TydiPrediction",
    "best_threshold",
    "byte_overlap",
    "nq_metrics",
    "read_nq_predictions",
    "read_tydiqa_predictions",
    "rouge",
    "tydiqa_metrics",
]

#: Annotators who have to give an answer for the gold to have one.
NON_NULL = 2
#: Languages of TyDi QA; the macro average leaves English out.
TYDI_LANGUAGES = (
    *("english", "arabic", "bengali", "finnish", "indonesian", "japanese"),
    *("swahili", "korean", "russian", "telugu", "thai"),
)
_NO_SPAN = NQSpan()


class Outcome(NamedTuple):
    """One scored example: does gold have an answer, was one given, how right is it (0 to 1), the system's score."""

    has_gold: bool
    answered: bool
    f1: float
    score: float


@dataclass(frozen=True)
class AnswerMetrics:
    """Quality at the best threshold, all as fractions.

    Attributes:
        f1, precision, recall: at ``threshold``.
        threshold: the greatest score at which F1 is best; 0 if F1 is 0 everywhere.
        recall_at_precision: for each precision asked for, the greatest recall at any threshold with at least that
            precision; 0 if there is none.
    """

    f1: float
    precision: float
    recall: float
    threshold: float
    recall_at_precision: Mapping[float, float]


def best_threshold(outcomes: Iterable[Outcome], precisions: Sequence[float] = (0.5, 0.75, 0.9)) -> AnswerMetrics:
    """F1 at the best threshold, and recall at given precisions. Examples of equal score are taken together.

    Raises:
        ValueError: a score is not a number.
    """
    rows = np.array([tuple(map(float, outcome)) for outcome in outcomes], dtype=np.float64).reshape(-1, 4)
    if np.isnan(rows[:, 3]).any():
        raise ValueError(f"best_threshold: score of outcome {np.isnan(rows[:, 3]).argmax()} is NaN, expected a number")
    rows = rows[np.argsort(-rows[:, 3], kind="stable")]
    last = np.flatnonzero(np.append(rows[1:, 3] != rows[:-1, 3], np.ones(min(len(rows), 1))))  # of each score
    right, answered = np.cumsum(rows[:, 2])[last], np.cumsum(rows[:, 1])[last]
    precision = _ratio(right, answered)
    recall = _ratio(right, np.full_like(right, rows[:, 0].sum()))
    f1 = _ratio(2 * precision * recall, precision + recall)
    at = {p: float(recall[precision >= p].max(initial=0.0)) for p in precisions}
    if not f1.any():
        return AnswerMetrics(0.0, 0.0, 0.0, 0.0, at)
    best = int(f1.argmax())
    return AnswerMetrics(float(f1[best]), float(precision[best]), float(recall[best]), float(rows[last[best], 3]), at)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


# --- Natural Questions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NQPrediction:
    """A system's answers to one question of Natural Questions.

    Attributes:
        long: span of the long answer, a null span for none.
        short: spans of the short answers, compared as a set.
        yes_no: ``none``, ``yes`` or ``no``; not with short spans.
        long_score, short_score: the greater, the surer.

    Raises:
        ValueError: there are both a yes or no and a short span, or a score is not a number.
    """

    long: NQSpan = _NO_SPAN
    short: tuple[NQSpan, ...] = ()
    yes_no: str = "none"
    long_score: float = 0.0
    short_score: float = 0.0

    def __post_init__(self) -> None:
        _check_answer("NQPrediction", self.yes_no, any(not s.is_null for s in self.short))
        _check_score("NQPrediction: long_score", self.long_score)
        _check_score("NQPrediction: short_score", self.short_score)


def nq_metrics(
    gold: Mapping[Any, Sequence[NQAnnotation]],
    predictions: Mapping[Any, NQPrediction],
    precisions: Sequence[float] = (0.5, 0.75, 0.9),
) -> tuple[AnswerMetrics, AnswerMetrics]:
    """Long- and short-answer metrics, as the official ``nq_eval``.

    A long answer is right if it is that of one annotator; short answers if their set is that of one annotator; a yes or
    no if one annotator said it. Byte offsets are compared, or token offsets, whichever both sides have.

    Args:
        gold: annotations by example id: ``{e.id: e.annotations for e in read_nq(path)}``.
        predictions: by example id, one for each example of ``gold``.

    Returns:
        long, short.

    Raises:
        ValueError: the ids differ.
    """
    if gold.keys() != predictions.keys():
        missing, extra = gold.keys() - predictions.keys(), predictions.keys() - gold.keys()
        raise ValueError(
            f"nq_metrics: predictions lack {len(missing)} examples of gold{_some(missing)} and have {len(extra)} "
            f"others{_some(extra)}, expected the same ids"
        )
    return (
        best_threshold((_nq_long(gold[i], predictions[i]) for i in gold), precisions),
        best_threshold((_nq_short(gold[i], predictions[i]) for i in gold), precisions),
    )


def _nq_long(gold: Sequence[NQAnnotation], prediction: NQPrediction) -> Outcome:
    has_gold = sum(not a.long.is_null for a in gold) >= NON_NULL
    right = has_gold and any(prediction.long.matches(a.long) for a in gold)
    return Outcome(has_gold, not prediction.long.is_null, right, prediction.long_score)


def _nq_short(gold: Sequence[NQAnnotation], prediction: NQPrediction) -> Outcome:
    gold_spans = [[s for s in a.short if not s.is_null] for a in gold]
    has_gold = sum(bool(s) or a.yes_no != "none" for s, a in zip(gold_spans, gold, strict=True)) >= NON_NULL
    spans = [s for s in prediction.short if not s.is_null]
    yes_no = prediction.yes_no != "none"
    if yes_no:
        right = any(prediction.yes_no == a.yes_no for a in gold)
    else:
        right = bool(spans) and any(_same_set(spans, g) for g in gold_spans)
    return Outcome(has_gold, yes_no or bool(spans), has_gold and right, prediction.short_score)


def _same_set(a: Sequence[NQSpan], b: Sequence[NQSpan]) -> bool:
    return all(any(x.matches(y) for y in b) for x in a) and all(any(x.matches(y) for x in a) for y in b)


def read_nq_predictions(path: str | Path) -> dict[int | str, NQPrediction]:
    """Reads the official prediction file: one JSON object, ``{"predictions": [...]}``.

    Each has ``example_id``, ``long_answer_score``, ``short_answers_score``, and where there is an answer
    ``long_answer``, ``short_answers`` (spans of ``start_byte``, ``end_byte``, ``start_token``, ``end_token``),
    ``yes_no_answer``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["predictions"]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: no JSON ({error.msg})") from None
    except (KeyError, TypeError):
        raise ValueError(f"{path}:1: expected a JSON object with predictions") from None
    predictions = {}
    for i, row in enumerate(rows):
        try:
            predictions[row["example_id"]] = NQPrediction(
                NQSpan.from_json(row.get("long_answer", {})),
                tuple(NQSpan.from_json(s) for s in row.get("short_answers", ())),
                parse_yes_no(row.get("yes_no_answer", "none")),
                float(row["long_answer_score"]),
                float(row["short_answers_score"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: predictions[{i}]: {_reason(error)}") from None
    return predictions


# --- TyDi QA --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TydiPrediction:
    """A system's answers to one question of TyDi QA.

    Attributes:
        language: of the example, such as ``finnish``.
        passage: position among the passages, -1 for none.
        answer: (start, end) of the minimal answer in bytes of the article, None for none.
        yes_no: ``none``, ``yes`` or ``no``; not with an answer.
        passage_score, answer_score: the greater, the surer.

    Raises:
        ValueError: there are both a yes or no and an answer, the answer's ends are reversed or negative, or a score is
            not a number.
    """

    language: str
    passage: int = -1
    answer: tuple[int, int] | None = None
    yes_no: str = "none"
    passage_score: float = 0.0
    answer_score: float = 0.0

    def __post_init__(self) -> None:
        if self.answer is not None and not 0 <= self.answer[0] <= self.answer[1]:
            raise ValueError(f"TydiPrediction: answer={self.answer}, expected 0 <= start <= end, or None")
        _check_answer("TydiPrediction", self.yes_no, self.answer is not None)
        _check_score("TydiPrediction: passage_score", self.passage_score)
        _check_score("TydiPrediction: answer_score", self.answer_score)


@dataclass(frozen=True)
class TydiMetrics:
    """TyDi QA's primary tasks.

    Attributes:
        passage_f1, minimal_f1: the published numbers: F1 at each language's best threshold, averaged over the languages
            that have predictions, English left out.
        passage, minimal: by language, English included.
    """

    passage_f1: float
    minimal_f1: float
    passage: Mapping[str, AnswerMetrics]
    minimal: Mapping[str, AnswerMetrics]


def byte_overlap(gold: tuple[int, int], answer: tuple[int, int]) -> float:
    """F1 of two spans as sets of bytes, 2 |gold ∩ answer| / (|gold| + |answer|); 0 if they share none.

    With P = |gold ∩ answer| / |answer| and R = |gold ∩ answer| / |gold| this is 2 P R / (P + R).
    """
    both = min(gold[1], answer[1]) - max(gold[0], answer[0])
    return 2 * both / (gold[1] - gold[0] + answer[1] - answer[0]) if both > 0 else 0.0


def tydiqa_metrics(
    gold: Mapping[Any, tuple[str, Sequence[TydiAnnotation]]],
    predictions: Mapping[Any, TydiPrediction],
    precisions: Sequence[float] = (0.5, 0.75, 0.9),
) -> TydiMetrics:
    """Passage-answer and minimal-answer F1, as the official ``tydi_eval``.

    A passage is right if one annotator chose it. A minimal answer scores the best byte overlap with an annotator's; a
    yes or no is right if one annotator said it. A language without predictions is left out. Within a language an
    example without a prediction takes part with score 0 and counts as answered if gold has no answer, which the
    official script does too.

    Args:
        gold: language and annotations by example id:
            ``{e.id: (e.language, e.annotations) for e in read_tydiqa(path)}``.
        predictions: by example id.

    Warns:
        UserWarning: predictions are missing in a language that has some, or have no gold; the latter are passed over.
    """
    passage, minimal = {}, {}
    missing, extra = [], []
    for language in TYDI_LANGUAGES:
        ours = {i: p for i, p in predictions.items() if p.language == language}
        theirs = {i: annotations for i, (name, annotations) in gold.items() if name == language}
        if not ours:
            continue
        missing += theirs.keys() - ours.keys()
        extra += ours.keys() - theirs.keys()
        passage[language] = best_threshold((_tydi_passage(g, ours.get(i)) for i, g in theirs.items()), precisions)
        minimal[language] = best_threshold((_tydi_minimal(g, ours.get(i)) for i, g in theirs.items()), precisions)
    extra += [i for i, p in predictions.items() if p.language not in TYDI_LANGUAGES]
    if missing or extra:
        warnings.warn(
            f"tydiqa_metrics: {len(missing)} examples have no prediction{_some(missing)}; "
            f"{len(extra)} predictions have no example{_some(extra)}",
            stacklevel=2,
        )
    means = (
        float(np.mean([m.f1 for name, m in part.items() if name != "english"] or [0.0])) for part in (passage, minimal)
    )
    return TydiMetrics(*means, passage, minimal)


def _tydi_passage(gold: Sequence[TydiAnnotation], prediction: TydiPrediction | None) -> Outcome:
    has_gold = sum(a.passage >= 0 for a in gold) >= NON_NULL
    if prediction is None:
        return Outcome(has_gold, not has_gold, 0.0, 0.0)
    answered = prediction.passage >= 0
    right = has_gold and answered and any(prediction.passage == a.passage for a in gold)
    return Outcome(has_gold, answered, right, prediction.passage_score)


def _tydi_minimal(gold: Sequence[TydiAnnotation], prediction: TydiPrediction | None) -> Outcome:
    has_gold = sum(a.answer is not None or a.yes_no != "none" for a in gold) >= NON_NULL
    if prediction is None:
        return Outcome(has_gold, not has_gold, 0.0, 0.0)
    answer, f1 = prediction.answer, 0.0
    if not has_gold:
        pass
    elif prediction.yes_no != "none":
        f1 = float(any(prediction.yes_no == a.yes_no for a in gold))
    elif answer is not None:
        f1 = max((byte_overlap(a.answer, answer) for a in gold if a.answer is not None), default=0.0)
    return Outcome(has_gold, answer is not None or prediction.yes_no != "none", f1, prediction.answer_score)


def read_tydiqa_predictions(path: str | Path) -> dict[int | str, TydiPrediction]:
    """Reads the official prediction file, one JSON object a line.

    Each has ``example_id``, ``language``, ``passage_answer_score``, ``minimal_answer_score``, and where there is an
    answer ``passage_answer_index``, ``minimal_answer`` (``start_byte_offset``, ``end_byte_offset``), ``yes_no_answer``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed; the message starts with ``path:line``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    predictions = {}
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                minimal = row.get("minimal_answer", {"start_byte_offset": -1, "end_byte_offset": -1})
                answer = (minimal["start_byte_offset"], minimal["end_byte_offset"])
                predictions[row["example_id"]] = TydiPrediction(
                    row["language"],
                    int(row.get("passage_answer_index", -1)),
                    None if max(answer) < 0 else answer,
                    parse_yes_no(row.get("yes_no_answer", "none")),
                    float(row["passage_answer_score"]),
                    float(row["minimal_answer_score"]),
                )
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{path}:{number}: {_reason(error)}") from None
    return predictions


# --- summarisation --------------------------------------------------------------------------------------------------


class RougeScore(NamedTuple):
    """Means over the pairs, as fractions; papers print ``100 * f1``."""

    precision: float
    recall: float
    f1: float


def rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    types: Sequence[str] = ("rouge1", "rouge2", "rougeL", "rougeLsum"),
    stemmer: bool = True,
) -> dict[str, RougeScore]:
    """ROUGE (Lin, 2004) by Google's ``rouge-score``, which this package does not depend on.

    ``rougeLsum`` is what papers on summarisation mostly call ROUGE-L: the union of longest common subsequences of
    sentences, which stand on lines of their own.

    Args:
        predictions, references: N texts each.
        types: ``rougeN`` for N-grams, ``rougeL``, ``rougeLsum``.
        stemmer: Porter's, on words of more than three letters.

    Returns:
        Means over the N pairs, by type.

    Raises:
        ImportError: rouge-score is not installed.
        ValueError: the numbers of texts differ, or are 0.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            f"rouge: {len(predictions)} predictions and {len(references)} references, expected as many, at least one"
        )
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("rouge needs the package rouge-score: pip install rouge-score") from error
    scorer = RougeScorer(list(types), use_stemmer=stemmer)
    rows = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)]
    return {name: RougeScore(*np.mean([row[name] for row in rows], axis=0).tolist()) for name in types}


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_answer(name: str, yes_no: str, has_span: bool) -> None:
    if yes_no not in ("none", "yes", "no"):
        raise ValueError(f"{name}: yes_no={yes_no!r}, expected 'none', 'yes' or 'no'")
    if yes_no != "none" and has_span:
        raise ValueError(f"{name}: yes_no={yes_no!r} beside a span, expected one of the two")


def _check_score(name: str, score: float) -> None:
    if math.isnan(score):
        raise ValueError(f"{name} is NaN, expected a number")


def _reason(error: Exception) -> str:
    return f"no field {error.args[0]!r}" if isinstance(error, KeyError) else str(error)


def _some(ids: Iterable[Any]) -> str:
    names = sorted(map(str, ids))
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
