# SPDX-License-Identifier: Apache-2.0
"""Readers of other images: small files of each format, damaged ones, the real data."""

import gzip
import hashlib
import lzma
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from innerloop.data import image_files as module
from innerloop.data.image_files import load_image, read_digits, read_fashion_mnist, read_image_folder, read_omniglot
from innerloop.data.images import ImageSet, split_off, statistics
from torch import Tensor


def random_images(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


# --- Fashion-MNIST ---


def idx(array: np.ndarray) -> bytes:
    header = (0x800 + array.ndim, *array.shape)
    return b"".join(n.to_bytes(4, "big") for n in header) + array.tobytes()


def write_fashion(folder: Path, prefix: str = "train") -> dict[str, np.ndarray]:
    """Four files, each compressed in its own way."""
    arrays = {
        f"{prefix}-images-idx3-ubyte.xz": random_images(5, 28, 28).numpy(),
        f"{prefix}-labels-idx1-ubyte.gz": torch.randint(10, (5,), dtype=torch.uint8).numpy(),
        "t10k-images-idx3-ubyte": random_images(3, 28, 28).numpy(),
        "t10k-labels-idx1-ubyte.xz": torch.randint(10, (3,), dtype=torch.uint8).numpy(),
    }
    compress = {".xz": lzma.compress, ".gz": gzip.compress, "": bytes}
    for name, array in arrays.items():
        (folder / name).write_bytes(compress[Path(name).suffix](idx(array)))
    return arrays


def test_fashion_mnist(tmp_path):
    for prefix, name in (("train20k", "Fashion-MNIST (20k-image training subset)"), ("train", "Fashion-MNIST")):
        arrays = list(write_fashion(tmp_path, prefix).values())  # the complete set is preferred
        sets = read_fashion_mnist(tmp_path)
        for split, (images, labels) in (("train", arrays[:2]), ("test", arrays[2:])):
            found = sets[split]
            assert np.array_equal(found.images.numpy(), images[:, None])
            assert np.array_equal(found.labels.numpy(), labels)
            assert (found.name, found.classes[9], len(found.classes)) == (name, "ankle boot", 10)


def test_damaged_fashion_mnist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train20k-images-idx3-ubyte: no such file, plain, \.gz or \.xz"):
        read_fashion_mnist(tmp_path)
    arrays = write_fashion(tmp_path)
    images, labels = arrays["t10k-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte.gz"]
    good = {name: (tmp_path / name).read_bytes() for name in arrays}
    for name, data, message in (
        ("t10k-images-idx3-ubyte", idx(images[0]), "magic number 2050, expected 2051"),
        ("t10k-images-idx3-ubyte", b"", "magic number 0, expected 2051"),
        ("t10k-images-idx3-ubyte", idx(images)[:-1], r"2367 bytes, expected 2368 for shape \(3, 28, 28\)"),
        ("t10k-images-idx3-ubyte", idx(images)[:10], r"10 bytes, expected \d+"),
        ("t10k-images-idx3-ubyte", idx(images) + b"x", "2369 bytes, expected 2368"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(labels[:4])), "4 labels, expected 5 as of images"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(labels % 1 + 10)), "labels from 10 to 10, expected 0 to 9"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(labels))[:-9], r"expected a complete \.gz file"),
        ("train-labels-idx1-ubyte.gz", b"no gzip", r"expected a complete \.gz file"),
        ("train-images-idx3-ubyte.xz", good["train-images-idx3-ubyte.xz"][:-40], r"expected a complete \.xz file"),
        ("train-images-idx3-ubyte.xz", b"no xz", r"expected a complete \.xz file"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / name)) + ": .*" + message):
            read_fashion_mnist(tmp_path)
        (tmp_path / name).write_bytes(good[name])


