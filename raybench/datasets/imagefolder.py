"""Your own images: a folder with a folder per class in train/ and in test/ (or val/)."""

from __future__ import annotations

from pathlib import Path

from raybench.data import AUGMENTATIONS, RawData
from raybench.errors import UserError
from raybench.image_files import Mode, class_folders, find_path, image_data
from raybench.options import checked_options
from raybench.registry import DATASETS

TESTS = ("test", "val", "validation")


@DATASETS.register("imagefolder", label="Folder of images", files=True)
@checked_options
def imagefolder(
    root: Path | None,
    download: bool = False,
    family: str | None = None,
    *,
    path: str | None = None,
    side: int = 224,
    crop: float = 1.0,
    mode: Mode = "RGB",
    augment: str = "resized_crop_flip",
    train_size: int | None = None,
    test_size: int | None = None,
) -> RawData:
    """Image files of any size in ``<path>/train/<class>/**`` and ``<path>/test/<class>/**`` (or val).

    ``imagefolder:<path>``, or ``path``: the folder; a relative one is looked for in ``root`` first, then in the
    working directory. ``side``: images become squares of so many pixels; ``crop``: share of the shorter side that is
    kept; ``mode``: RGB or L (grey), whatever the files are. ``augment``: a key of ``raybench.data.AUGMENTATIONS``.
    ``train_size`` and ``test_size`` take a stratified part. Mean and standard deviation are those of the training
    images taken. Raises ``UserError`` for a missing part, classes that differ, and files that are no images.
    """
    if augment not in list(AUGMENTATIONS):
        raise UserError(f"augment of imagefolder must be one of {', '.join(AUGMENTATIONS)}, got {augment!r}; change it")
    folder = find_path("imagefolder", family, path, root)
    found = [part for part in TESTS if (folder / part).is_dir()]
    if not (folder / "train").is_dir() or not found:
        missing = "train" if found else "test" if (folder / "train").is_dir() else "train and no test"
        raise UserError(
            f"{folder} must have the folders train and test (or val, validation), got no {missing}; sort the images so"
        )
    classes, train = class_folders(folder / "train")
    _, test = class_folders(folder / found[0], classes)
    return image_data(
        f"imagefolder:{folder.name}",
        train,
        test,
        classes,
        side=side,
        crop=crop,
        mode=mode,
        augment=augment,
        train_size=train_size,
        test_size=test_size,
    )
