"""SVHN, on small MATLAB files whose md5 torchvision is told to expect."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import SVHN

from raybench.datasets.svhn import svhn
from raybench.errors import UserError


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Writes the files (X [32, 32, 3, N], y [N, 1] from 1 to 10) and returns their content."""
    rng, content, listed = np.random.default_rng(0), {}, {}
    for part, size in (("train", 30), ("test", 20)):
        file = tmp_path / f"{part}_32x32.mat"
        pixels = rng.integers(0, 256, (32, 32, 3, size), dtype=np.uint8)
        content[part] = {"X": pixels, "y": (np.arange(size) % 10 + 1).astype(np.uint8)[:, None]}
        savemat(file, content[part])
        listed[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", listed)
    return content


def test_arrays_are_those_of_the_files(tiny, tmp_path):
    raw = svhn(tmp_path, False)
    assert (raw.x_train.shape, raw.x_test.shape) == ((30, 3, 32, 32), (20, 3, 32, 32))
    # Image i is X[row, column, channel, i].
    np.testing.assert_array_equal(raw.x_train[4, 2, 5], tiny["train"]["X"][5, :, 2, 4])
    assert raw.y_train[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]  # ten stands for the digit 0
    assert (raw.y_train.dtype, raw.num_classes, raw.augment) == (np.int64, 10, "none")
    assert raw.x_train.flags.c_contiguous


def test_part(tiny, tmp_path):
    assert np.bincount(svhn(tmp_path, False, train_size=20).y_train).tolist() == [2] * 10


@pytest.mark.parametrize("cut", [1, 100])
def test_short_file(tiny, tmp_path, cut):
    file = tmp_path / "test_32x32.mat"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(
        UserError, match=r"svhn must have intact train_32x32.mat and test_32x32.mat in \S+, got .*rrupt"
    ):
        svhn(tmp_path, False)


def test_file_of_another_kind_with_the_expected_md5(tiny, tmp_path, monkeypatch):
    blob = b"<html>not here</html>" * 20
    (tmp_path / "train_32x32.mat").write_bytes(blob)
    listed = ["", "train_32x32.mat", hashlib.md5(blob).hexdigest()]
    monkeypatch.setitem(SVHN.split_list, "train", listed)
    with pytest.raises(UserError, match=r"svhn must have intact train_32x32.mat .*--download"):
        svhn(tmp_path, False)
