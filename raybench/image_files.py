"""Datasets of image files: listed, made square, and kept once as a memory-mapped array in the user's cache.

Photographs come in every size. Each is resized so that its shorter side is ``round(side / crop)`` and its centre of
``side`` x ``side`` pixels is kept, as networks for ImageNet are evaluated. The array is made at the first use and
found again by the names, sizes and times of the files and by these options; nothing ever holds all of it in memory.
The cache is ``XDG_CACHE_HOME/raybench/images`` (default ``~/.cache``), one per node.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raybench.data import RawData
from raybench.errors import UserError
from raybench.seeding import content_hash
from raybench.subset import keep

Mode = Literal["RGB", "L"]
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
VERSION = 1  # moves when the pixels made from unchanged files would
CHUNK = 256  # images that are decoded between two looks at the results
# Of ImageNet's training images, as torchvision's weights expect them; photographs in general are given the same.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Listed:
    """Image files [N] of one part of a dataset and their labels int64 [N]."""

    files: Sequence[Path]
    labels: np.ndarray


def data_folder(name: str, root: Path | None, folder: str, *needed: str) -> Path:
    """``root / folder``, if it is there and holds each of ``needed``; else ``UserError``."""
    if root is None:
        raise UserError(f"dataset {name} must have a data folder, got none; pass --data DIR with {folder}/ in it")
    place = Path(root) / folder
    absent = [part for part in needed if not (place / part).exists()]
    if absent or not place.is_dir():
        raise UserError(
            f"dataset {name} must lie in {place} with {', '.join(needed)}, got no {' and no '.join(absent or [folder])}"
            "; unpack its official archive there by hand, or pass the folder above with --data DIR"
        )
    return place


def find_path(name: str, family: str | None, path: str | None, root: Path | None) -> Path:
    """The path that dataset ``name`` was given, as ``name:<path>`` or by its option ``path``; a relative one is looked
    for in ``root`` first, then in the working directory. ``UserError`` where there is none, or nothing is there."""
    if (family is None) == (path is None):
        got = "none" if path is None else f"{family!r} and {path!r}"
        raise UserError(f"{name} must be given one path, got {got}; write {name}:PATH, or add the option `path: ...`")
    given = Path(str(path if family is None else family)).expanduser()
    places = [given] if root is None else [Path(root) / given, given]  # an absolute path wins over root
    for place in places:
        if place.exists():
            return place
    tried = " or ".join(dict.fromkeys(str(place) for place in places))
    raise UserError(f"path of {name} must be there, got nothing at {tried}; give an absolute path, or --data DIR")


def lines_of(file: Path, columns: int) -> list[list[str]]:
    """The non-empty lines of a text file, each as ``columns`` words (the last keeps its spaces); else ``UserError``."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} must be a readable text file, got {error}; unpack the archive again") from error
    split = [line.split(maxsplit=columns - 1) for line in lines]
    for number, words in enumerate(split, 1):
        if len(words) != columns:
            raise UserError(
                f"{file} must have {columns} columns, got {len(words)} in line {number}; unpack the archive again"
            )
    return split


