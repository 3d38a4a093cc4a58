# SPDX-License-Identifier: Apache-2.0
"""ogbl-biokg in the files OGB distributes, read without the ``ogb`` package.

A folder with ``split/random/{train,valid,test}.pt`` and ``raw/num-node-dict.csv.gz``. The split files hold dicts:
``head``, ``relation``, ``tail`` (T integers each), ``head_type`` and ``tail_type`` (lists of T strings), and in valid
and test ``head_neg`` and ``tail_neg``, (T, 500) integers.

Entity ids are local to their type. Here an entity is its local id plus the number of entities of the types before its
own, in the order of the columns of ``num-node-dict.csv.gz``. OGB's own baselines number them so; the code of NBFNet
takes the types in the order in which the file system lists their files.

Names are read from ``mapping/relidx2relname.csv.gz`` and ``mapping/<type>_entidx2name.csv.gz`` where they are there.
"""

from __future__ import annotations

import csv
import gzip
import warnings
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innerloop.data.kg import KnowledgeGraph, Split

# What a pickled integer array is made of: two functions of numpy and its integer types. The same function has gone by
# two names, before and since numpy 2.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ARRAY_GLOBALS: list[Any] = [
    np.ndarray,
    np.dtype,
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    *{type(np.dtype(code)) for code in "bBhHiIlLqQ"},
]


def is_biokg(path: str | Path) -> bool:
    """Whether the folder has the layout of ogbl-biokg."""
    return (Path(path) / "split" / "random").is_dir()


def read_biokg(path: str | Path, *, relations: Sequence[str] | None = None) -> KnowledgeGraph:
    """Reads the folder of ogbl-biokg (``ogbl_biokg`` or ``biokg``, as unpacked).

    Args:
        path: the folder that holds ``split`` and ``raw``.
        relations: those of a trained model; they have to be the folder's.

    Returns:
        The graph, named ogbl-biokg. Every split has ``types``; ``valid`` and ``test`` have ``negatives``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, holds more than tensors, integer arrays, lists and strings (nothing of it is run
            then), is pickled by a protocol above 2, which torch does not read so, or a field does not have the shape,
            type or range above; the message names file and field.
    """
    path = Path(path)
    counts = _read_counts(_existing(path / "raw" / "num-node-dict.csv.gz"))
    types = torch.arange(len(counts)).repeat_interleave(torch.tensor(list(counts.values())))
    folder = path / "split" / "random"
    train, _ = _read_split(folder / "train.pt", counts, negatives=False)
    valid, valid_negatives = _read_split(folder / "valid.pt", counts, negatives=True)
    test, test_negatives = _read_split(folder / "test.pt", counts, negatives=True)

    relation_file = path / "mapping" / "relidx2relname.csv.gz"
    if relation_file.is_file():
        names = _read_names(relation_file)
    else:
        names = [str(r) for r in range(int(train[:, 1].max()) + 1)]
    for stem, triples in (("train", train), ("valid", valid), ("test", test)):
        largest = int(triples[:, 1].max())
        if largest >= len(names):
            where = relation_file if relation_file.is_file() else folder / "train.pt"
            raise ValueError(f"{folder / stem}.pt: relation: {largest} occurs, but {where} has {len(names)} relations")
    if relations is not None and list(relations) != names:
        raise ValueError(f"{path}: has {len(names)} relations, {names[:3]} ..., expected {list(relations)[:3]} ...")

    entities = [f"{kind}:{i}" for kind, count in counts.items() for i in range(count)]
    readable = _entity_names(path / "mapping", counts)
    known = torch.cat([train, valid, test])
    return KnowledgeGraph(
        "ogbl-biokg",
        names,
        # Training asks for no filter: with its facts here, one index serves all three splits.
        Split(train, train, train, entities, readable, types=types),
        Split(train, valid, known, entities, readable, valid_negatives, types),
        Split(train, test, known, entities, readable, test_negatives, types),
        inductive=False,
    )


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected the folder of ogbl-biokg as OGB distributes it")
    return file


