# SPDX-License-Identifier: Apache-2.0
"""Data set readers and the small data sets that ship with the package."""

from innerloop.data.biokg import read_biokg
from innerloop.data.find import find_dataset
from innerloop.data.kg import (
    KnowledgeGraph,
    Split,
    load_embedded,
    read_kg,
    read_triples,
)
from innerloop.data.links import LinkGraph, read_links

__all__ = [
    "KnowledgeGraph",
    "LinkGraph",
    "Split",
    "find_dataset",
    "load_embedded",
    "read_biokg",
    "read_kg",
    "read_links",
    "read_triples",
]
