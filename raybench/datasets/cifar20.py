"""CIFAR-20: CIFAR-100 with its 20 superclasses as labels, each of five classes (Krizhevsky 2009)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from raybench.data import RawData
from raybench.datasets.cifar10 import arrays, parts
from raybench.datasets.cifar100 import MEAN, RECIPE, STD
from raybench.errors import UserError
from raybench.options import checked_options
from raybench.registry import DATASETS
from raybench.subset import limit


@DATASETS.register(
    "cifar20", label="CIFAR-20", paper="Krizhevsky 2009, Learning Multiple Layers of Features", recipe=RECIPE
)
@checked_options
def cifar20(
    root: Path | None, download: bool = False, *, train_size: int | None = None, test_size: int | None = None
) -> RawData:
    """Photographs, 32x32 RGB, 20 superclasses, from ``root/cifar-100-python``.

    The 100 classes are the subclasses (``RawData.fine``) that the scenario ``subclass`` forgets.

    ``train_size`` and ``test_size`` take a part stratified by superclass. Trained with random crops and flips. Raises
    ``UserError`` where the files are missing or damaged and ``download`` is false.
    """
    from torchvision.datasets import CIFAR100  # slow to import, so only where it is used

    train, test = parts(CIFAR100, "cifar20", root, download)
    folder = Path(str(root)) / CIFAR100.base_folder
    x_train, fine = arrays(train)
    x_test, _ = arrays(test)
    y_train, y_test = (_coarse(folder / listed[0][0]) for listed in (CIFAR100.train_list, CIFAR100.test_list))
    names = tuple(_unpickled(folder / CIFAR100.meta["filename"])["coarse_label_names"])
    if (len(y_train), len(y_test)) != (len(x_train), len(x_test)):
        raise UserError(f"{folder} must have a coarse label for each image, got other numbers; pass --download anew")
    images_and_labels = x_train, y_train, x_test, y_test
    raw = RawData("cifar20", *images_and_labels, 20, MEAN, STD, "crop_flip", names, fine, tuple(train.classes))
    return limit(raw, train_size, test_size)


def _coarse(file: Path) -> np.ndarray:
    """int64 [N]."""
    return np.asarray(_unpickled(file)["coarse_labels"], dtype=np.int64)


def _unpickled(file: Path) -> dict[str, Any]:
    """What a file of CIFAR holds. Only called after torchvision found its md5 right: a pickle can run code."""
    with file.open("rb") as opened:
        content: dict[str, Any] = pickle.load(opened, encoding="latin1")
    return content
