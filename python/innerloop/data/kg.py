# SPDX-License-Identifier: Apache-2.0
"""Knowledge graphs stored as text: one triple a line, ``head <tab> relation <tab> tail``.

Two layouts are read. A *transductive* set is a folder with ``train``, ``valid`` and ``test``
files; messages always pass over the training facts. An *inductive* pair (GraIL) is a folder ``X``
and its sibling ``X_ind``: training and validation use ``X/train`` and ``X/valid``, the test asks
``X_ind/test`` over the facts ``X_ind/train``, whose entities were never seen in training. Files
end in ``.txt`` or ``.txt.xz``.
"""

from __future__ import annotations

import lzma
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_EMBEDDED = Path(__file__).with_name("embedded")
#: Data sets that ship with the package, by the name ``load_embedded`` takes.
EMBEDDED = {"fb237_v1": "fb237_v1", "wn18rr_v1": "WN18RR_v1"}


@dataclass(frozen=True)
class Split:
    """One split: questions, and the graph they are asked on.

    Attributes:
        facts: int64 (F, 3), rows (head, relation, tail); the graph messages pass over.
        targets: int64 (T, 3), the triples to predict.
        filter: int64 (K, 3), triples known to be true, left out when a target is ranked.
        entities: entity tokens; entity id = position. Candidates are all of them.
        names: readable name of each entity where a names file is present, else None.
        negatives: integers (T, 2, N), the candidates each target is ranked against where the data set fixes them:
            [:, 0] in place of its tail, [:, 1] in place of its head. None ranks against all entities but ``filter``.
        types: int64 (V,), not decreasing, the type of each entity; negatives of training then have the type of the true
            answer. None if entities have no types.
    """

    facts: Tensor
    targets: Tensor
    filter: Tensor
    entities: Sequence[str]
    names: Sequence[str] | None = None
    negatives: Tensor | None = None
    types: Tensor | None = None

    @property
    def num_entities(self) -> int:
        return len(self.entities)


@dataclass(frozen=True)
class KnowledgeGraph:
    """A knowledge graph with its three splits; relation ids are shared, inverses not included.

    Attributes:
        name: data set name (the folder's).
        relations: relation tokens; relation id = position, numbered over the training files.
        train, valid, test: the splits. ``train.targets`` is ``train.facts``.
        inductive: True if the test split has a graph of its own.
    """

    name: str
    relations: Sequence[str]
    train: Split
    valid: Split
    test: Split
    inductive: bool

    @property
    def num_relations(self) -> int:
        return len(self.relations)


def read_triples(path: str | Path) -> list[tuple[str, str, str]]:
    """Reads the tab-separated triples of one file, in file order, duplicates dropped.

    Args:
        path: a ``.txt`` or ``.txt.xz`` file, UTF-8, lines ending in LF or CRLF.

    Returns:
        (head, relation, tail) tokens.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or malformed; then the message starts with ``path:line``.

    Warns:
        UserWarning: a triple occurs more than once; facts are a set, so copies are dropped.
    """
    rows = _read_rows(Path(path), 3)
    if not rows:
        raise ValueError(f"{path}: holds no triples")
    unique = list(dict.fromkeys(rows))
    if len(unique) < len(rows):
        warnings.warn(f"{path}: dropped {len(rows) - len(unique)} duplicate triples", stacklevel=2)
    return unique


