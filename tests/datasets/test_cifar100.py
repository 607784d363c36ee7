"""CIFAR-100 and CIFAR-20, on small files in the official format whose md5 torchvision is told to expect."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR100

from raybench.datasets.cifar20 import cifar20
from raybench.datasets.cifar100 import cifar100
from raybench.errors import UserError
from raybench.registry import DATASETS


@pytest.fixture
def tiny_root(tmp_path, monkeypatch) -> Path:
    """200 training and 100 test images; class c belongs to superclass 7 c modulo 20."""
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        blob = pickle.dumps(content)
        (folder / name).write_bytes(blob)
        return [name, hashlib.md5(blob).hexdigest()]

    def part(size: int) -> dict:
        fine = [i % 100 for i in range(size)]
        pixels = rng.integers(0, 256, (size, 3072), dtype=np.uint8)
        return {"data": pixels, "fine_labels": fine, "coarse_labels": [7 * label % 20 for label in fine]}

    monkeypatch.setattr(CIFAR100, "train_list", [write("train", part(200))])
    monkeypatch.setattr(CIFAR100, "test_list", [write("test", part(100))])
    names = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    file, md5 = write("meta", names)
    monkeypatch.setattr(CIFAR100, "meta", {"filename": file, "key": "fine_label_names", "md5": md5})
    return tmp_path


def test_arrays_are_those_of_the_files(tiny_root):
    raw = cifar100(tiny_root, False)
    content = pickle.loads((tiny_root / CIFAR100.base_folder / "train").read_bytes())
    np.testing.assert_array_equal(raw.x_train.reshape(200, -1), content["data"])
    assert raw.y_train.tolist() == content["fine_labels"]
    assert (raw.num_classes, raw.augment, raw.class_names[3], raw.fine) == (100, "crop_flip", "f3", None)


def test_superclasses_and_their_subclasses(tiny_root):
    raw, fine = cifar20(tiny_root, False), cifar100(tiny_root, False)
    assert (raw.num_classes, raw.class_names[4], raw.fine_names[99]) == (20, "c4", "f99")
    np.testing.assert_array_equal(raw.x_train, fine.x_train)
    np.testing.assert_array_equal(raw.fine, fine.y_train)
    np.testing.assert_array_equal(raw.y_train, 7 * fine.y_train % 20)
    np.testing.assert_array_equal(raw.y_test, 7 * fine.y_test % 20)
    assert raw.checksum() != fine.checksum()


def test_a_part_keeps_the_subclasses_of_its_images(tiny_root):
    raw = cifar20(tiny_root, False, train_size=40)
    assert len(raw.fine) == 40
    np.testing.assert_array_equal(raw.y_train, 7 * raw.fine % 20)


@pytest.mark.parametrize("name", ["cifar100", "cifar20"])
@pytest.mark.parametrize("file", ["train", "meta"])
def test_damaged_file_is_never_unpickled(tiny_root, name, file):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tiny_root / "exploded",))

    (tiny_root / CIFAR100.base_folder / file).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=rf"{name} must have intact batches in \S+cifar-100-python, got .*orrupted"):
        DATASETS[name].fn(tiny_root, False)
    assert not (tiny_root / "exploded").exists()
