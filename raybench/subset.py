"""Smaller datasets: a stratified, deterministic part of the training and of the test images."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from raybench.data import RawData
from raybench.errors import UserError
from raybench.seeding import numpy_generator


def allocate(counts: np.ndarray, size: int) -> np.ndarray:
    """How many samples each class gives to a subset of ``size``: int64 [K], sum ``size``.

    Shares are proportional to ``counts`` (int [K]), rounded by largest remainder (ties: the lower class), and
    no class that has samples is left without one. Needs (non-empty classes) <= size <= counts.sum().
    """
    exact = counts.astype(np.int64) * size  # in units of 1 / total, so nothing is rounded before it must be
    total = int(counts.sum())
    quota = exact // total
    remainder = exact % total
    missing = size - int(quota.sum())
    quota[np.argsort(-remainder, kind="stable")[:missing]] += 1
    for empty in np.flatnonzero((quota == 0) & (counts > 0)):
        # The class that is most above its share gives one up, as long as it keeps one itself.
        excess = np.where(quota > 1, quota * total - exact, np.iinfo(np.int64).min)
        quota[int(np.argmax(excess))] -= 1
        quota[empty] += 1
    return quota


def stratified(labels: np.ndarray, size: int, num_classes: int) -> np.ndarray:
    """Positions int64 [size] of a stratified subset of ``labels`` int [N], ascending.

    Each class is shuffled by a fixed seed and its first samples are taken: a run of easy images at the start of
    a file (the first half of the MNIST test set, for one) has no more weight than it has in the whole, and a
    smaller share of a class is part of every larger one.
    """
    quota = allocate(np.bincount(labels, minlength=num_classes), size)
    parts = []
    for label, count in enumerate(quota):
        members = np.flatnonzero(labels == label)
        parts.append(numpy_generator("subset", label).permutation(members)[: int(count)])
    return np.sort(np.concatenate(parts))


def limit(raw: RawData, train_size: int | None, test_size: int | None) -> RawData:
    """``raw`` with at most this many samples; ``None`` keeps all. Pixel statistics stay those of the whole data,
    so a small run normalises as the full one does.

    Raises ``UserError`` for a size that is no integer, is below the number of classes, or is above the data.
    """
    train = keep(raw.name, raw.num_classes, raw.y_train, "train_size", train_size)
    test = keep(raw.name, raw.num_classes, raw.y_test, "test_size", test_size)
    taken: dict[str, Any] = {}
    if train_size is not None:
        taken |= {"x_train": raw.x_train[train], "y_train": raw.y_train[train]}
        taken |= {"fine": None if raw.fine is None else raw.fine[train]}
    if test_size is not None:
        taken |= {"x_test": raw.x_test[test], "y_test": raw.y_test[test]}
    return dataclasses.replace(raw, **taken, digests={k: v for k, v in raw.digests.items() if k not in taken})


def keep(name: str, num_classes: int, labels: np.ndarray, option: str, size: int | None) -> np.ndarray:
    """Ascending positions of the part of ``labels`` int [N] that ``option`` of dataset ``name`` asks for.

    ``None`` keeps all. Raises ``UserError`` as ``limit`` does.
    """
    if size is None:
        return np.arange(len(labels))
    whole = isinstance(size, int) and not isinstance(size, bool)
    if not whole or not num_classes <= size <= len(labels):
        raise UserError(
            f"{option} of {name} must be an integer from {num_classes} (one per class) to {len(labels)} "
            f"(all there are), got {size!r}; change it or leave it out"
        )
    return stratified(labels, size, num_classes)