def test_real_fashion_mnist(shared_data):
    folder = shared_data / "images" / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    sums = re.findall(
        r"^  (train20k|t10k) (images|labels) +([0-9a-f]{64})$", (folder.parent / "README.md").read_text(), re.M
    )
    assert len(sums) == 4
    sets = read_fashion_mnist(folder)
    for stem, kind, expected in sums:
        found = sets["test" if stem == "t10k" else "train"]
        array = found.images.squeeze(1).numpy() if kind == "images" else found.labels.numpy().astype(np.uint8)
        assert hashlib.sha256(idx(array)).hexdigest() == expected
    assert sets["train"].labels.bincount().tolist() == [1935, 2025, 1982, 2011, 1967, 2010, 2068, 2003, 1971, 2028]
    assert sets["test"].labels.bincount().tolist() == [1000] * 10
    (mean,), (std,) = statistics(sets["train"].images)
    assert mean == pytest.approx(0.2860, abs=2e-3)  # those of the official 60 000
    assert std == pytest.approx(0.3530, abs=2e-3)


# --- Omniglot ---


def test_area_weights_are_exact():
    weights = module._area_weights(105, 28)
    fine = torch.rand(105, dtype=torch.float64).numpy()
    expected = np.repeat(fine, 28).reshape(28, 105).mean(1)  # 105·28 cells, 105 in each new pixel, 28 in each old one
    assert weights @ fine == pytest.approx(expected, rel=1e-12)
    assert weights.sum(1) == pytest.approx(np.ones(28), rel=1e-12)


def write_omniglot(path: Path, **changes: np.ndarray) -> Path:
    bits = torch.randint(2, (6, 20, 11025), dtype=torch.uint8).numpy()
    arrays = {
        "images": np.packbits(bits, axis=-1),
        "part": np.array([0, 0, 1, 0, 0, 1], np.uint8),
        "alphabet": np.array([0, 0, 0, 1, 1, 1], np.uint8),
        "character": np.array([1, 2, 3, 1, 2, 3], np.uint8),
        "alphabet_names": np.array(["Greek", "Latin"]),
    }
    np.savez(path, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})
    return path


def test_omniglot(tmp_path):
    path = write_omniglot(tmp_path / "o.npz")
    sets = read_omniglot(path, classes=4, train_drawers=13)
    train, test = sets["train"], sets["test"]
    assert train.classes == test.classes == ("Greek/1", "Greek/2", "Latin/1", "Latin/2")
    assert (train.name, train.images.shape, test.images.shape) == ("Omniglot-4", (52, 1, 28, 28), (28, 1, 28, 28))
    assert train.labels.tolist() == [c for c in range(4) for _ in range(13)]
    assert test.labels.tolist() == [c for c in range(4) for _ in range(7)]
    bits = np.unpackbits(np.load(path)["images"], axis=-1, count=11025).reshape(6, 20, 105, 105)
    for found, c, drawer in ((train.images[0], 0, 0), (train.images[13 * 2 + 5], 3, 5), (test.images[-1], 4, 19)):
        cells = np.repeat(np.repeat(bits[c, drawer], 28, axis=0), 28, axis=1)
        expected = cells.reshape(28, 105, 28, 105).mean((1, 3)) * 255
        assert np.array_equal(found[0].numpy(), np.rint(expected))


def test_omniglot_errors(tmp_path):
    path = write_omniglot(tmp_path / "o.npz")
    for arguments, message in (
        ({"classes": 5}, "read_omniglot: classes=5, expected 1 to 4"),
        ({"classes": 0}, "read_omniglot: classes=0, expected 1 to 4"),
        ({"train_drawers": 20}, "read_omniglot: train_drawers=20, expected 1 to 19"),
        ({"train_drawers": 0}, "read_omniglot: train_drawers=0, expected 1 to 19"),
    ):
        with pytest.raises(ValueError, match=message):
            read_omniglot(path, **arguments)
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        read_omniglot(tmp_path / "absent.npz")
    zeros = np.zeros((6, 20, 1000), np.uint8)
    for changes, message in (
        ({"part": None}, r"part is not a file in the archive.*, expected omniglot\.npz"),
        ({"alphabet": np.array([0, 0, 0, 1, 1, 2], np.uint8)}, r"expected omniglot\.npz"),
        ({"images": zeros}, r"images uint8 \(6, 20, 1000\), part \(6,\), 6 characters, expected uint8 \(n, 20, 1379\)"),
        ({"part": np.zeros(5, np.uint8)}, r"part \(5,\), 6 characters, expected"),
        ({"images": np.array([{}])}, r"expected omniglot\.npz"),  # a pickle in it is not read
    ):
        with pytest.raises(ValueError, match=r"o\.npz: .*" + message):
            read_omniglot(write_omniglot(path, **changes))
    data = write_omniglot(path).read_bytes()
    for wrong in (data[:-100], b"", b"no archive"):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"o\.npz: .*expected omniglot\.npz"):
            read_omniglot(path)


