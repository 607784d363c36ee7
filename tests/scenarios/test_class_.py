from __future__ import annotations

import numpy as np
import pytest

from raybench.errors import UserError
from raybench.registry import CLASS, SCENARIOS
from raybench.scenarios.class_ import ClassParams

LABELS = np.array([0, 1, 2, 0, 1, 2, 3])
IMAGES = np.zeros((7, 1, 2, 2), dtype=np.uint8)


def ask(classes, labels=LABELS):
    entry = SCENARIOS["class"]
    return entry.fn(IMAGES, labels, 4, entry.params(classes=classes), np.random.default_rng(0))


@pytest.mark.parametrize(("classes", "kept"), [(0, (0,)), ([0], (0,)), ((2, 0), (0, 2)), (np.int64(3), (3,))])
def test_exactly_these_samples(classes, kept):
    request = ask(classes)
    assert request.forget_classes == kept
    assert request.forget.tolist() == [label in kept for label in LABELS.tolist()]
    assert (request.labels, request.images) == (None, None)


def test_default_and_kind():
    assert ClassParams().classes == (0,)
    assert SCENARIOS["class"].kind == CLASS


@pytest.mark.parametrize("classes", [(), [], -1, [0, -2], True, 1.0, "0", [[0]], None])
def test_what_is_no_class_number(classes):
    with pytest.raises(ValueError, match="classes must be class numbers from 0, at least one, got"):
        ClassParams(classes=classes)


def test_duplicates():
    with pytest.raises(ValueError, match=r"classes must differ, got \[1, 1\]; name each once"):
        ClassParams(classes=[1, 1])


def test_class_that_the_data_lack():
    with pytest.raises(UserError, match="must be classes of the dataset, got 7; it has training samples of 0, 1, 2, 3"):
        ask([0, 7])
    with pytest.raises(UserError, match=r"got 3; it has training samples of 0, 1, 2$"):
        ask(3, LABELS % 3)


def test_nothing_left():
    with pytest.raises(UserError, match="must leave at least one class to retain, got all 4; name fewer classes"):
        ask([0, 1, 2, 3])
