# SPDX-License-Identifier: Apache-2.0
"""Readers of long documents: byte offsets, official formats, error texts, the real samples."""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from innerloop.data import longdoc
from innerloop.data.longdoc import (
    CLS,
    IGNORE,
    MASK,
    PAD,
    SEP,
    NQSpan,
    decode_bytes,
    encode_bytes,
    mask_tokens,
    read_arxiv,
    read_leval,
    read_nq,
    read_sotu,
    read_tydiqa,
    read_wikitext,
    read_xquad_long,
    windows,
)

LANGUAGES = ("en", "de", "es", "ru", "ar", "hi", "th", "zh", "vi", "tr", "el", "ro")


def write(path: Path, *rows: object) -> Path:
    """Rows of JSON, or texts as they are; compressed if the name ends so."""
    data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# --- bytes ---


def test_bytes_there_and_back():
    text = "naïve ไทย\n"
    tokens = encode_bytes(text)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [b + 4 for b in text.encode()]
    assert decode_bytes(tokens) == text
    assert decode_bytes(torch.cat([torch.tensor([CLS]), tokens, torch.tensor([SEP, MASK, PAD])])) == text
    assert decode_bytes(encode_bytes("é")[:1]) == "\ufffd"
    assert encode_bytes(bytes(range(256))).max() == longdoc.BYTE_VOCABULARY_SIZE - 1


def test_windows_hold_every_byte_once():
    rows = windows(["abcdefg", "", "xy"], 4)
    assert rows[:, 0].tolist() == [CLS] * 4
    assert [decode_bytes(row) for row in rows] == ["abc", "def", "g", "xy"]
    assert rows[2].tolist()[2:] == [PAD, PAD]
    assert windows([], 8).shape == (0, 8)
    with pytest.raises(ValueError, match="length=1, expected at least 2"):
        windows(["a"], 1)


def test_masking_follows_bert():
    tokens = windows(["the quick brown fox " * 5000], 512)
    inputs, labels = mask_tokens(tokens, generator=torch.Generator().manual_seed(0))
    chosen = labels != IGNORE
    assert not chosen[tokens < 4].any()
    assert (labels[chosen] == tokens[chosen]).all()
    assert (inputs[~chosen] == tokens[~chosen]).all()
    assert chosen.sum() / (tokens >= 4).sum() == pytest.approx(0.15, abs=0.01)
    masked, kept = (inputs == MASK)[chosen].float().mean(), (inputs == tokens)[chosen].float().mean()
    assert masked == pytest.approx(0.8, abs=0.015)
    assert kept == pytest.approx(0.1 + 0.1 / 256, abs=0.01)
    assert inputs[inputs != MASK].min() >= PAD
    again, _ = mask_tokens(tokens, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, inputs)
    nothing, labels = mask_tokens(tokens, probability=0.0)
    assert torch.equal(nothing, tokens)
    assert (labels == IGNORE).all()
    with pytest.raises(ValueError, match=r"probability=1\.5, expected 0 to 1"):
        mask_tokens(tokens, probability=1.5)


# --- plain text ---


def test_wikitext_articles(tmp_path):
    path = write(
        tmp_path / "w.txt", " ", " = A = ", " text ", " = = Part = = ", " more ", " = B C = ", " = = = x = = = "
    )
    articles = list(read_wikitext(path))
    assert [(a.id, a.text) for a in articles] == [("A", "text\n= = Part = =\nmore"), ("B C", "= = = x = = =")]
    with pytest.raises(ValueError, match=r"w\.txt:2: 'stray', expected a title"):
        list(read_wikitext(write(path, "", " stray ", " = A = ")))


def test_sotu_format(tmp_path):
    row = {"id": "1_x", "year": "1790", "name": "X", "party": "none", "text": "Hello"}
    (speech,) = read_sotu(write(tmp_path / "s.jsonl", row))
    assert speech == longdoc.Article("1_x", "Hello", 1790, "X", "none")
    with pytest.raises(ValueError, match=r"s\.jsonl:2: text is int, expected text"):
        list(read_sotu(write(tmp_path / "s.jsonl", row, {**row, "text": 3})))


# --- XQuAD ---


def squad(contexts: list[list[str]], answer: str = "é42") -> dict:
    """Articles of contexts; the answer of each is ``answer``."""
    return {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": f"q{a}.{p}",
                                "question": "où?",
                                "answers": [{"answer_start": context.index(answer), "text": answer}],
                            }
                        ],
                    }
                    for p, context in enumerate(article)
                ]
            }
            for a, article in enumerate(contexts)
        ]
    }


CONTEXTS = [[f"ä{a}{p} " + "ü" * 10 + " é42 end" for p in range(3)] for a in range(9)]  # 35 bytes each


