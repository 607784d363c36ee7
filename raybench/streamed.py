"""Images that stay on the host because they do not fit the device: read batch by batch, never written to.

The array behind them is usually memory-mapped (``raybench.image_files``), so the operating system keeps in memory
what is used and nothing holds all of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

RESIDENT_BYTES = 4 * 2**30  # what a split keeps on the device at most; larger images are streamed


class Rows:
    """Some rows of an array, in the place of ``array[rows]`` where that copy would not fit the memory.

    It is indexed as the copy would be, each time reading only what is asked for; ``numpy.asarray`` makes the copy.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self.array, self.rows = array, rows
        self.shape = (len(rows), *array.shape[1:])
        self.dtype = array.dtype
        self.ndim = array.ndim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        found: np.ndarray = np.asarray(self.array[self.rows[first]])
        if not rest:
            return found
        return found[rest] if np.ndim(self.rows[first]) == 0 else found[(slice(None), *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array[self.rows], dtype=dtype)


class Streamed:
    """uint8 images [N, C, H, W] on the host that hand out batches on ``device``.

    Indexing with int64 rows gives a new uint8 tensor on ``device``. ``part`` is the same images with other rows in
    sight, so what a method is given shows it no other sample and cannot change any.
    """

    dtype = torch.uint8

    def __init__(self, array: np.ndarray, device: torch.device, rows: np.ndarray | None = None) -> None:
        self._array = array
        self._rows = np.arange(len(array)) if rows is None else rows
        self.device = device
        self.shape = torch.Size((len(self._rows), *array.shape[1:]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        rows = self._rows[index.cpu().numpy()]
        return torch.from_numpy(np.array(self._array[rows])).to(self.device)

    def part(self, index: Tensor) -> Streamed:
        """The images at ``index`` (int64), still on the host."""
        return Streamed(self._array, self.device, self._rows[index.cpu().numpy()])
