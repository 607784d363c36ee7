"""Image datasets in the idx format (MNIST and its kin), decompressed or as the original .gz files.

torchvision names the files, knows their md5 and downloads them. It reads only decompressed copies, which a
read-only data folder may lack, so reading is done here.
Format: http://yann.lecun.com/exdb/mnist: two zero bytes, the element type (8 = unsigned byte), the number of
dimensions, each dimension as a big-endian int32, then the elements.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raybench.errors import UserError

if TYPE_CHECKING:
    from torchvision.datasets import MNIST

UNSIGNED_BYTE = 8


def parse_idx(content: bytes, origin: str) -> np.ndarray:
    """uint8 array of the shape that the header states. ``origin`` names the file in the ``UserError`` raised for
    bytes that are no idx file, or that are fewer or more than the header promises."""
    dimensions = content[3] if len(content) > 3 else 0
    start = 4 + 4 * dimensions
    if dimensions == 0 or len(content) < start or content[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise UserError(f"{origin} must be an idx file of unsigned bytes, got other bytes; get it again (--download)")
    shape = tuple(int(n) for n in np.frombuffer(content, ">i4", dimensions, 4))
    if len(content) - start != math.prod(shape):
        raise UserError(
            f"{origin} must hold {math.prod(shape)} bytes of data, as its header says, got {len(content) - start}; "
            "remove it and get it again (--download)"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def load_idx(
    dataset: type[MNIST], name: str, root: Path | None, download: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x_train uint8 [N, 1, H, W], y_train int64 [N], x_test, y_test of a torchvision dataset of the MNIST family.

    Looks in ``root/<class name>/raw`` for each of the four files, decompressed or as .gz (the .gz must have
    torchvision's md5). With ``download``, files that are missing are fetched by torchvision, decompressed beside.
    Raises ``UserError`` where files are missing, damaged, disagree, or cannot be fetched.
    """
    if root is None:
        raise UserError(f"dataset {name} must have a data folder, got none; pass --data DIR (and --download)")
    folder = Path(root) / dataset.__name__ / "raw"
    resources = [(str(file), str(md5)) for file, md5 in dataset.resources]
    if download and _absent(folder, resources):
        try:
            dataset(str(root), download=True)
        except (OSError, RuntimeError) as error:  # no network, read-only folder, every mirror failed
            raise UserError(
                f"dataset {name} must be downloadable into {folder}, got {error}; put the files there by hand"
            ) from error
    absent = _absent(folder, resources)
    if absent:
        raise UserError(
            f"dataset {name} must have the files of torchvision's {dataset.__name__} in {folder}, "
            f"got none named {' or '.join(absent)}; pass the folder above with --data DIR, or --download"
        )
    arrays = {file: _read(folder, file, md5) for file, md5 in resources}

    def pair(part: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = (arrays[f"{part}-{suffix}"] for suffix in ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"))
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise UserError(
                f"{folder}/{part}-* must be N images and N labels, got shapes {images.shape} and {labels.shape}; "
                "get the files again (--download)"
            )
        return images[:, None], labels.astype(np.int64)

    return (*pair("train"), *pair("t10k"))


def _absent(folder: Path, resources: list[tuple[str, str]]) -> list[str]:
    """Files that are there neither as .gz nor decompressed."""
    return [file for file, _ in resources if not (folder / file).is_file() and not _plain(folder, file).is_file()]


def _plain(folder: Path, file: str) -> Path:
    return folder / file.removesuffix(".gz")


def _read(folder: Path, file: str, md5: str) -> np.ndarray:
    plain = _plain(folder, file)
    if plain.is_file():
        return parse_idx(plain.read_bytes(), str(plain))
    packed = (folder / file).read_bytes()
    digest = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise UserError(
            f"{folder / file} must have the md5 {md5}, got {digest}; remove it and get it again (--download)"
        )
    try:
        return parse_idx(gzip.decompress(packed), str(folder / file))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{folder / file} must be a gzip file, got {error}; get it again (--download)") from error
