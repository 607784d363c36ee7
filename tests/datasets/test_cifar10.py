"""CIFAR-10 through torchvision, on small batches whose md5 torchvision is told to expect."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from raybench.datasets.cifar10 import MEAN, STD, cifar10
from raybench.datasets.npz import pixel_statistics
from raybench.errors import UserError


@pytest.fixture
def tiny_root(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        blob = pickle.dumps(content)
        (folder / name).write_bytes(blob)
        return [name, hashlib.md5(blob).hexdigest()]

    def batch(size: int) -> dict:
        return {"data": rng.integers(0, 256, (size, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(size)]}

    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(20)) for i in (1, 2)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(10))])
    name, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


def test_arrays_are_those_of_the_batches(tiny_root):
    raw = cifar10(tiny_root, False)
    first = pickle.loads((tiny_root / CIFAR10.base_folder / "data_batch_1").read_bytes())
    assert (raw.x_train.shape, raw.x_test.shape) == ((40, 3, 32, 32), (10, 3, 32, 32))
    # The batches keep the red, green and blue plane one after the other, row by row.
    np.testing.assert_array_equal(raw.x_train[:20].reshape(20, -1), first["data"])
    assert raw.y_train.tolist() == [i % 10 for i in range(20)] * 2
    assert (raw.x_train.dtype, raw.y_train.dtype, raw.augment) == (np.uint8, np.int64, "crop_flip")
    assert raw.class_names == tuple("abcdefghij")


def test_sizes(tiny_root):
    raw = cifar10(tiny_root, False, train_size=20)
    assert np.bincount(raw.y_train).tolist() == [2] * 10


def test_damaged_batch_is_never_unpickled(tiny_root):
    file = tiny_root / CIFAR10.base_folder / "test_batch"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"cifar10 must have intact batches in \S+cifar-10-batches-py, got .*corrupted"):
        cifar10(tiny_root, False)


def test_absent(tmp_path):
    with pytest.raises(UserError, match=r"cifar10 must have intact batches in .*; pass .*--data DIR, or --download"):
        cifar10(tmp_path, False)


def test_no_folder():
    with pytest.raises(UserError, match=r"cifar10 must have a data folder, got none; pass --data DIR"):
        cifar10(None, False)


def test_constants_against_the_real_subset(data_root):
    with np.load(data_root / "CIFAR10" / "cifar10_subset.npz", allow_pickle=False) as content:
        mean, std = pixel_statistics(content["x_train"])
    # 12 000 of the 50 000 images: the standard error of a channel mean is about 0.13 / sqrt(12 000) = 0.0012.
    assert mean == pytest.approx(MEAN, abs=0.004)
    assert std == pytest.approx(STD, abs=0.003)
