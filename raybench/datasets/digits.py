"""Digits: 1 797 real grey digits that come with scikit-learn, so a first run needs no data folder and no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raybench.data import RawData
from raybench.options import checked_options
from raybench.registry import DATASETS
from raybench.subset import limit, stratified

TEST_SHARE = 0.2
ENLARGE, BORDER = 3, 2  # 8 * 3 + 2 * 2 = 28
# Mean and standard deviation of all pixels of the training part below, border included.
MEAN, STD = (0.2246,), (0.3495,)


@DATASETS.register("digits", label="Digits", paper="UCI Optical Recognition of Handwritten Digits, doi:10.24432/C50P49")
@checked_options
def digits(
    root: Path | None = None, download: bool = False, *, train_size: int | None = None, test_size: int | None = None
) -> RawData:
    """Handwritten digits of scikit-learn, 8x8 enlarged to 28x28 grey, 10 classes; ``root`` is not used.

    A value v in 0..16 becomes the byte floor((255 v + 8) / 16), that is 255 v / 16 rounded half up; each pixel
    becomes a 3x3 square, and two black pixels go round the 24x24 picture. Nothing is interpolated, so rows and
    columns 2, 5, ..., 23 give the original back. Test: 359 samples (20 %), stratified by a fixed seed; training:
    the other 1 438. ``train_size`` and ``test_size`` take a stratified part of those (``raybench.subset``).
    """
    from sklearn.datasets import load_digits  # slow to import, so only where it is used

    values, labels = load_digits(return_X_y=True)
    grey = (values.reshape(-1, 1, 8, 8).astype(np.int64) * 255 + 8) // 16
    large = grey.astype(np.uint8).repeat(ENLARGE, axis=2).repeat(ENLARGE, axis=3)
    images = np.pad(large, ((0, 0), (0, 0), (BORDER, BORDER), (BORDER, BORDER)))
    labels = labels.astype(np.int64)

    in_test = np.zeros(len(labels), dtype=bool)
    in_test[stratified(labels, round(TEST_SHARE * len(labels)), 10)] = True
    names = tuple(str(digit) for digit in range(10))
    parts = images[~in_test], labels[~in_test], images[in_test], labels[in_test]
    return limit(RawData("digits", *parts, 10, MEAN, STD, class_names=names), train_size, test_size)
