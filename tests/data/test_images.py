# SPDX-License-Identifier: Apache-2.0
"""Readers of labelled images: small files of each format, damaged and hostile ones, the real data, augmentation."""

import gzip
import hashlib
import io
import lzma
import os
import pickle
import re
import sys
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from innerloop.data import images as module
from innerloop.data.images import (
    CIFAR100_MEAN,
    CIFAR100_STD,
    ImageSet,
    augmented_pool,
    download_cifar100,
    load_image,
    random_crop_flip,
    read_cifar,
    read_digits,
    read_fashion_mnist,
    read_image_folder,
    read_omniglot,
    split_off,
    standardise,
    statistics,
)
from torch import Tensor


def random_images(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def image_set(sizes: list[int]) -> ImageSet:
    """sizes[c] images of each class c, in random order; each image holds its position."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels))]
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(images, labels, tuple("abcdefg"[: len(sizes)]), "x")


# --- sets ---


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


# --- CIFAR ---

NAMES = {"cifar-100": [f"c{i}" for i in range(100)], "cifar-10": [f"c{i}" for i in range(10)]}


def python2_pickle(key: str, labels: list[int], images: np.ndarray) -> bytes:
    """{key: labels, "data": images} as Python 2 and numpy 1 wrote the official files: protocol 2, bytes as text."""
    fortran = not images.flags.c_contiguous
    raw = images.tobytes(order="A")

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    return b"".join(
        (
            b"\x80\x02}q\x01(",
            text(key.encode()),
            b"]q\x02(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            text(b"data"),
            b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85" + text(b"b") + b"\x87Rq\x05",
            b"(K\x01K" + bytes([len(images)]) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x06" + text(b"u1"),
            b"K\x00K\x01\x87Rq\x07(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            (b"\x88" if fortran else b"\x89") + b"T" + len(raw).to_bytes(4, "little") + raw + b"tbu.",
        )
    )


def write_cifar(folder: Path, version: str, labels: dict[str, list[int]], images: dict[str, np.ndarray]) -> Path:
    """A folder in the layout of an official archive; labels and images by name of batch."""
    folder /= version
    folder.mkdir(parents=True)
    classes = NAMES["cifar-100" if "100" in version else "cifar-10"]
    for batch in labels:
        if "bin" in version:
            coarse = b"\x07" if "100" in version else b""
            rows = (coarse + bytes([y]) + x.tobytes() for y, x in zip(labels[batch], images[batch], strict=True))
            (folder / f"{batch}.bin").write_bytes(b"".join(rows))
        else:
            key = "fine_labels" if "100" in version else "labels"
            (folder / batch).write_bytes(python2_pickle(key, labels[batch], images[batch]))
    if "bin" in version:
        file = "fine_label_names.txt" if "100" in version else "batches.meta.txt"
        (folder / file).write_text("\n".join([*classes, "", ""]))
    else:
        file, key = ("meta", "fine_label_names") if "100" in version else ("batches.meta", "label_names")
        (folder / file).write_bytes(pickle.dumps({key: classes}))
    return folder


def cifar(folder: Path, version: str) -> tuple[Path, dict[str, list[int]], dict[str, np.ndarray]]:
    batches = ["train", "test"] if "100" in version else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    limit = 100 if "100" in version else 10
    labels = {b: torch.randint(limit, (n,)).tolist() for n, b in enumerate(batches, 2)}
    images = {b: random_images(len(y), 3072).numpy() for b, y in labels.items()}
    return write_cifar(folder, version, labels, images), labels, images


def tar(folder: Path) -> Path:
    path = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


@pytest.mark.parametrize(
    "version", ["cifar-100-binary", "cifar-100-python", "cifar-10-batches-bin", "cifar-10-batches-py"]
)
def test_cifar(tmp_path, version):
    folder, labels, images = cifar(tmp_path / "data", version)
    *train, test = labels
    for path in (folder, folder.parent, tar(folder)):
        sets = read_cifar(path)
        for split, batches in (("train", train), ("test", [test])):
            found = sets[split]
            assert found.images.dtype == torch.uint8
            assert found.labels.tolist() == [y for b in batches for y in labels[b]]
            assert np.array_equal(found.images.flatten(1).numpy(), np.concatenate([images[b] for b in batches]))
            assert found.images.shape[1:] == (3, 32, 32)
            name = "cifar-100" if "100" in version else "cifar-10"
            assert (found.name.lower(), list(found.classes)) == (name, NAMES[name])


def test_cifar_pickles_of_other_pythons(tmp_path):
    folder, labels, images = cifar(tmp_path, "cifar-100-python")
    for protocol in (3, 4):
        table = {"data": images["train"], "fine_labels": labels["train"]}
        (folder / "train").write_bytes(pickle.dumps(table, protocol=protocol))
        assert np.array_equal(read_cifar(folder)["train"].images.flatten(1).numpy(), images["train"])
    (folder / "train").write_bytes(python2_pickle("fine_labels", labels["train"], np.asfortranarray(images["train"])))
    assert np.array_equal(read_cifar(folder)["train"].images.flatten(1).numpy(), images["train"])


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_hostile_pickles_run_nothing(tmp_path):
    folder, labels, images = cifar(tmp_path, "cifar-100-python")
    trace = tmp_path / "trace"
    good = {"data": images["test"], "fine_labels": labels["test"]}
    hostile = [
        pickle.dumps({**good, "data": Call(os.mkdir, str(trace))}),
        pickle.dumps({**good, "fine_labels": Call(eval, f"__import__('os').mkdir({str(trace)!r})")}),
        f"cos\nmkdir\n(S'{trace}'\ntR.".encode(),
        f"(S'{trace}'\nios\nmkdir\n.".encode(),
        pickle.dumps({**good, "data": Call(np.save, str(trace), 1)}),
    ]
    for file in ("test", "meta"):
        kept = (folder / file).read_bytes()
        for data in hostile:
            (folder / file).write_bytes(data)
            message = re.escape(str(folder / file)) + r": names .*\.(mkdir|eval|save|\w+), expected a pickle of lists"
            with pytest.raises(ValueError, match=message):
                read_cifar(folder)
            assert not list(tmp_path.glob("trace*"))
        (folder / file).write_bytes(kept)
    # State meant for the stand-in itself is refused too, and no numpy object is ever built.
    before = dict(vars(module._FromNumpy))
    (folder / "test").write_bytes(b"\x80\x02cnumpy\nndarray\nN}U\x05arrayK\x01s\x86b.")
    with pytest.raises(ValueError, match="expected a pickle"):
        read_cifar(folder)
    assert dict(vars(module._FromNumpy)) == before


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "holds a list, expected a dict"),
        ({}, "expected data, an array, and fine_labels, a list"),
        ({"data": np.zeros((2, 3072), np.float32), "fine_labels": [1, 2]}, "dtype f4, expected u1"),
        ({"data": np.zeros((2, 3071), np.uint8), "fine_labels": [1, 2]}, r"data \(2, 3071\), expected"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1]}, r"labels \(1,\) and data \(2, 3072\), expected"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 0.5]}, "float64 labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": 1}, r"labels \(\)"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 100]}, "labels from 1 to 100, expected 0 to 99"),
    ],
)
def test_cifar_pickles_of_something_else(tmp_path, table, message):
    folder, _, _ = cifar(tmp_path, "cifar-100-python")
    (folder / "train").write_bytes(pickle.dumps(table, protocol=4))
    with pytest.raises(ValueError, match=re.escape(str(folder / "train")) + ": .*" + message):
        read_cifar(folder)


def test_damaged_cifar(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_cifar(tmp_path / "nothing")
    with pytest.raises(
        ValueError, match=r"holds 0 CIFAR data sets, expected all files of one of cifar-100-binary: train"
    ):
        read_cifar(tmp_path)
    folder, _, images = cifar(tmp_path, "cifar-100-binary")
    archive = tar(folder)
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"binary\.tar\.gz: .*expected a complete \.tar\.gz"):
        read_cifar(archive)
    archive.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"binary\.tar\.gz: .*expected a complete \.tar\.gz"):
        read_cifar(archive)
    data = (folder / "test.bin").read_bytes()
    for wrong in (data[:-1], b""):
        (folder / "test.bin").write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"test\.bin: {len(wrong)} bytes, expected a multiple of 3074"):
            read_cifar(folder)
    (folder / "test.bin").write_bytes(b"\x00\x64" + images["test"][0].tobytes())
    with pytest.raises(ValueError, match=r"test\.bin: labels from 100 to 100, expected 0 to 99"):
        read_cifar(folder)
    (folder / "test.bin").write_bytes(data)
    cifar(tmp_path, "cifar-10-batches-bin")
    with pytest.raises(ValueError, match="holds 2 CIFAR data sets"):
        read_cifar(tmp_path)
    python, _, _ = cifar(tmp_path, "cifar-100-python")
    (python / "train").write_bytes((python / "train").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"train: .*expected a pickle"):
        read_cifar(python)
    (python / "meta").write_bytes(pickle.dumps({"fine_label_names": 3}))
    with pytest.raises(ValueError, match="meta: fine_label_names is int, expected a list of names"):
        read_cifar(python)


class Response(io.BytesIO):
    def __init__(self, data: bytes):
        super().__init__(data)
        self.headers = {"Content-Length": str(len(data))}


@pytest.mark.parametrize("version", ["binary", "python"])
def test_download(tmp_path, monkeypatch, version):
    folder, labels, _ = cifar(tmp_path, f"cifar-100-{version}")
    data = tar(folder).read_bytes()
    asked = []

    def urlopen(url: str, timeout: float) -> Response:
        asked.append(url)
        return Response(data)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    target = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match=r"MD5 is \w{32}, expected (03b5dce01913|eb9058c3a382)\w{20}: the download is"):
        download_cifar100(target, version)
    assert list(target.iterdir()) == []
    monkeypatch.setitem(module._CIFAR100_MD5, version, hashlib.md5(data).hexdigest())
    archive = target / f"cifar-100-{version}.tar.gz"
    archive.write_bytes(b"cut short")
    for _ in range(2):  # the second finds it there
        assert download_cifar100(target, version) == archive
    assert asked == [f"https://www.cs.toronto.edu/~kriz/cifar-100-{version}.tar.gz"] * 2
    assert list(target.iterdir()) == [archive]
    assert read_cifar(archive)["train"].labels.tolist() == labels["train"]


def test_download_cut_off(tmp_path, monkeypatch):
    class Broken(Response):
        def read(self, size: int = -1) -> bytes:
            raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Broken(b"x"))
    with pytest.raises(TimeoutError, match="timed out"):
        download_cifar100(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="version='matlab', expected binary or python"):
        download_cifar100(tmp_path, "matlab")


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
        ("tqdm.auto", "tqdm", lambda: download_cifar100("x")),
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


# --- batches ---


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
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    assert statistics(torch.full((4, 2, 3, 3), 51, dtype=torch.uint8)) == ((0.2, 0.2), (0, 0))


def test_cifar100_constants():
    black, white = standardise(
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1), CIFAR100_MEAN, CIFAR100_STD
    )
    assert black.flatten().tolist() == pytest.approx([-1.8957, -1.8975, -1.5965], abs=1e-4)
    assert (white - black).flatten().tolist() == pytest.approx([3.7383, 3.8986, 3.6219], abs=1e-4)


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
