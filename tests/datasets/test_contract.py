"""What every dataset keeps to, whatever its name."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from raybench.data import AUGMENTATIONS
from raybench.errors import UserError
from raybench.options import option_names
from raybench.registry import DATASETS
from raybench.training import make_recipe

ENTRIES = list(DATASETS)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_options_and_names(entry):
    assert entry.fn.__name__ == entry.fn.__module__.rsplit(".", 1)[1] == entry.name
    assert list(inspect.signature(entry.fn).parameters)[:2] == ["root", "download"]
    assert {"train_size", "test_size"} <= set(option_names(entry.fn))
    assert entry.summary
    assert entry.label != entry.name


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_unknown_option_names_the_nearest(entry):
    with pytest.raises(UserError, match=rf"option of {entry.name} must be .* got 'trainsize'; did you mean train_size"):
        entry.fn(None, False, trainsize=10)


@pytest.mark.parametrize("name", ["imagefolder", "npz"])
def test_families_need_their_path(name):
    with pytest.raises(UserError, match=rf"{name} must be given one path, got none; write {name}:PATH, or add"):
        DATASETS[name].fn(None, False)
    assert f"{name}:somewhere" in DATASETS


def test_all_names_of_the_field():
    small = {"digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "cifar20", "svhn", "stl10"}
    large = {"tinyimagenet", "cub", "stanford_cars", "imagenet", "imagefolder", "npz"}
    assert small | large <= set(DATASETS.names())


@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e.name not in ("digits", "imagefolder", "npz")], ids=lambda entry: entry.name
)
def test_without_a_folder_or_in_an_empty_one(entry, tmp_path):
    with pytest.raises(UserError, match=rf"dataset {entry.name} must have a data folder, got none; pass --data DIR"):
        entry.fn(None, False)
    with pytest.raises(UserError, match=rf"dataset {entry.name} must .*, got .*--data DIR") as caught:
        entry.fn(tmp_path, False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_default_recipe_is_one(entry):
    make_recipe(entry.recipe)


def test_digits_keeps_the_contract_without_any_file():
    raw = DATASETS["digits"].fn(None, False, train_size=100, test_size=50)
    assert raw.augment in AUGMENTATIONS
    assert len(raw.mean) == len(raw.std) == raw.input_shape[0]
    assert set(np.unique(raw.y_train)) == set(range(raw.num_classes)) == set(np.unique(raw.y_test))
    assert raw.x_train.flags.c_contiguous
    assert raw.x_test.flags.c_contiguous
