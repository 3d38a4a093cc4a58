# SPDX-License-Identifier: Apache-2.0
"""Readers of images other than CIFAR's: Fashion-MNIST, Omniglot, digits, folders of image files.

Readers return a dict of ``ImageSet`` with the keys ``train`` and ``test`` (``val`` too for folders). A file that is
absent is a ``FileNotFoundError``; a damaged one is a ``ValueError`` whose message starts with its path.
"""

from __future__ import annotations

import gzip
import lzma
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from innerloop.data.images import ImageSet, checked_labels, optional_module

__all__ = ["load_image", "read_digits", "read_fashion_mnist", "read_image_folder", "read_omniglot"]

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
        labels = torch.from_numpy(checked_labels(labels_file, labels, len(_FASHION_CLASSES))).long()
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
    digits = optional_module("sklearn.datasets", "scikit-learn").load_digits()
    order = np.random.RandomState(0).permutation(len(digits.images))
    images = torch.from_numpy(np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target[order].astype(np.int64))
    whole = ImageSet(images, labels, tuple("0123456789"), "digits")
    return {"train": whole.select(torch.arange(1000)), "test": whole.select(torch.arange(1000, len(whole)))}


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
    Image = optional_module("PIL.Image", "pillow")
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
