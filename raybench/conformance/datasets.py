"""What every dataset keeps to: the arrays of ``raybench.data.RawData``, the same ones each time."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raybench.conformance.rules import Case, NotHere, digest, function_and_key_are_one_word, hold
from raybench.data import AUGMENTATIONS, RawData
from raybench.errors import UserError
from raybench.registry import DATASETS
from raybench.training import make_recipe


def cases(name: str) -> Iterator[Case]:
    """The checks of one dataset; those that load it look in ``RAYBENCH_DATA``."""
    yield Case(function_and_key_are_one_word, (DATASETS[name],))
    checks = (
        first_parameters_are_root_and_download, default_recipe_is_one, images_are_bytes, labels_count_from_zero,
        statistics_fit_the_channels, loading_again_gives_the_same,
    )  # fmt: skip
    yield from (Case(check, (name,)) for check in checks)


def load(name: str) -> RawData:
    """The dataset; ``NotHere`` where its files are not."""
    root = os.environ.get("RAYBENCH_DATA")
    try:
        raw = DATASETS[name].fn(Path(root) if root else None, False)
    except UserError as error:
        raise NotHere(str(error)) from error
    hold(isinstance(raw, RawData), f"must return raybench.data.RawData, got {type(raw).__name__}")
    assert isinstance(raw, RawData)
    return raw


def first_parameters_are_root_and_download(name: str) -> None:
    """The folder of ``--data`` and the permission to download come by position."""
    first = list(inspect.signature(DATASETS[name].fn).parameters)[:2]
    hold(first == ["root", "download"], f"the first parameters must be root, download, got {', '.join(first)}")


def default_recipe_is_one(name: str) -> None:
    """What the dataset proposes is a recipe that a spec could have."""
    make_recipe(DATASETS[name].recipe)


def images_are_bytes(name: str) -> None:
    """uint8 [N, C, H, W], contiguous, of one shape in both parts."""
    raw = load(name)
    for part, images in (("x_train", raw.x_train), ("x_test", raw.x_test)):
        good = images.dtype == np.uint8 and images.ndim == 4 and len(images) > 0
        hold(good, f"{part} must be uint8 [N, C, H, W], got {images.dtype} {list(images.shape)}")
        hold(images.flags.c_contiguous, f"{part} must be contiguous; wrap it in np.ascontiguousarray")
    same = raw.x_train.shape[1:] == raw.x_test.shape[1:]
    hold(same, f"test images must have the shape of training images, got {raw.x_test.shape[1:]}")


def labels_count_from_zero(name: str) -> None:
    """int64 [N] in 0..K-1, every class among the training images, names for all or none."""
    raw = load(name)
    for part, labels, images in (("y_train", raw.y_train, raw.x_train), ("y_test", raw.y_test, raw.x_test)):
        good = labels.dtype == np.int64 and labels.shape == (len(images),)
        hold(good, f"{part} must be int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}")
        hold(bool((labels >= 0).all() and (labels < raw.num_classes).all()), f"{part} must be 0..{raw.num_classes - 1}")
    absent = sorted(set(range(raw.num_classes)) - set(np.unique(raw.y_train).tolist()))
    hold(not absent, f"no training image of class {', '.join(map(str, absent))}")
    named = len(raw.class_names) in (0, raw.num_classes)
    hold(named, f"class_names must name {raw.num_classes} classes, got {len(raw.class_names)}")


def statistics_fit_the_channels(name: str) -> None:
    """A mean and a deviation per channel in units of [0, 1] pixels, and a known augmentation."""
    raw = load(name)
    channels = raw.input_shape[0]
    good = len(raw.mean) == len(raw.std) == channels
    hold(good, f"mean and std must have {channels} numbers, got {len(raw.mean)} and {len(raw.std)}")
    in_range = all(0 <= m <= 1 for m in raw.mean) and all(0 < s <= 1 for s in raw.std)
    hold(in_range, f"mean and std are in units of [0, 1] pixels, got {raw.mean} and {raw.std}")
    hold(raw.augment in AUGMENTATIONS, f"augment must be one of {', '.join(AUGMENTATIONS)}, got {raw.augment!r}")


def loading_again_gives_the_same(name: str) -> None:
    """The same checksum twice, and no global random number drawn."""
    before = digest(list(np.random.get_state(legacy=True))[1:])
    hold(load(name).checksum() == load(name).checksum(), "two loads differ; draw from a generator with a fixed seed")
    hold(digest(list(np.random.get_state(legacy=True))[1:]) == before, "moves NumPy's global random state")
