# SPDX-License-Identifier: Apache-2.0
"""What distillation reads: batches, crops, hold-outs, image folders, and the networks for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pytorch_lightning")

from innerloop.data.images import ImageSet, standardise
from innerloop.data.images import statistics as image_statistics
from innerloop.recipes._batches import step_generator
from innerloop.recipes.ckd import Problem, evaluate, read_images, tasks, train_on
from innerloop.recipes.ckd.tasks import feature_width
from recipes.ckd.ckd_cases import QUIET, tiny
from tolerances import assert_close


def test_batches_are_standardised_images(images):
    problem = Problem(images, tiny())
    assert (problem.num_classes, problem.size("train"), problem.size("test")) == (10, 52, 37)
    items = torch.tensor([5, 3])
    x, labels = problem.batch("train", items)
    mean, std = image_statistics(images.splits["train"].images)
    assert_close(x, standardise(images.splits["train"].images[items], mean, std))
    assert labels.tolist() == [5, 3]
    everything, _ = problem.batch("train", torch.arange(52))
    assert abs(float(everything.mean())) < 1e-5
    assert abs(float(everything.std()) - 1) < 1e-3


def test_crops_are_drawn_from_the_generator_in_training_only(images):
    problem = Problem(images, tiny(augmentation="crop-flip"))
    items = torch.arange(8)
    first, again, other = (problem.batch("train", items, step_generator(0, epoch))[0] for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(problem.batch("train", items)[0], Problem(images, tiny()).batch("train", items)[0])
    fixed = Problem(images, tiny()).batch("train", items, step_generator(0, 0))[0]
    assert torch.equal(fixed, problem.batch("train", items)[0])


def test_pool_and_train_size(images):
    problem = Problem(images, tiny(augmentation="pool", train_size=6))
    assert problem.size("train") == 24
    assert problem.batch("train", torch.arange(24))[1].tolist() == list(range(6)) * 4
    plain = Problem(images, tiny())
    assert torch.equal(problem.batch("train", torch.arange(6))[0], plain.batch("train", torch.arange(6))[0])
    assert Problem(images, tiny(train_size=1000)).size("train") == 52


def test_holdout_is_taken_from_every_class(data):
    images = read_images(tiny(holdout=2), data)
    assert {split: len(s) for split, s in images.splits.items()} == {"train": 32, "valid": 20, "test": 37}
    assert torch.bincount(images.splits["valid"].labels).tolist() == [2] * 10


def test_holdout_of_omniglot_is_the_last_drawers(monkeypatch):
    n = 3 * 15
    train = ImageSet(torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1), torch.arange(3).repeat_interleave(15),
                     ("a", "b", "c"), "Omniglot-3")  # fmt: skip
    monkeypatch.setattr(tasks, "read_omniglot", lambda path: {"train": train, "test": train})
    images = read_images(tiny(dataset="omniglot-200", holdout=2), Path("x"))
    assert images.splits["valid"].images.flatten().tolist() == [13, 14, 28, 29, 43, 44]
    assert len(images.splits["train"]) == 39
    with pytest.raises(ValueError, match="holdout is 15, expected less than the 15 drawers"):
        read_images(tiny(dataset="omniglot-200", holdout=15), Path("x"))


@pytest.mark.parametrize(
    ("config", "path", "message"),
    [
        (
            {"dataset": "omniglot-200"},
            None,
            "data is missing, expected the file omniglot.npz for data set omniglot-200",
        ),
        ({"dataset": "cifar"}, None, "data is missing, expected the archive or folder of CIFAR-100 or CIFAR-10"),
        ({"dataset": "digits"}, Path("x"), "data is 'x', expected none: digits come with scikit-learn"),
    ],
)
def test_missing_data(config, path, message):
    with pytest.raises(ValueError, match="data is") as error:
        read_images(tiny(**config), path)
    assert str(error.value).startswith(message)


def test_download_is_for_cifar(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="download is True, expected False: only CIFAR-100"):
        read_images(tiny(), tmp_path, download=True)
    monkeypatch.setattr(tasks, "download_cifar100", lambda folder: folder / "archive")
    monkeypatch.setattr(tasks, "read_cifar", lambda path: {"train": path, "test": path})
    assert read_images(tiny(dataset="cifar"), download=True).splits["train"] == Path("data/archive")


def test_image_folder(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(place / f"{i}.png")
    config = tiny(dataset="folder", image_size=16, augmentation="crop-flip", epochs=1, batch_size=3)
    images = read_images(config, tmp_path)
    problem = Problem(images, config)
    x, labels = problem.batch("train", torch.tensor([0, 5]), step_generator(0))
    assert x.shape == (2, 3, 16, 16)
    assert labels.tolist() == [0, 1]
    result = train_on(problem, replace(config, method="plain"), tmp_path / "run", data=tmp_path, **QUIET)
    assert evaluate(tmp_path / "run" / "last.ckpt", **QUIET) == result["test"]
    with pytest.raises(ValueError, match="augmentation is 'pool', expected crop-flip or none for a folder of files"):
        Problem(images, tiny(augmentation="pool"))


def test_networks(images):
    problem = Problem(images, tiny())
    mlp = problem.network("mlp-7-5")
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(7, 64), (5, 7), (10, 5)]
    x = torch.randn(3, 1, 8, 8)
    logits, maps, pooled = mlp(x, features=True)
    assert torch.equal(logits, mlp(x))
    assert [m.shape for m in maps] == [(3, 7), (3, 5)]
    assert torch.equal(pooled, maps[-1])
    for name, width in (("mlp-7-5", 5), ("cnn-4-8", 8), ("resnet8", 64), ("MobileNetV2", 1280)):
        network = problem.network(name)
        assert feature_width(network) == width == network(x, features=True)[2].shape[1]
        assert network(x).shape == (3, 10)
