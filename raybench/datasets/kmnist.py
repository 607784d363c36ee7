"""KMNIST: 60 000 + 10 000 grey handwritten Japanese characters, 28x28 (Clanuwat et al. 2018)."""

from __future__ import annotations

from pathlib import Path

from raybench.data import RawData
from raybench.idx import load_idx
from raybench.options import checked_options
from raybench.registry import DATASETS
from raybench.subset import limit

# Mean and standard deviation of all training pixels, as the field rounds them.
MEAN, STD = (0.1918,), (0.3483,)
CLASS_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


@DATASETS.register("kmnist", label="KMNIST", paper="arXiv:1812.01718")
@checked_options
def kmnist(
    root: Path | None, download: bool = False, *, train_size: int | None = None, test_size: int | None = None
) -> RawData:
    """Hiragana characters, 28x28 grey, 10 classes, from ``root/KMNIST/raw`` (idx files, .gz or decompressed).

    ``train_size`` and ``test_size`` take a stratified part (``raybench.subset``). Raises ``UserError`` where the
    files are missing or damaged and ``download`` is false.
    """
    from torchvision.datasets import KMNIST  # slow to import, so only where it is used

    x_train, y_train, x_test, y_test = load_idx(KMNIST, "kmnist", root, download)
    raw = RawData("kmnist", x_train, y_train, x_test, y_test, 10, MEAN, STD, class_names=CLASS_NAMES)
    return limit(raw, train_size, test_size)
