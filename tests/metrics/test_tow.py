"""ToW, ToW-MIA and the average gap on known accuracies."""

from __future__ import annotations

import pytest

from raybench.metrics.average_gap import average_gap
from raybench.metrics.confidence_attack import confidence_attack
from raybench.metrics.tow import tow
from raybench.metrics.tow_mia import tow_mia
from raybench.outputs import Outputs


@pytest.fixture
def known(with_accuracy) -> tuple[Outputs, Outputs]:
    """Unlearned and retrained with accuracy gaps 0.05 (forget), 0.01 (retain), 0.02 (test)."""
    ours = {"forget": with_accuracy(95, 100), "retain": with_accuracy(99, 100), "test": with_accuracy(90, 100)}
    gold = {"forget": with_accuracy(90, 100), "retain": with_accuracy(100, 100), "test": with_accuracy(92, 100)}
    return Outputs(ours), Outputs(gold)


def test_tow_of_known_gaps(known, context) -> None:
    assert tow(*known, context()) == pytest.approx(0.92169, abs=1e-12)  # 0.95 * 0.99 * 0.98


def test_tow_mia_of_known_gaps(known, context) -> None:
    attack = abs(confidence_attack(known[0], context()) - confidence_attack(known[1], context()))
    assert attack > 0.0
    assert tow_mia(*known, context()) == pytest.approx(0.99 * 0.98 * (1 - attack), abs=1e-12)
    assert tow_mia(*known, context(held_out="validation")) == tow_mia(*known, context())


def test_average_gap_of_known_gaps(known, context) -> None:
    ours, gold = known
    attack = abs(confidence_attack(ours, context()) - confidence_attack(gold, context()))
    assert average_gap(ours, gold, context()) == pytest.approx((0.05 + 0.01 + 0.02 + attack) / 4, abs=1e-12)


def test_average_gap_attacks_with_the_test_set_in_every_phase(random_outputs, context) -> None:
    ours, gold = random_outputs(1), random_outputs(2)
    assert average_gap(ours, gold, context(held_out="validation")) == average_gap(ours, gold, context())
