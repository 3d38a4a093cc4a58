# SPDX-License-Identifier: Apache-2.0
"""The knowledge graph that a user names: an embedded one, or a folder in any layout we read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from innerloop.data.biokg import is_biokg, read_biokg
from innerloop.data.kg import KnowledgeGraph, load_embedded, read_kg

__all__ = ["choose_dataset", "find_dataset"]


def find_dataset(
    name: str, data: str | Path | None = None, *, relations: Sequence[str] | None = None
) -> KnowledgeGraph:
    """The folder ``data`` (of text files, or of ogbl-biokg) if one is given, else the embedded data set ``name``."""
    if data is None:
        return load_embedded(name, relations=relations)
    if is_biokg(data):
        return read_biokg(data, relations=relations)
    return read_kg(data, relations=relations)


def choose_dataset(dataset: str | None, data: str | Path | None) -> KnowledgeGraph:
    """What a user asked for: an embedded data set by name, or a folder; fb237_v1 where neither is given.

    Raises:
        ValueError: both are given.
    """
    if dataset is not None and data is not None:
        raise ValueError(f"dataset is {dataset!r} and data {str(data)!r}: expected one of the two")
    return find_dataset(dataset or "fb237_v1", data)
