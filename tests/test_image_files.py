"""The cache of image files: made once, found again, anew when a file changes, never all in memory."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from raybench import image_files
from raybench.errors import UserError
from raybench.image_files import square, squares


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    made = [tmp_path / f"{i}.png" for i in range(5)]
    for i, file in enumerate(made):
        Image.fromarray(rng.integers(0, 256, (20 + 3 * i, 30, 3), dtype=np.uint8)).save(file)
    return made


def test_square_is_what_torchvision_shows_a_network(files):
    oracle = transforms.Compose([transforms.Resize(14), transforms.CenterCrop(12), transforms.PILToTensor()])
    for file in files:
        wanted = oracle(Image.open(file).convert("RGB")).numpy()
        np.testing.assert_array_equal(square(file, 12, 12 / 14, "RGB"), wanted)


def test_made_once_and_memory_mapped(files, monkeypatch):
    images, known = squares(files, 16, 1.0, "RGB")
    assert isinstance(images, np.memmap)
    assert images.shape == (5, 3, 16, 16)
    counts = np.stack([np.bincount(np.asarray(images[:, c]).ravel(), minlength=256) for c in range(3)])
    np.testing.assert_array_equal(known["histogram"], counts)
    monkeypatch.setattr(image_files, "square", lambda *_: pytest.fail("decoded again"))
    again, same = squares(files, 16, 1.0, "RGB")
    np.testing.assert_array_equal(images, again)
    assert known == same


def test_writing_to_it_changes_no_file(files):
    images, _ = squares(files, 16, 1.0, "RGB")
    before = images.copy()
    torch.from_numpy(images).zero_()
    np.testing.assert_array_equal(squares(files, 16, 1.0, "RGB")[0], before)


def test_anew_when_a_file_or_an_option_changes(files):
    first = squares(files, 16, 1.0, "RGB")[1]["digest"]
    assert squares(files, 16, 0.9, "RGB")[1]["digest"] != first
    assert squares(files[::-1], 16, 1.0, "RGB")[1]["digest"] != first
    old = files[0].stat().st_mtime_ns
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(files[0])
    os.utime(files[0], ns=(old + 1, old + 1))
    assert squares(files, 16, 1.0, "RGB")[1]["digest"] != first


def test_digest_is_of_the_pixels_not_of_the_paths(files, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    moved = [other / file.name for file in files]
    for file, target in zip(files, moved, strict=True):
        target.write_bytes(file.read_bytes())
    assert squares(files, 16, 1.0, "RGB")[1] == squares(moved, 16, 1.0, "RGB")[1]


def test_missing_file(files):
    files[2].unlink()
    with pytest.raises(UserError, match=r"2.png must be an image, got No such file or directory; unpack"):
        squares(files, 16, 1.0, "RGB")


def test_no_room(files, monkeypatch):
    monkeypatch.setattr(image_files.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"must have room for 0.0 GB of images, got 0.0 GB; set XDG_CACHE_HOME"):
        squares(files, 16, 1.0, "RGB")


def test_damaged_cache(files, tmp_path):
    squares(files, 16, 1.0, "RGB")
    (array,) = (tmp_path / "cache").rglob("images.npy")
    array.write_bytes(array.read_bytes()[:100])
    with pytest.raises(UserError, match=r"must be an intact cache, got .*; remove that folder"):
        squares(files, 16, 1.0, "RGB")
