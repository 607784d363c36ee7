from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from raybench.datasets.digits import MEAN, STD, digits
from raybench.datasets.npz import pixel_statistics


def small(images: np.ndarray) -> np.ndarray:
    """[N, 1, 28, 28] bytes back to [N, 8, 8] values 0..16."""
    return np.rint(images[:, 0, 2:26:3, 2:26:3] * (16 / 255)).astype(int)


def test_every_digit_is_there_once_and_unchanged():
    raw = digits(None, False)
    given = np.concatenate([small(raw.x_train), small(raw.x_test)]).reshape(-1, 64)
    labels = np.concatenate([raw.y_train, raw.y_test])
    values, targets = load_digits(return_X_y=True)
    ours = sorted(map(tuple, np.column_stack([given, labels]).tolist()))
    theirs = sorted(map(tuple, np.column_stack([values, targets]).astype(int).tolist()))
    assert ours == theirs


def test_enlarging_is_what_the_docstring_says():
    raw = digits(None, False)
    image = raw.x_train[0, 0]
    inner = image[2:26, 2:26].reshape(8, 3, 8, 3)
    assert (inner == inner[:, :1, :, :1]).all()  # squares of equal pixels
    assert image.sum() == inner.sum()  # nothing but black around them
    expected = {int(np.floor(value * 255 / 16 + 0.5)) for value in range(17)}
    assert set(np.unique(raw.x_train)) == expected


def test_shapes_and_split():
    raw = digits(None, False)
    assert (raw.x_train.shape, raw.x_test.shape) == ((1438, 1, 28, 28), (359, 1, 28, 28))
    assert (raw.x_train.dtype, raw.y_train.dtype, raw.num_classes, raw.augment) == (np.uint8, np.int64, 10, "none")
    whole = np.bincount(np.concatenate([raw.y_train, raw.y_test]))
    assert np.abs(np.bincount(raw.y_test) - whole * 359 / 1797).max() < 1  # exact up to whole samples
    assert digits(None, False).checksum() == raw.checksum()


def test_statistics():
    raw = digits(None, False)
    mean, std = pixel_statistics(raw.x_train)
    assert mean == pytest.approx(MEAN, abs=5e-5)
    assert std == pytest.approx(STD, abs=5e-5)


def test_logistic_regression_learns_it():
    raw = digits(None, False)
    model = LogisticRegression(max_iter=200).fit(raw.x_train.reshape(len(raw.x_train), -1) / 255.0, raw.y_train)
    assert model.score(raw.x_test.reshape(len(raw.x_test), -1) / 255.0, raw.y_test) > 0.93
