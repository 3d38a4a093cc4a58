# SPDX-License-Identifier: Apache-2.0
"""Sets of images: parts of them, statistics and augmentation."""

import pytest
import torch
from innerloop.data import images as module
from innerloop.data.images import ImageSet, augmented_pool, random_crop_flip, split_off, standardise, statistics
from tolerances import assert_close
from torch import Tensor


def random_images(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def image_set(sizes: list[int]) -> ImageSet:
    """sizes[c] images of each class c, in random order; each image holds its position."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels))]
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(images, labels, tuple("abcdefg"[: len(sizes)]), "x")


def test_select_and_split_off():
    whole = image_set([10, 20, 0, 7])
    assert len(whole) == 37
    part = whole.select(torch.tensor([5, 3]))
    assert part.images.flatten().tolist() == [5, 3]
    assert torch.equal(part.labels, whole.labels[[5, 3]])
    for amount, counts in ((3, [3, 3, 0, 3]), (0.3, [3, 6, 0, 2])):
        rest, held = split_off(whole, amount, seed=1)
        assert torch.bincount(held.labels, minlength=4).tolist() == counts
        places = [part.images.flatten().tolist() for part in (rest, held)]
        assert sorted(places[0] + places[1]) == list(range(37))
        for part, place in zip((rest, held), places, strict=True):
            assert place == sorted(place)
            assert torch.equal(part.labels, whole.labels[place])
        assert torch.equal(split_off(whole, amount, seed=1)[1].images, held.images)
        assert not torch.equal(split_off(whole, amount, seed=2)[1].images, held.images)
    for amount in (0, 7, 0.01, 1.0):
        with pytest.raises(
            ValueError, match=rf"fraction_or_per_class={amount} holds out \d+ of the \d+ images of class"
        ):
            split_off(whole, amount)


def test_split_off_is_uniform():
    whole = image_set([6, 6])
    counts = sum(torch.bincount(split_off(whole, 2, seed)[1].images.flatten(), minlength=12) for seed in range(600))
    assert (counts - 200).abs().max() < 6 * (600 * 2 / 9) ** 0.5  # six standard deviations


def test_image_set_refuses_what_does_not_fit():
    images, labels = random_images(2, 1, 3, 3), torch.tensor([0, 1])
    for wrong, message in (
        ((images.float(), labels), r"images is torch\.float32 of shape \(2, 1, 3, 3\), expected torch\.uint8"),
        ((images[0], labels), r"images is torch\.uint8 of shape \(1, 3, 3\)"),
        ((images, labels[:1]), r"labels is torch\.int64 of shape \(1,\), expected torch\.int64 \(2,\)"),
        ((images, labels.int()), r"labels is torch\.int32"),
        ((images, labels + 1), r"labels from 1 to 2, expected 0 to 1"),
        ((["a", "b"], labels - 1), r"labels from -1 to 0, expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match="ImageSet: " + message):
            ImageSet(*wrong, ("a", "b"), "x")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_statistics_and_standardise(monkeypatch, dtype):
    monkeypatch.setattr(module, "_CHUNK", 3)
    images = random_images(10, 3, 5, 4)
    images[:, 1] //= 4
    images = images if dtype == torch.uint8 else images / 255
    scaled = (images / 255 if dtype == torch.uint8 else images).double()
    mean, std = statistics(images)
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), rel=1e-6)
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), rel=1e-6)
    found = standardise(images, mean, std)
    expected = (scaled - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert found.dtype == torch.float32
    assert_close(found, expected.float(), op="between_isas")  # other orders of the same float32 sums
    assert statistics(torch.full((4, 2, 3, 3), 51, dtype=torch.uint8)) == ((0.2, 0.2), (0, 0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_random_crop_flip_is_the_plain_loop(dtype, padding):
    images = random_images(40, 3, 7, 5).to(dtype)
    found = random_crop_flip(images, torch.Generator().manual_seed(1), padding)
    assert (found.dtype, found.shape) == (images.dtype, images.shape)
    generator = torch.Generator().manual_seed(1)
    shift = torch.randint(2 * padding + 1, (2, 40, 1), generator=generator).squeeze(2)
    flip = torch.rand(40, generator=generator) < 0.5
    assert 5 < flip.sum() < 35
    for i in range(40):
        padded = torch.zeros(3, 7 + 2 * padding, 5 + 2 * padding, dtype=dtype)
        padded[:, padding : padding + 7, padding : padding + 5] = images[i]
        y, x = shift[:, i].tolist()
        crop = padded[:, y : y + 7, x : x + 5]
        assert torch.equal(found[i], crop.flip(2) if flip[i] else crop)


def test_random_crops_reach_every_place():
    images = torch.zeros(2000, 1, 3, 3, dtype=torch.uint8)
    images[:, :, 1, 1] = 1
    found = random_crop_flip(images, torch.Generator().manual_seed(0), padding=1)
    assert found.sum() == 2000  # the middle stays in sight
    counts = found.sum((0, 1)) / 2000
    assert (counts - 1 / 9).abs().max() < 0.035  # five standard deviations
    assert random_crop_flip(images[:0]).shape == (0, 1, 3, 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmented_pool(monkeypatch, dtype):
    images = random_images(6, 2, 12, 12).to(dtype)
    pool, source = augmented_pool(images, copies=3)
    assert (pool.dtype, pool.shape) == (dtype, (24, 2, 12, 12))
    assert source.tolist() == [*range(6)] * 4
    assert torch.equal(pool[:6], images)
    assert len({tuple(image.flatten().tolist()) for image in pool}) == 24
    monkeypatch.setattr(module, "_CHUNK", 4)
    assert torch.equal(augmented_pool(images, 3, 5)[0], pool)
    assert not torch.equal(augmented_pool(images, 3, 6)[0], pool)
    assert torch.equal(augmented_pool(images, 0)[0], images)
    exact = augmented_pool(images.float())[0]
    assert torch.equal(pool.float(), exact.round() if dtype == torch.uint8 else exact)


def test_augmented_pool_stays_within_its_limits():
    """Coordinates as pixels: a distorted copy of them shows its affine map."""
    H, W = 40, 60
    y, x = torch.meshgrid(torch.arange(H) + 0.5 - H / 2, torch.arange(W) + 0.5 - W / 2, indexing="ij")
    pool, _ = augmented_pool(torch.stack([x, y]).repeat(300, 1, 1, 1), copies=1)
    middle = pool[300:, :, H // 2 - 3 : H // 2 + 3, W // 2 - 3 : W // 2 + 3].double()
    shift = middle.mean((2, 3)) / torch.tensor([W / 2, H / 2])
    right, down = middle.diff(dim=3).mean((2, 3)), middle.diff(dim=2).mean((2, 3))  # columns of the map
    scale = right.norm(dim=1)
    angle = torch.atan2(right[:, 1], right[:, 0])
    shear = (right * down).sum(1) / scale.square()
    area = right[:, 0] * down[:, 1] - right[:, 1] * down[:, 0]
    assert area.tolist() == pytest.approx(scale.square().tolist(), rel=1e-3)
    for value, limit in ((angle, 0.2), (scale - 1, 0.15), (shear, 0.15), (shift[:, 0], 0.125), (shift[:, 1], 0.125)):
        assert value.abs().max() <= limit * 1.001
        assert value.abs().max() > limit * 0.95
        assert value.std() == pytest.approx(limit / 3**0.5, rel=0.15)  # uniform


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: statistics(x[0]), r"statistics: images is torch\.uint8 of shape \(3, 4, 4\), expected uint8 or"),
        (lambda x: statistics(x.long()), r"statistics: images is torch\.int64"),
        (lambda x: statistics(x[:0]), r"statistics: images has shape \(0, 3, 4, 4\), expected at least one pixel"),
        (lambda x: standardise(x[0], (0,), (1,)), r"standardise: images"),
        (lambda x: standardise(x, (0, 0), (1, 1, 1)), r"standardise: mean=\(0, 0\), .*expected 3 numbers each"),
        (lambda x: standardise(x, (0, 0, 0), (1, 0, 1)), r"standardise: .*std > 0"),
        (lambda x: random_crop_flip(x[0]), r"random_crop_flip: images"),
        (lambda x: random_crop_flip(x, padding=-1), r"random_crop_flip: padding=-1, expected at least 0"),
        (lambda x: augmented_pool(x[0]), r"augmented_pool: images"),
        (lambda x: augmented_pool(x, copies=-1), r"augmented_pool: copies=-1, expected at least 0"),
    ],
)
def test_batch_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_images(2, 3, 4, 4))
