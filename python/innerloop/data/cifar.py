# SPDX-License-Identifier: Apache-2.0
"""Readers of CIFAR-10 and CIFAR-100, and the download of CIFAR-100.

``read_cifar`` returns a dict of ``ImageSet`` with the keys ``train`` and ``test``. An absent path is a
``FileNotFoundError``; a damaged file is a ``ValueError`` whose message starts with its path.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import urllib.request
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from innerloop.data.images import ImageSet, checked_labels, optional_module

__all__ = ["CIFAR100_MEAN", "CIFAR100_STD", "download_cifar100", "read_cifar"]

#: Of the CIFAR-100 training images on the scale 0..1, red, green, blue, as all published distillation results use them.
CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)


class _Cifar(NamedTuple):
    folder: str  # in the official archive
    name: str
    train: tuple[str, ...]
    test: str
    meta: str  # the file of class names
    label_bytes: int = 0  # binary version: in front of each image; the last is the label
    keys: tuple[str, str] = ("", "")  # python version: of labels and of class names

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.meta)


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_BINS = tuple(f"{batch}.bin" for batch in _BATCHES)
_CIFARS = (
    _Cifar("cifar-100-binary", "CIFAR-100", ("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
    _Cifar("cifar-100-python", "CIFAR-100", ("train",), "test", "meta", keys=("fine_labels", "fine_label_names")),
    _Cifar("cifar-10-batches-bin", "CIFAR-10", _BINS, "test_batch.bin", "batches.meta.txt", label_bytes=1),
    _Cifar("cifar-10-batches-py", "CIFAR-10", _BATCHES, "test_batch", "batches.meta", keys=("labels", "label_names")),
)


def read_cifar(path: str | Path) -> dict[str, ImageSet]:
    """CIFAR-10, or CIFAR-100 with fine labels (Krizhevsky, 2009), in the binary or the python version.

    Args:
        path: the official ``.tar.gz``, the folder in it, or the folder above that one.

    Returns:
        ``train`` and ``test``, images uint8 (n, 3, 32, 32).

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: it holds none or several of the four data sets, or a file is damaged. The pickles of the python
            version are read without calling what they name; one that names more than numpy arrays is refused.
    """
    path = Path(path)
    if path.is_dir():
        places = [(place, c) for place in (path, *(path / c.folder for c in _CIFARS)) for c in _CIFARS]
        found = [(place, c) for place, c in places if all((place / file).is_file() for file in c.files)]
        content = Path.read_bytes
    else:
        files = _untar(path)
        found = [(path, c) for c in _CIFARS if all(path / file in files for file in c.files)]
        content = files.__getitem__
    if len(found) != 1:
        layouts = "; ".join(f"{c.folder}: {', '.join(c.files)}" for c in _CIFARS)
        raise ValueError(f"{path}: holds {len(found)} CIFAR data sets, expected all files of one of {layouts}")
    ((place, cifar),) = found
    classes = _cifar_classes(place / cifar.meta, content(place / cifar.meta), cifar)

    def split(*files: str) -> ImageSet:
        parts = [_cifar_batch(place / file, content(place / file), cifar, len(classes)) for file in files]
        images, labels = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True))
        return ImageSet(images.view(-1, 3, 32, 32), labels.long(), classes, cifar.name)

    return {"train": split(*cifar.train), "test": split(cifar.test)}


def _untar(path: Path) -> dict[Path, bytes]:
    """The files of CIFAR in an archive, as if they lay in ``path``; nothing is written to disk."""
    wanted = {file for cifar in _CIFARS for file in cifar.files}
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in wanted:
                    files[path / name] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}, expected a complete .tar.gz") from error
    return files


def _cifar_classes(where: Path, data: bytes, cifar: _Cifar) -> tuple[str, ...]:
    if cifar.label_bytes:
        return tuple(data.decode(errors="replace").split())
    names = _unpickle(where, data).get(cifar.keys[1])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: {cifar.keys[1]} is {type(names).__name__}, expected a list of names")
    return tuple(names)


def _cifar_batch(where: Path, data: bytes, cifar: _Cifar, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 3072) and labels (n,)."""
    pixels = 3 * 32 * 32
    if cifar.label_bytes:
        record = cifar.label_bytes + pixels
        if not data or len(data) % record:
            raise ValueError(f"{where}: {len(data)} bytes, expected a multiple of {record}, the size of a record")
        rows = np.frombuffer(data, np.uint8).reshape(-1, record)
        images, labels = rows[:, cifar.label_bytes :], rows[:, cifar.label_bytes - 1]
    else:
        table = _unpickle(where, data)
        try:
            images, labels = table["data"].array(), np.array(table[cifar.keys[0]])
        except Exception as error:  # the pickle may hold anything in their place
            raise ValueError(f"{where}: {error!r}, expected data, an array, and {cifar.keys[0]}, a list") from error
        if labels.dtype.kind != "i" or labels.ndim != 1 or images.shape != (len(labels), pixels):
            raise ValueError(
                f"{where}: {labels.dtype} labels {labels.shape} and data {images.shape}, expected integers (n,) and "
                f"(n, {pixels})"
            )
    return images, checked_labels(where, labels, num_classes)


