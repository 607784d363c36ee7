"""MNIST: 60 000 + 10 000 grey handwritten digits, 28x28 (LeCun, Cortes, Burges 1998)."""

from __future__ import annotations

from pathlib import Path

from raybench.data import RawData
from raybench.idx import load_idx
from raybench.options import checked_options
from raybench.registry import DATASETS
from raybench.subset import limit

# Mean and standard deviation of all training pixels, the constants of the PyTorch MNIST example.
MEAN, STD = (0.1307,), (0.3081,)
PLAIN = (0.0,), (1.0,)


@DATASETS.register("mnist", label="MNIST", paper="LeCun et al. 1998, doi:10.1109/5.726791")
@checked_options
def mnist(
    root: Path | None,
    download: bool = False,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    normalise: bool = True,
) -> RawData:
    """Handwritten digits, 28x28 grey, 10 classes, from ``root/MNIST/raw`` (idx files, .gz or decompressed).

    ``train_size`` and ``test_size`` take a stratified part (``raybench.subset``). ``normalise: false`` leaves pixels
    in [0, 1], as the mnemonic-code and the zero-shot papers train on MNIST. Raises ``UserError`` where the
    files are missing or damaged and ``download`` is false.
    """
    from torchvision.datasets import MNIST  # slow to import, so only where it is used

    x_train, y_train, x_test, y_test = load_idx(MNIST, "mnist", root, download)
    names = tuple(str(digit) for digit in range(10))
    raw = RawData(
        "mnist", x_train, y_train, x_test, y_test, 10, *((MEAN, STD) if normalise else PLAIN), class_names=names
    )
    return limit(raw, train_size, test_size)
