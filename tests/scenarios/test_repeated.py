"""Repeated requests are disjoint, of one size, and nested over the number of requests."""

from __future__ import annotations

import numpy as np
import pytest

from raybench.errors import UserError
from raybench.scenarios.repeated import RepeatedParams, repeated

LABELS = np.zeros(100, dtype=np.int64)


def draw(**params):
    return repeated(
        np.zeros((100, 1, 2, 2), dtype=np.uint8), LABELS, 2, RepeatedParams(**params), np.random.default_rng(3)
    )


def test_requests_are_disjoint_and_nested():
    five, three = draw(requests=5, fraction=0.04), draw(requests=3, fraction=0.04)
    assert [int(mask.sum()) for mask in five.given] == [4] * 5
    assert int(five.forget.sum()) == 20
    np.testing.assert_array_equal(np.sum(five.given, axis=0), five.forget)
    for one, other in zip(three.given, five.given, strict=False):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("params", [{"fraction": 0.001}, {"requests": 5, "fraction": 0.2}])
def test_sizes_that_do_not_fit_are_one_line(params):
    with pytest.raises(UserError, match="scenario repeated must withdraw at least one of 100 samples"):
        draw(**params)


@pytest.mark.parametrize("params", [{"requests": 0}, {"fraction": 1.0}])
def test_values_out_of_range(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        RepeatedParams(**params)
