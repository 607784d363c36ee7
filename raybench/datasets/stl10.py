"""STL-10: 5 000 + 8 000 colour photographs of 10 kinds of things, 96x96 (Coates, Lee, Ng 2011)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from raybench.data import RawData
from raybench.errors import UserError
from raybench.options import checked_options
from raybench.registry import DATASETS
from raybench.subset import limit

# Mean and standard deviation of the labelled training pixels per channel.
MEAN, STD = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
SIDE = 96
CLASS_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
RECIPE = {"epochs": 200, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4}


@DATASETS.register(
    "stl10",
    label="STL-10",
    paper="Coates, Lee, Ng 2011, An Analysis of Single-Layer Networks in Unsupervised Feature Learning",
    recipe=RECIPE,
)
@checked_options
def stl10(
    root: Path | None, download: bool = False, *, train_size: int | None = None, test_size: int | None = None
) -> RawData:
    """Photographs, 96x96 RGB, 10 classes, from ``root/stl10_binary``.

    The 100 000 unlabelled images are not used, and need not be there.

    ``train_size`` and ``test_size`` take a stratified part (``raybench.subset``). Trained with random crops and
    flips. Raises ``UserError`` where files are missing, damaged (torchvision's md5) or short.
    """
    from torchvision.datasets import STL10  # knows the md5; it reads 2.6 GB of unlabelled images to check them

    if root is None:
        raise UserError("dataset stl10 must have a data folder, got none; pass --data DIR (and --download)")
    folder = Path(root) / STL10.base_folder
    needed = [(str(file), str(md5)) for file, md5 in (*STL10.train_list[:2], *STL10.test_list)]
    absent = [file for file, _ in needed if not (folder / file).is_file()]
    if absent and download:
        try:
            STL10(str(root), download=True)
        except (OSError, RuntimeError) as error:  # no network, read-only folder
            raise UserError(
                f"dataset stl10 must be downloadable into {folder}, got {error}; put the files there by hand"
            ) from error
        absent = [file for file, _ in needed if not (folder / file).is_file()]
    if absent:
        raise UserError(
            f"dataset stl10 must have its binary files in {folder}, got no {' and no '.join(absent)}; "
            "pass the folder above with --data DIR, or --download"
        )
    read = [_read(folder / file, md5) for file, md5 in needed]
    raw = RawData("stl10", *_part(*read[:2]), *_part(*read[2:]), 10, MEAN, STD, "crop_flip_12", CLASS_NAMES)
    return limit(raw, train_size, test_size)


def _read(file: Path, md5: str) -> tuple[Path, np.ndarray]:
    content = file.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise UserError(f"{file} must have the md5 {md5}, got {digest}; remove it and get it again (--download)")
    return file, np.frombuffer(content, np.uint8)


def _part(images: tuple[Path, np.ndarray], labels: tuple[Path, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 3, 96, 96] (the file keeps each plane column by column) and int64 [N] from 0 (the file counts from
    1)."""
    (where, pixels), (_, classes) = images, labels
    each = 3 * SIDE * SIDE
    if len(pixels) != len(classes) * each:
        raise UserError(
            f"{where} must hold {len(classes)} images of {each} bytes, as there are labels, got {len(pixels)} bytes; "
            "get it again (--download)"
        )
    square = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(square), classes.astype(np.int64) - 1
