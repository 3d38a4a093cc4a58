# SPDX-License-Identifier: Apache-2.0
"""Readers of CIFAR: small files of each version, damaged and hostile ones, the download."""

import hashlib
import io
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
from innerloop.data import cifar as module
from innerloop.data.cifar import CIFAR100_MEAN, CIFAR100_STD, download_cifar100, read_cifar
from innerloop.data.images import standardise

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
    images = {b: torch.randint(256, (len(y), 3072), dtype=torch.uint8).numpy() for b, y in labels.items()}
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


def test_download_names_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"pip install tqdm$"):
        download_cifar100("x")


def test_cifar100_constants():
    black, white = standardise(
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1), CIFAR100_MEAN, CIFAR100_STD
    )
    assert black.flatten().tolist() == pytest.approx([-1.8957, -1.8975, -1.5965], abs=1e-4)
    assert (white - black).flatten().tolist() == pytest.approx([3.7383, 3.8986, 3.6219], abs=1e-4)