def test_xquad_documents(tmp_path):
    path = write(tmp_path / "x.json", json.dumps(squad(CONTEXTS), indent=1))
    size = len(CONTEXTS[0][0].encode())
    length = 2 + len("où?".encode()) + 5 * size + 4  # exactly five passages
    examples = read_xquad_long(path, length)
    assert [e.id for e in examples] == [f"q{a}.{p}" for a in range(9) for p in range(3)]
    for e in examples:
        a, p = map(int, e.id[1:].split("."))
        assert e.document[slice(*e.answer)].decode() == "é42"
        assert e.document[slice(*e.passages[e.passage])].decode() == CONTEXTS[a][p]
        assert e.passages[e.passage][0] <= e.answer[0] < e.answer[1] <= e.passages[e.passage][1]
        passages = [e.document[s:t].decode() for s, t in e.passages]
        assert b"\n".join(x.encode() for x in passages) == e.document
        assert len(set(passages)) == 5
        assert set(CONTEXTS[a]) < set(passages)  # the whole article before any other
        tokens = e.tokens()
        assert len(tokens) == length
        at = e.document_start
        assert decode_bytes(tokens[at + e.answer[0] : at + e.answer[1]]) == "é42"
        assert (tokens[0], tokens[at - 1]) == (CLS, SEP)
    assert len({e.passage for e in examples}) == 5  # the place of the answer varies
    assert len(read_xquad_long(path, length - 1)[0].passages) == 4
    assert read_xquad_long(path, length) == examples
    assert read_xquad_long(path, length, seed=1) != examples
    assert len(read_xquad_long(path, 10**6)[0].passages) == 27  # everything there is


def test_xquad_splits_share_no_text(tmp_path):
    path = write(tmp_path / "x.json.gz", json.dumps(squad(CONTEXTS)))
    texts = {}
    for split, questions in {"train": 21, "valid": 3, "test": 3}.items():
        examples = read_xquad_long(path, 10**6, split=split)
        assert len(examples) == questions
        texts[split] = {e.document[s:t] for e in examples for s, t in e.passages}
    assert not texts["train"] & texts["valid"]
    assert not (texts["train"] | texts["valid"]) & texts["test"]
    with pytest.raises(ValueError, match="split='dev', expected train, valid, test or None"):
        read_xquad_long(path, 100, split="dev")


def test_xquad_question_too_long_for_the_length(tmp_path):
    path = write(tmp_path / "x.json", json.dumps(squad([["é42", "é42 " * 30]])))
    with pytest.warns(UserWarning, match=r"x\.json: 1 of 2 questions left out, .* length=50"):
        (example,) = read_xquad_long(path, 50)
    assert example.id == "q0.0"


def test_xquad_malformed(tmp_path):
    wrong = squad([["a é42"]])
    wrong["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 1
    with pytest.raises(ValueError, match=r"x\.json: data\[0\]: question q0\.0: answer 'é42' is not at character 1"):
        read_xquad_long(write(tmp_path / "x.json", wrong), 100)
    with pytest.raises(ValueError, match=r"x\.json:2: no JSON"):
        read_xquad_long(write(tmp_path / "x.json", '{"data":', "oops}"), 100)
    with pytest.raises(ValueError, match=r"x\.json:1: expected a JSON object with data"):
        read_xquad_long(write(tmp_path / "x.json", []), 100)


# --- TyDi QA ---


def tydi(document="ไทย abc", candidates=((0, 9), (10, 13)), passage=1, answer=(10, 13), yes_no="NONE") -> dict:
    return {
        "example_id": 7,
        "language": "thai",
        "question_text": "อะไร",
        "document_plaintext": document,
        "passage_answer_candidates": [{"plaintext_start_byte": s, "plaintext_end_byte": e} for s, e in candidates],
        "annotations": [
            {
                "passage_answer": {"candidate_index": passage},
                "minimal_answer": {"plaintext_start_byte": answer[0], "plaintext_end_byte": answer[1]},
                "yes_no_answer": yes_no,
            }
        ],
    }


def test_tydiqa_offsets_count_bytes(tmp_path):
    bare = {k: v for k, v in tydi().items() if k != "annotations"}
    rows = [tydi(), tydi(passage=-1, answer=(-1, -1), yes_no="YES"), bare]
    a, b, c = read_tydiqa(write(tmp_path / "t.jsonl.gz", rows[0], "", *rows[1:]))
    assert a.document[slice(*a.annotations[0].answer)] == b"abc"
    assert a.document[slice(*a.candidates[0])].decode() == "ไทย"
    assert (b.annotations[0].passage, b.annotations[0].answer, b.annotations[0].yes_no) == (-1, None, "yes")
    assert c.annotations == ()  # the test set


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (tydi(answer=(10, 14)), r"minimal_answer \[10, 14\), expected offsets within the 13 bytes"),
        (tydi(answer=(-1, 3)), r"minimal_answer \[-1, 3\)"),
        (tydi(candidates=((3, 1),)), r"passage_answer_candidates \[3, 1\)"),
        (tydi(passage=2), r"candidate_index 2, expected -1 or one of 2 candidates"),
        (tydi(yes_no="MAYBE"), r"yes_no_answer 'MAYBE', expected NONE, YES or NO"),
        ({k: v for k, v in tydi().items() if k != "language"}, r"no field 'language'"),
        ('{"a": 1', r"no JSON \(.* at column \d+\)"),
        ("[1]", r"list, expected a JSON object"),
    ],
)
def test_tydiqa_errors_name_the_line(tmp_path, row, message):
    path = write(tmp_path / "t.jsonl", tydi(), "", row)
    rows = read_tydiqa(path)
    assert next(rows).id == 7  # a stream: what comes before is had
    with pytest.raises(ValueError, match=re.escape(str(path)) + ":3: " + message):
        next(rows)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t\.jsonl: no such file"):
        list(read_tydiqa(tmp_path / "t.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"holds no \.jsonl"):
        list(read_tydiqa(tmp_path))
    path = write(tmp_path / "t.jsonl.gz", tydi())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"t\.jsonl\.gz:\d: damaged gzip file"):
        list(read_tydiqa(path))
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"t\.jsonl\.gz:1: damaged gzip file"):
        list(read_tydiqa(path))
    plain = tmp_path / "u.jsonl"
    plain.write_bytes(json.dumps(tydi()).encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match=r"u\.jsonl:2: no UTF-8"):
        list(read_tydiqa(plain))


