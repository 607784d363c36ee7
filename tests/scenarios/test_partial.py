"""Partial knowledge: the request within, of which a part is given."""

from __future__ import annotations

import numpy as np
import pytest

from raybench.errors import UserError
from raybench.registry import SCENARIOS
from raybench.scenarios.partial import PartialParams, partial

LABELS = np.arange(200) % 4
IMAGES = np.random.default_rng(0).integers(0, 200, (200, 1, 8, 8), dtype=np.uint8)


def draw(**params):
    return partial(IMAGES, LABELS, 4, PartialParams(**params), np.random.default_rng(0))


@pytest.mark.parametrize("name", ["label_noise", "random", "backdoor"])
def test_the_request_within_and_a_part_of_it(name):
    request = draw(known=0.25, of=name, fraction=0.2)
    entry = SCENARIOS[name]
    whole = entry.fn(IMAGES, LABELS, 4, entry.params(fraction=0.2), np.random.default_rng(0))
    np.testing.assert_array_equal(request.forget, whole.forget)
    assert (request.labels is None) == (whole.labels is None)
    (known,) = request.given
    assert int(known.sum()) == 10
    assert not (known & ~request.forget).any()
    assert SCENARIOS["partial"].corrupts(PartialParams(of=name)) == (name != "random")


def test_repeated_samples_cannot_be_known_in_part():
    with pytest.raises(UserError, match="that repeats no sample, got overfit"):
        draw(of="overfit")


@pytest.mark.parametrize("name", ["class", "partial"])
def test_only_samples_with_a_fraction(name):
    with pytest.raises(UserError, match="scenario of samples with a fraction"):
        draw(of=name)


def test_unknown_names_and_empty_parts_are_one_line():
    with pytest.raises(UserError, match="label_noise"):
        draw(of="label_nois")
    with pytest.raises(UserError, match=r"must know 1 to 39 of 40 samples to forget, got known 0\.001"):
        draw(known=0.001)
    with pytest.raises(ValueError, match="known"):
        PartialParams(known=1.0)
