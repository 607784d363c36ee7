from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from raybench.errors import UserError
from raybench.registry import SAMPLE, SCENARIOS
from raybench.scenarios.label_noise import LabelNoiseParams

TOTAL, CLASSES = 20_000, 5
LABELS = np.random.default_rng(9).integers(0, CLASSES, TOTAL)
IMAGES = np.zeros((TOTAL, 1, 1, 1), dtype=np.uint8)


def ask(fraction: float, seed: int = 0, total: int = TOTAL):
    entry = SCENARIOS["label_noise"]
    params = entry.params(fraction=fraction)
    return entry.fn(IMAGES[:total], LABELS[:total], CLASSES, params, np.random.default_rng(seed))


def test_forget_set_is_exactly_the_wrong_labels():
    before = LABELS.copy()
    request = ask(0.25)
    assert request.forget.sum() == TOTAL // 4
    np.testing.assert_array_equal(request.labels != LABELS, request.forget)
    np.testing.assert_array_equal(LABELS, before)
    assert (request.forget_classes, request.images, SCENARIOS["label_noise"].kind) == ((), None, SAMPLE)
    assert request.labels.dtype == np.int64


def test_wrong_labels_are_uniform_over_the_other_classes():
    request = ask(0.5)
    for label in range(CLASSES):
        wrong = request.labels[request.forget & (label == LABELS)]
        counts = np.bincount(wrong, minlength=CLASSES)
        assert counts[label] == 0
        assert chisquare(np.delete(counts, label)).pvalue > 1e-3


def test_samples_are_chosen_whatever_their_class():
    chosen = np.bincount(LABELS[ask(0.5).forget], minlength=CLASSES)
    expected = np.bincount(LABELS) / 2
    assert chisquare(chosen, expected * chosen.sum() / expected.sum()).pvalue > 1e-3


def test_seed():
    np.testing.assert_array_equal(ask(0.1, 4).labels, ask(0.1, 4).labels)
    assert (ask(0.1, 4).labels != ask(0.1, 5).labels).any()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2.0, float("nan"), "0.1", None, True])
def test_fraction_range(fraction):
    with pytest.raises(ValueError, match="fraction must be above 0 and below 1, got"):
        LabelNoiseParams(fraction=fraction)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_none_or_all(fraction):
    with pytest.raises(
        UserError, match=rf"must corrupt 1 to 19 of 20 training labels, got fraction {fraction}; change"
    ):
        ask(fraction, total=20)