def test_real_omniglot(shared_data):
    path = shared_data / "omniglot" / "omniglot.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    sets = read_omniglot(path)
    assert (len(sets["train"]), len(sets["test"])) == (3000, 1000)
    assert sets["train"].labels.bincount().tolist() == [15] * 200
    assert sets["test"].labels.bincount().tolist() == [5] * 200
    with np.load(path) as file:
        part, packed = file["part"], file["images"]
    chosen = sorted(np.random.RandomState(0).permutation(np.flatnonzero(part == 0))[:200])
    assert len(set(sets["train"].classes)) == 200
    ink = np.unpackbits(packed[chosen][:, 15:], axis=-1, count=11025).mean(-1)
    found = sets["test"].images.double().mean((1, 2, 3)).view(200, 5).numpy() / 255  # averaging keeps the mean
    assert found == pytest.approx(ink, abs=1e-3)
    assert 0.02 < ink.mean() < 0.2  # strokes, not paper


# --- digits ---


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    sets = read_digits()
    train, test = sets["train"], sets["test"]
    assert (train.images.shape, test.images.shape) == ((1000, 1, 8, 8), (797, 1, 8, 8))
    order = np.random.RandomState(0).permutation(1797)
    images, target = datasets.load_digits(return_X_y=True)
    assert torch.cat([train.labels, test.labels]).tolist() == target[order].tolist()
    found = torch.cat([train.images, test.images]).flatten(1).double().numpy()
    assert np.abs(found - images[order] * 255 / 16).max() <= 0.5
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize(
    ("missing", "package", "call"),
    [
        ("sklearn.datasets", "scikit-learn", read_digits),
        ("PIL.Image", "pillow", lambda: load_image("x.jpg", 8)),
    ],
)
def test_missing_packages_are_named(monkeypatch, missing, package, call):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"pip install {package}$"):
        call()


# --- folders ---


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image")


def write_folder(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"decoded later")
    return folder


def test_image_folder(tmp_path):
    root = write_folder(
        tmp_path / "net", *(f"train/n2/{i}.JPEG" for i in "fcaebd"), "train/n1/c.png", "train/n1/notes.txt",
        "train/README", "val/n2/d.JPEG", "test/e.JPEG",
    )  # fmt: skip
    sets = read_image_folder(root)
    assert list(sets) == ["train", "val"]  # the images of test have no labels
    train, val = sets["train"], sets["val"]
    assert train.images == [str(root / "train" / p) for p in ("n1/c.png", *(f"n2/{i}.JPEG" for i in "abcdef"))]
    assert train.labels.tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert (val.labels.tolist(), val.classes, val.name) == ([1], ("n1", "n2"), "net")
    rest, held = split_off(ImageSet(train.images[1:], train.labels[1:], train.classes, "net"), 1)
    assert sorted(rest.images + held.images) == train.images[1:]
    write_folder(root, "test/n1/f.jpeg")
    assert read_image_folder(root)["test"].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (["val/a/1.jpg"], FileNotFoundError, r"train: no such folder, expected train/<class>/\*\.JPEG"),
        (["train/1.jpg"], ValueError, "train: no folders, expected one for each class"),
        (["train/a/1.jpg", "val/2.jpg"], ValueError, "val: no folders, expected one for each class"),
        (["train/a/1.jpg", "val/b/2.jpg"], ValueError, r"val/b: expected a class of .*/train$"),
        (["train/a/1.txt"], ValueError, r"train/a: no images, expected \.jpeg, \.jpg or \.png files"),
    ],
)
def test_image_folder_errors(tmp_path, files, error, message):
    with pytest.raises(error, match=message):
        read_image_folder(write_folder(tmp_path, *files))


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards, blue is 77: a crop's place and size can be read from it."""
    image = np.full((height, width, 3), 77, np.uint8)
    image[..., 0] = np.linspace(0, 255, width)
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return image


