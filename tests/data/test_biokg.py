# SPDX-License-Identifier: Apache-2.0
"""The reader of ogbl-biokg: ids, negatives, file formats of old and new torch and numpy, error texts."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from biokg import COUNTS, ENDS, SIZES, tables, write_biokg, write_csv
from innerloop.data import find_dataset, read_biokg
from innerloop.data.biokg import _ARRAY_GLOBALS


def test_entities_are_numbered_by_type_in_the_order_of_the_file(tmp_path):
    splits = tables()
    kg = read_biokg(write_biokg(tmp_path / "ogbl_biokg", splits))
    assert (kg.name, kg.inductive, list(kg.relations)) == ("ogbl-biokg", False, ["0", "1", "2"])
    assert kg.test.entities == [f"{kind}:{i}" for kind, count in COUNTS.items() for i in range(count)]
    assert kg.test.names is None
    assert kg.train.types.tolist() == [0] * 12 + [1] * 5 + [2] * 9
    for stem, split in (("train", kg.train), ("valid", kg.valid), ("test", kg.test)):
        table = splits[stem]
        assert split.targets.dtype == torch.int64
        for i, (h, r, t) in enumerate(split.targets.tolist()):
            assert split.entities[h] == f"{table['head_type'][i]}:{table['head'][i]}"
            assert split.entities[t] == f"{table['tail_type'][i]}:{table['tail'][i]}"
            assert r == table["relation"][i]
            if stem == "train":
                continue
            for column, side in enumerate(("tail", "head")):
                expected = [f"{table[f'{side}_type'][i]}:{j}" for j in table[f"{side}_neg"][i]]
                assert [split.entities[v] for v in split.negatives[i, column]] == expected


def test_splits_share_their_facts(tmp_path):
    kg = read_biokg(write_biokg(tmp_path / "x"))
    assert kg.train.targets is kg.train.facts is kg.train.filter
    assert kg.valid.facts is kg.test.facts is kg.train.facts
    assert len(kg.valid.filter) == sum(SIZES.values())
    assert kg.train.negatives is None
    assert (kg.valid.negatives.shape, kg.test.negatives.shape) == ((9, 2, 6), (7, 2, 6))
    assert kg.valid.negatives.dtype == torch.int32


def test_arrays_tensors_and_old_files_hold_the_same(tmp_path):
    expected = read_biokg(write_biokg(tmp_path / "numpy"))
    as_tensors = {
        stem: {k: torch.from_numpy(v).int() if isinstance(v, np.ndarray) else v for k, v in table.items()}
        for stem, table in tables().items()
    }
    old = write_biokg(tmp_path / "old", _use_new_zipfile_serialization=False)
    for file in (old / "split/random").iterdir():  # the name that numpy 1 wrote, and numpy 2 writes
        data = file.read_bytes()
        names = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
        assert any(name in data for name in names)
        file.write_bytes(data.replace(*names))
    for folder in (write_biokg(tmp_path / "tensors", as_tensors), old):
        kg = read_biokg(folder)
        for split in ("train", "valid", "test"):
            assert torch.equal(getattr(kg, split).targets, getattr(expected, split).targets)
        assert torch.equal(kg.test.negatives, expected.test.negatives)


def test_find_dataset_knows_the_layout(tmp_path):
    folder = write_biokg(tmp_path / "any name")
    kg = find_dataset("", folder)
    assert kg.name == "ogbl-biokg"
    assert find_dataset("", folder, relations=kg.relations).relations == kg.relations
    with pytest.raises(ValueError, match=r"has 3 relations, \['0', '1', '2'\] \.\.\., expected \['1', '0', '2'\]"):
        find_dataset("", folder, relations=["1", "0", "2"])


def test_names_from_the_mapping(tmp_path):
    folder = write_biokg(tmp_path / "x")
    relation_file = write_csv(folder / "mapping/relidx2relname.csv.gz", 'rel idx,rel name\n1,"b, c"\n0,a\n2,d\n')
    for kind, count in COUNTS.items():
        rows = "".join(f"{i},{kind.upper()}{i}\n" for i in range(count))
        write_csv(folder / f"mapping/{kind}_entidx2name.csv.gz", "ent idx,ent name\n" + rows)
    kg = read_biokg(folder)
    assert kg.relations == ["a", "b, c", "d"]
    assert (kg.test.names[0], kg.test.names[12], kg.test.names[25]) == ("PROTEIN0", "DISEASE0", "DRUG8")
    write_csv(folder / "mapping/drug_entidx2name.csv.gz", "ent idx,ent name\n0,x\n")
    with pytest.raises(ValueError, match=r"drug_entidx2name\.csv\.gz: expected 9 rows index,name below the header"):
        read_biokg(folder)
    write_csv(relation_file, "rel idx,rel name\n0,a\n1,b\n")
    with pytest.raises(ValueError, match=r"\.pt: relation: 2 occurs, but .*relname\.csv\.gz has 2 relations"):
        read_biokg(folder)


class Runs:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: np.array([x, None], dtype=object)], ids=["plain", "array"])
def test_nothing_of_a_file_is_run(tmp_path, wrap):
    folder = write_biokg(tmp_path / "x")
    torch.save({"head": wrap(Runs(tmp_path / "ran"))}, folder / "split/random/train.pt")
    with pytest.raises(ValueError, match=r"train\.pt: not a file of torch\.save with tensors, integer arrays"):
        read_biokg(folder)
    assert not (tmp_path / "ran").exists()
    allowed = torch.serialization.get_safe_globals()
    assert not any(entry in allowed for entry in _ARRAY_GLOBALS)  # allowed for these files, and no longer


def test_pickle_protocol_that_torch_does_not_read(tmp_path):
    folder = write_biokg(tmp_path / "x", pickle_protocol=4)
    with pytest.raises(ValueError, match=r"train\.pt: written with a pickle protocol .*weights_only=False\), file\)"):
        read_biokg(folder)
    for file in (folder / "split/random").iterdir():  # what the message says
        torch.save(torch.load(file, weights_only=False), file)
    assert read_biokg(folder).num_relations == 3


def test_damaged_and_missing_files(tmp_path):
    folder = write_biokg(tmp_path / "x")
    test_file = folder / "split/random/test.pt"
    data = test_file.read_bytes()
    for damaged in (b"", b"text", data[: len(data) // 2]):
        test_file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"test\.pt: not a file of torch\.save"):
            read_biokg(folder)
    torch.save([1], test_file)
    with pytest.raises(ValueError, match=r"test\.pt: holds a list, expected a dict"):
        read_biokg(folder)
    test_file.unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.pt: no such file; expected the folder of ogbl-biokg"):
        read_biokg(folder)
    (folder / "raw/num-node-dict.csv.gz").write_bytes(b"drug\n3\n")
    with pytest.raises(ValueError, match=r"num-node-dict\.csv\.gz: not a readable csv\.gz file"):
        read_biokg(folder)
    (folder / "raw/num-node-dict.csv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"num-node-dict\.csv\.gz: no such file"):
        read_biokg(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drug,protein\n3\n", "expected a row of entity types and a row of as many counts, found 2 rows"),
        ("drug\n", "expected a row of entity types and a row of as many counts, found 1 rows"),
        ("drug,protein\n3,x\n", r"protein: is 'x', expected a number of entities"),
    ],
)
def test_malformed_counts(tmp_path, text, message):
    folder = write_biokg(tmp_path / "x")
    write_csv(folder / "raw/num-node-dict.csv.gz", text)
    with pytest.raises(ValueError, match=rf"num-node-dict\.csv\.gz: {message}"):
        read_biokg(folder)


def changed(array: np.ndarray, row: int, value: int) -> np.ndarray:
    array = array.copy()
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("stem", "field", "change", "message"),
    [
        ("train", "tail", lambda x: None, r"tail: missing; there are head, relation, head_type, tail_type"),
        ("test", "head_neg", lambda x: None, r"head_neg: missing; there are head, "),
        ("train", "head", lambda x: x.tolist(), r"head: is a list, expected an array or a tensor of integers"),
        ("train", "head", lambda x: torch.tensor(x).float(), r"head: is a Tensor of torch\.float32, expected an array"),
        ("train", "head", lambda x: x[1:], r"head: has shape \(79,\), expected \(80,\)"),
        ("train", "relation", lambda x: x[:, None], r"relation: has shape \(80, 1\), expected \(T,\)"),
        ("train", "relation", lambda x: x - 1, r"relation: expected at least one id, none below 0"),
        ("test", "relation", lambda x: x + 3, r"relation: [345] occurs, but .*train\.pt has 3 relations"),
        ("valid", "head_type", lambda x: x[1:], r"head_type: is a list of 8, expected a list of 9 strings"),
        ("valid", "head_type", lambda x: "drug", r"head_type: is a str, expected a list of 9 strings"),
        ("valid", "tail_type", lambda x: [*x[:4], "gene", *x[5:]], r"tail_type\[4\]: is 'gene', expected one of prot"),
        ("valid", "tail_type", lambda x: [*x[:4], [1], *x[5:]], r"tail_type\[4\]: is \[1\], expected one of protein"),
        ("valid", "tail", lambda x: changed(x, 3, 12), r"tail\[3\]: 12 is no id of its type, which has \d+ entities"),
        ("test", "head", lambda x: changed(x, 2, -1), r"head\[2\]: -1 is no id of its type"),
        ("test", "tail_neg", lambda x: changed(x, 5, 40), r"tail_neg\[5\]: 40 is no id of its type"),
        ("test", "tail_neg", lambda x: x[:, 0], r"tail_neg: has shape \(7,\), expected \(7, N\)"),
        ("test", "tail_neg", lambda x: x[:, 1:], r"tail_neg has 5 columns and head_neg 6, expected equally many"),
    ],
)
def test_malformed_fields(tmp_path, stem, field, change, message):
    splits = tables()
    value = change(splits[stem].pop(field))
    if value is not None:
        splits[stem][field] = value
    with pytest.raises(ValueError, match=rf"{stem}\.pt: {message}"):
        read_biokg(write_biokg(tmp_path / "x", splits))


def test_the_folder_of_these_tests_has_every_relation_in_training():
    assert set(tables()["train"]["relation"].tolist()) == set(range(len(ENDS)))
