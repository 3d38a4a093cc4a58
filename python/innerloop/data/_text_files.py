# SPDX-License-Identifier: Apache-2.0
"""Lines and JSON objects of text files, read as streams; what is wrong with one is named with its file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def text_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a text file, plain or gzip."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):  # bytes: only a line feed ends a line
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: no UTF-8 ({error})") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}:{number + 1}: damaged gzip file ({error})") from None


def json_lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """("path:line", object) of each line that is not empty; of all .jsonl and .jsonl.gz files of a folder."""
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz"))) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path}: holds no .jsonl or .jsonl.gz file")
    for file in files:
        for number, line in text_lines(file):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}:{number}: no JSON ({error.msg} at column {error.colno})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{file}:{number}: {type(row).__name__}, expected a JSON object")
            yield f"{file}:{number}", row


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Puts the place in front of what is wrong with a record."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{where}: no field {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{where}: {error}") from None


def text_of(row: dict, key: str) -> str:
    """``row[key]``, which has to be text."""
    if not isinstance(row[key], str):
        raise ValueError(f"{key} is {type(row[key]).__name__}, expected text")
    return row[key]
