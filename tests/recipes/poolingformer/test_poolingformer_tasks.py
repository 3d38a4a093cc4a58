# SPDX-License-Identifier: Apache-2.0
"""Settings, batches, losses and metrics of the Poolingformer tasks, against recomputation in plain Python."""

import gzip
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from innerloop.data import listops, longdoc
from innerloop.data.longdoc import decode_bytes
from innerloop.nn import PoolingAttention, PoolingformerEncoder, QuestionAnsweringLogits, SlidingWindowAttention
from innerloop.recipes._batches import step_generator
from innerloop.recipes.poolingformer import PRESETS, PUBLISHED, Config, make_config, make_problem
from innerloop.recipes.poolingformer.tasks import MaskedProblem, QuestionProblem, best_span

MODEL = {"dim": 8, "num_layers": 2, "heads": 2, "window": 2, "two_level": 1, "pool_window": 4, "kernel": 3, "stride": 2}
LISTOPS = Config(length=16, min_length=3, train=30, valid=12, test=13, **MODEL)
QA = Config(task="qa", length=64, **MODEL)
MLM = Config(task="mlm", length=32, **MODEL)
SPLITS = ("train", "valid", "test")
WORDS = ("naïve", "ไทย", "Москва", "blue", "größe", "数学", "🙂", "x")


def write_xquad(path: Path, seed: int = 0, articles: int = 8) -> Path:
    """Articles of two paragraphs of three words, with two questions each, answered by the second and the third word."""
    rng = random.Random(seed)
    data = []
    for a in range(articles):
        paragraphs = []
        for p in range(2):
            words, qas = rng.sample(WORDS, 3), []
            for q in (1, 2):
                answer = {"text": words[q], "answer_start": len(" ".join(words[:q])) + 1}
                marks = "?" * rng.randint(1, 4)
                qas.append({"id": f"{seed}-{a}-{p}-{q}", "question": f"où{marks}", "answers": [answer]})
            paragraphs.append({"context": " ".join(words), "qas": qas})
        data.append({"title": str(a), "paragraphs": paragraphs})
    text = json.dumps({"data": data}, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_wikitext(path: Path, articles: int = 20) -> Path:
    """Article i is a letter of its own, 70 + i times."""
    path.write_text("".join(f" = Title {i} = \n {chr(65 + i) * (70 + i)} \n" for i in range(articles)))
    return path


def source(path: Path) -> dict[str, tuple[int, str, str, str]]:
    """{question id: (article, context, question, answer)}, from the file itself."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return {
        qa["id"]: (a, paragraph["context"], qa["question"], qa["answers"][0]["text"])
        for a, article in enumerate(json.loads(data)["data"])
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    }


def wild(model: torch.nn.Module) -> torch.nn.Module:
    """In evaluation, with parameters so large that its answers differ between examples."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval().requires_grad_(False)


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
        encoder = PoolingformerEncoder(20, **config.encoder_arguments())
    kinds = [type(layer.attention) for layer in encoder.layers]
    assert kinds == (config.num_layers - config.two_level) * [SlidingWindowAttention] + config.two_level * [
        PoolingAttention
    ]
    assert {layer.attention.window for layer in encoder.layers} == {(config.window, config.window)}
    last = encoder.layers[-1]
    for name in ("pool_window", "kernel", "stride", "pooling"):
        assert getattr(last.attention, name) == getattr(config, name)
    assert last.up.out_features == (1024 if preset == "lra" else 4 * config.dim)
    assert (encoder.max_length, encoder.dim, encoder.heads) == (config.length, config.dim, config.heads)


def test_published_rows_have_a_preset():
    assert PUBLISHED.keys() <= PRESETS.keys()
    assert all(list(row) == ["accuracy"] for row in PUBLISHED["listops", "lra"].values())


def test_one_level_takes_nothing_of_the_second():
    arguments = make_config("listops", two_level=0, checkpoint=True).encoder_arguments()
    assert arguments.keys() == {
        "dim", "num_layers", "heads", "dropout", "checkpoint", "window", "two_level", "ffn_dim", "max_length",
        "relative_bias",
    }  # fmt: skip
    assert len(arguments["two_level"]) == 0
    assert arguments["checkpoint"]


def test_make_config_overrides_what_is_given():
    config = make_config("qa", "study", length=None, lr=0.5, share_weights=True)
    assert (config.length, config.lr, config.share_weights, config.task) == (4096, 0.5, True, "qa")
    assert make_config("listops", dropout=0.0).dropout == 0.0


def test_make_config_errors():
    with pytest.raises(ValueError, match="task is 'nli', expected one of listops, qa, mlm"):
        make_config("nli")
    with pytest.raises(ValueError, match="preset is 'lra', expected one of quick, study for task qa"):
        make_config("qa", "lra")
    with pytest.raises(TypeError, match=r"unknown settings \['depth', 'width'\]"):
        make_config("listops", width=3, depth=4)


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("task", "nli", "one of listops, qa, mlm"),
        *((name, 0, "at least 1") for name in ("train", "valid", "test", "epochs", "batch_size", "eval_batch_size")),
        ("limit", 0, "at least 1"),
        *(("two_level", value, r"0 to num_layers \(4\)") for value in (5,)),
        ("two_level", -1, "at least 0"),
        ("length", 7, "at least 8"),
        *((name, -1, "at least 0") for name in ("seed", "eval_examples", "ffn_dim")),
        *((name, value, "a finite number above 0") for name in ("lr", "clip") for value in (0.0, -1.0, math.nan)),
        ("weight_decay", -1, "a finite number, not negative"),
        *(("warmup", value, r"a share in \[0, 1\)") for value in (1.0, -0.1, math.nan)),
    ],
)
def test_config_errors(setting, value, expected):
    with pytest.raises(ValueError, match=f"^{setting} is {value!r}, expected {expected}"):
        Config(**{"num_layers": 4, setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dim", 0),
        ("heads", 3),
        ("window", -2),
        ("dropout", 1.0),
        ("pool_window", 6),
        ("kernel", 0),
        ("stride", 0),
        ("pooling", "median"),
        ("level2_input", "both"),
    ],
)
def test_errors_of_the_model_name_the_setting(setting, value):
    with pytest.raises(ValueError, match=rf"{setting} is .*{re.escape(repr(value))}.*, expected "):
        PoolingformerEncoder(20, **Config(**{setting: value}).encoder_arguments())


