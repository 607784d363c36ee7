"""Stanford Cars: 8 144 + 8 041 photographs of 196 models of cars (Krause, Stark, Deng, Fei-Fei 2013)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from raybench.data import RawData
from raybench.errors import UserError
from raybench.image_files import IMAGENET_MEAN, IMAGENET_STD, Listed, data_folder, image_data
from raybench.options import checked_options
from raybench.registry import DATASETS

META, TRAIN, TEST = "devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"
RECIPE = {"epochs": 90, "batch_size": 32, "lr": 0.01, "weight_decay": 1e-4}  # fine-tuning of pretrained weights


@DATASETS.register(
    "stanford_cars",
    label="Stanford Cars",
    paper="Krause et al. 2013, 3D Object Representations for Fine-Grained Categorization",
    recipe=RECIPE,
    files=True,
)
@checked_options
def stanford_cars(
    root: Path | None,
    download: bool = False,
    *,
    side: int = 224,
    crop: float = 0.875,
    classes: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
) -> RawData:
    """Cars, ``side`` x ``side`` RGB, 196 classes, from ``root/stanford_cars`` in torchvision's layout.

    That is the folders devkit, cars_train and cars_test, and cars_test_annos_withlabels.mat beside them. Bounding boxes
    are not used.

    ``crop``: share of the shorter side that is kept. ``classes`` keeps so many of the classes, from the first on;
    ``train_size`` and ``test_size`` take a stratified part.
    Normalised as ImageNet. There is no download: raises ``UserError`` where a file is missing or damaged.
    """
    folder = data_folder("stanford_cars", root, "stanford_cars", META, TRAIN, TEST, "cars_train", "cars_test")
    names = [str(name) for name in np.atleast_1d(_matrix(folder / META, "class_names"))]
    train = _listed(folder / TRAIN, folder / "cars_train")
    test = _listed(folder / TEST, folder / "cars_test")
    return image_data(
        "stanford_cars",
        train,
        test,
        names,
        side=side,
        crop=crop,
        statistics=(IMAGENET_MEAN, IMAGENET_STD),
        first=classes,
        train_size=train_size,
        test_size=test_size,
    )


def _matrix(file: Path, name: str) -> Any:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(file, squeeze_me=True)[name]
    except (OSError, ValueError, TypeError, KeyError, MatReadError) as error:
        raise UserError(
            f"{file} must be a MATLAB file with {name}, got {type(error).__name__}: {error}; get it again"
        ) from error


def _listed(annotations: Path, images: Path) -> Listed:
    """Files and labels from 0 (the annotations count from 1)."""
    rows = np.atleast_1d(_matrix(annotations, "annotations"))
    if not {"fname", "class"} <= set(rows.dtype.names or ()):
        raise UserError(
            f"annotations in {annotations} must have fname and class, got {', '.join(rows.dtype.names or ('none',))}; "
            "use the file with labels"
        )
    files = [images / str(row["fname"]) for row in rows]
    return Listed(files, np.asarray([int(row["class"]) - 1 for row in rows], dtype=np.int64))