def read_kg(
    path: str | Path, *, inductive: bool | None = None, relations: Sequence[str] | None = None
) -> KnowledgeGraph:
    """Reads a transductive folder or an inductive pair of folders.

    Args:
        path: the folder ``X`` that holds ``train``, ``valid``, ``test`` (``.txt`` or ``.txt.xz``).
        inductive: None takes a sibling folder ``X_ind`` as the sign of an inductive pair.
        relations: number relations in this order (that of a trained model) instead of the order of
            their first occurrence in the training file.

    Returns:
        The graph. Entities are numbered in the order of their first occurrence.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: a file is malformed or empty, a relation does not occur in training, or, in an
            inductive pair, a target names an entity that its fact graph lacks.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    path = path.resolve()
    sibling = path.with_name(path.name + "_ind")
    if inductive is None:
        inductive = sibling.is_dir()
    fact_file, valid_file = _find(path, "train"), _find(path, "valid")
    facts, valid = read_triples(fact_file), read_triples(valid_file)
    if relations is None:
        relation_ids = _number(r for _, r, _ in facts)
    else:
        relation_ids = {relation: i for i, relation in enumerate(relations)}
        _check_relations(fact_file, facts, relation_ids, "the relations asked for")
    _check_relations(valid_file, valid, relation_ids)
    names = _read_names(path)

    if inductive:
        ind_file, test_file = _find(sibling, "train"), _find(sibling, "test")
        ind_facts, test = read_triples(ind_file), read_triples(test_file)
        _check_relations(ind_file, ind_facts, relation_ids)
        _check_relations(test_file, test, relation_ids)
        train_split, valid_split = _splits(facts, [valid], relation_ids, names)
        _check_entities(valid_file, valid, facts, fact_file)
        _check_entities(test_file, test, ind_facts, ind_file)
        _, test_split = _splits(ind_facts, [test], relation_ids, _read_names(sibling) or names)
    else:
        test_file = _find(path, "test")
        test = read_triples(test_file)
        _check_relations(test_file, test, relation_ids)
        train_split, valid_split, test_split = _splits(facts, [valid, test], relation_ids, names)
        known = torch.cat([train_split.facts, valid_split.targets, test_split.targets])
        train_split, valid_split, test_split = (
            Split(s.facts, s.targets, known, s.entities, s.names) for s in (train_split, valid_split, test_split)
        )
    return KnowledgeGraph(path.name, list(relation_ids), train_split, valid_split, test_split, inductive)


def load_embedded(name: str, *, relations: Sequence[str] | None = None) -> KnowledgeGraph:
    """Loads a data set that ships with the package: ``fb237_v1`` or ``wn18rr_v1``."""
    folder = EMBEDDED.get(name.lower())
    if folder is None:
        raise ValueError(
            f"dataset {name!r} does not ship with innerloop; embedded: {', '.join(EMBEDDED)}; "
            "others are read from a folder (--data PATH)"
        )
    return read_kg(_EMBEDDED / folder, relations=relations)


def _find(folder: Path, stem: str) -> Path:
    for suffix in (".txt", ".txt.xz"):
        file = folder / (stem + suffix)
        if file.is_file():
            return file
    raise FileNotFoundError(f"{folder}: holds neither {stem}.txt nor {stem}.txt.xz")


def _read_rows(path: Path, columns: int) -> list[tuple[str, ...]]:
    try:
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
    except lzma.LZMAError as error:
        raise ValueError(f"{path}: not a complete xz file ({error})") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason})") from error
    # Only \n ends a line: str.splitlines would also split at characters that tokens may hold.
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    rows = [tuple(line.split("\t")) for line in lines]
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise ValueError(f"{path}:{number}: expected {columns} tab-separated columns, found {len(row)}")
        if "" in row:
            raise ValueError(f"{path}:{number}: column {row.index('') + 1} is empty")
    return rows


def _read_names(folder: Path) -> dict[str, str] | None:
    try:
        path = _find(folder, "entity_names")
    except FileNotFoundError:
        return None
    return dict(_read_rows(path, 2))


def _number(tokens: Iterable[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def _splits(
    facts: list[tuple[str, str, str]],
    targets: list[list[tuple[str, str, str]]],
    relation_ids: dict[str, int],
    names: dict[str, str] | None,
) -> list[Split]:
    """The training split of ``facts`` and one more split per list of targets, in one numbering."""
    files = [facts, *targets]
    entity_ids = _number(token for rows in files for h, _, t in rows for token in (h, t))
    entities = list(entity_ids)
    readable = None if names is None else [names.get(token, token) for token in entities]
    ids = [
        np.array(
            [
                [entity_ids[h] for h, _, _ in rows],
                [relation_ids[r] for _, r, _ in rows],
                [entity_ids[t] for _, _, t in rows],
            ],
            dtype=np.int64,
        )
        for rows in files
    ]
    tensors = [torch.from_numpy(columns.T.copy()) for columns in ids]
    fact = tensors[0]
    return [Split(fact, target, fact, entities, readable) for target in tensors]


def _check_relations(
    path: Path,
    rows: list[tuple[str, str, str]],
    relation_ids: dict[str, int],
    where: str = "the training facts",
) -> None:
    for head, relation, tail in rows:
        if relation not in relation_ids:
            line = _line_of(path, (head, relation, tail))
            raise ValueError(f"{path}:{line}: relation {relation!r} does not occur in {where}")


def _check_entities(
    path: Path,
    rows: list[tuple[str, str, str]],
    facts: list[tuple[str, str, str]],
    fact_file: Path,
) -> None:
    known = {h for h, _, _ in facts} | {t for _, _, t in facts}
    for row in rows:
        for token in (row[0], row[2]):
            if token not in known:
                raise ValueError(f"{path}:{_line_of(path, row)}: entity {token!r} does not occur in {fact_file}")


def _line_of(path: Path, row: tuple[str, str, str]) -> int:
    """1-based line of a row; read again, since dropped duplicates shift positions."""
    return _read_rows(path, 3).index(row) + 1
