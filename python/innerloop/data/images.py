# SPDX-License-Identifier: Apache-2.0
"""Labelled images in memory or as paths: sets of them, parts held out, standardisation and augmentation.

Readers of files are in ``innerloop.data.cifar`` and ``innerloop.data.image_files``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "ImageSet",
    "augmented_pool",
    "random_crop_flip",
    "split_off",
    "standardise",
    "statistics",
]

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


def checked_labels(where: Path, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """``labels``, read from the file ``where``, if all are in range; else a ValueError that names the file."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"{where}: labels from {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
    return labels


def optional_module(module: str, package: str) -> ModuleType:
    """Imports a module that only some readers need; its absence is an ImportError that names the package to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"innerloop.data needs {module.split('.')[0]}: pip install {package}") from error
