"""CUB-200-2011: 5 994 + 5 794 photographs of 200 kinds of birds (Wah et al. 2011)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raybench.data import RawData
from raybench.errors import UserError
from raybench.image_files import IMAGENET_MEAN, IMAGENET_STD, Listed, data_folder, image_data, lines_of
from raybench.options import checked_options
from raybench.registry import DATASETS

TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
RECIPE = {"epochs": 95, "batch_size": 32, "lr": 0.01, "weight_decay": 1e-4}  # fine-tuning of pretrained weights


@DATASETS.register(
    "cub",
    label="CUB-200-2011",
    paper="Wah et al. 2011, The Caltech-UCSD Birds-200-2011 Dataset",
    recipe=RECIPE,
    files=True,
)
@checked_options
def cub(
    root: Path | None,
    download: bool = False,
    *,
    side: int = 224,
    crop: float = 0.875,
    classes: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
) -> RawData:
    """Birds, ``side`` x ``side`` RGB, 200 classes, from ``root/CUB_200_2011`` with the official split.

    Bounding boxes and parts are not used.

    ``crop``: share of the shorter side that is kept. ``classes`` keeps so many of the classes, from the first on;
    ``train_size`` and ``test_size`` take a stratified part.
    Normalised as ImageNet. There is no download: raises ``UserError`` where the unpacked archive is missing or
    incomplete.
    """
    folder = data_folder("cub", root, "CUB_200_2011", "images", "classes.txt", *TABLES)
    names = [name for _, name in sorted(lines_of(folder / "classes.txt", 2), key=lambda line: line[0].zfill(4))]
    paths, labels, in_train = (dict(lines_of(folder / table, 2)) for table in TABLES)
    for table, content in zip(TABLES[1:], (labels, in_train), strict=True):
        if set(content) != set(paths) or not all(value.isdecimal() for value in content.values()):
            raise UserError(
                f"{folder / table} must have a whole number for each of the {len(paths)} images of images.txt, got "
                f"{len(content)} lines or other words; unpack the archive again"
            )

    def part(flag: str) -> Listed:
        numbers = sorted((n for n, value in in_train.items() if value == flag), key=lambda n: n.zfill(6))
        files = [folder / "images" / paths[n] for n in numbers]
        return Listed(files, np.asarray([int(labels[n]) - 1 for n in numbers], dtype=np.int64))

    return image_data(
        "cub",
        part("1"),
        part("0"),
        names,
        side=side,
        crop=crop,
        statistics=(IMAGENET_MEAN, IMAGENET_STD),
        first=classes,
        train_size=train_size,
        test_size=test_size,
    )
