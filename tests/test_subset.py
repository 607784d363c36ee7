from __future__ import annotations

import numpy as np
import pytest

from raybench.data import RawData
from raybench.errors import UserError
from raybench.subset import allocate, limit, stratified


def raw(counts: list[int]) -> RawData:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.arange(len(labels)).astype(np.uint8).reshape(-1, 1, 1, 1)
    return RawData("toy", images, labels, images, labels, len(counts), (0.5,), (0.2,))


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([50, 30, 20], 10, [5, 3, 2]),  # exact shares
        ([50, 30, 20], 100, [50, 30, 20]),  # all of it
        ([2, 2, 2], 4, [2, 1, 1]),  # ties go to the lower class
        ([98, 1, 1], 3, [1, 1, 1]),  # nobody is left out
        ([97, 2, 1], 10, [8, 1, 1]),
        ([60, 0, 40], 10, [6, 0, 4]),  # a class without samples gives none
    ],
)
def test_allocation(counts, size, expected):
    assert allocate(np.array(counts), size).tolist() == expected


def test_allocation_always_fits():
    rng = np.random.default_rng(1)
    for _ in range(300):
        counts = rng.integers(1, rng.choice([3, 30, 3000]), rng.integers(2, 12))
        size = int(rng.integers(len(counts), counts.sum() + 1))
        quota = allocate(counts, size)
        assert quota.sum() == size
        assert (quota >= 1).all()
        assert (quota <= counts).all()
        share = counts * size / counts.sum()
        if (share >= 1).all():
            assert (np.abs(quota - share) < 1).all()


def test_positions_are_stratified_repeatable_and_nested():
    labels = raw([100, 60, 40]).y_train
    half, quarter = stratified(labels, 100, 3), stratified(labels, 50, 3)
    assert np.bincount(labels[half]).tolist() == [50, 30, 20]
    assert (np.diff(half) > 0).all()  # ascending, none twice
    np.testing.assert_array_equal(half, stratified(labels, 100, 3))
    assert set(quarter) <= set(half)


def test_positions_come_from_everywhere():
    labels = np.zeros(10_000, dtype=int)
    chosen = stratified(labels, 1000, 1)
    # Uniform: 500 expected in the first half, standard deviation sqrt(1000 / 4 * 0.9) = 15.
    assert 430 < (chosen < 5000).sum() < 570


def test_limit_keeps_images_with_their_labels():
    whole = raw([10, 10])
    part = limit(whole, 6, None)
    label_of = dict(zip(whole.x_train.ravel().tolist(), whole.y_train.tolist(), strict=True))
    assert [label_of[pixel] for pixel in part.x_train.ravel().tolist()] == part.y_train.tolist()
    assert (len(part.y_train), len(part.y_test)) == (6, 20)
    assert limit(whole, None, None).checksum() == whole.checksum()
    assert limit(whole, 20, 20).checksum() == whole.checksum()


@pytest.mark.parametrize("size", [21, 1, 0, -5, True, 2.0, "10"])
@pytest.mark.parametrize("option", ["train_size", "test_size"])
def test_sizes_out_of_range(option, size):
    sizes = {"train_size": None, "test_size": None, option: size}
    with pytest.raises(
        UserError, match=rf"{option} of toy must be an integer from 2 \(one per class\) to 20 .*, got {size!r}"
    ):
        limit(raw([10, 10]), **sizes)