# --- Natural Questions ---


def nq(simplified: bool = False) -> dict:
    html = "<P> né en 1900 </P>"
    words = html.split(" ")
    starts = [len(" ".join(words[:i]).encode()) + bool(i) for i in range(len(words))]

    def span(start, end, **more):
        full = {"start_byte": starts[start], "end_byte": starts[end - 1] + len(words[end - 1].encode())}
        return {**({} if simplified else full), "start_token": start, "end_token": end, **more}

    none = {"start_token": -1, "end_token": -1} | ({} if simplified else {"start_byte": -1, "end_byte": -1})
    row = {
        "example_id": -5,
        "question_text": "when",
        "long_answer_candidates": [span(0, 5, top_level=True), span(1, 4, top_level=False)],
        "annotations": [
            {
                "long_answer": span(0, 5, candidate_index=0),
                "short_answers": [span(3, 4)],
                "yes_no_answer": "NONE",
            },
            {"long_answer": {**none, "candidate_index": -1}, "short_answers": [], "yes_no_answer": "NO"},
        ],
    }
    if simplified:
        return {**row, "document_text": html}
    tokens = [
        {"token": w, "html_token": w[0] == "<", "start_byte": s, "end_byte": s + len(w.encode())}
        for w, s in zip(words, starts, strict=True)
    ]
    return {**row, "document_html": html, "document_tokens": tokens}


def test_nq_original_and_simplified(tmp_path):
    write(tmp_path / "nq-dev-00.jsonl.gz", nq())
    write(tmp_path / "nq-dev-01.jsonl", nq(simplified=True))
    (tmp_path / "README").write_text("not data")
    full, simple = read_nq(tmp_path)  # a folder: both files in order
    for example in (full, simple):
        first, second = example.annotations
        assert example.text(first.short[0]) == "1900"
        assert (first.candidate, second.candidate) == (0, -1)
        assert second.long.is_null
        assert second.yes_no == "no"
        assert example.top_level == (True, False)
        assert example.text(example.candidates[1]) == "né en 1900"
        assert example.text(second.long) == ""
    assert full.html[slice(*full.annotations[0].short[0].bytes)] == b"1900"  # é has two bytes
    assert full.is_html.tolist() == [True, False, False, False, True]
    assert full.text(full.annotations[0].long) == "né en 1900"
    assert simple.text(simple.annotations[0].long) == "<P> né en 1900 </P>"
    assert simple.is_html is None
    assert simple.html == b""
    assert simple.annotations[0].short[0].bytes == (-1, -1)