def _read_rows(path: Path) -> list[list[str]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            return list(csv.reader(file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable csv.gz file ({error})") from error


def _read_counts(path: Path) -> dict[str, int]:
    """Number of entities by type, in the order of the columns."""
    rows = _read_rows(path)
    if len(rows) != 2 or len(rows[0]) != len(rows[1]) or not rows[0]:
        raise ValueError(f"{path}: expected a row of entity types and a row of as many counts, found {len(rows)} rows")
    for kind, count in zip(*rows, strict=True):
        if not count.strip().isdecimal():
            raise ValueError(f"{path}: {kind}: is {count!r}, expected a number of entities")
    return {kind: int(count) for kind, count in zip(*rows, strict=True)}


def _read_names(path: Path, count: int | None = None) -> list[str]:
    """Names in the order of their index: below one header, rows ``index,name``."""
    rows = _read_rows(path)[1:]
    names = {row[0]: row[1] for row in rows if len(row) == 2}
    expected = [str(i) for i in range(len(rows) if count is None else count)]
    if len(rows) != len(expected) or names.keys() != set(expected):
        raise ValueError(f"{path}: expected {len(expected)} rows index,name below the header, each index once")
    return [names[i] for i in expected]


def _entity_names(folder: Path, counts: dict[str, int]) -> list[str] | None:
    files = {kind: folder / f"{kind}_entidx2name.csv.gz" for kind in counts}
    if not all(file.is_file() for file in files.values()):
        return None
    return [name for kind, count in counts.items() for name in _read_names(files[kind], count)]


def _read_split(path: Path, counts: dict[str, int], negatives: bool) -> tuple[Tensor, Tensor | None]:
    """Triples, int64 (T, 3), and negatives, int32 (T, 2, N): [:, 0] tails, [:, 1] heads; ids are global."""
    table = _load(path)
    relation = _integers(path, table, "relation", 1)
    length = len(relation)
    if length == 0 or int(relation.min()) < 0:
        raise ValueError(f"{path}: relation: expected at least one id, none below 0")
    sides, given = {}, []
    for side in ("tail", "head"):
        offset, size = _offsets(path, table, f"{side}_type", counts, length)
        ids = _integers(path, table, side, 1, length)
        _check_range(path, side, ids[:, None], size)
        sides[side] = ids + offset
        if negatives:
            ids = _integers(path, table, f"{side}_neg", 2, length)
            _check_range(path, f"{side}_neg", ids, size)
            given.append((ids, offset))
    triples = torch.stack([sides["head"], relation, sides["tail"]], dim=1)
    if not negatives:
        return triples, None
    widths = [ids.shape[1] for ids, _ in given]
    if widths[0] != widths[1] or widths[0] == 0:
        raise ValueError(
            f"{path}: tail_neg has {widths[0]} columns and head_neg {widths[1]}, expected equally many, not 0"
        )
    # int32: the negatives of both splits are 0.65 GB each instead of 1.3.
    result = torch.empty(length, 2, widths[0], dtype=torch.int32)
    for column, (ids, offset) in enumerate(given):
        torch.add(ids, offset[:, None], out=result[:, column])
    return triples, result


def _load(path: Path) -> dict[str, Any]:
    file = _existing(path)
    try:
        with torch.serialization.safe_globals(_ARRAY_GLOBALS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # an error follows
            table = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files the unpickler raises whatever its steps do
        if "Unsupported operand" in str(error):
            raise ValueError(
                f"{path}: written with a pickle protocol that torch.load(weights_only=True) cannot read; if you trust "
                "the file, write it again: torch.save(torch.load(file, weights_only=False), file)"
            ) from error
        raise ValueError(
            f"{path}: not a file of torch.save with tensors, integer arrays, lists and strings only"
        ) from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: holds a {type(table).__name__}, expected a dict")
    return table


def _field(path: Path, table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise ValueError(f"{path}: {name}: missing; there are {', '.join(map(str, table)) or 'no fields'}")
    return table[name]


def _integers(path: Path, table: dict[str, Any], name: str, ndim: int, length: int | None = None) -> Tensor:
    value = _field(path, table, name)
    array = value.numpy() if isinstance(value, Tensor) else value
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        raise ValueError(f"{path}: {name}: is a {_kind(value)}, expected an array or a tensor of integers")
    if array.ndim != ndim or length not in (None, len(array)):
        rows = "T" if length is None else str(length)
        shape = f"({rows},)" if ndim == 1 else f"({rows}, N)"
        raise ValueError(f"{path}: {name}: has shape {tuple(array.shape)}, expected {shape}")
    return torch.from_numpy(np.ascontiguousarray(array, np.int64))


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__


def _offsets(
    path: Path, table: dict[str, Any], name: str, counts: dict[str, int], length: int
) -> tuple[Tensor, Tensor]:
    """First global id and number of entities of each row's type, int64 (T,) each."""
    value = _field(path, table, name)
    if not isinstance(value, list) or len(value) != length:
        size = f" of {len(value)}" if isinstance(value, list) else ""
        raise ValueError(f"{path}: {name}: is a {_kind(value)}{size}, expected a list of {length} strings")
    position = {kind: i for i, kind in enumerate(counts)}
    try:
        kinds = np.fromiter(map(position.__getitem__, value), np.int64, length)
    except (KeyError, TypeError):
        row = next(i for i, kind in enumerate(value) if kind not in list(counts))
        raise ValueError(f"{path}: {name}[{row}]: is {value[row]!r}, expected one of {', '.join(counts)}") from None
    sizes = list(counts.values())
    starts = [0, *accumulate(sizes)][:-1]
    rows = torch.from_numpy(kinds)
    return torch.tensor(starts)[rows], torch.tensor(sizes)[rows]


def _check_range(path: Path, name: str, ids: Tensor, size: Tensor) -> None:
    """ids (T, N), size (T,)"""
    if ids.shape[1] == 0:
        return
    low, high = ids.aminmax(dim=1)
    bad = (low < 0) | (high >= size)
    if bad.any():
        row = int(bad.nonzero()[0])
        value = int(low[row] if low[row] < 0 else high[row])
        raise ValueError(f"{path}: {name}[{row}]: {value} is no id of its type, which has {int(size[row])} entities")