def class_folders(folder: Path, classes: Sequence[str] | None = None) -> tuple[tuple[str, ...], Listed]:
    """Names and images of ``folder/<class>/**``, classes sorted by name, images by path.

    ``classes``: those that the folder must have (of the training part). ``UserError`` for other classes, for fewer
    than two, and for a class without an image.
    """
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(names) < 2:
        raise UserError(f"{folder} must hold a folder per class, at least 2, got {len(names)}; sort the images so")
    if classes is not None and tuple(classes) != names:
        odd = sorted(set(classes) ^ set(names))
        raise UserError(
            f"{folder} must have the class folders of the training part, got a difference in {', '.join(odd[:5])}"
            f"{' ...' if len(odd) > 5 else ''}; give both parts the same"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        if not found:
            raise UserError(f"{folder / name} must hold images ({', '.join(sorted(SUFFIXES))}), got none; add some")
        files += found
        labels += [label] * len(found)
    return names, Listed(files, np.asarray(labels, dtype=np.int64))


def image_data(
    name: str,
    train: Listed,
    test: Listed,
    classes: Sequence[str],
    *,
    side: int,
    crop: float,
    mode: Mode = "RGB",
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    augment: str = "resized_crop_flip",
    first: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
) -> RawData:
    """The dataset of two listings, as memory-mapped arrays.

    ``first`` keeps that many of the classes, from the first on (option ``classes`` of the datasets that have it);
    ``train_size`` and ``test_size`` take a stratified part. Only what is kept is decoded. Without ``statistics`` (mean
    and standard deviation) they are those of the training images taken. Raises ``UserError`` for options out of
    range, labels out of range, files that are missing or no images, and where the cache has no room.
    """
    if isinstance(side, bool) or not isinstance(side, int) or not 8 <= side <= 4096:
        raise UserError(f"side of {name} must be an integer from 8 to 4096 pixels, got {side!r}; change it")
    if isinstance(crop, bool) or not isinstance(crop, int | float) or not 0.1 <= crop <= 1:
        raise UserError(f"crop of {name} must be the share of the side that is kept, 0.1 to 1, got {crop!r}; change it")
    if mode not in ("RGB", "L"):
        raise UserError(f"mode of {name} must be RGB or L (grey), got {mode!r}; change it")
    whole = isinstance(first, int) and not isinstance(first, bool)
    if first is not None and not (whole and 2 <= first <= len(classes)):
        raise UserError(f"classes of {name} must be an integer from 2 to {len(classes)}, got {first!r}; change it")
    number = len(classes) if first is None else first
    made = []
    for part, listed, size in (("train", train, train_size), ("test", test, test_size)):
        if not len(listed.files):
            raise UserError(f"the {part} part of dataset {name} must have images, got none; unpack the archive again")
        if listed.labels.min() < 0 or listed.labels.max() >= len(classes):
            raise UserError(
                f"labels of the {part} part of dataset {name} must be 0 to {len(classes) - 1}, got "
                f"{listed.labels.min()} to {listed.labels.max()}; unpack the archive again"
            )
        among = np.flatnonzero(listed.labels < number)
        rows = among[keep(name, number, listed.labels[among], f"{part}_size", size)]
        files = [listed.files[row] for row in rows]
        made.append((*squares(files, side, crop, mode), listed.labels[rows]))
    (x_train, known, y_train), (x_test, test_known, y_test) = made
    mean, std = statistics or statistics_of(np.asarray(known["histogram"]))
    if min(std) == 0.0:
        raise UserError(f"training images of {name} must vary, got a channel of one value; check the files")
    digests = {"x_train": known["digest"], "x_test": test_known["digest"]}
    return RawData(
        name, x_train, y_train, x_test, y_test, number, mean, std, augment, tuple(classes[:number]), digests=digests
    )


def statistics_of(histogram: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel in units of [0, 1], from counts [C, 256] of bytes."""
    grey = np.arange(256) / 255.0
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ grey
    variance = (share * (grey - mean[:, None]) ** 2).sum(axis=1)
    return tuple(map(float, mean)), tuple(map(float, np.sqrt(variance)))


def squares(files: Sequence[Path], side: int, crop: float, mode: Mode) -> tuple[np.ndarray, dict[str, Any]]:
    """uint8 [N, C, side, side] of the files, from the cache or made now, and what is known of it: ``digest`` of the
    pixels and ``histogram``, the counts [C, 256] of each byte."""
    place = _cache() / _key(files, side, crop, mode)
    if not place.is_dir():
        _make(files, side, crop, mode, place)
    shape = (len(files), 3 if mode == "RGB" else 1, side, side)
    try:  # copy on write: PyTorch wants memory that it may write, the file stays as it is
        images = np.load(place / "images.npy", mmap_mode="c", allow_pickle=False)
        known: dict[str, Any] = json.loads((place / "known.json").read_text())
        whole = images.shape == shape and images.dtype == np.uint8
    except (OSError, ValueError) as error:
        raise UserError(f"{place} must be an intact cache, got {error}; remove that folder") from error
    if not whole:
        raise UserError(f"{place} must hold {shape} bytes, got {images.shape} {images.dtype}; remove that folder")
    return images, known


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "raybench" / "images"


def _key(files: Sequence[Path], side: int, crop: float, mode: Mode) -> str:
    digest = hashlib.sha256(content_hash([VERSION, side, float(crop), mode]).encode())
    for file in files:
        try:
            found = file.stat()
        except OSError as error:
            raise UserError(f"{file} must be an image, got {error.strerror}; unpack the archive again") from error
        digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _make(files: Sequence[Path], side: int, crop: float, mode: Mode, place: Path) -> None:
    channels = 3 if mode == "RGB" else 1
    needed = len(files) * channels * side * side
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place.parent).free
        if needed > free:
            raise UserError(
                f"{place.parent} must have room for {needed / 1e9:.1f} GB of images, got {free / 1e9:.1f} GB; "
                "set XDG_CACHE_HOME to a larger disk, or take a part (train_size) or a smaller side"
            )
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
    except OSError as error:
        raise UserError(
            f"{place.parent} must take writes, got {error}; set XDG_CACHE_HOME to a folder that does"
        ) from error
    try:
        known = _fill(scratch / "images.npy", files, side, crop, mode)
        (scratch / "known.json").write_text(json.dumps(known))
        try:
            scratch.rename(place)
        except OSError:  # another process was faster, with the same bytes
            if not place.is_dir():
                raise
    except OSError as error:
        raise UserError(f"{place.parent} must take {needed} bytes, got {error}; make room there") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fill(where: Path, files: Sequence[Path], side: int, crop: float, mode: Mode) -> dict[str, Any]:
    channels = 3 if mode == "RGB" else 1
    shape = (len(files), channels, side, side)
    images = np.lib.format.open_memmap(where, mode="w+", dtype=np.uint8, shape=shape)
    digest = hashlib.sha256(repr(shape).encode())
    histogram = np.zeros((channels, 256), dtype=np.int64)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding lets other threads run
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            pixels = np.stack(list(pool.map(lambda file: square(file, side, crop, mode), chunk)))
            images[start : start + CHUNK] = pixels
            digest.update(pixels.data)
            for channel in range(channels):
                histogram[channel] += np.bincount(pixels[:, channel].ravel(), minlength=256)
    images.flush()
    return {"digest": digest.hexdigest(), "histogram": histogram.tolist()}


def square(file: Path, side: int, crop: float, mode: Mode) -> np.ndarray:
    """One image file as uint8 [C, side, side]; ``UserError`` where it cannot be read."""
    from PIL import Image  # both are slow to import, so only where they are used
    from torchvision.transforms import functional

    try:
        with Image.open(file) as opened:
            # A palette with transparency in bytes has no direct way to RGB.
            image = opened.convert("RGBA") if "transparency" in opened.info else opened
            image = image.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} must be an intact image, got {error}; replace it or take it out") from error
    shorter = round(side / crop)
    if min(image.size) != shorter:
        image = functional.resize(image, [shorter], functional.InterpolationMode.BILINEAR)
    pixels = np.asarray(functional.center_crop(image, [side, side]))
    return np.ascontiguousarray(pixels[None] if mode == "L" else pixels.transpose(2, 0, 1))
