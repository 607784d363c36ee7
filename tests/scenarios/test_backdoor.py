"""The backdoor: patched images with the target's label, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from raybench.errors import UserError
from raybench.scenarios.backdoor import BackdoorParams, backdoor

LABELS = np.arange(200) % 4
IMAGES = np.random.default_rng(0).integers(0, 200, (200, 2, 8, 8), dtype=np.uint8)


def draw(seed: int = 0, **params):
    return backdoor(IMAGES, LABELS, 4, BackdoorParams(**params), np.random.default_rng(seed))


def test_poisoned_samples_carry_the_patch_and_the_targets_label():
    request = draw(fraction=0.3, target=2, side=3, value=250)
    assert request.forget.sum() == 60
    assert (LABELS[request.forget] != 2).all()
    assert (request.labels[request.forget] == 2).all()
    changed = request.images != IMAGES
    assert not changed[:, :, :5].any()
    assert not changed[:, :, :, :5].any()
    assert (request.images[request.forget][:, :, 5:, 5:] == 250).all()
    assert not changed[~request.forget].any()
    np.testing.assert_array_equal(request.trigger(IMAGES)[request.forget], request.images[request.forget])
    assert request.target == 2


def test_other_seeds_poison_other_samples_of_all_other_classes():
    first, second = draw(0), draw(1)
    assert (first.forget != second.forget).any()
    assert set(LABELS[first.forget]) == {1, 2, 3}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"target": 4}, "a class below 4, got 4"),
        ({"side": 9}, "within 8x8 pixels, got side 9"),
        ({"fraction": 0.8}, "poison 1 to 150 samples of other classes, got fraction 0.8"),
        ({"fraction": 0.001}, "got fraction 0.001"),
    ],
)
def test_what_cannot_be_poisoned_is_one_line(params, message):
    with pytest.raises(UserError, match=message):
        draw(**params)


@pytest.mark.parametrize("params", [{"fraction": 0.0}, {"side": 0}, {"value": 256}, {"target": -1}])
def test_values_out_of_range(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        BackdoorParams(**params)
