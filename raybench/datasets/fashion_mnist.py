"""Fashion-MNIST: 60 000 + 10 000 grey pictures of clothes, 28x28 (Xiao, Rasul, Vollgraf 2017)."""

from __future__ import annotations

from pathlib import Path

from raybench.data import RawData
from raybench.idx import load_idx
from raybench.options import checked_options
from raybench.registry import DATASETS
from raybench.subset import limit

# Mean and standard deviation of all training pixels, as the field rounds them.
MEAN, STD = (0.2860,), (0.3530,)
CLASS_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


@DATASETS.register("fashion_mnist", label="Fashion-MNIST", paper="arXiv:1708.07747")
@checked_options
def fashion_mnist(
    root: Path | None, download: bool = False, *, train_size: int | None = None, test_size: int | None = None
) -> RawData:
    """Clothes, 28x28 grey, 10 classes, from ``root/FashionMNIST/raw`` (idx files, .gz or decompressed).

    ``train_size`` and ``test_size`` take a stratified part (``raybench.subset``). Raises ``UserError`` where the
    files are missing or damaged and ``download`` is false.
    """
    from torchvision.datasets import FashionMNIST  # slow to import, so only where it is used

    x_train, y_train, x_test, y_test = load_idx(FashionMNIST, "fashion_mnist", root, download)
    raw = RawData("fashion_mnist", x_train, y_train, x_test, y_test, 10, MEAN, STD, class_names=CLASS_NAMES)
    return limit(raw, train_size, test_size)
