"""CIFAR-100: 50 000 + 10 000 colour photographs of 100 kinds of things, 32x32 (Krizhevsky 2009)."""

from __future__ import annotations

from pathlib import Path

from raybench.data import RawData
from raybench.datasets.cifar10 import arrays, parts
from raybench.options import checked_options
from raybench.registry import DATASETS
from raybench.subset import limit

# Mean and standard deviation of all training pixels per channel.
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
RECIPE = {"epochs": 200, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4}  # of residual networks, as is usual


@DATASETS.register(
    "cifar100",
    label="CIFAR-100",
    paper="Krizhevsky 2009, Learning Multiple Layers of Features",
    recipe=RECIPE,
)
@checked_options
def cifar100(
    root: Path | None, download: bool = False, *, train_size: int | None = None, test_size: int | None = None
) -> RawData:
    """Photographs, 32x32 RGB, 100 classes, from ``root/cifar-100-python``.

    torchvision checks every md5 before it unpickles a file.

    ``train_size`` and ``test_size`` take a stratified part (``raybench.subset``). Trained with random crops and
    flips. Raises ``UserError`` where the files are missing or damaged and ``download`` is false.
    """
    from torchvision.datasets import CIFAR100  # slow to import, so only where it is used

    train, test = parts(CIFAR100, "cifar100", root, download)
    raw = RawData("cifar100", *arrays(train), *arrays(test), 100, MEAN, STD, "crop_flip", tuple(train.classes))
    return limit(raw, train_size, test_size)
