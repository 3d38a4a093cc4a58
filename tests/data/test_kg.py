# SPDX-License-Identifier: Apache-2.0
"""Readers of knowledge graph files: formats, vocabularies, error texts, the data sets at hand."""

import lzma
from pathlib import Path

import pytest
import torch
from innerloop.data import load_embedded, read_kg, read_triples
from processes import run_python

TRIPLES = [("a", "likes", "b"), ("b", "likes", "c"), ("c", "knows", "a"), ("ü 1", "knows", "a")]


def write(path: Path, rows, end="\n", xz=False) -> Path:
    data = "".join("\t".join(row) + end for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(data) if xz else data)
    return path


def write_pair(root: Path, valid=None, facts=None, test=None) -> Path:
    """An inductive pair: X of TRIPLES, X_ind of other entities."""
    write(root / "X/train.txt", TRIPLES)
    write(root / "X/valid.txt", valid or [("a", "knows", "c")])
    write(root / "X_ind/train.txt", facts or [("p", "knows", "q"), ("q", "likes", "r")])
    write(root / "X_ind/test.txt", test or [("p", "likes", "r")])
    return root / "X"


def test_reads_plain_xz_crlf_and_a_last_line_without_end(tmp_path):
    plain = write(tmp_path / "a.txt", TRIPLES)
    assert read_triples(plain) == TRIPLES
    assert read_triples(write(tmp_path / "a.txt.xz", TRIPLES, xz=True)) == TRIPLES
    assert read_triples(write(tmp_path / "crlf.txt", TRIPLES, end="\r\n")) == TRIPLES
    plain.write_bytes(plain.read_bytes().removesuffix(b"\n"))
    assert read_triples(plain) == TRIPLES
    plain.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())  # byte order mark
    assert read_triples(plain) == TRIPLES


def test_only_newline_ends_a_line(tmp_path):
    rows = [("a\u2028b", "r\x85", "c\x0b")]
    assert read_triples(write(tmp_path / "a.txt", rows)) == rows