@pytest.mark.parametrize("min_length", [0, 15])
def test_listops_bounds_are_checked(min_length):
    with pytest.raises(ValueError, match=f"min_length={min_length}"):
        make_problem(make_config("listops", length=16, min_length=min_length))


def test_make_problem_errors(tmp_path):
    with pytest.raises(ValueError, match=r"data is 'some\.txt', expected none: listops is generated"):
        make_problem(LISTOPS, Path("some.txt"))
    with pytest.raises(ValueError, match="data is missing, expected an XQuAD file or a folder of them for task qa"):
        make_problem(QA)
    with pytest.raises(
        ValueError, match="data is missing, expected a State of the Union or wikitext file for task mlm"
    ):
        make_problem(MLM)
    for config in (QA, MLM):
        with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
            make_problem(config, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no xquad\*\.json or xquad\*\.json\.gz file"):
        make_problem(QA, tmp_path)
    few = write_xquad(tmp_path / "few.json", articles=7)
    with pytest.raises(ValueError, match=r"few\.json: examples per split are train 24, valid 4, test 0, expected at"):
        make_problem(QA, few)
    few = write_wikitext(tmp_path / "few.txt", articles=9)
    with pytest.raises(ValueError, match=r"few\.txt: examples per split are train 24, valid 3, test 0, expected at"):
        make_problem(MLM, few)
    with pytest.raises(ValueError, match=r"few\.json:1: .*expected a title"):
        make_problem(MLM, tmp_path / "few.json")


# --- ListOps ---


def test_listops_batches():
    problem = make_problem(LISTOPS)
    assert problem.name == "listops-16"
    assert [problem.size(split) for split in SPLITS] == [30, 12, 13]
    seen = set()
    for split in SPLITS:
        items = list(range(problem.size(split)))
        random.Random(0).shuffle(items)
        batch = problem.batch(split, items)
        assert batch["tokens"].shape[1] == batch["valid"].sum(1).max()
        for item, tokens, valid, label in zip(items, batch["tokens"], batch["valid"], batch["label"], strict=True):
            n = int(problem.lengths(split)[item])
            assert LISTOPS.min_length < n < LISTOPS.length
            assert valid.tolist() == [i <= n for i in range(len(valid))]
            assert tokens[0] == listops.CLS
            assert set(tokens[n + 1 :].tolist()) <= {listops.PAD}
            assert listops.evaluate(tokens[1 : n + 1]) == label
            seen.add(tuple(tokens[1 : n + 1].tolist()))
    assert len(seen) == 55  # no sequence twice, in whatever splits


def test_listops_fill_the_length():
    """Of all lengths up to the longest; <cls> is counted."""
    problem = make_problem(make_config("listops", length=12, min_length=3, train=300, valid=1, test=1))
    assert sorted(set(problem.lengths("train").tolist())) == list(range(4, 12))


def test_listops_are_the_same_for_any_seed():
    batches = [make_problem(replace(LISTOPS, seed=seed)).batch("test", range(13)) for seed in (0, 1)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


def test_listops_loss_and_metrics_are_those_of_single_sequences():
    problem = make_problem(LISTOPS)
    model, items = wild(problem.model(LISTOPS)), [3, 0, 7, 12]
    losses, right = [], 0
    for i in items:
        tokens, label = problem.splits["test"][i]
        tokens = torch.cat([torch.tensor([listops.CLS]), tokens])[None]
        logits = model(tokens, global_index=torch.tensor([[0]]))[0].tolist()
        losses.append(math.log(sum(math.exp(x - logits[label]) for x in logits)))
        right += max(range(10), key=logits.__getitem__) == label
    batch = problem.batch("test", items)
    assert problem.loss(model, batch).item() == pytest.approx(sum(losses) / 4, rel=1e-5)
    totals = problem.totals(model, batch)
    assert totals == pytest.approx([4, right, sum(losses)], rel=1e-5)
    metrics = problem.metrics(dict(zip(problem.columns, totals, strict=True)))
    assert metrics == pytest.approx({"accuracy": right / 4, "loss": sum(losses) / 4}, rel=1e-5)


def test_listops_classify_by_a_global_first_token():
    """One layer of one level, windows of two tokens: only a global token sees the end."""
    config = replace(LISTOPS, length=64, min_length=40, num_layers=1, two_level=0)
    problem = make_problem(config)
    model, batch = wild(problem.model(config)), problem.batch("train", [0, 1, 2, 3])
    before = problem.totals(model, batch)
    batch["tokens"][torch.arange(4), batch["valid"].sum(1) - 1] = listops.VOCABULARY.index("[SM")
    assert problem.totals(model, batch) != before


# --- question answering ---


def check_questions(problem, split: str, items: list[int], facts: dict, batch_size: int = 7) -> None:
    """Each row of the batches says what the file says."""
    for begin in range(0, len(items), batch_size):
        chosen = items[begin : begin + batch_size]
        batch = problem.batch(split, chosen)
        assert batch["tokens"].shape[1] == batch["valid"].sum(1).max()
        for row, item in enumerate(chosen):
            tokens, valid, passage = (batch[name][row] for name in ("tokens", "valid", "passage"))
            answer_passage, start, end = (int(batch[name][row]) for name in ("answer_passage", "start", "end"))
            _, context, question, answer = facts[problem.splits[split][item].id]
            n, head = int(problem.lengths(split)[item]), len(question.encode()) + 2
            assert valid.tolist() == [i < n for i in range(len(valid))]
            assert set(tokens[n:].tolist()) <= {longdoc.PAD}
            assert tokens[[0, head - 1]].tolist() == [longdoc.CLS, longdoc.SEP]
            assert decode_bytes(tokens[1 : head - 1]) == question
            asked = batch["global"][row]
            assert asked[asked >= 0].tolist() == list(range(head))  # <cls>, question and <sep>
            assert set(asked[head:].tolist()) <= {-1}
            assert set(passage[:head].tolist()) | set(passage[n:].tolist()) <= {-1}
            assert decode_bytes(tokens[passage == answer_passage]) == context
            assert decode_bytes(tokens[start : end + 1]) == answer
            assert passage[[start, end]].tolist() == [answer_passage] * 2
            pieces = decode_bytes(tokens[head:n]).split("\n")
            assert [decode_bytes(tokens[passage == p]) for p in range(len(pieces))] == pieces
            assert passage.max() == len(pieces) - 1
            assert all(set(passage[passage == p].diff().tolist()) <= {0} for p in range(len(pieces)))
            assert (passage[head:n] == -1).sum() == len(pieces) - 1  # line feeds


def test_questions_say_what_the_file_says(xquad):
    problem, facts = make_problem(QA, xquad), source(xquad)
    assert problem.name == "xquad.xx-64"
    assert [problem.size(split) for split in SPLITS] == [24, 4, 4]
    for split, articles in (("train", set(range(6))), ("valid", {6}), ("test", {7})):
        items = list(range(problem.size(split)))
        assert {facts[q.id][0] for q in problem.splits[split]} == articles
        check_questions(problem, split, items[::-1], facts)
    counts = {len(q.passages) for q in problem.splits["train"]}
    assert max(counts) > 1
    assert len(set(problem.lengths("train").tolist())) > 5
    assert problem.lengths("train").max() <= QA.length
    assert not problem.batch("train", list(range(24)))["valid"].all()  # there were padded rows


@pytest.mark.parametrize(("language", "length"), [("en", 4096), ("th", 16384)])
def test_real_questions_say_what_the_file_says(shared_data, language, length):
    file = shared_data / "longdoc" / f"xquad.{language}.json.gz"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    problem = make_problem(Config(task="qa", length=length), file)
    assert problem.name == f"xquad.{language}-{length}"
    assert sum(problem.size(split) for split in SPLITS) == 1190
    for split in SPLITS:
        check_questions(problem, split, list(range(0, problem.size(split), 60)), source(file), batch_size=3)


def test_a_folder_is_all_its_languages(tmp_path):
    (tmp_path / "all").mkdir()
    files = [write_xquad(tmp_path / "all" / f"xquad.{name}", i) for i, name in enumerate(("a.json", "b.json.gz"))]
    write_xquad(tmp_path / "all" / "squad.json", 2)
    (tmp_path / "all" / "README.md").write_text("no data")
    both, alone = make_problem(QA, tmp_path / "all"), [make_problem(QA, file) for file in files]
    assert both.name == "all-64"
    assert [problem.name for problem in alone] == ["xquad.a-64", "xquad.b-64"]
    for split in SPLITS:
        assert both.splits[split] == alone[0].splits[split] + alone[1].splits[split]
    check_questions(both, "test", list(range(8)), source(files[0]) | source(files[1]))


@pytest.mark.parametrize("longest", [1, 2, 5, 11, 12, 40])
def test_best_span_is_the_best_of_all(longest):
    for first, last in [(0, 0), (4, 4), (19, 19), (0, 19), (3, 13), (3, 14), (12, 19)]:
        start, end = torch.randn(2, 20)
        allowed = (torch.arange(20) >= first) & (torch.arange(20) <= last)
        spans = [(s, e) for s in range(first, last + 1) for e in range(s, min(last + 1, s + longest))]
        assert best_span(start, end, allowed, longest) == max(spans, key=lambda se: (start[se[0]] + end[se[1]]).item())
        for outside in (start, end):
            outside[~allowed] = 100.0
        assert best_span(start, end, allowed, longest) in spans


def test_best_span_has_128_positions_at_most():
    allowed = torch.ones(300, dtype=torch.bool)
    for distance, span in ((127, (5, 132)), (128, (133, 133))):
        start, end = torch.zeros(2, 300)
        start[5], end[5 + distance], start[5 + distance] = 2.0, 3.0, 1.0
        assert best_span(start, end, allowed) == span
    half = torch.zeros(300, dtype=torch.bfloat16)
    assert best_span(half, half, allowed) == (0, 0)


class Fixed(torch.nn.Module):
    """Gives the same logits whatever is asked."""

    def __init__(self, logits: QuestionAnsweringLogits) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, *args, **kwargs) -> QuestionAnsweringLogits:
        return self.logits


def test_question_totals_by_hand():
    """All right; only the first byte; only the last byte; another passage."""
    problem = QuestionProblem.__new__(QuestionProblem)  # without data
    passage = torch.tensor([[-1, -1, 0, 0, 0, 0, -1, 1, 1, 1, 1, -1]] * 4)
    start, end = torch.zeros(2, 4, 12)
    scores = [[9.0, 2.0, 0.0], [9.0, 0.0, 2.0], [9.0, 0.0, 3.0], [9.0, 2.0, 1.0]]  # "no passage" is never taken
    batch = {
        "tokens": passage,
        "valid": passage >= -1,
        "global": passage,
        "passage": passage,
        "answer_passage": torch.tensor([0, 1, 1, 1]),
        "start": torch.tensor([2, 7, 8, 8]),
        "end": torch.tensor([4, 8, 9, 9]),
    }
    for row, (first, last) in enumerate([(2, 4), (7, 10), (7, 9), (8, 9)]):
        start[row, first], end[row, last] = 5.0, 5.0
    start[:, 0], end[:, 11] = 50.0, 50.0  # in no passage
    totals = problem.totals(Fixed(QuestionAnsweringLogits(start, end, torch.tensor(scores))), batch)
    f1 = 1 + 2 * 2 / (4 + 2) + 2 * 2 / (3 + 2)
    loss = sum(math.log(sum(map(math.exp, row))) for row in scores) - (2.0 + 2.0 + 3.0 + 1.0)
    span_loss = sum(
        -(torch.log_softmax(start[i], 0)[batch["start"][i]] + torch.log_softmax(end[i], 0)[batch["end"][i]]).item() / 2
        for i in range(4)
    )
    assert totals == pytest.approx([4, 3, f1, 1, loss, span_loss], rel=1e-5)
    metrics = problem.metrics(dict(zip(problem.columns, totals, strict=True)))
    expected = {"passage_accuracy": 3 / 4, "span_f1": f1 / 4, "span_exact": 1 / 4}
    expected |= {"passage_loss": loss / 4, "span_loss": span_loss / 4}
    assert metrics == pytest.approx(expected, rel=1e-5)


def test_question_loss_and_totals_are_those_of_single_questions(xquad):
    """Each question alone and without padding, spans from all that lie in the chosen passage."""
    problem = make_problem(QA, xquad)
    model, items = wild(problem.model(QA)), list(range(24))

    def log_softmax(row: list[float], i: int) -> float:
        return row[i] - math.log(sum(map(math.exp, row)))

    expected, losses = [0.0] * 6, []
    for i in items:
        q = problem.splits["train"][i]
        tokens = q.tokens()[None]
        passage = torch.full_like(tokens, -1)
        for p, (a, b) in enumerate(q.passages):
            passage[0, q.document_start + a : q.document_start + b] = p
        asked = torch.arange(q.document_start)[None]
        out = model(tokens, None, asked, passage=passage, num_passages=len(q.passages))
        start, end, scores = (t[0].tolist() for t in out)
        gold = q.document_start + q.answer[0], q.document_start + q.answer[1] - 1
        chosen = max(range(len(q.passages)), key=lambda p: scores[1 + p])
        where = [t for t in range(tokens.shape[1]) if passage[0, t] == chosen]
        span = max(((s, e) for s in where for e in where if s <= e), key=lambda se: start[se[0]] + end[se[1]])
        ours, theirs = set(range(span[0], span[1] + 1)), set(range(gold[0], gold[1] + 1))
        passage_loss = -log_softmax(scores, 1 + q.passage)
        span_loss = -(log_softmax(start, gold[0]) + log_softmax(end, gold[1])) / 2
        f1 = 2 * len(ours & theirs) / (len(ours) + len(theirs))
        row = [1, chosen == q.passage, f1, span == gold, passage_loss, span_loss]
        expected = [a + b for a, b in zip(expected, row, strict=True)]
        losses.append(passage_loss + span_loss)
    batch = problem.batch("train", items)
    totals = problem.totals(model, batch)
    assert totals == pytest.approx(expected, rel=1e-5)
    assert problem.loss(model, batch).item() == pytest.approx(sum(losses) / 24, rel=1e-5)
    assert 0 < totals[1] < 24
    assert 0 < totals[2] < 24


# --- masked bytes ---


def test_splits_of_a_text_share_no_document(text):
    problem = make_problem(MLM, text)
    assert problem.name == "letters-32"
    assert problem.lengths("train") is None
    for split, ids in (("train", {*range(8), *range(10, 18)}), ("valid", {8, 18}), ("test", {9, 19})):
        rows = [decode_bytes(row) for row in problem.splits[split]]
        assert {letter for row in rows for letter in row} == {chr(65 + i) for i in ids}
        assert sum(map(len, rows)) == sum(70 + i for i in ids)  # every byte once
        assert all(len(set(row)) == 1 for row in rows)
        assert problem.size(split) == len(rows)
        assert problem.splits[split].shape[1] == MLM.length


def test_speeches_are_read_as_such(tmp_path):
    file = tmp_path / "speeches.jsonl.gz"
    rows = [{"id": str(i), "year": 1800, "name": "", "party": "", "text": chr(97 + i) * 40} for i in range(10)]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    problem = make_problem(MLM, file)
    assert problem.name == "speeches-32"
    assert [decode_bytes(row) for row in problem.splits["test"]] == ["j" * 31, "j" * 9]


def test_files_of_one_family_have_names_of_their_own(tmp_path):
    """The name stands in tables, chooses the output folder, and tells a resumed run from one on other data."""
    files = [write_wikitext(tmp_path / f"wikitext2.{part}.txt") for part in ("valid", "test")]
    names = [make_problem(MLM, file).name for file in files]
    assert names[0] != names[1]


def test_evaluation_masks_depend_on_the_row_alone(text):
    problem = make_problem(MLM, text)
    whole = problem.batch("valid", range(6))
    assert torch.equal(whole["valid"], problem.splits["valid"] != longdoc.PAD)
    for items in ([5, 0], [3], torch.tensor([4, 1, 2])):
        batch = problem.batch("valid", items)
        for name, column in whole.items():
            assert torch.equal(batch[name], column[items])
    chosen = whole["label"] != longdoc.IGNORE
    assert torch.equal(whole["label"][chosen], problem.splits["valid"][chosen])
    assert torch.equal(whole["tokens"][~chosen], problem.splits["valid"][~chosen])
    assert (whole["tokens"][chosen] == longdoc.MASK).any()
    assert len({tuple(row) for row in chosen.tolist()}) == 6  # not the same places in every row
    state = torch.get_rng_state()
    problem.batch("valid", [0])
    assert torch.equal(state, torch.get_rng_state())


def test_training_masks_depend_on_the_generator(text):
    problem = make_problem(MLM, text)
    draws = [problem.batch("train", [0, 1, 2], step_generator(*key)) for key in ((1, 0, 1), (1, 0, 1), (1, 0, 2))]
    labels = [draw["label"] for draw in draws]
    assert torch.equal(labels[0], labels[1])
    assert torch.equal(draws[0]["tokens"], draws[1]["tokens"])
    assert not torch.equal(labels[0], labels[2])
    assert not torch.equal(labels[0], problem.batch("train", [0, 1, 2])["label"])


def test_masked_loss_and_totals_are_those_of_single_rows(text):
    problem = make_problem(MLM, text)
    model, batch = wild(problem.model(MLM)), problem.batch("valid", range(6))
    losses, right = [], 0
    for tokens, valid, labels in zip(batch["tokens"], batch["valid"], batch["label"], strict=True):
        n = int(valid.sum())
        logits = model(tokens[None, :n], global_index=torch.tensor([[0]]))[0].tolist()
        for row, label in zip(logits, labels[:n].tolist(), strict=True):
            if label != -100:
                losses.append(math.log(sum(math.exp(x - row[label]) for x in row)))
                right += max(range(260), key=row.__getitem__) == label
        assert (labels[n:] == -100).all()
    totals = problem.totals(model, batch)
    assert problem.loss(model, batch).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert totals == pytest.approx([len(losses), right, sum(losses)], rel=1e-5)
    metrics = problem.metrics(dict(zip(problem.columns, totals, strict=True)))
    bits = sum(losses) / len(losses) / math.log(2)
    assert metrics == pytest.approx({"accuracy": right / len(losses), "bits_per_byte": bits}, rel=1e-5)


def test_bits_per_byte_by_hand():
    """Four bytes, of 256 equally likely ones, are 8 bits each."""
    problem = MaskedProblem.__new__(MaskedProblem)  # without data
    metrics = problem.metrics({"count": 4.0, "correct": 1.0, "loss": 4 * math.log(256)})
    assert metrics == pytest.approx({"accuracy": 0.25, "bits_per_byte": 8.0})


def test_rows_without_a_chosen_byte(text):
    problem = make_problem(MLM, text)
    model, batch = problem.model(MLM), problem.batch("train", [0, 1])
    batch["label"] = torch.full_like(batch["label"], longdoc.IGNORE)
    loss = problem.loss(model, batch)
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)
    assert problem.totals(model.requires_grad_(False), batch) == [0, 0, 0]
    assert problem.metrics({"count": 0.0, "correct": 0.0, "loss": 0.0}) == {"accuracy": 0, "bits_per_byte": 0}
