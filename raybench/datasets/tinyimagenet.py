"""Tiny ImageNet-200: 100 000 + 10 000 colour photographs of 200 kinds of things, 64x64 (Le, Yang 2015)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raybench.data import RawData
from raybench.errors import UserError
from raybench.image_files import Listed, data_folder, image_data, lines_of
from raybench.options import checked_options
from raybench.registry import DATASETS

# Mean and standard deviation of all training pixels per channel.
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
RECIPE = {"epochs": 100, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4}


@DATASETS.register(
    "tinyimagenet",
    label="Tiny ImageNet-200",
    paper="Le, Yang 2015, Tiny ImageNet Visual Recognition Challenge",
    recipe=RECIPE,
    files=True,
)
@checked_options
def tinyimagenet(
    root: Path | None,
    download: bool = False,
    *,
    side: int = 64,
    classes: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
) -> RawData:
    """Photographs, 64x64 RGB, 200 classes, from ``root/tiny-imagenet-200``.

    The validation images are the test set, since the labels of the official one are not public. Classes are in the
    order of ``wnids.txt``, grey images get three equal channels.

    ``side`` resizes (32 is common), ``classes`` keeps so many of the classes, from the first on, ``train_size``
    and ``test_size`` take a stratified part. Trained with random crops and flips. There is no
    download: raises ``UserError`` where the unpacked archive is missing or incomplete.
    """
    folder = data_folder("tinyimagenet", root, "tiny-imagenet-200", "wnids.txt", "words.txt", "train", "val")
    wnids = [words[0] for words in lines_of(folder / "wnids.txt", 1)]
    place = {wnid: label for label, wnid in enumerate(wnids)}
    meaning = dict(lines_of(folder / "words.txt", 2))
    files: list[Path] = []
    labels: list[int] = []
    for wnid, label in place.items():
        images = folder / "train" / wnid / "images"
        found = sorted(images.glob("*.JPEG"))
        if not found:
            raise UserError(f"{images} must hold the JPEG files of its class, got none; unpack the archive again")
        files += found
        labels += [label] * len(found)
    listed = sorted(words[:2] for words in lines_of(folder / "val" / "val_annotations.txt", 6))
    odd = [wnid for _, wnid in listed if wnid not in place]
    if odd:
        raise UserError(
            f"classes of {folder / 'val' / 'val_annotations.txt'} must be those of wnids.txt, got {odd[0]}; "
            "unpack the archive again"
        )
    train = Listed(files, np.asarray(labels, dtype=np.int64))
    test = Listed(
        [folder / "val" / "images" / file for file, _ in listed],
        np.asarray([place[wnid] for _, wnid in listed], dtype=np.int64),
    )
    return image_data(
        "tinyimagenet",
        train,
        test,
        [meaning.get(wnid, wnid) for wnid in wnids],
        side=side,
        crop=1.0,
        statistics=(MEAN, STD),
        augment="crop_flip",
        first=classes,
        train_size=train_size,
        test_size=test_size,
    )
