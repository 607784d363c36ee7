"""CIFAR-10: 50 000 + 10 000 colour photographs of 10 kinds of things, 32x32 (Krizhevsky 2009)."""

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
    from torchvision.datasets import CIFAR10

# Mean and standard deviation of all training pixels per channel. The (0.2023, 0.1994, 0.2010) that also goes
# around is the mean of the standard deviations of single images.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@DATASETS.register("cifar10", label="CIFAR-10", paper="Krizhevsky 2009, Learning Multiple Layers of Features")
@checked_options
def cifar10(
    root: Path | None, download: bool = False, *, train_size: int | None = None, test_size: int | None = None
) -> RawData:
    """Photographs, 32x32 RGB, 10 classes, from ``root/cifar-10-batches-py`` (torchvision checks every md5 before
    it unpickles a batch).

    ``train_size`` and ``test_size`` take a stratified part (``raybench.subset``). Trained with random crops and
    flips. Raises ``UserError`` where the files are missing or damaged and ``download`` is false.
    """
    from torchvision.datasets import CIFAR10  # slow to import, so only where it is used

    train, test = parts(CIFAR10, "cifar10", root, download)
    raw = RawData("cifar10", *arrays(train), *arrays(test), 10, MEAN, STD, "crop_flip", tuple(train.classes))
    return limit(raw, train_size, test_size)


def parts(dataset: type[CIFAR10], name: str, root: Path | None, download: bool) -> tuple[CIFAR10, CIFAR10]:
    """Training and test part of a torchvision dataset of the CIFAR family, md5 checked; else ``UserError``."""
    if root is None:
        raise UserError(f"dataset {name} must have a data folder, got none; pass --data DIR (and --download)")
    folder = Path(root) / dataset.base_folder
    try:
        train, test = (dataset(str(root), train=part, download=download) for part in (True, False))
    except (OSError, RuntimeError) as error:  # missing, wrong md5; no network or a read-only folder
        raise UserError(
            f"dataset {name} must have intact batches in {folder}, got {error}; "
            "pass the folder above with --data DIR, or --download"
        ) from error
    return train, test


def arrays(part: CIFAR10) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 3, 32, 32] and int64 [N] (torchvision keeps [N, 32, 32, 3] and a list)."""
    return np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, dtype=np.int64)
