# SPDX-License-Identifier: Apache-2.0
"""Labelled images: readers of CIFAR, Fashion-MNIST, Omniglot, digits and image folders, and their augmentation.

Readers return a dict of ``ImageSet`` with the keys ``train`` and ``test`` (``val`` too for folders). A file that is
absent is a ``FileNotFoundError``; a damaged one is a ``ValueError`` whose message starts with its path.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import lzma
import math
import os
import pickle
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CIFAR100_MEAN",
    "CIFAR100_STD",
    "ImageSet",
    "augmented_pool",
    "download_cifar100",
    "load_image",
    "random_crop_flip",
    "read_cifar",
    "read_digits",
    "read_fashion_mnist",
    "read_image_folder",
    "read_omniglot",
    "split_off",
    "standardise",
    "statistics",
]

#: Of the CIFAR-100 training images on the scale 0..1, red, green, blue, as all published distillation results use them.
CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)

#: Images that are converted to floating point at once.
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with one label each.

    Attributes:
        images: uint8 (n, C, H, W), or the n paths of files for ``load_image``.
        labels: int64 (n,), positions in ``classes``.
        classes: names.
        name: of the data set.

    Raises:
        ValueError: the attributes do not fit together.
    """

    images: Tensor | list[str]
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if isinstance(self.images, Tensor) and (self.images.dtype != torch.uint8 or self.images.dim() != 4):
            raise ValueError(
                f"ImageSet: images is {self.images.dtype} of shape {tuple(self.images.shape)}, expected torch.uint8 "
                "(n, C, H, W) or a list of paths"
            )
        n, labels = len(self.images), self.labels
        if labels.dtype != torch.int64 or labels.shape != (n,):
            raise ValueError(
                f"ImageSet: labels is {labels.dtype} of shape {tuple(labels.shape)}, expected torch.int64 ({n},)"
            )
        if n and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(
                f"ImageSet: labels from {labels.min()} to {labels.max()}, expected 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Tensor) -> ImageSet:
        """The images at ``index``, int64 (m,), or where it is True, bool (n,)."""
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        chosen = self.images[index] if isinstance(self.images, Tensor) else [self.images[i] for i in index.tolist()]
        return ImageSet(chosen, self.labels[index], self.classes, self.name)


def split_off(image_set: ImageSet, fraction_or_per_class: float | int, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Holds out a random part of every class, for tuning without the test set.

    Args:
        fraction_or_per_class: a float in (0, 1), the share of each class (rounded); or an int, images of each class.
        seed: the same seed gives the same parts.

    Returns:
        the rest and the held-out part, both in the order of ``image_set``.

    Raises:
        ValueError: a class would have no image in one of the parts.
    """
    sizes = torch.bincount(image_set.labels, minlength=len(image_set.classes))
    if isinstance(fraction_or_per_class, float):
        counts = (fraction_or_per_class * sizes).round().long()
    else:
        counts = torch.full_like(sizes, fraction_or_per_class)
    poor = (sizes > 0) & ((counts < 1) | (counts >= sizes))
    if poor.any():
        c = int(poor.nonzero()[0])
        raise ValueError(
            f"split_off: fraction_or_per_class={fraction_or_per_class} holds out {counts[c]} of the {sizes[c]} images "
            f"of class {image_set.classes[c]!r}, expected at least one image in each part"
        )
    shuffled = torch.randperm(len(image_set), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[image_set.labels[shuffled].argsort(stable=True)]
    labels = image_set.labels[by_class]
    place = torch.arange(len(image_set)) - (sizes.cumsum(0) - sizes)[labels]
    held = torch.zeros(len(image_set), dtype=torch.bool)
    held[by_class] = place < counts[labels]
    return image_set.select(~held), image_set.select(held)


# --- CIFAR ----------------------------------------------------------------------------------------------------------


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
    return images, _checked_labels(where, labels, num_classes)


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
    tqdm = _optional("tqdm.auto", "tqdm").tqdm
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


# --- grey images ----------------------------------------------------------------------------------------------------

_FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_OPENERS = {"": open, ".gz": gzip.open, ".xz": lzma.open}


def read_fashion_mnist(folder: str | Path) -> dict[str, ImageSet]:
    """Fashion-MNIST (Xiao et al., 2017) from its four IDX files, each plain, ``.gz`` or ``.xz``.

    Args:
        folder: of ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same of ``t10k``. Where ``train``
            is absent, ``train20k`` is read, the first 20 000 training images.

    Returns:
        ``train`` and ``test``, images uint8 (n, 1, 28, 28).

    Raises:
        FileNotFoundError: a file is absent.
        ValueError: a file is damaged, or there is not one label for each image.
    """
    folder = Path(folder)
    prefix = "train" if _idx_files(folder, "train-images-idx3-ubyte") else "train20k"
    name = "Fashion-MNIST" if prefix == "train" else "Fashion-MNIST (20k-image training subset)"
    sets = {}
    for split, stem in (("train", prefix), ("test", "t10k")):
        images_file, images = _read_idx(folder, f"{stem}-images-idx3-ubyte", 3)
        labels_file, labels = _read_idx(folder, f"{stem}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise ValueError(
                f"{labels_file}: {len(labels)} labels, expected {len(images)} as of images in {images_file}"
            )
        labels = torch.from_numpy(_checked_labels(labels_file, labels, len(_FASHION_CLASSES))).long()
        sets[split] = ImageSet(torch.from_numpy(images).unsqueeze(1), labels, _FASHION_CLASSES, name)
    return sets


def _idx_files(folder: Path, stem: str) -> list[Path]:
    return [path for suffix in _OPENERS if (path := folder / f"{stem}{suffix}").is_file()]


def _read_idx(folder: Path, stem: str, ndim: int) -> tuple[Path, np.ndarray]:
    """The file found and its array of bytes."""
    if not (files := _idx_files(folder, stem)):
        raise FileNotFoundError(f"{folder / stem}: no such file, plain, .gz or .xz")
    path = files[0]
    try:
        with _OPENERS[path.suffix](path, "rb") as file:
            data = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: {error}, expected a complete {path.suffix} file") from error
    magic, header = 0x800 + ndim, 4 * (1 + ndim)  # 8 stands for unsigned bytes
    if (given := int.from_bytes(data[:4], "big")) != magic:
        raise ValueError(f"{path}: magic number {given}, expected {magic}")
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4))
    if len(data) != header + math.prod(shape):
        raise ValueError(f"{path}: {len(data)} bytes, expected {header + math.prod(shape)} for shape {shape}")
    return path, np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def read_omniglot(path: str | Path, classes: int = 200, train_drawers: int = 15) -> dict[str, ImageSet]:
    """A classification task of many classes from Omniglot (Lake et al., 2015): new drawers of known characters.

    The classes are the first of ``RandomState(0).permutation`` of the background characters, sorted. 105×105 bits are
    averaged over areas to 28×28; ink is 255.

    Args:
        path: ``omniglot.npz``: ``images`` uint8 (characters, 20, 1379), packed bits; ``part``, 0 for background;
            ``alphabet``, ``alphabet_names``, ``character``.
        classes: number of characters; 200 is the Omniglot-200 task.
        train_drawers: k, the first k of the 20 drawers are for training, the others for testing.

    Returns:
        ``train`` and ``test``, images uint8 (n, 1, 28, 28), by class and then by drawer: training image i is from
        drawer i % k, so that a drawer can be held out by ``select``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or has other arrays, or an argument is out of range.
    """
    path, drawers, side, size = Path(path), 20, 105, 28
    if not 0 < train_drawers < drawers:
        raise ValueError(f"read_omniglot: train_drawers={train_drawers}, expected 1 to {drawers - 1}")
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            packed, part, names = file["images"], file["part"], file["alphabet_names"]
            titles = [f"{names[a]}/{c}" for a, c in zip(file["alphabet"], file["character"], strict=True)]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}, expected omniglot.npz") from error
    if packed.dtype != np.uint8 or packed.shape != (len(titles), drawers, 1379) or part.shape != (len(titles),):
        raise ValueError(
            f"{path}: images {packed.dtype} {packed.shape}, part {part.shape}, {len(titles)} characters, expected "
            f"uint8 (n, {drawers}, 1379), (n,) and n"
        )
    background = np.flatnonzero(part == 0)
    if not 0 < classes <= len(background):
        raise ValueError(f"read_omniglot: classes={classes}, expected 1 to {len(background)}")
    chosen = np.sort(np.random.RandomState(0).permutation(background)[:classes])
    weights = _area_weights(side, size)
    images = np.empty((classes, drawers, 1, size, size), np.uint8)
    for image, bits in zip(images, packed[chosen], strict=True):  # all characters unpacked would be 358 MB
        ink = np.unpackbits(bits, axis=-1, count=side * side).reshape(drawers, side, side)
        image[:, 0] = np.rint(255 * (weights @ ink @ weights.T))
    names, labels = tuple(titles[i] for i in chosen), torch.arange(classes)

    def split(part: np.ndarray) -> ImageSet:
        pixels = torch.from_numpy(part).flatten(0, 1)
        return ImageSet(pixels, labels.repeat_interleave(part.shape[1]), names, f"Omniglot-{classes}")

    return {"train": split(images[:, :train_drawers]), "test": split(images[:, train_drawers:])}


def _area_weights(given: int, wanted: int) -> np.ndarray:
    """(wanted, given): the share of each given pixel in each wanted one; rows sum to 1."""
    edges, pixels = np.arange(wanted + 1)[:, None] * given / wanted, np.arange(given)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return overlap.clip(0) * wanted / given


def read_digits() -> dict[str, ImageSet]:
    """scikit-learn's digits: images uint8 (n, 1, 8, 8), 1000 ``train`` and 797 ``test`` by ``RandomState(0)``.

    Raises:
        ImportError: scikit-learn is missing.
    """
    digits = _optional("sklearn.datasets", "scikit-learn").load_digits()
    order = np.random.RandomState(0).permutation(len(digits.images))
    images = torch.from_numpy(np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target[order].astype(np.int64))
    whole = ImageSet(images, labels, tuple("0123456789"), "digits")
    return {"train": whole.select(torch.arange(1000)), "test": whole.select(torch.arange(1000, len(whole)))}


# --- folders of files -----------------------------------------------------------------------------------------------


def read_image_folder(folder: str | Path) -> dict[str, ImageSet]:
    """An ImageNet-style folder ``train/<class>/*.JPEG``, likewise ``val`` and ``test`` where there are such.

    Args:
        folder: files ending in .jpeg, .jpg or .png count, in upper or lower case. A ``test`` without class folders,
            like ImageNet's, has no labels and is left out.

    Returns:
        sets of paths, by class and then by name; the classes of all are those of ``train``, sorted.

    Raises:
        FileNotFoundError: there is no ``train``.
        ValueError: ``train`` or ``val`` has no class folders, a class folder of ``train`` has no image, or another
            split has a class that ``train`` has not.
    """
    folder = Path(folder)
    if not (folder / "train").is_dir():
        raise FileNotFoundError(f"{folder / 'train'}: no such folder, expected train/<class>/*.JPEG")
    sets: dict[str, ImageSet] = {}
    classes: tuple[str, ...] = ()
    for split in ("train", "val", "test"):
        root = folder / split
        if not root.is_dir():
            continue
        names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        if not names:
            if split == "test":
                continue
            raise ValueError(f"{root}: no folders, expected one for each class")
        classes = classes or tuple(names)
        if unknown := set(names).difference(classes):
            raise ValueError(f"{root / min(unknown)}: expected a class of {folder / 'train'}")
        paths, labels = [], []
        for name in names:
            files = sorted(str(p) for p in (root / name).iterdir() if p.suffix.lower() in (".jpeg", ".jpg", ".png"))
            if not files:
                raise ValueError(f"{root / name}: no images, expected .jpeg, .jpg or .png files")
            paths += files
            labels += [classes.index(name)] * len(files)
        sets[split] = ImageSet(paths, torch.tensor(labels), classes, folder.resolve().name)
    return sets


def load_image(path: str | Path, size: int, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """Decodes an image file, uint8 (3, size, size) in RGB.

    In training a random crop (8 to 100 % of the area, aspect ratio 3/4 to 4/3) is resized and flipped with
    probability 1/2, as for GoogLeNet (Szegedy et al., 2015); else the shorter side is resized to size · 256/224 and
    the centre cropped. Resizing is bilinear with antialiasing.

    Raises:
        ImportError: pillow is missing.
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or a damaged one.
    """
    Image = _optional("PIL.Image", "pillow")
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what pillow's decoders raise
        raise ValueError(f"{path}: {error}, expected an image") from error
    width, height = image.size
    if train:
        box = _random_box(width, height, generator)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if torch.rand((), generator=generator) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        scale = round(size * 256 / 224) / min(width, height)
        width, height = round(width * scale), round(height * scale)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _random_box(width: int, height: int, generator: torch.Generator | None) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the first of ten random crops that lies in the image, else of the largest central
    one with an allowed aspect ratio."""
    area, ratio, x, y = torch.rand(4, 10, dtype=torch.float64, generator=generator)
    area, ratio = width * height * (0.08 + 0.92 * area), (4 / 3) ** (2 * ratio - 1)
    w, h = (area * ratio).sqrt().round().clamp(min=1), (area / ratio).sqrt().round().clamp(min=1)
    fits = ((w <= width) & (h <= height)).nonzero()
    if len(fits):
        i = fits[0, 0]
        w, h = int(w[i]), int(h[i])
        left, top = int(x[i] * (width - w + 1)), int(y[i] * (height - h + 1))
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


# --- batches --------------------------------------------------------------------------------------------------------


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for ``standardise``.

    Args:
        images: (n, C, H, W); uint8 counts as 0..1, floating point as it is.
    """
    _check_images("statistics", images)
    if not images.numel():
        raise ValueError(f"statistics: images has shape {tuple(images.shape)}, expected at least one pixel")
    total = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for chunk in images.split(_CHUNK):
        x = chunk.double()
        total += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]).cpu()
    mean, square = total * images.shape[1] / images.numel()
    std = (square - mean.square()).clamp(min=0).sqrt()
    scale = 255 if images.dtype == torch.uint8 else 1
    return tuple((mean / scale).tolist()), tuple((std / scale).tolist())


def standardise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images − mean) / std by channel, float32.

    Args:
        images: (n, C, H, W); uint8 is first scaled to 0..1, floating point taken as it is.
        mean, std: C numbers each, std > 0.
    """
    _check_images("standardise", images)
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels or not all(s > 0 for s in std):
        raise ValueError(f"standardise: mean={mean}, std={std}, expected {channels} numbers each and std > 0")
    scale = 255 if images.dtype == torch.uint8 else 1
    mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) * scale for values in (mean, std))
    return (images.float() - mean) / std


def random_crop_flip(images: Tensor, generator: torch.Generator | None = None, padding: int = 4) -> Tensor:
    """Pads each image with zeros, crops it to its size at a random place and flips it with probability 1/2.

    Args:
        images: (n, C, H, W), uint8 or floating point; zero is black in uint8 images, the mean in standardised ones.
        generator: on the device of ``images``.
        padding: p pixels on each side.

    Returns:
        of the shape and dtype of ``images``.
    """
    _check_images("random_crop_flip", images)
    if padding < 0:
        raise ValueError(f"random_crop_flip: padding={padding}, expected at least 0")
    n, C, H, W = images.shape
    device = images.device
    shift = torch.randint(2 * padding + 1, (2, n, 1), generator=generator, device=device)
    flip = torch.rand(n, 1, generator=generator, device=device) < 0.5
    columns = torch.arange(W, device=device)
    rows = shift[0] + torch.arange(H, device=device)
    columns = shift[1] + torch.where(flip, columns.flip(0), columns)
    image, channel = torch.arange(n, device=device).view(-1, 1, 1, 1), torch.arange(C, device=device).view(-1, 1, 1)
    return F.pad(images, (padding,) * 4)[image, channel, rows.view(n, 1, H, 1), columns.view(n, 1, 1, W)]


def augmented_pool(images: Tensor, copies: int = 3, seed: int = 5) -> tuple[Tensor, Tensor]:
    """A fixed pool of images and randomly distorted copies, so that a teacher's logits can be computed once.

    The map from a copy to its image is a rotation by up to ±0.2 rad of a shear by ±0.15, scaled by 1 ± 0.15 and shifted
    by ±0.125 of half the width and height, all uniform; bilinear, with zeros outside.

    Args:
        images: (n, C, H, W), uint8 or floating point.
        copies: of each image.
        seed: the same seed gives the same pool.

    Returns:
        (n · (1 + copies), C, H, W) in the dtype of ``images``, which come first; and the source of each, int64, a
        position in ``images``.
    """
    _check_images("augmented_pool", images)
    if copies < 0:
        raise ValueError(f"augmented_pool: copies={copies}, expected at least 0")
    n, _, H, W = images.shape
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor([0.2, 0.15, 0.15, 0.125, 0.125])
    uniform = 2 * torch.rand(copies * n, len(limits), generator=generator) - 1
    angle, scale, shear, x, y = (uniform * limits).T
    sin, cos, scale = angle.sin(), angle.cos(), 1 + scale
    # Coordinates run from -1 to 1 over the height and over the width.
    row = torch.stack([scale * cos, scale * (shear * cos - sin) * H / W, x], dim=1)
    column = torch.stack([scale * sin * W / H, scale * (shear * sin + cos), y], dim=1)
    theta = torch.stack([row, column], dim=1).to(images.device)
    pool = images.repeat(1 + copies, 1, 1, 1)
    for start in range(0, copies * n, _CHUNK):
        chunk = pool[n:][start : start + _CHUNK]
        grid = F.affine_grid(theta[start : start + _CHUNK], list(chunk.shape), align_corners=False)
        warped = F.grid_sample(chunk.float(), grid, align_corners=False)
        chunk.copy_(warped if images.is_floating_point() else warped.round())
    return pool, torch.arange(n, device=images.device).repeat(1 + copies)


def _check_images(owner: str, images: Tensor) -> None:
    if images.dim() != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f"{owner}: images is {images.dtype} of shape {tuple(images.shape)}, expected uint8 or floating point "
            "(n, C, H, W)"
        )


def _checked_labels(where: Path, labels: np.ndarray, num_classes: int) -> np.ndarray:
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"{where}: labels from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
    return labels


def _optional(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"innerloop.data.images needs {module.split('.')[0]}: pip install {package}") from error
