# SPDX-License-Identifier: Apache-2.0
"""Data set readers and the small data sets that ship with the package."""

from innerloop.data.biokg import read_biokg
from innerloop.data.cifar import download_cifar100, read_cifar
from innerloop.data.find import find_dataset
from innerloop.data.image_files import read_digits, read_fashion_mnist, read_image_folder, read_omniglot
from innerloop.data.images import ImageSet
from innerloop.data.kg import (
    KnowledgeGraph,
    Split,
    load_embedded,
    read_kg,
    read_triples,
)
from innerloop.data.links import LinkGraph, read_links
from innerloop.data.tu import GraphDataset, load_mutag, read_edge_list, read_tu

__all__ = [
    "GraphDataset",
    "ImageSet",
    "KnowledgeGraph",
    "LinkGraph",
    "Split",
    "download_cifar100",
    "find_dataset",
    "load_embedded",
    "load_mutag",
    "read_biokg",
    "read_cifar",
    "read_digits",
    "read_edge_list",
    "read_fashion_mnist",
    "read_image_folder",
    "read_kg",
    "read_links",
    "read_omniglot",
    "read_triples",
    "read_tu",
]
