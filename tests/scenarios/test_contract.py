"""What every scenario keeps to, whatever its name."""

from __future__ import annotations

import ast
import dataclasses
import inspect

import numpy as np
import pytest

from raybench.registry import CLASS, SCENARIOS

ENTRIES = list(SCENARIOS)
SETTINGS = {"class": {"classes": [1]}, "random": {"fraction": 0.2}, "label_noise": {"fraction": 0.2}}
LABELS = np.arange(60) % 3
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_names_and_documented_frozen_params(entry):
    assert entry.fn.__name__.rstrip("_") == entry.name
    assert entry.fn.__module__.rsplit(".", 1)[1] == entry.fn.__name__
    assert entry.summary
    assert dataclasses.is_dataclass(entry.params)
    assert entry.params.__dataclass_params__.frozen
    body = ast.parse(inspect.getsource(entry.params)).body[0].body
    for position, node in enumerate(body):
        if isinstance(node, ast.AnnAssign):
            after = body[position + 1]
            assert isinstance(after, ast.Expr), f"{ast.unparse(node)} needs a docstring"
            assert isinstance(after.value, ast.Constant)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_request(entry):
    images, labels = IMAGES.copy(), LABELS.copy()
    images.flags.writeable = labels.flags.writeable = False  # a write would raise
    state = np.random.get_state()[1].copy()
    params = entry.params(**SETTINGS.get(entry.name, {}))
    first, again = (entry.fn(images, labels, 3, params, np.random.default_rng(5)) for _ in range(2))
    assert (first.forget.dtype, first.forget.shape) == (bool, (60,))
    assert 0 < first.forget.sum() < 60
    np.testing.assert_array_equal(first.forget, again.forget)
    assert bool(first.forget_classes) == (entry.kind == CLASS)
    if first.labels is not None:
        np.testing.assert_array_equal(first.labels, again.labels)
        np.testing.assert_array_equal(first.labels[~first.forget], labels[~first.forget])
    np.testing.assert_array_equal(np.random.get_state()[1], state)