def test_nq_errors_name_the_line(tmp_path):
    row = nq()
    row["annotations"][0]["short_answers"][0]["end_token"] = 6
    with pytest.raises(ValueError, match=r"n\.jsonl:1: short_answers .* expected offsets within 5 tokens and 20 bytes"):
        list(read_nq(write(tmp_path / "n.jsonl", row)))
    row = nq(simplified=True)
    row["annotations"][0]["long_answer"]["candidate_index"] = 2
    with pytest.raises(ValueError, match=r"n\.jsonl:1: candidate_index 2, expected -1 or one of 2"):
        list(read_nq(write(tmp_path / "n.jsonl", row)))


def test_nq_spans():
    assert NQSpan().is_null
    assert NQSpan(0, 3, 5, 6).matches(NQSpan(0, 3))
    assert NQSpan(0, 3, 5, 6).matches(NQSpan(start_token=5, end_token=6))
    assert not NQSpan(0, 3).matches(NQSpan(start_token=0, end_token=3))
    assert not NQSpan().matches(NQSpan())
    for bad in ({"start_byte": 3}, {"start_byte": 3, "end_byte": 3}, {"start_token": 4, "end_token": 2}):
        with pytest.raises(ValueError, match="expected start < end, or both negative for none"):
            NQSpan(**bad)


# --- summarisation, L-Eval ---


def test_arxiv_formats(tmp_path):
    official = {
        "article_id": "1401.1",
        "article_text": ["first .", "second ."],
        "abstract_text": ["<S> we show . </S>", "<S> done . </S>"],
        "labels": None,
        "section_names": ["a"],
        "sections": [["first .", "second ."]],
    }
    texts = {"article": "first", "abstract": "we show"}
    a, b = read_arxiv(write(tmp_path / "a.jsonl.gz", official, texts))
    assert (a.id, a.article, a.abstract) == ("1401.1", "first .\nsecond .", "we show .\ndone .")
    assert (b.id, b.article, b.abstract) == ("", "first", "we show")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no field 'article'"):
        list(read_arxiv(write(tmp_path / "a.jsonl", {"abstract": ""})))


def test_leval_format(tmp_path):
    row = {"input": "page", "instructions": ["q"], "outputs": ["a", "b"]}
    with pytest.raises(ValueError, match=r"l\.jsonl:1: 1 instructions and 2 outputs, expected as many"):
        list(read_leval(write(tmp_path / "l.jsonl", row)))


# --- the real samples ---


@pytest.fixture
def samples(shared_data) -> Path:
    if not (shared_data / "longdoc").is_dir():
        pytest.skip(f"{shared_data / 'longdoc'} is absent")
    return shared_data / "longdoc"


def test_real_text(samples):
    speeches = list(read_sotu(samples / "sotu.jsonl.gz"))
    assert len(speeches) == 233
    assert (min(s.year for s in speeches), max(s.year for s in speeches)) == (1790, 2021)
    assert sum(len(s.text.split()) for s in speeches) == pytest.approx(1_794_884, rel=1e-3)
    for name, articles in {"valid": 60, "test": 62}.items():
        assert len(list(read_wikitext(samples / f"wikitext2.{name}.txt.gz"))) == articles


@pytest.mark.parametrize("language", LANGUAGES)
def test_real_xquad(samples, language):
    length = 16384
    examples = read_xquad_long(samples / f"xquad.{language}.json.gz", length)
    assert len(examples) == 1190
    source = json.loads(gzip.decompress((samples / f"xquad.{language}.json.gz").read_bytes()))
    answers = {qa["id"]: qa["answers"][0]["text"] for a in source["data"] for p in a["paragraphs"] for qa in p["qas"]}
    for e in examples[::7]:
        assert e.document[slice(*e.answer)].decode() == answers[e.id]
        assert len(e.tokens()) <= length
        assert len(e.document) > length - 9000  # the next passage did not fit; the longest has 8,346 bytes


def test_real_tydiqa(samples):
    examples = list(read_tydiqa(samples / "tydiqa_tiny_dev.jsonl.gz"))
    assert len({e.language for e in examples}) == 11
    spans = [(e, a) for e in examples for a in e.annotations if a.answer]
    assert [e.document[slice(*a.answer)].decode() for e, a in spans if e.language == "finnish"] == ["1869"]
    for e, a in spans:
        start, end = e.candidates[a.passage]
        assert start <= a.answer[0] < a.answer[1] <= end  # a minimal answer lies in its passage
        e.document[slice(*a.answer)].decode()  # and on the borders of characters
    assert len(list(read_tydiqa(samples / "tydiqa_small_gold_annotation.jsonl.gz"))) == 3


def test_real_nq_pages(samples):
    pages = list(read_leval(samples / "nq_longdoc_21.jsonl.gz"))
    assert len(pages) == 21
    assert sum(len(p.questions) for p in pages) == 109
    assert {min(n := [len(p.page.split()) for p in pages]), max(n)} == {4443, 26714}