def test_load_image_for_evaluation(tmp_path, pillow):
    pixels = random_images(64, 96, 3).numpy()
    pillow.fromarray(pixels).save(tmp_path / "a.png")
    found = load_image(tmp_path / "a.png", 56)  # resized to 64, its size: a mere crop
    assert (found.dtype, found.shape, found.is_contiguous()) == (torch.uint8, (3, 56, 56), True)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), pixels[4:60, 20:76])
    pillow.fromarray(gradient(300, 200)).save(tmp_path / "b.jpg", quality=95)
    found = load_image(tmp_path / "b.jpg", 28).float()  # of 32×48 pixels
    assert found[0].mean() == pytest.approx(127.5, abs=3)
    assert found[1].mean() == pytest.approx(127.5, abs=3)
    assert (found[0, 0, -1] - found[0, 0, 0]) == pytest.approx(255 * 27 / 32, abs=8)
    assert (found[1, -1, 0] - found[1, 0, 0]) == pytest.approx(255 * 27 / 48, abs=8)
    pillow.fromarray(gradient(40, 40)[..., 0]).save(tmp_path / "grey.png")
    grey = load_image(str(tmp_path / "grey.png"), 32)
    assert torch.equal(grey[0], grey[2])


def test_load_image_for_training(tmp_path, pillow):
    pillow.fromarray(gradient(120, 160)).save(tmp_path / "a.png")
    generator = torch.Generator().manual_seed(0)
    crops = torch.stack([load_image(tmp_path / "a.png", 16, True, generator) for _ in range(200)]).float()
    generator.manual_seed(0)
    assert torch.equal(load_image(tmp_path / "a.png", 16, True, generator).float(), crops[0])
    assert crops[:, 2].eq(77).all()
    across = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    assert 0.35 < (across < 0).float().mean() < 0.65  # flipped
    width = across.abs() / 255 * 160 * 16 / 15
    height = (crops[:, 1, -1, 0] - crops[:, 1, 0, 0]) / 255 * 120 * 16 / 15
    area, ratio = width * height / (120 * 160), width / height
    assert 0.05 < area.min() < 0.25
    assert 0.8 < area.max() < 1.05
    assert ratio.min() > 0.65
    assert ratio.max() < 1.55
    assert ratio.log().mean().abs() < 0.1


def test_random_box():
    generator = torch.Generator().manual_seed(0)
    for width, height in ((50, 40), (300, 7), (3, 200), (1, 1)):
        for _ in range(100):
            left, top, right, bottom = module._random_box(width, height, generator)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
    assert module._random_box(3, 2000, generator) == (0, 998, 3, 1002)  # nothing random fits
    assert module._random_box(2000, 3, generator) == (998, 0, 1002, 3)


def test_damaged_images(tmp_path, pillow):
    pillow.fromarray(random_images(64, 64, 3).numpy()).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    for wrong in (data[: len(data) // 2], b"", b"no image"):
        (tmp_path / "a.jpg").write_bytes(wrong)
        with pytest.raises(ValueError, match=r"a\.jpg: .*expected an image"):
            load_image(tmp_path / "a.jpg", 8)
    with pytest.raises(FileNotFoundError, match=r"b\.jpg"):
        load_image(tmp_path / "b.jpg", 8)
