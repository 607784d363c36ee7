from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from raybench.errors import UserError
from raybench.registry import SAMPLE, SCENARIOS
from raybench.scenarios.random import RandomParams

TOTAL = 200
LABELS = np.arange(TOTAL) % 4
IMAGES = np.zeros((TOTAL, 1, 2, 2), dtype=np.uint8)


def ask(seed: int = 0, **params):
    entry = SCENARIOS["random"]
    return entry.fn(IMAGES, LABELS, 4, entry.params(**params), np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("params", "size"), [({"count": 1}, 1), ({"count": 199}, 199), ({"fraction": 0.1}, 20), ({"fraction": 0.0126}, 3)]
)
def test_how_many(params, size):
    request = ask(**params)
    assert request.forget.sum() == size
    assert (request.forget.shape, request.forget.dtype) == ((TOTAL,), bool)
    assert (request.forget_classes, request.labels, request.images) == ((), None, None)
    assert SCENARIOS["random"].kind == SAMPLE


def test_draws_are_seeded_and_uniform():
    np.testing.assert_array_equal(ask(3, count=50).forget, ask(3, count=50).forget)
    hits = np.sum([ask(seed, count=50).forget for seed in range(400)], axis=0)
    # Sampling without replacement: the counts vary by (1 - 1/4) of what independent draws would.
    assert chisquare(hits).statistic / 0.75 < 199 + 5 * np.sqrt(2 * 199)
    assert hits.min() > 0


@pytest.mark.parametrize("params", [{}, {"fraction": 0.1, "count": 3}])
def test_exactly_one(params):
    with pytest.raises(ValueError, match="must have exactly one of fraction and count, got fraction"):
        RandomParams(**params)


@pytest.mark.parametrize("fraction", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), "0.1", True])
def test_fraction_range(fraction):
    with pytest.raises(ValueError, match="fraction must be above 0 and below 1, got"):
        RandomParams(fraction=fraction)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "3"])
def test_count_range(count):
    with pytest.raises(ValueError, match="count must be an integer of at least 1, got"):
        RandomParams(count=count)


@pytest.mark.parametrize(
    ("params", "asked"), [({"count": 200}, "count 200"), ({"fraction": 0.001}, "0.001"), ({"fraction": 0.999}, "0.999")]
)
def test_nothing_to_forget_or_retain(params, asked):
    with pytest.raises(UserError, match=rf"must forget 1 to 199 of 200 training samples, got .*{asked}; change it"):
        ask(**params)
