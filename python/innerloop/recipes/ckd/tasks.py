# SPDX-License-Identifier: Apache-2.0
"""What the recipe trains on: labelled images in batches, and the networks that fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from innerloop.data.cifar import CIFAR100_MEAN, CIFAR100_STD, download_cifar100, read_cifar
from innerloop.data.image_files import load_image, read_digits, read_fashion_mnist, read_image_folder, read_omniglot
from innerloop.data.images import ImageSet, augmented_pool, random_crop_flip, split_off, standardise, statistics
from innerloop.nn.cifar import MODELS, create, small_cnn
from innerloop.recipes.ckd.config import Config

__all__ = ["MLP", "Images", "Problem", "feature_width", "load_parameters", "read_images"]

#: Of ImageNet's images, red, green, blue on the scale 0..1, as its published models use them.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

_SOURCES = {
    "omniglot-200": "the file omniglot.npz",
    "fashion-mnist": "the folder of its four IDX files",
    "cifar": "the archive or folder of CIFAR-100 or CIFAR-10",
    "folder": "a folder train/<class>/*.JPEG with val or test beside train",
}


@dataclass(frozen=True, eq=False)
class Images:
    """A data set that is read: splits train, test and, where images are held out, valid; channel means and deviations
    of the training images."""

    splits: dict[str, ImageSet]
    mean: Sequence[float]
    std: Sequence[float]

    @property
    def name(self) -> str:
        return self.splits["train"].name

    @property
    def num_classes(self) -> int:
        return len(self.splits["train"].classes)


def read_images(config: Config, data: Path | None = None, *, download: bool = False) -> Images:
    """The data set of ``config`` from the path ``data``.

    Args:
        download: fetch CIFAR-100 into the folder ``data`` (default: data) first; of the data set cifar only.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: ``data`` is missing, or given for digits; ``download`` for anything but cifar; files that hold
            something else.
    """
    dataset = config.dataset
    if download:
        if dataset != "cifar":
            raise ValueError(f"download is True, expected False: only CIFAR-100 can be fetched, not {dataset}")
        data = download_cifar100(data or Path("data"))
    if dataset == "digits" and data is not None:
        raise ValueError(f"data is {str(data)!r}, expected none: digits come with scikit-learn")
    if dataset != "digits" and data is None:
        raise ValueError(f"data is missing, expected {_SOURCES[dataset]} for data set {dataset}")
    splits = _read(dataset, data)
    if config.holdout:
        splits["train"], splits["valid"] = _held_out(splits["train"], config)
    if dataset == "cifar":
        return Images(splits, CIFAR100_MEAN, CIFAR100_STD)
    if dataset == "folder":
        return Images(splits, _IMAGENET_MEAN, _IMAGENET_STD)
    return Images(splits, *statistics(splits["train"].images))


def _read(dataset: str, data: Path | None) -> dict[str, ImageSet]:
    if dataset != "folder":
        readers = {"omniglot-200": read_omniglot, "fashion-mnist": read_fashion_mnist, "cifar": read_cifar}
        return read_digits() if dataset == "digits" else readers[dataset](data)
    splits = read_image_folder(data)
    test = splits.get("test", splits.get("val"))  # ImageNet's test images have no labels
    if test is None:
        raise ValueError(f"{data}: holds neither val/<class> nor test/<class>, expected images to test on")
    return {"train": splits["train"], "test": test}


def _held_out(train: ImageSet, config: Config) -> tuple[ImageSet, ImageSet]:
    if config.dataset != "omniglot-200":
        return split_off(train, config.holdout)
    drawers = len(train) // len(train.classes)
    if config.holdout >= drawers:
        raise ValueError(f"holdout is {config.holdout}, expected less than the {drawers} drawers for training")
    held = torch.arange(len(train)) % drawers >= drawers - config.holdout
    return train.select(~held), train.select(held)


class Problem:
    """Images as one run sees them: its training images, augmented as ``config`` says, in batches.

    Attributes:
        name: of the data set. num_classes: of its classes.
        splits: "train" is the part that the run trains on, with the copies of augmentation pool.
    """

    def __init__(self, images: Images, config: Config) -> None:
        self.name, self.num_classes = images.name, images.num_classes
        self.splits = dict(images.splits)
        self._config, self._mean, self._std = config, images.mean, images.std
        train = images.splits["train"]
        if config.train_size:
            train = train.select(torch.arange(min(config.train_size, len(train))))
        if config.augmentation == "pool":
            if not isinstance(train.images, Tensor):
                raise ValueError("augmentation is 'pool', expected crop-flip or none for a folder of files")
            pool, source = augmented_pool(train.images)
            train = ImageSet(pool, train.labels[source], train.classes, train.name)
        self.splits["train"] = train
        if config.drop_last and len(train) < config.batch_size:
            raise ValueError(
                f"batch_size is {config.batch_size}, expected at most {len(train)}, the number of training images, "
                "with drop_last"
            )

    def size(self, split: str) -> int:
        """Number of images.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(self.splits)} (valid needs a holdout)")
        return len(self.splits[split])

    def batch(self, split: str, items: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Images, float32 (B, C, H, W), standardised, and labels, int64 (B,), at ``items``, int64 (B,).

        Args:
            generator: of the augmentation crop-flip; None draws nothing.
        """
        chosen = self.splits[split]
        augment = generator is not None and self._config.augmentation == "crop-flip"
        if isinstance(chosen.images, Tensor):
            images = chosen.images[items]
            images = random_crop_flip(images, generator) if augment else images
        else:
            size = self._config.image_size
            images = torch.stack([load_image(chosen.images[i], size, augment, generator) for i in items.tolist()])
        return standardise(images, self._mean, self._std), chosen.labels[items]

    def network(self, model: str) -> nn.Module:
        """The model of that name with new weights, for these images and classes."""
        channels, *sides = self.batch("test", torch.arange(1))[0].shape[1:]
        if model in MODELS:
            return create(model, self.num_classes, channels)
        kind, *widths = model.split("-")
        widths = [int(width) for width in widths]
        if kind == "cnn":
            return small_cnn(widths, self.num_classes, channels)
        return MLP((channels * sides[0] * sides[1], *widths, self.num_classes))


class MLP(nn.Module):
    """Linear layers of ``widths``, ReLU between; called as an ``ImageClassifier``, whose maps are the hidden layers."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(*pair) for pair in pairwise(widths)])

    def forward(self, x: Tensor, features: bool = False) -> Tensor | tuple[Tensor, list[Tensor], Tensor]:
        *hidden, head = self.layers
        x, maps = x.flatten(1), []
        for layer in hidden:
            x = layer(x).relu()
            maps.append(x)
        return (head(x), maps, x) if features else head(x)


def feature_width(network: nn.Module) -> int:
    """Number of pooled features, the inputs of the last linear layer."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1].in_features


def load_parameters(network: nn.Module, state: Mapping[str, Tensor], path: Path, model: str, images: Images) -> None:
    """Puts the parameters that ``path`` holds into ``network``, the ``model`` for ``images``.

    Raises:
        ValueError: they are those of another number of classes, or of another network.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    head = list(expected)[-1]  # the bias of the last layer, one number a class
    if head in given and given[head] != expected[head]:
        raise ValueError(
            f"{path}: {model} has {given[head][0]} classes there, expected {images.num_classes}, as {images.name} has"
        )
    if given != expected:
        name = next(name for name in {**expected, **given} if given.get(name) != expected.get(name))
        raise ValueError(
            f"{path}: {name} has shape {given.get(name)}, expected {expected.get(name)}, as in {model} on "
            f"{images.name} (None: no such parameter)"
        )
    network.load_state_dict(state)
