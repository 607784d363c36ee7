"""Your own images: a NumPy .npz file with x_train, y_train, x_test, y_test."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from raybench.data import AUGMENTATIONS, RawData
from raybench.errors import UserError
from raybench.image_files import find_path, statistics_of
from raybench.options import checked_options
from raybench.registry import DATASETS
from raybench.subset import limit

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
MOST_CHANNELS = 4  # an axis of at most this length is the channel axis
LAYOUTS = "[N, H, W], [N, C, H, W] or [N, H, W, C] with N >= 1, 1 to 4 channels and sides above 4"


@DATASETS.register("npz", label="npz file")
@checked_options
def npz(
    root: Path | None,
    download: bool = False,
    family: str | None = None,
    *,
    path: str | None = None,
    augment: str = "none",
    train_size: int | None = None,
    test_size: int | None = None,
) -> RawData:
    """A local .npz file: uint8 images [N, H, W], [N, C, H, W] or [N, H, W, C], integer labels [N] from 0 to K-1.

    ``npz:<path>``, or ``path``: the file; a relative one is looked for in ``root`` first, then in the working
    directory.
    ``augment``: a key of ``raybench.data.AUGMENTATIONS``. ``train_size``, ``test_size``: a stratified part.
    Mean and standard deviation are those of the training pixels. Pickled objects are never loaded, other arrays
    in the file are left alone. Raises ``UserError`` for a file that breaks one of these rules.
    """
    if augment not in list(AUGMENTATIONS):
        raise UserError(f"augment of npz must be one of {', '.join(AUGMENTATIONS)}, got {augment!r}; change it")
    file = find_path("npz", family, path, root)
    if not file.is_file():
        raise UserError(f"path of npz must be a file, got the folder {file}; for folders of images use imagefolder")
    arrays = _read(file)
    x_train, x_test = (_images(arrays[name], name, file) for name in ("x_train", "x_test"))
    y_train, y_test = (_labels(arrays[name], name, file) for name in ("y_train", "y_test"))
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y):
            raise UserError(
                f"x_{part} and y_{part} in {file} must be equally long, got {len(x)} and {len(y)}; save matching arrays"
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(
            f"x_test in {file} must have the image shape of x_train {x_train.shape[1:]} (channels, height, width), "
            f"got {x_test.shape[1:]}; save both alike"
        )
    num_classes = _count_classes(y_train, y_test, file)
    mean, std = pixel_statistics(x_train)
    if min(std) == 0.0:
        raise UserError(
            f"every channel of x_train in {file} must vary, got channel {std.index(0.0)} constant; leave it out"
        )
    raw = RawData(f"npz:{file.stem}", x_train, y_train, x_test, y_test, num_classes, mean, std, augment)
    return limit(raw, train_size, test_size)


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel of uint8 images [N, C, H, W], in units of [0, 1]:
    from the histogram of each channel, so no float copy of the images is made."""
    counts = [np.bincount(images[:, channel].ravel(), minlength=256) for channel in range(images.shape[1])]
    return statistics_of(np.stack(counts))


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        content = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} must be a .npz file, got {error}; write it with numpy.savez") from error
    if isinstance(content, np.ndarray):
        raise UserError(f"{file} must be a .npz file, got a single array; write it with numpy.savez")
    with content:
        missing = [name for name in ARRAYS if name not in content.files]
        if missing:
            raise UserError(
                f"{file} must hold {', '.join(ARRAYS)}, got no {' and no '.join(missing)} "
                f"(it holds {', '.join(content.files) or 'nothing'}); add what is missing with numpy.savez"
            )
        try:  # object arrays and damaged members show only now
            return {name: content[name] for name in ARRAYS}
        except (
            ValueError,
            OSError,
            EOFError,
            zlib.error,
            zipfile.BadZipFile,
        ) as error:
            raise UserError(f"{file} must hold plain, intact arrays, got {error}; write it again") from error


def _images(array: np.ndarray, name: str, file: Path) -> np.ndarray:
    """uint8 [N, C, H, W]."""
    if array.dtype != np.uint8:
        way_out = "save pixels 0 to 255 as uint8"
        if np.issubdtype(array.dtype, np.floating):
            way_out = "undo the normalisation and save (255 * pixels in [0, 1]).round() as uint8"
        raise UserError(f"{name} in {file} must be uint8, got {array.dtype}; {way_out}")
    images = array[:, None] if array.ndim == 3 else array
    if images.ndim == 4 and images.shape[1] > MOST_CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    sizes = images.shape if images.ndim == 4 else (0, 0, 0, 0)
    if not (sizes[0] >= 1 and 1 <= sizes[1] <= MOST_CHANNELS < min(sizes[2:])):
        raise UserError(f"{name} in {file} must be {LAYOUTS}, got shape {list(array.shape)}; reshape it")
    return np.ascontiguousarray(images)


def _labels(array: np.ndarray, name: str, file: Path) -> np.ndarray:
    """int64 [N]."""
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
        raise UserError(
            f"{name} in {file} must be integers [N], got {array.dtype} of shape {list(array.shape)}; "
            "save class numbers, one per image"
        )
    labels = array.astype(np.int64)
    if labels.size and int(labels.min()) < 0:
        raise UserError(f"{name} in {file} must not be negative, got {int(labels.min())}; number the classes from 0")
    return labels


def _count_classes(y_train: np.ndarray, y_test: np.ndarray, file: Path) -> int:
    present = np.unique(y_train)
    num_classes = len(present)
    if num_classes < 2 or int(present[-1]) != num_classes - 1:
        shown = ", ".join(str(label) for label in present[:12]) + (", ..." if num_classes > 12 else "")
        raise UserError(f"y_train in {file} must use every label from 0 to K-1, K >= 2, got {shown}; renumber them")
    if int(y_test.max()) >= num_classes:
        raise UserError(
            f"y_test in {file} must only use the labels 0 to {num_classes - 1} of y_train, got {int(y_test.max())}; "
            "leave those samples out or add training samples"
        )
    return num_classes
