"""What every dataset keeps to, whatever its name."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from raybench.data import AUGMENTATIONS
from raybench.errors import UserError
from raybench.options import option_names
from raybench.registry import DATASETS

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


def test_npz_needs_its_path():
    with pytest.raises(UserError, match="npz must be given the option path, got none; add it as `path:"):
        DATASETS["npz"].fn(None, False)


def test_the_five():
    assert {"cifar10", "digits", "fashion_mnist", "mnist", "npz"} <= set(DATASETS.names())


def test_digits_keeps_the_contract_without_any_file():
    raw = DATASETS["digits"].fn(None, False, train_size=100, test_size=50)
    assert raw.augment in AUGMENTATIONS
    assert len(raw.mean) == len(raw.std) == raw.input_shape[0]
    assert set(np.unique(raw.y_train)) == set(range(raw.num_classes)) == set(np.unique(raw.y_test))
    assert raw.x_train.flags.c_contiguous
    assert raw.x_test.flags.c_contiguous
