# SPDX-License-Identifier: Apache-2.0
"""Metrics of NQ and TyDi QA on examples worked by hand, against a direct search of thresholds, and on real samples."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from innerloop.data.longdoc import NQAnnotation, NQSpan, TydiAnnotation, read_tydiqa
from innerloop.recipes.poolingformer.metrics import (
    NQPrediction,
    Outcome,
    TydiPrediction,
    best_threshold,
    byte_overlap,
    nq_metrics,
    read_nq_predictions,
    read_tydiqa_predictions,
    rouge,
    tydiqa_metrics,
)

# --- thresholds ---


def test_best_threshold_by_hand():
    # Score 3: right. 2: wrong. 1: right. Gold has 4 answers. Thresholds: 3 → P 1, R 1/4, F1 0.4;
    # 2 → P 1/2, R 1/4, F1 1/3; 1 → P 2/3, R 1/2, F1 4/7.
    rows = [Outcome(True, True, 1, 1), Outcome(True, True, 1, 3), Outcome(True, True, 0, 2), Outcome(True, False, 0, 0)]
    m = best_threshold(rows, [0.5, 0.7, 1.0])
    assert (m.f1, m.precision, m.recall, m.threshold) == pytest.approx((4 / 7, 2 / 3, 1 / 2, 1))
    assert m.recall_at_precision == pytest.approx({0.5: 0.5, 0.7: 0.25, 1.0: 0.25})


def test_equal_scores_are_one_threshold():
    rows = [Outcome(True, True, 1, 2), Outcome(True, True, 0, 2), Outcome(True, True, 0, 2)]
    for order in (rows, rows[::-1]):
        m = best_threshold(order)
        assert (m.precision, m.recall, m.f1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
        assert m.recall_at_precision == {0.5: 0.0, 0.75: 0.0, 0.9: 0.0}


def test_the_greatest_of_equally_good_thresholds():
    rows = [Outcome(True, True, 1, 2), Outcome(False, False, 0, 1), Outcome(False, False, 0, -1)]
    assert best_threshold(rows).threshold == 2


@pytest.mark.parametrize("rows", [[], [Outcome(True, True, 0, 5)], [Outcome(False, False, 0, 5)]])
def test_nothing_right(rows):
    m = best_threshold(rows)
    assert (m.f1, m.precision, m.recall, m.threshold) == (0, 0, 0, 0)


def test_best_threshold_against_a_direct_search():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 30))
        has_gold, answered = rng.random(n) < 0.6, rng.random(n) < 0.7
        f1 = np.where(has_gold & answered, rng.random(n), 0)
        scores = rng.integers(-3, 4, n).astype(float)
        best, at_half = 0.0, 0.0
        for t in scores:
            kept = scores >= t
            p = f1[kept].sum() / max(answered[kept].sum(), 1)
            r = f1[kept].sum() / max(has_gold.sum(), 1)
            best = max(best, 2 * p * r / (p + r) if p + r else 0)
            at_half = max(at_half, r if p >= 0.5 else 0)
        m = best_threshold(map(Outcome, has_gold, answered, f1, scores))
        assert m.f1 == pytest.approx(best)
        assert m.recall_at_precision[0.5] == pytest.approx(at_half)


def test_scores_that_are_no_numbers():
    with pytest.raises(ValueError, match="score of outcome 1 is NaN"):
        best_threshold([Outcome(True, True, 1, 0), Outcome(True, True, 1, float("nan"))])
    with pytest.raises(ValueError, match="NQPrediction: short_score is NaN"):
        NQPrediction(short_score=float("nan"))
    with pytest.raises(ValueError, match="TydiPrediction: passage_score is NaN"):
        TydiPrediction("thai", passage_score=float("nan"))


# --- Natural Questions ---

NONE = NQAnnotation(NQSpan(), -1, (), "none")
A, B, C = NQSpan(0, 9, 0, 3), NQSpan(10, 19, 3, 6), NQSpan(20, 29, 6, 9)


def long(span: NQSpan) -> NQAnnotation:
    return replace(NONE, long=span)


def short(*spans: NQSpan, yes_no: str = "none") -> NQAnnotation:
    return NQAnnotation(A, 0, spans, yes_no)


@pytest.mark.parametrize(
    ("gold", "prediction", "f1"),
    [
        ([long(A), long(A), NONE, NONE, NONE], A, 1),
        ([long(A), long(B), NONE, NONE, NONE], B, 1),  # any annotator's
        ([long(A), NONE, NONE, NONE, NONE], A, 0),  # one of five: gold has no answer
        ([long(A)] * 5, C, 0),
        ([long(A)] * 5, NQSpan(), 0),
        ([long(A)] * 5, NQSpan(start_token=0, end_token=3), 1),  # tokens alone
        ([long(A)] * 5, NQSpan(start_byte=0, end_byte=9), 1),  # bytes alone
        ([long(A)] * 5, NQSpan(start_byte=0, end_byte=8), 0),  # exact only
    ],
)
def test_nq_long(gold, prediction, f1):
    m, _ = nq_metrics({1: gold}, {1: NQPrediction(long=prediction)})
    assert m.f1 == f1


@pytest.mark.parametrize(
    ("gold", "prediction", "f1"),
    [
        ([short(A, B), short(C), NONE, NONE, NONE], NQPrediction(short=(B, A)), 1),  # a set
        ([short(A, B), short(C), NONE, NONE, NONE], NQPrediction(short=(A,)), 0),
        ([short(A, B), short(C), NONE, NONE, NONE], NQPrediction(short=(A, B, C)), 0),
        ([short(A, B), short(C), NONE, NONE, NONE], NQPrediction(short=(C, NQSpan())), 1),  # null spans do not count
        ([short(A), NONE, NONE, NONE, NONE], NQPrediction(short=(A,)), 0),
        ([short(A), short(yes_no="yes"), NONE, NONE, NONE], NQPrediction(yes_no="yes"), 1),  # yes is an answer
        ([short(A), short(yes_no="yes"), NONE, NONE, NONE], NQPrediction(yes_no="no"), 0),
        ([short(A), short(yes_no="yes"), NONE, NONE, NONE], NQPrediction(short=(A,)), 1),
        ([short(A), short(A), NONE, NONE, NONE], NQPrediction(), 0),  # no answer is not that of the third
    ],
)
def test_nq_short(gold, prediction, f1):
    _, m = nq_metrics({1: gold}, {1: prediction})
    assert m.f1 == f1


def test_nq_thresholds_of_long_and_short_answers_differ():
    gold = {1: [short(A)] * 5, 2: [short(B)] * 5, 3: [NONE] * 5}
    predictions = {
        1: NQPrediction(A, (A,), long_score=3, short_score=-1),
        2: NQPrediction(C, (B,), long_score=1, short_score=2),
        3: NQPrediction(A, (A,), long_score=2, short_score=-3),
    }
    m, s = nq_metrics(gold, predictions)
    assert (m.f1, m.precision, m.recall, m.threshold) == pytest.approx((2 / 3, 1, 1 / 2, 3))
    assert (s.f1, s.threshold) == (1, -1)


def test_nq_an_answer_of_one_annotator_is_never_right():
    gold = {1: [short(A)] * 5, 2: [short(A)] + [NONE] * 4}
    for m in nq_metrics(gold, {1: NQPrediction(A, (A,)), 2: NQPrediction(A, (A,))}):
        assert (m.precision, m.recall) == (1 / 2, 1)


def test_nq_ids_must_agree():
    with pytest.raises(ValueError, match=r"lack 1 examples of gold \(1\) and have 4 others \(2, 3, 4, …\)"):
        nq_metrics({1: [NONE] * 5}, dict.fromkeys((2, 3, 4, 5), NQPrediction()))


def test_reads_nq_predictions(tmp_path):
    path = tmp_path / "p.json"
    span = {"start_byte": 10, "end_byte": 19, "start_token": -1, "end_token": -1}
    scores = {"long_answer_score": 1, "short_answers_score": 2.5}
    rows = [
        {"example_id": 1, "long_answer": span, "short_answers": [span], "yes_no_answer": "NONE", **scores},
        {"example_id": 2, "yes_no_answer": "YES", **scores},
    ]
    path.write_text(json.dumps({"predictions": rows}))
    assert read_nq_predictions(path) == {
        1: NQPrediction(NQSpan(10, 19), (NQSpan(10, 19),), "none", 1.0, 2.5),
        2: NQPrediction(yes_no="yes", long_score=1.0, short_score=2.5),
    }
    for row, message in [
        ({**rows[0], "yes_no_answer": "NO"}, r"predictions\[0\]: NQPrediction: yes_no='no' beside a span"),
        ({"example_id": 1, "long_answer_score": 1}, r"predictions\[0\]: no field 'short_answers_score'"),
        ({**rows[1], "yes_no_answer": "maybe"}, r"predictions\[0\]: yes_no_answer 'maybe', expected NONE, YES or NO"),
    ]:
        path.write_text(json.dumps({"predictions": [row]}))
        with pytest.raises(ValueError, match=r"p\.json: " + message):
            read_nq_predictions(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"p\.json:1: expected a JSON object with predictions"):
        read_nq_predictions(path)
    path.write_text("{\n,")
    with pytest.raises(ValueError, match=r"p\.json:2: no JSON"):
        read_nq_predictions(path)


# --- TyDi QA ---

NOTHING = TydiAnnotation(-1, None, "none")


def said(passage=0, answer=None, yes_no="none") -> TydiAnnotation:
    return TydiAnnotation(passage, answer, yes_no)


@pytest.mark.parametrize(
    ("gold", "answer", "f1"),
    [
        ((0, 10), (0, 10), 1.0),
        ((0, 10), (5, 15), 0.5),  # 5 bytes of 10 and 10
        ((0, 10), (2, 4), 1 / 3),  # P 1, R 1/5
        ((2, 4), (0, 10), 1 / 3),
        ((0, 10), (10, 20), 0.0),  # the end is excluded
        ((0, 10), (7, 7), 0.0),
        ((7, 7), (7, 7), 0.0),
    ],
)
def test_byte_overlap(gold, answer, f1):
    assert byte_overlap(gold, answer) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("gold", "passage", "f1"),
    [
        ([said(3), said(3), NOTHING], 3, 1),
        ([said(3), said(4), NOTHING], 4, 1),
        ([said(3), NOTHING, NOTHING], 3, 0),  # one of three
        ([said(3)] * 3, 0, 0),
        ([said(3)] * 3, -1, 0),
    ],
)
def test_tydi_passage(gold, passage, f1):
    m = tydiqa_metrics({1: ("thai", gold)}, {1: TydiPrediction("thai", passage)})
    assert m.passage_f1 == m.passage["thai"].f1 == f1


@pytest.mark.parametrize(
    ("gold", "prediction", "f1"),
    [
        ([said(0, (0, 10)), said(0, (4, 10)), NOTHING], {"answer": (4, 10)}, 1),  # the best of the annotators
        ([said(0, (0, 10)), said(0, (0, 20)), NOTHING], {"answer": (5, 15)}, 2 / 3),
        ([said(0, (0, 10)), NOTHING, NOTHING], {"answer": (0, 10)}, 0),
        ([said(0, (0, 10)), said(0, None, "yes"), NOTHING], {"yes_no": "yes"}, 1),
        ([said(0, (0, 10)), said(0, None, "yes"), NOTHING], {"yes_no": "no"}, 0),
        ([said(0, (0, 10)), said(0, None, "yes"), NOTHING], {"answer": (0, 10)}, 1),
        ([said(0, (0, 10))] * 3, {}, 0),
        ([said(0, None, "no")] * 3, {"answer": (0, 10)}, 0),
    ],
)
def test_tydi_minimal(gold, prediction, f1):
    m = tydiqa_metrics({1: ("thai", gold)}, {1: TydiPrediction("thai", **prediction)})
    assert m.minimal_f1 == m.minimal["thai"].f1 == pytest.approx(f1)


def test_tydi_average_leaves_english_and_absent_languages_out():
    gold = {i: (name, [said(0)] * 3) for i, name in enumerate(["english", "thai", "thai", "finnish", "korean"])}
    predictions = {
        0: TydiPrediction("english", 0, passage_score=1),
        1: TydiPrediction("thai", 0, passage_score=9),
        2: TydiPrediction("thai", 5, passage_score=-9),  # below the best threshold of Thai
        3: TydiPrediction("finnish", 5, passage_score=99),
    }
    m = tydiqa_metrics(gold, predictions)
    assert set(m.passage) == {"english", "thai", "finnish"}
    assert m.passage["english"].f1 == 1
    assert (m.passage["thai"].f1, m.passage["thai"].threshold) == pytest.approx((2 / 3, 9))
    assert m.passage_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert tydiqa_metrics(gold, {}).passage_f1 == 0


def test_tydi_examples_without_prediction():
    gold = {1: ("thai", [said(0)] * 3), 2: ("thai", [NOTHING] * 3), 3: ("thai", [said(0)] * 3)}
    with pytest.warns(
        UserWarning, match=r"2 examples have no prediction \(2, 3\); 1 predictions have no example \(8\)"
    ):
        m = tydiqa_metrics(
            gold, {1: TydiPrediction("thai", 0, passage_score=-1), 8: TydiPrediction("thai", 0, passage_score=5)}
        )
    # Both have score 0, above the prediction; example 2 counts as answered: P = 1/2, R = 1/2.
    assert (m.passage["thai"].precision, m.passage["thai"].recall) == (0.5, 0.5)


def test_reads_tydiqa_predictions(tmp_path):
    path = tmp_path / "p.jsonl"
    row = {
        "example_id": 1,
        "language": "thai",
        "passage_answer_index": 4,
        "passage_answer_score": 2,
        "minimal_answer": {"start_byte_offset": 3, "end_byte_offset": 8},
        "minimal_answer_score": -1.5,
        "yes_no_answer": "NONE",
    }
    bare = {"example_id": 2, "language": "thai", "passage_answer_score": 0, "minimal_answer_score": 0}
    path.write_text(f"{json.dumps(row)}\n\n{json.dumps(bare)}\n")
    assert read_tydiqa_predictions(path) == {
        1: TydiPrediction("thai", 4, (3, 8), "none", 2.0, -1.5),
        2: TydiPrediction("thai"),
    }
    reversed_span = {"start_byte_offset": 8, "end_byte_offset": 3}
    for wrong, message in [
        ({**row, "yes_no_answer": "YES"}, "TydiPrediction: yes_no='yes' beside a span"),
        ({**row, "minimal_answer": reversed_span}, r"TydiPrediction: answer=\(8, 3\), expected 0 <= start <= end"),
        ({k: v for k, v in row.items() if k != "language"}, "no field 'language'"),
    ]:
        path.write_text(f"{json.dumps(bare)}\n{json.dumps(wrong)}\n")
        with pytest.raises(ValueError, match=r"p\.jsonl:2: " + message):
            read_tydiqa_predictions(path)


# --- the real samples ---


def test_real_tydiqa_samples(shared_data):
    folder = shared_data / "longdoc"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    gold = {e.id: (e.language, e.annotations) for e in read_tydiqa(folder / "tydiqa_small_gold_annotation.jsonl.gz")}
    m = tydiqa_metrics(gold, read_tydiqa_predictions(folder / "tydiqa_sample_prediction.jsonl"))
    # What the official script prints for these two files.
    assert m.passage_f1 == pytest.approx(0.6666666666666666, abs=1e-12)
    assert m.minimal_f1 == pytest.approx(0.5235885537509667, abs=1e-12)
    assert m.minimal["arabic"].f1 == pytest.approx(0.5707656612529002, abs=1e-12)
    assert m.minimal["arabic"].threshold == 15.898082256317139

    gold = {e.id: (e.language, e.annotations) for e in read_tydiqa(folder / "tydiqa_tiny_dev.jsonl.gz")}
    perfect = {}
    for i, (language, annotations) in gold.items():
        first = max(annotations, key=lambda a: a.passage)
        perfect[i] = TydiPrediction(language, first.passage, first.answer, first.yes_no)
    m = tydiqa_metrics(gold, perfect)
    # Three examples have two annotators with an answer; in the other languages nothing can be right.
    assert {name for name, part in m.passage.items() if part.f1} == {"arabic", "indonesian", "russian"}
    assert m.passage_f1 == pytest.approx(0.3)


# --- ROUGE ---


def test_rouge_by_hand():
    pytest.importorskip("rouge_score")
    scores = rouge(["the cat sat", "a b\nc d"], ["the cat ran away", "c d\na b"], stemmer=False)
    # Pair 1: unigrams 2 of 3 and 4, bigrams 1 of 2 and 3, LCS 2. Pair 2: all words, bigrams across lines differ.
    assert scores["rouge1"] == pytest.approx(((2 / 3 + 1) / 2, (2 / 4 + 1) / 2, (4 / 7 + 1) / 2))
    assert scores["rouge2"] == pytest.approx(((1 / 2 + 2 / 3) / 2, (1 / 3 + 2 / 3) / 2, (2 / 5 + 2 / 3) / 2))
    assert scores["rougeL"].f1 == pytest.approx((4 / 7 + 1 / 2) / 2)
    assert scores["rougeLsum"].f1 == pytest.approx((4 / 7 + 1) / 2)
    assert rouge(["running"], ["runs"], types=["rouge1"])["rouge1"].f1 == 1


def test_rouge_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ImportError, match="rouge needs the package rouge-score: pip install rouge-score"):
        rouge(["a"], ["a"])


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], [])])
def test_rouge_needs_pairs(predictions, references):
    with pytest.raises(ValueError, match=r"expected as many, at least one"):
        rouge(predictions, references)