class _FromNumpy:
    """Stands for what a pickle takes from numpy: keeps arguments and state, and calls nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The uint8 array whose pickle this is."""
        _, shape, dtype, fortran, data = self.state
        if dtype.arguments[0] != "u1":
            raise ValueError(f"dtype {dtype.arguments[0]}, expected u1")
        # Python 2 had no bytes: its pickles hold them as text.
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Unpickler(pickle.Unpickler):
    _ALLOWED = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype")}
        | {(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
    )

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in self._ALLOWED:
            return _FromNumpy
        raise pickle.UnpicklingError(f"names {module}.{name}")


def _unpickle(where: Path, data: bytes) -> dict:
    try:
        table = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # on damaged files the unpickler raises whatever its steps do
        raise ValueError(f"{where}: {error}, expected a pickle of lists, dicts, text and numpy arrays only") from error
    if not isinstance(table, dict):
        raise ValueError(f"{where}: holds a {type(table).__name__}, expected a dict")
    return table


#: The published MD5 of each version's archive.
_CIFAR100_MD5 = {"binary": "03b5dce01913d631647c71ecec9e9cb8", "python": "eb9058c3a382ffc7106e4002c42a8d85"}


def download_cifar100(folder: str | Path, version: str = "binary") -> Path:
    """Fetches the official archive of CIFAR-100 (161 MB) and checks its MD5, with a progress bar on a terminal.

    Args:
        folder: where to put it; made if absent. An archive that is there and right is not fetched again.
        version: ``binary`` or ``python``.

    Returns:
        the archive, a path for ``read_cifar``.

    Raises:
        ValueError: what came has another checksum; nothing is kept of it.
        OSError: the network failed; nothing is kept.
        ImportError: tqdm is missing.
    """
    if version not in _CIFAR100_MD5:
        raise ValueError(f"download_cifar100: version={version!r}, expected binary or python")
    tqdm = optional_module("tqdm.auto", "tqdm").tqdm
    archive = Path(folder) / f"cifar-100-{version}.tar.gz"
    if archive.is_file() and _md5(archive) == _CIFAR100_MD5[version]:
        return archive
    url = f"https://www.cs.toronto.edu/~kriz/{archive.name}"
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(f"{archive.name}.{os.getpid()}.part")  # each process of a run may be fetching
    try:
        with urllib.request.urlopen(url, timeout=60) as response, partial.open("wb") as file:
            total = int(response.headers.get("Content-Length", 0)) or None
            with tqdm(total=total, desc=archive.name, unit="B", unit_scale=True, disable=None, leave=False) as bar:
                while block := response.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
        if (md5 := _md5(partial)) != _CIFAR100_MD5[version]:
            raise ValueError(f"{url}: MD5 is {md5}, expected {_CIFAR100_MD5[version]}: the download is damaged")
        partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)
    return archive


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
