# SPDX-License-Identifier: Apache-2.0
"""ListOps of Long Range Arena (Tay et al., ICLR 2021; Nangia and Bowman, 2018): nested list operations, ten classes.

A node is a digit with probability 3/4, at the greatest depth always; else one of MIN, MAX, MED, SM with 2 to 10 nodes
as arguments, all choices uniform. MED is the integer part of the median, SM the sum modulo 10. A digit is one token and
an operator two, ``[MAX`` and ``]``; a sequence is kept when its number of tokens lies strictly between two bounds. The
parentheses of the official files carry no information and are dropped, as the official input pipeline does.

Trees are drawn level by level, thousands at a time: no Python loop runs over nodes.
"""

from __future__ import annotations

import csv
import hashlib
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["VOCABULARY", "ListOps", "evaluate", "generate_listops", "listops_splits", "read_listops"]

#: Token id = position. ``<cls>`` is for models that classify from a token of their own; no sequence holds it.
VOCABULARY = ("<pad>", "<cls>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
PAD, CLS, _ZERO, _OPERATOR, _CLOSE = (VOCABULARY.index(token) for token in ("<pad>", "<cls>", "0", "[MIN", "]"))
_IDS = {token: i for i, token in enumerate(VOCABULARY)}
_TREES = 4096  # drawn at a time; part of what a seed means
_VALUE_PROBABILITY = 0.75
_FORMAT = 1  # of a cache file and of the stream of a seed; goes into the cache file's name


@dataclass(frozen=True)
class ListOps:
    """Sequences and their values, all sequences behind one another.

    Attributes:
        tokens: uint8 (T,), ids of ``VOCABULARY``.
        offsets: int64 (n + 1,); sequence i is ``tokens[offsets[i] : offsets[i + 1]]``.
        labels: int64 (n,), 0 to 9.
    """

    tokens: Tensor
    offsets: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Sequence ``index``, int64 (L,), and its label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"ListOps: index {index}, expected one of {len(self)} sequences")
        index %= len(self)
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].long(), int(self.labels[index])

    def batch(self, indices: Iterable[int], *, cls: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The sequences ``indices``, padded to the longest of them.

        Args:
            indices: B positions.
            cls: puts ``<cls>`` before each sequence.

        Returns:
            tokens int64 (B, L), valid bool (B, L) (False at padding), labels int64 (B,).
        """
        rows = [self[int(i)] for i in indices]
        length = max((len(row) for row, _ in rows), default=0) + cls
        tokens = torch.full((len(rows), length), PAD)
        for out, (row, _) in zip(tokens, rows, strict=True):
            out[cls : cls + len(row)] = row
            if cls:
                out[0] = CLS
        return tokens, tokens != PAD, torch.tensor([label for _, label in rows], dtype=torch.int64)

    def text(self, index: int) -> str:
        """Sequence ``index`` as words with blanks between."""
        return " ".join(VOCABULARY[i] for i in self[index][0].tolist())


def evaluate(tokens: str | Sequence[str] | Sequence[int] | Tensor) -> int:
    """The value of one sequence.

    Args:
        tokens: a text with blanks between the tokens, its words, or ids of ``VOCABULARY``. Parentheses are passed over.

    Returns:
        0 to 9.

    Raises:
        ValueError: a token that is none, an operator without arguments or without its end, or more than one expression.
    """
    words = tokens.split() if isinstance(tokens, str) else tokens.tolist() if isinstance(tokens, Tensor) else tokens
    stack: list[list] = [[None]]  # operator, then its arguments; the bottom takes the whole expression
    for position, word in enumerate(words):
        token = _IDS.get(word, -1) if isinstance(word, str) else int(word)
        if word in ("(", ")"):
            continue
        if _ZERO <= token < _OPERATOR:
            stack[-1].append(token - _ZERO)
        elif _OPERATOR <= token < _CLOSE:
            stack.append([token])
        elif token == _CLOSE and len(stack) > 1 and len(stack[-1]) > 1:
            operator, *values = stack.pop()
            stack[-1].append(_APPLY[operator - _OPERATOR](values))
        else:
            raise ValueError(
                f"evaluate: tokens[{position}] = {word!r}, expected a digit, an operator or the end of one"
            )
    if len(stack) > 1 or len(stack[0]) != 2:
        raise ValueError(
            f"evaluate: tokens hold {len(stack[0]) - 1} complete expressions and {len(stack) - 1} open operators, "
            "expected 1 and 0"
        )
    return stack[0][1]


_APPLY = (min, max, lambda values: int(np.median(values)), lambda values: sum(values) % 10)


def generate_listops(
    count: int,
    *,
    min_length: int = 500,
    max_length: int = 2000,
    max_depth: int = 10,
    max_args: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> ListOps:
    """Draws distinct sequences; a longer draw of the same seed begins with the shorter one.

    Args:
        count: number of sequences.
        min_length, max_length: only sequences with ``min_length < tokens < max_length`` are kept, both bounds excluded.
        max_depth: of the tree; the root has depth 1.
        max_args: greatest number of arguments of an operator.
        seed: of numpy's PCG64.
        progress: shows a bar (tqdm) on a terminal.

    Raises:
        ValueError: an argument is out of range, or 100 rounds in turn gave no new sequence.
    """
    if count < 0:
        raise ValueError(f"generate_listops: count={count}, expected at least 0")
    if min_length < 1:
        raise ValueError(f"generate_listops: min_length={min_length}, expected at least 1 (a lone digit is no list)")
    if max_length <= max(min_length + 1, 4):
        raise ValueError(
            f"generate_listops: max_length={max_length}, expected more than {max(min_length + 1, 4)}: "
            f"min_length={min_length} and max_length are excluded, and the shortest list has 4 tokens"
        )
    if max_depth < 2:
        raise ValueError(f"generate_listops: max_depth={max_depth}, expected at least 2")
    if max_args < 2:
        raise ValueError(f"generate_listops: max_args={max_args}, expected at least 2")
    rng = np.random.default_rng(seed)
    seen: set[bytes] = set()
    parts: list[np.ndarray] = []
    labels: list[int] = []
    barren = 0
    bar = _progress(count) if progress else None
    while len(parts) < count:
        before = len(parts)
        tokens, lengths, values = _draw(rng, min_length, max_length, max_depth, max_args)
        for end, length, value in zip(np.cumsum(lengths), lengths, values.tolist(), strict=True):
            sequence = tokens[end - length : end]
            key = hashlib.blake2b(sequence, digest_size=16).digest()
            if len(parts) < count and key not in seen:
                seen.add(key)
                parts.append(sequence)
                labels.append(value)
        barren = barren + 1 if len(parts) == before else 0
        if barren == 100:
            raise ValueError(
                f"generate_listops: count={count}, expected fewer: only {before} distinct sequences of more than "
                f"{min_length} and fewer than {max_length} tokens came in {100 * _TREES:,} further trees"
            )
        if bar is not None:
            bar.update(len(parts) - before)
    if bar is not None:
        bar.close()
    return _pack(parts, labels)


def _draw(
    rng: np.random.Generator, min_length: int, max_length: int, max_depth: int, max_args: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws ``_TREES`` trees and keeps those of fitting length.

    Returns:
        tokens uint8 of the kept trees behind one another, their lengths and values, int64.
    """
    # Nodes of a level are in order of their parents. code is a token id; first[p] : first[p + 1] are the children of
    # the p-th operator above. The root is an operator: a lone digit is never kept.
    codes, firsts, trees = [], [], [np.arange(_TREES)]
    for depth in range(1, max_depth + 1):
        n = len(trees[-1])
        code = rng.integers(_ZERO, _OPERATOR, n, dtype=np.uint8)
        is_operator = np.full(n, depth == 1) if depth in (1, max_depth) else rng.random(n) > _VALUE_PROBABILITY
        operators = np.flatnonzero(is_operator)
        code[operators] = rng.integers(_OPERATOR, _CLOSE, len(operators), dtype=np.uint8)
        arguments = rng.integers(2, max_args + 1, len(operators))
        codes.append(code)
        firsts.append(np.concatenate([[0], np.cumsum(arguments)]))
        trees.append(np.repeat(trees[-1][operators], arguments))

    # From the leaves up: tokens and value of each subtree.
    sizes: list[np.ndarray] = [np.empty(0)] * (max_depth + 1)
    below = values = np.empty(0, dtype=np.int64)
    for level in reversed(range(max_depth)):
        code, first = codes[level], firsts[level]
        size, value = np.ones(len(code), dtype=np.int64), code.astype(np.int64) - _ZERO
        operators = np.flatnonzero(code >= _OPERATOR)
        if len(operators):
            size[operators] = 2 + np.add.reduceat(below, first[:-1])
            value[operators] = _values(code[operators], values, first)
        sizes[level] = below = size
        values = value
    lengths = sizes[0]
    keep = (min_length < lengths) & (lengths < max_length)

    # From the root down: where each subtree starts among the tokens that are kept.
    start = np.cumsum(np.where(keep, lengths, 0)) - lengths  # wrong, and unused, where not kept
    tokens = np.empty(int(lengths[keep].sum()), dtype=np.uint8)
    for level in range(max_depth):
        code, size, kept = codes[level], sizes[level], keep[trees[level]]
        tokens[start[kept]] = code[kept]
        operators = np.flatnonzero(code >= _OPERATOR)
        ends = operators[kept[operators]]
        tokens[start[ends] + size[ends] - 1] = _CLOSE
        if len(operators):
            before = np.concatenate([[0], np.cumsum(sizes[level + 1])])[:-1]  # tokens of the level's nodes so far
            first = firsts[level]
            start = before + np.repeat(start[operators] + 1 - before[first[:-1]], np.diff(first))
    return tokens, lengths[keep], values[keep]


def _values(operators: np.ndarray, arguments: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Values of operators (token ids) whose arguments are ``arguments[first[i] : first[i + 1]]``, int64."""
    starts, counts = first[:-1], np.diff(first)
    ordered = np.sort(arguments + 10 * np.repeat(np.arange(len(counts)), counts)) % 10  # within each operator
    low, high = ordered[starts + (counts - 1) // 2], ordered[starts + counts // 2]
    total = np.add.reduceat(arguments, starts)
    choices = (ordered[starts], ordered[first[1:] - 1], (low + high) // 2, total % 10)  # in the order of VOCABULARY
    return np.choose(operators - _OPERATOR, choices)


def _pack(parts: list[np.ndarray], labels: list[int]) -> ListOps:
    offsets = np.cumsum([0, *map(len, parts)])
    tokens = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint8)
    return ListOps(torch.from_numpy(tokens), torch.from_numpy(offsets), torch.tensor(labels, dtype=torch.int64))


def _progress(total: int):
    from tqdm.auto import tqdm  # comes with pytorch-lightning, extra [train]

    return tqdm(total=total, desc="ListOps", unit=" sequences", disable=None, leave=False)


def listops_splits(
    train: int = 96_000,
    valid: int = 2_000,
    test: int = 2_000,
    *,
    cache: str | Path | None = None,
    min_length: int = 500,
    max_length: int = 2000,
    max_depth: int = 10,
    max_args: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, ListOps]:
    """Disjoint splits of one draw of ``generate_listops``; the defaults are those of Long Range Arena.

    Args:
        cache: a folder; the draw is stored there under a name made of all its arguments, and read if it is there.

    Returns:
        ``train``, ``valid``, ``test``.

    Raises:
        ValueError: as ``generate_listops``, or the cached file is damaged.
    """
    counts = {"train": train, "valid": valid, "test": test}
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"listops_splits: {name}={count}, expected at least 0")
    total = train + valid + test
    settings = {"max_depth": max_depth, "max_args": max_args, "seed": seed}
    name = f"listops-{_FORMAT}-{total}-{min_length}-{max_length}-{max_depth}-{max_args}-{seed}.npz"
    path = None if cache is None else Path(cache) / name
    if path is not None and path.is_file():
        data = _load(path, total)
    else:
        data = generate_listops(total, min_length=min_length, max_length=max_length, progress=progress, **settings)
        if path is not None:
            _save(path, data)
    splits, begin = {}, 0
    for name, count in counts.items():
        offsets = data.offsets[begin : begin + count + 1]
        tokens = data.tokens[int(offsets[0]) : int(offsets[-1])]
        splits[name] = ListOps(tokens, offsets - offsets[0], data.labels[begin : begin + count])
        begin += count
    return splits


def _save(path: Path, data: ListOps) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")  # so that an interrupted write leaves no half file
    with partial.open("wb") as file:
        np.savez(file, tokens=data.tokens.numpy(), offsets=data.offsets.numpy(), labels=data.labels.numpy())
    partial.replace(path)


def _load(path: Path, count: int) -> ListOps:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            data = ListOps(*(torch.from_numpy(arrays[name]) for name in ("tokens", "offsets", "labels")))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged cache ({error}); remove it") from error
    if len(data) != count or len(data.offsets) != count + 1 or int(data.offsets[-1]) != len(data.tokens):
        raise ValueError(f"{path}: damaged cache ({len(data)} sequences, expected {count}); remove it")
    return data


def read_listops(path: str | Path) -> ListOps:
    """Reads one official file of Long Range Arena (``basic_train.tsv``, ``basic_val.tsv``, ``basic_test.tsv``).

    Columns ``Source`` (the expression, with or without parentheses) and ``Target``, tab-separated, with a header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a header, token or target that is none; the message starts with ``path:line``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    parts, labels = [], []
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t")
        if (header := next(rows, None)) != ["Source", "Target"]:
            raise ValueError(f"{path}:1: header {header}, expected Source and Target with a tab between")
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if len(row) != 2:
                raise ValueError(f"{where}: {len(row)} columns, expected Source and Target")
            if row[1] not in _IDS or not row[1].isdigit():
                raise ValueError(f"{where}: Target {row[1]!r}, expected 0 to 9")
            try:
                ids = bytes(_IDS[word] for word in row[0].split() if word not in ("(", ")"))
            except KeyError as error:
                raise ValueError(f"{where}: token {error.args[0]!r}, expected one of {VOCABULARY[_ZERO:]}") from None
            parts.append(np.frombuffer(ids, dtype=np.uint8))
            labels.append(int(row[1]))
    return _pack(parts, labels)
