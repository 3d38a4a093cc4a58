# SPDX-License-Identifier: Apache-2.0
"""ListOps: values, the law of the generator, reproducibility, cache, the official file format, error texts."""

import numpy as np
import pytest
import torch
from innerloop.data.listops import VOCABULARY, ListOps, evaluate, generate_listops, listops_splits, read_listops

BY_HAND = [
    ("[MIN 4 7 2 ]", 2),
    ("[MAX 4 7 2 ]", 7),
    ("[MED 1 9 3 ]", 3),
    ("[MED 1 2 ]", 1),  # the median is 1.5
    ("[MED 0 9 8 5 ]", 6),  # 6.5
    ("[SM 9 9 9 ]", 7),
    ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
    ("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]", 5),  # the example in the Long Range Arena paper
    ("[SM [SM 5 6 ] [MED [MIN 3 8 ] 7 ] 9 ]", 5),
    ("( ( ( ( [MAX 4 ) 3 ) ( ( ( [MIN 2 ) 3 ) ] ) ) ] )", 4),
    ("7", 7),
]


def value_by_rewriting(words: list[str]) -> int:
    """A second evaluator: replaces the innermost list by its value until a digit is left."""
    words = list(words)
    while "]" in words:
        end = words.index("]")
        begin = max(i for i in range(end) if words[i].startswith("["))
        numbers = sorted(map(int, words[begin + 1 : end]))
        middle = (numbers[(len(numbers) - 1) // 2] + numbers[len(numbers) // 2]) // 2
        value = {"[MIN": numbers[0], "[MAX": numbers[-1], "[MED": middle, "[SM": sum(numbers) % 10}[words[begin]]
        words[begin : end + 1] = [str(value)]
    (word,) = words
    return int(word)


@pytest.fixture(scope="module")
def data() -> ListOps:
    return generate_listops(3000, min_length=3, max_length=200, seed=1)


@pytest.mark.parametrize(("text", "value"), BY_HAND)
def test_values_by_hand(text, value):
    words = [word for word in text.split() if word not in "()"]
    assert evaluate(text) == evaluate(words) == value_by_rewriting(words) == value
    assert evaluate([VOCABULARY.index(word) for word in words]) == value
    assert evaluate(torch.tensor([VOCABULARY.index(word) for word in words])) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[MIN 1 2", "0 complete expressions and 1 open operators, expected 1 and 0"),
        ("1 2", "2 complete expressions"),
        ("", "0 complete expressions"),
        ("[MIN ]", r"tokens\[1\] = ']', expected"),
        ("1 ]", r"tokens\[1\] = ']'"),
        ("[MIN 1 [FIRST 2 ] ]", r"tokens\[2\] = '\[FIRST'"),
        ("<cls> 1", r"tokens\[0\] = '<cls>'"),
    ],
)
def test_what_is_no_expression(text, message):
    with pytest.raises(ValueError, match=message):
        evaluate(text)


def test_labels_are_the_values(data):
    for i in range(len(data)):
        words = data.text(i).split()
        assert int(data.labels[i]) == evaluate(data[i][0]) == value_by_rewriting(words)


def test_published_lengths_and_shape():
    data = generate_listops(64)
    lengths = data.offsets.diff()
    assert lengths.min() > 500
    assert lengths.max() < 2000
    for i in range(0, 64, 8):
        depth = deepest = 0
        arguments, stack = [], [0]
        for word in data.text(i).split():
            if word == "]":
                arguments.append(stack.pop())
                depth -= 1
            else:
                stack[-1] += 1
                if word.startswith("["):
                    stack.append(0)
                    depth += 1
                    deepest = max(deepest, depth)
        assert stack == [1]
        assert deepest <= 9  # digits at depth 10
        assert (min(arguments), max(arguments)) == (2, 10)


def test_bounds_of_the_length_are_excluded():
    lengths = generate_listops(1500, min_length=4, max_length=8, seed=3).offsets.diff()
    assert lengths.unique().tolist() == [5, 6, 7]


def test_law_of_the_nodes():
    # One level below the root, lengths all but unbounded: the children are drawn at depth 2 with nothing selected.
    data = generate_listops(4000, min_length=3, max_length=10**6, max_depth=3, seed=5)
    counts, root = np.zeros(len(VOCABULARY)), np.zeros(len(VOCABULARY))
    children = []
    for i in range(len(data)):
        row = data[i][0].tolist()
        root[row[0]] += 1
        depth, number = 1, 0
        for token in row[1:-1]:
            word = VOCABULARY[token]
            if depth == 1 and word != "]":
                counts[token] += 1
                number += 1
            depth += word.startswith("[") - (word == "]")
        children.append(number)
    digits, operators = counts[2:12], counts[12:16]
    total = counts.sum()
    # Distinct sequences only: short ones of digits alone repeat a little, which shifts the share of digits down.
    assert digits.sum() / total == pytest.approx(0.75, abs=0.015)
    assert digits / digits.sum() == pytest.approx(np.full(10, 0.1), abs=0.01)
    assert operators / operators.sum() == pytest.approx(np.full(4, 0.25), abs=0.025)
    assert root[12:16] / len(data) == pytest.approx(np.full(4, 0.25), abs=0.035)
    assert np.bincount(children, minlength=11)[2:] / len(data) == pytest.approx(np.full(9, 1 / 9), abs=0.025)


def test_distinct_reproducible_and_a_prefix_of_more(data):
    assert len({bytes(data[i][0].tolist()) for i in range(len(data))}) == len(data)
    again = generate_listops(3000, min_length=3, max_length=200, seed=1)
    fewer = generate_listops(70, min_length=3, max_length=200, seed=1)
    other = generate_listops(70, min_length=3, max_length=200, seed=2)
    for name in ("tokens", "offsets", "labels"):
        torch.testing.assert_close(getattr(again, name), getattr(data, name), rtol=0, atol=0)
    assert all(fewer.text(i) == data.text(i) for i in range(70))
    assert not any(other.text(i) == data.text(i) for i in range(70))


def test_the_stream_of_a_seed_is_fixed():
    assert generate_listops(1, min_length=5, max_length=12, seed=0).text(0) == "[MED 2 2 2 6 1 1 4 ]"


def test_batches(data):
    rows = [data[i] for i in (5, 0, 7)]
    tokens, valid, labels = data.batch([5, 0, 7])
    assert tokens.dtype == torch.int64
    assert labels.tolist() == [label for _, label in rows]
    assert valid.sum(1).tolist() == [1 + len(row) for row, _ in rows]
    assert tokens.shape[1] == valid.sum(1).max()
    for out, mask, (row, _) in zip(tokens, valid, rows, strict=True):
        assert out[mask].tolist() == [VOCABULARY.index("<cls>"), *row.tolist()]
        assert not out[~mask].any()
    plain, valid, _ = data.batch(torch.tensor([7]), cls=False)
    assert plain[0].tolist() == data[7][0].tolist()
    assert valid.all()
    assert data[-1][0].tolist() == data[len(data) - 1][0].tolist()
    with pytest.raises(IndexError, match="index 3000, expected one of 3000"):
        data[3000]
    empty = generate_listops(0)
    assert len(empty) == 0
    assert empty.batch([])[0].shape[0] == 0


def test_splits_are_disjoint_and_cached(tmp_path):
    settings = {"min_length": 10, "max_length": 100, "seed": 4}
    splits = listops_splits(50, 20, 10, cache=tmp_path / "a", **settings)
    assert {name: len(split) for name, split in splits.items()} == {"train": 50, "valid": 20, "test": 10}
    texts = [split.text(i) for split in splits.values() for i in range(len(split))]
    assert len(set(texts)) == 80
    whole = generate_listops(80, **settings)
    assert texts == [whole.text(i) for i in range(80)]
    (path,) = (tmp_path / "a").iterdir()  # nothing unfinished beside it
    assert path.name == "listops-1-80-10-100-10-10-4.npz"
    written = path.stat().st_mtime_ns
    again = listops_splits(50, 20, 10, cache=tmp_path / "a", **settings)
    assert path.stat().st_mtime_ns == written
    assert [s.text(i) for s in again.values() for i in range(len(s))] == texts
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"npz: damaged cache .*; remove it"):
        listops_splits(50, 20, 10, cache=tmp_path / "a", **settings)
    with pytest.raises(ValueError, match="valid=-1, expected at least 0"):
        listops_splits(5, -1, 5)


