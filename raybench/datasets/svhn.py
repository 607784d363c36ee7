"""SVHN: 73 257 + 26 032 house numbers photographed in streets, 32x32, cropped to a digit (Netzer et al. 2011)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raybench.data import RawData
from raybench.errors import UserError
from raybench.options import checked_options
from raybench.registry import DATASETS
from raybench.subset import limit

if TYPE_CHECKING:
    from torchvision.datasets import SVHN

# Mean and standard deviation of all training pixels per channel.
MEAN, STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
RECIPE = {"epochs": 50, "batch_size": 128, "lr": 0.05, "weight_decay": 5e-4}


@DATASETS.register(
    "svhn",
    label="SVHN",
    paper="Netzer et al. 2011, Reading Digits in Natural Images with Unsupervised Feature Learning",
    recipe=RECIPE,
)
@checked_options
def svhn(
    root: Path | None, download: bool = False, *, train_size: int | None = None, test_size: int | None = None
) -> RawData:
    """House numbers, 32x32 RGB, 10 classes, from ``root/train_32x32.mat`` and ``root/test_32x32.mat``.

    torchvision checks their md5 and reads them; the digit 0, which they label 10, is class 0. The extra images are
    not used.

    ``train_size`` and ``test_size`` take a stratified part (``raybench.subset``). Trained without augmentation: a
    mirrored digit is another one. Raises ``UserError`` where the files are missing or damaged and ``download`` is
    false.
    """
    from torchvision.datasets import SVHN  # slow to import, so only where it is used

    if root is None:
        raise UserError("dataset svhn must have a data folder, got none; pass --data DIR (and --download)")
    try:
        train, test = (SVHN(str(root), split=part, download=download) for part in ("train", "test"))
    except (OSError, RuntimeError, ValueError, TypeError) as error:  # TypeError: scipy on a file that is no .mat
        raise UserError(
            f"dataset svhn must have intact train_32x32.mat and test_32x32.mat in {root}, got {error}; "
            "pass their folder with --data DIR, or --download"
        ) from error
    names = tuple(str(digit) for digit in range(10))
    raw = RawData("svhn", *_arrays(train), *_arrays(test), 10, MEAN, STD, class_names=names)
    return limit(raw, train_size, test_size)


def _arrays(part: SVHN) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 3, 32, 32] and int64 [N]."""
    return np.ascontiguousarray(part.data), np.asarray(part.labels, dtype=np.int64)
