"""STL-10, on small binary files whose md5 torchvision is told to expect."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from torchvision.datasets import STL10

from raybench.datasets.stl10 import CLASS_NAMES, stl10
from raybench.errors import UserError


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Writes 10 + 20 images, each plane column by column, and labels from 1; no unlabelled images."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng, arrays = np.random.default_rng(0), {}

    def write(name: str, array: np.ndarray) -> list[str]:
        blob = array.astype(np.uint8).tobytes()
        (folder / name).write_bytes(blob)
        return [name, hashlib.md5(blob).hexdigest()]

    lists = {}
    for part, size in (("train", 10), ("test", 20)):
        images = rng.integers(0, 256, (size, 3, 96, 96), dtype=np.uint8)
        arrays[part] = images, np.arange(size) % 10
        lists[part] = [
            write(f"{part}_X.bin", images.transpose(0, 1, 3, 2)),
            write(f"{part}_y.bin", arrays[part][1] + 1),
        ]
    monkeypatch.setattr(STL10, "train_list", [*lists["train"], ["unlabeled_X.bin", "0" * 32]])
    monkeypatch.setattr(STL10, "test_list", lists["test"])
    return arrays


def test_arrays_are_those_of_the_files(tiny, tmp_path):
    raw = stl10(tmp_path, False)
    for x, y, part in ((raw.x_train, raw.y_train, "train"), (raw.x_test, raw.y_test, "test")):
        np.testing.assert_array_equal(x, tiny[part][0])
        np.testing.assert_array_equal(y, tiny[part][1])
    assert (raw.y_train.dtype, raw.num_classes, raw.augment, raw.input_shape) == (
        np.int64,
        10,
        "crop_flip_12",
        (3, 96, 96),
    )
    assert raw.class_names == CLASS_NAMES


def test_missing_file(tiny, tmp_path):
    (tmp_path / "stl10_binary" / "test_y.bin").unlink()
    with pytest.raises(UserError, match=r"stl10 must have its binary files in \S+, got no test_y.bin; pass .*--data"):
        stl10(tmp_path, False)


def test_damaged_file(tiny, tmp_path):
    file = tmp_path / "stl10_binary" / "train_X.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train_X.bin must have the md5 [0-9a-f]{32}, got [0-9a-f]{32}; remove it"):
        stl10(tmp_path, False)


def test_images_and_labels_that_disagree(tiny, tmp_path, monkeypatch):
    blob = bytes([1] * 9)
    (tmp_path / "stl10_binary" / "train_y.bin").write_bytes(blob)
    listed = [STL10.train_list[0], ["train_y.bin", hashlib.md5(blob).hexdigest()]]
    monkeypatch.setattr(STL10, "train_list", listed)
    with pytest.raises(UserError, match=r"train_X.bin must hold 9 images of 27648 bytes, .* got 276480 bytes"):
        stl10(tmp_path, False)


def test_download_that_fails(tmp_path, monkeypatch):
    def no_network(self: STL10) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(STL10, "download", no_network)
    with pytest.raises(UserError, match=r"stl10 must be downloadable into \S+, got network is unreachable; put the"):
        stl10(tmp_path, True)


def test_download_brings_the_files(tiny, tmp_path, monkeypatch):
    (tmp_path / "stl10_binary").rename(tmp_path / "archive")

    def unpack(self: STL10) -> None:
        (tmp_path / "archive").rename(tmp_path / "stl10_binary")

    monkeypatch.setattr(STL10, "download", unpack)
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    np.testing.assert_array_equal(stl10(tmp_path, True).x_test, tiny["test"][0])
    assert not (tmp_path / "archive").exists()
