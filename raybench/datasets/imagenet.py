"""ImageNet-1k: 1 281 167 + 50 000 photographs of 1 000 kinds of things (Russakovsky et al. 2015)."""

from __future__ import annotations

from pathlib import Path

from raybench.data import RawData
from raybench.image_files import IMAGENET_MEAN, IMAGENET_STD, class_folders, data_folder, image_data
from raybench.options import checked_options
from raybench.registry import DATASETS

RECIPE = {"epochs": 90, "batch_size": 256, "lr": 0.1, "weight_decay": 1e-4}  # of residual networks (He et al. 2016)


@DATASETS.register("imagenet", label="ImageNet-1k", paper="arXiv:1409.0575", recipe=RECIPE, files=True)
@checked_options
def imagenet(
    root: Path | None,
    download: bool = False,
    *,
    side: int = 224,
    crop: float = 0.875,
    classes: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
) -> RawData:
    """Photographs, ``side`` x ``side`` RGB, 1 000 classes, from ``root/imagenet/{train,val}/<wnid>/*.JPEG``.

    That is the usual layout; classes are sorted by wnid, as everywhere. The validation images are the test set. The
    development kit is not needed.

    ``crop``: share of the shorter side that is kept. ``classes`` keeps so many of the classes, from the first on;
    ``train_size`` and ``test_size`` take a stratified part. Only what is kept is decoded. There is no download.
    At 224 pixels the whole takes 201 GB of cache and is streamed from there.
    Raises ``UserError`` where a part is missing or a file is damaged.
    """
    folder = data_folder("imagenet", root, "imagenet", "train", "val")
    names, train = class_folders(folder / "train")
    _, test = class_folders(folder / "val", names)
    return image_data(
        "imagenet",
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
