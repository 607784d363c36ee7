"""Memorisation grades: wrong labels and outliers are what must be learnt by heart."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from raybench.errors import UserError
from raybench.scenarios.memorization import MemorizationParams, memorization, memorization_scores


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images[:900] * 15).astype(np.uint8)[:, None], data.target[:900].astype(np.int64)


def test_wrong_labels_score_high_and_true_ones_low(digits):
    images, labels = digits
    rng = np.random.default_rng(0)
    wrong = rng.choice(900, 60, replace=False)
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + rng.integers(1, 10, 60)) % 10
    score = memorization_scores(images, noisy, 10, np.random.default_rng(0))
    assert ((score >= 0) & (score <= 1)).all()
    assert score[wrong].mean() > 0.9
    assert np.delete(score, wrong).mean() < 0.2
    high = memorization(images, noisy, 10, MemorizationParams("high", 60 / 900), np.random.default_rng(0)).forget
    assert high[wrong].sum() > 50


def test_levels_are_the_ends_and_the_middle_of_one_order(digits):
    images, labels = digits
    score = memorization_scores(images, labels, 10, np.random.default_rng(1))
    means = []
    for level in ("low", "medium", "high"):
        request = memorization(images, labels, 10, MemorizationParams(level, 0.1), np.random.default_rng(1))
        assert request.forget.sum() == 90
        means.append(score[request.forget].mean())
    assert means[0] <= means[1] < means[2]


def test_scores_by_the_definition(digits):
    images, labels = digits[0][:80], digits[1][:80]  # fewer than the components: distances are those of the pixels
    score = memorization_scores(images, labels, 5, np.random.default_rng(0))
    flat = images.reshape(80, -1) / 255.0
    for i in range(80):
        distance = np.linalg.norm(flat - flat[i], axis=1)
        near = [j for j in np.argsort(distance, kind="stable") if j != i][:5]
        weight = 1 / (distance[near] + 1e-9)
        assert score[i] == pytest.approx(1 - (weight * (labels[near] == labels[i])).sum() / weight.sum(), abs=1e-6)


def test_what_cannot_be_graded_is_one_line(digits):
    images, labels = digits
    for params, message in (
        (MemorizationParams(fraction=0.0001), "must forget 1 to 899 of 900"),
        (MemorizationParams(neighbours=900), "fewer neighbours than 900 samples, got 900"),
    ):
        with pytest.raises(UserError, match=message):
            memorization(images, labels, 10, params, np.random.default_rng(0))
    for bad in ({"fraction": 1.0}, {"neighbours": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            MemorizationParams(**bad)