def test_duplicates_are_dropped_with_a_warning(tmp_path):
    path = write(tmp_path / "a.txt", [*TRIPLES, TRIPLES[1]])
    with pytest.warns(UserWarning, match=r"a\.txt: dropped 1 duplicate"):
        assert read_triples(path) == TRIPLES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tr\tb\na\tr\n", r"bad\.txt:2: expected 3 tab-separated columns, found 2"),
        (b"a\tr\tb\tx\n", r"bad\.txt:1: expected 3 tab-separated columns, found 4"),
        (b"a\tr\tb\n\na\tr\tc\n", r"bad\.txt:2: expected 3 tab-separated columns, found 1"),
        (b"a r b\n", r"bad\.txt:1: expected 3 tab-separated columns, found 1"),
        (b"a\tr\tb\na\t\tb\n", r"bad\.txt:2: column 2 is empty"),
        (b"a\tr\tb\r\na\tr\t\r\n", r"bad\.txt:2: column 3 is empty"),
        (b"a\tr\tb\nc\tr\t\xff\n", r"bad\.txt:2: not UTF-8"),
    ],
)
def test_malformed_line(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_triples(path)


def test_damaged_xz(tmp_path):
    path = write(tmp_path / "a.txt.xz", TRIPLES, xz=True)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.txt\.xz: not a complete xz file"):
        read_triples(path)
    path.write_bytes(b"plain text")
    with pytest.raises(ValueError, match=r"a\.txt\.xz: not a complete xz file"):
        read_triples(path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_kg(tmp_path / "X")
    write(tmp_path / "X/train.txt", TRIPLES)
    with pytest.raises(FileNotFoundError, match=r"neither valid\.txt nor valid\.txt\.xz"):
        read_kg(tmp_path / "X")


@pytest.mark.parametrize("empty", ["train", "valid", "test"])
def test_empty_file(tmp_path, empty):
    for stem in ("train", "valid", "test"):
        write(tmp_path / f"X/{stem}.txt", [] if stem == empty else TRIPLES)
    with pytest.raises(ValueError, match=rf"{empty}\.txt: holds no triples"):
        read_kg(tmp_path / "X")


def test_transductive(tmp_path):
    write(tmp_path / "X/train.txt", TRIPLES)
    write(tmp_path / "X/valid.txt", [("a", "knows", "c")])
    write(tmp_path / "X/test.txt", [("b", "knows", "new")])
    write(tmp_path / "X/entity_names.txt", [("a", "Anna"), ("b", "Ben")])
    kg = read_kg(tmp_path / "X")
    assert (kg.name, kg.inductive, list(kg.relations)) == ("X", False, ["likes", "knows"])
    assert kg.test.entities == ["a", "b", "c", "ü 1", "new"]
    assert kg.test.names == ["Anna", "Ben", "c", "ü 1", "new"]
    assert kg.train.facts.tolist() == [[0, 0, 1], [1, 0, 2], [2, 1, 0], [3, 1, 0]]
    assert kg.train.facts.dtype == torch.int64
    assert kg.train.facts is kg.valid.facts is kg.test.facts
    assert kg.valid.targets.tolist() == [[0, 1, 2]]
    known = [*kg.train.facts.tolist(), [0, 1, 2], [1, 1, 4]]
    for split in (kg.train, kg.valid, kg.test):
        assert split.filter.tolist() == known


def test_inductive(tmp_path):
    kg = read_kg(write_pair(tmp_path))
    assert kg.inductive
    assert list(kg.relations) == ["likes", "knows"]
    assert kg.valid.facts is kg.train.facts
    assert kg.valid.filter is kg.train.facts
    assert kg.test.entities == ["p", "q", "r"]
    assert kg.test.facts.tolist() == [[0, 1, 1], [1, 0, 2]]
    assert kg.test.filter is kg.test.facts
    assert kg.test.targets.tolist() == [[0, 0, 2]]
    assert kg.test.names is None


def test_relations_can_be_numbered_as_in_a_trained_model(tmp_path):
    folder = write_pair(tmp_path)
    kg = read_kg(folder, relations=["knows", "other", "likes"])
    assert kg.num_relations == 3
    assert kg.train.facts[:, 1].tolist() == [2, 2, 0, 0]
    with pytest.raises(ValueError, match=r"train\.txt:3: relation 'knows' does not occur"):
        read_kg(folder, relations=["likes"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"facts": [("p", "knows", "q"), ("p", "hates", "r")]},
            r"X_ind.train\.txt:2: relation 'hates' does not occur in the training facts",
        ),
        ({"test": [("p", "hates", "q")]}, r"X_ind.test\.txt:1: relation 'hates'"),
        ({"valid": [("a", "hates", "b")]}, r"X.valid\.txt:1: relation 'hates'"),
        (
            {"test": [("p", "knows", "q"), ("p", "knows", "z")]},
            r"X_ind.test\.txt:2: entity 'z' does not occur in .*X_ind.train\.txt",
        ),
        ({"valid": [("p", "knows", "a")]}, r"X.valid\.txt:1: entity 'p' does not occur in"),
    ],
)
def test_vocabulary_errors_of_an_inductive_pair(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_kg(write_pair(tmp_path, **rows))


def test_line_number_counts_dropped_duplicates(tmp_path):
    rows = [("p", "knows", "q"), ("p", "knows", "q"), ("p", "hates", "q")]
    with (
        pytest.warns(UserWarning, match="dropped 1"),
        pytest.raises(ValueError, match=r"train\.txt:3: relation 'hates'"),
    ):
        read_kg(write_pair(tmp_path, facts=rows))


@pytest.mark.parametrize(
    ("name", "train", "valid", "ind", "test"),
    [
        ("fb237_v1", (1594, 180, 4245), 489, (1093, 1993), 205),
        ("WN18RR_v1", (2746, 9, 5410), 630, (922, 1618), 188),
    ],
)
def test_embedded(name, train, valid, ind, test):
    kg = load_embedded(name.lower())
    assert kg.name == name
    assert (kg.train.num_entities, kg.num_relations, len(kg.train.facts)) == train
    assert len(kg.valid.targets) == valid
    assert (kg.test.num_entities, len(kg.test.facts)) == ind
    assert len(kg.test.targets) == test


def test_unknown_embedded_name():
    with pytest.raises(ValueError, match=r"'fb15k' does not ship .* embedded: fb237_v1, wn18rr_v1"):
        load_embedded("fb15k")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("fb15k-237", (14541, 237, 272115, 17535, 20466)),
        ("wn18rr", (40943, 11, 86835, 3034, 3134)),
        ("kinship", (104, 25, 8544, 1068, 1074)),
        ("nations", (14, 55, 1592, 199, 201)),
        ("umls", (135, 46, 5216, 652, 661)),
    ],
)
def test_shared_transductive(name, counts, shared_data):
    kg = read_kg(shared_data / "kg" / name)
    sizes = [len(split.targets) for split in (kg.train, kg.valid, kg.test)]
    assert (kg.test.num_entities, kg.num_relations, *sizes) == counts
    assert len(kg.test.filter) == sum(sizes)
    if name == "fb15k-237":
        assert kg.train.names[0] == "languages of dominican republic (Q786)"


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("fb237_v1", (1594, 180, 4245, 489, 1093, 1993, 205)),
        ("fb237_v2", (2608, 200, 9739, 1166, 1660, 4145, 478)),
        ("fb237_v3", (3668, 215, 17986, 2194, 2501, 7406, 865)),
        ("fb237_v4", (4707, 219, 27203, 3352, 3051, 11714, 1424)),
        ("WN18RR_v1", (2746, 9, 5410, 630, 922, 1618, 188)),
        ("WN18RR_v2", (6954, 10, 15262, 1838, 2757, 4011, 441)),
        ("WN18RR_v3", (12078, 11, 25901, 3097, 5084, 6327, 605)),
        ("WN18RR_v4", (3861, 9, 7940, 934, 7084, 12334, 1429)),
        ("nell_v1", (3103, 14, 4687, 414, 225, 833, 100)),
        ("nell_v2", (2564, 88, 8219, 922, 2086, 4586, 476)),
        ("nell_v3", (4647, 142, 16393, 1851, 3566, 8048, 809)),
        ("nell_v4", (2092, 76, 7546, 876, 2795, 7073, 731)),
    ],
)
def test_shared_inductive(name, counts, shared_data):
    kg = read_kg(shared_data / "kg" / "grail" / name)
    assert kg.inductive
    assert counts == (
        kg.train.num_entities,
        kg.num_relations,
        len(kg.train.facts),
        len(kg.valid.targets),
        kg.test.num_entities,
        len(kg.test.facts),
        len(kg.test.targets),
    )


def test_importing_data_does_not_import_lightning():
    run_python("import sys, innerloop.data; assert 'pytorch_lightning' not in sys.modules")