def test_reads_official_files(tmp_path):
    path = tmp_path / "basic_train.tsv"
    rows = [(text, value) for text, value in BY_HAND if text != "7"]
    path.write_bytes(b"Source\tTarget\r\n" + "".join(f"{text}\t{value}\r\n" for text, value in rows).encode())
    data = read_listops(path)
    assert data.labels.tolist() == [value for _, value in rows]
    assert [evaluate(data[i][0]) for i in range(len(data))] == data.labels.tolist()
    assert data.text(9) == "[MAX 4 3 [MIN 2 3 ] ]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Text\tTarget\n1\t1\n", r":1: header \['Text', 'Target'\], expected Source and Target"),
        ("Source\tTarget\n[MIN 1 2 ]\t1\n[MIN 1 x ]\t1\n", r":3: token 'x', expected one of"),
        ("Source\tTarget\n[MIN 1 2 ]\t10\n", r":2: Target '10', expected 0 to 9"),
        ("Source\tTarget\n[MIN 1 2 ]\n", r":2: 1 columns, expected Source and Target"),
        ("", r":1: header None"),
    ],
)
def test_malformed_files_name_the_line(tmp_path, text, message):
    path = tmp_path / "a.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.tsv" + message):
        read_listops(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_listops(tmp_path / "a.tsv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": -1}, "count=-1, expected at least 0"),
        ({"min_length": 0}, "min_length=0, expected at least 1"),
        ({"min_length": 9, "max_length": 10}, "max_length=10, expected more than 10"),
        ({"min_length": 1, "max_length": 4}, "max_length=4, expected more than 4"),
        ({"max_depth": 1}, "max_depth=1, expected at least 2"),
        ({"max_args": 1}, "max_args=1, expected at least 2"),
    ],
)
def test_arguments_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        generate_listops(**{"count": 1, **settings})


def test_more_than_there_are():
    with pytest.raises(ValueError, match=r"count=401, expected fewer: only 400 distinct"):
        generate_listops(401, min_length=3, max_length=5, max_depth=2, max_args=2)


def test_progress_does_not_change_the_draw(capsys):
    pytest.importorskip("tqdm")
    a, b = (generate_listops(20, min_length=10, max_length=50, progress=progress) for progress in (True, False))
    torch.testing.assert_close(a.tokens, b.tokens, rtol=0, atol=0)
    assert capsys.readouterr() == ("", "")  # no terminal, no bar
