"""Forget listed samples: the rows that somebody asks to delete, from a file."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raybench.data import Request, Source
from raybench.errors import UserError
from raybench.registry import SAMPLE, SCENARIOS

KINDS = (".npy", ".txt", ".csv", ".json")


@dataclass(frozen=True)
class IndexParams:
    """Where the list is. ``ValueError`` without a file."""

    file: str = ""
    """Path of a file of row numbers from 0: .npy (integers [n]), .txt (one a line), .csv (first column, one line of
    headings allowed) or .json (a list). A relative one is looked for in the data folder, then in the working one."""

    def __post_init__(self) -> None:
        if not isinstance(self.file, str) or not self.file.endswith(KINDS):
            raise ValueError(f"file must be the path of a list in {', '.join(KINDS)}, got {self.file!r}; name one")


@SCENARIOS.register("index", params=IndexParams, kind=SAMPLE, label="Listed samples")
def index(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    params: IndexParams,
    rng: np.random.Generator,
    source: Source,
) -> Request:
    """The training samples whose row numbers are in a file.

    Rows are counted from 0 in the dataset's training part, after ``train_size``. Draws nothing from ``rng``.

    Rows that the validation split holds out were never trained on, so they are passed over. Raises ``UserError`` for a
    file that is missing or holds something else than row numbers, for repeats, numbers out of range, an empty list,
    and where all or none of the training samples are listed.
    """
    file = Path(params.file)
    rows = _read(file)
    if rows.size == 0:
        raise UserError(f"{file} must list at least one row number, got none; add some")
    if rows.min() < 0 or rows.max() >= source.total:
        odd = rows[(rows < 0) | (rows >= source.total)][0]
        raise UserError(
            f"row numbers in {file} must be 0 to {source.total - 1}, the training images of {source.name}, got {odd}; "
            "take it out"
        )
    values, counts = np.unique(rows, return_counts=True)
    if len(values) < len(rows):
        raise UserError(f"row numbers in {file} must differ, got {values[counts > 1][0]} twice; name each once")
    forget = np.isin(source.rows, rows)
    if not 0 < forget.sum() < len(forget):
        raise UserError(
            f"{file} must list some and not all of the {len(forget)} samples that are trained on, got "
            f"{int(forget.sum())} of them; change the list, or the seed of the validation split (seeds.split)"
        )
    return Request(forget=forget)


def _read(file: Path) -> np.ndarray:
    """int64 [n]."""
    try:
        if file.suffix == ".npy":
            content: np.ndarray = np.load(file, allow_pickle=False)
            if content.ndim != 1 or not (np.issubdtype(content.dtype, np.integer) or content.size == 0):
                raise ValueError(f"{content.dtype} of shape {list(content.shape)}")
            return np.asarray(content, dtype=np.int64)
        text = file.read_text(encoding="utf-8")
        found: list[Any]
        if file.suffix == ".json":
            found = json.loads(text)
            if not isinstance(found, list) or any(isinstance(n, bool) or not isinstance(n, int) for n in found):
                raise ValueError("no list of whole numbers")
        elif file.suffix == ".csv":
            found = [line[0].strip() for line in csv.reader(text.splitlines()) if line]
            if found and not found[0].lstrip("-").isdecimal():
                del found[0]  # headings
        else:
            found = text.split()
        return np.asarray([int(n) for n in found], dtype=np.int64)
    except (OSError, ValueError, OverflowError, EOFError) as error:
        raise UserError(
            f"{file} must hold row numbers ({file.suffix}), got {type(error).__name__}: {error}; write it again"
        ) from error
