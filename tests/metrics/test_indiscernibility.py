"""Indiscernibility as a function of the cross-validated accuracy."""

from __future__ import annotations

import pytest

from raybench.metrics import indiscernibility as module
from raybench.metrics.loss_attack import loss_attack_accuracy
from raybench.registry import METRICS


@pytest.mark.parametrize(("accuracy", "expected"), [(0.5, 1.0), (0.75, 0.5), (0.25, 0.5), (1.0, 0.0), (0.0, 0.0)])
def test_distance_from_guessing(accuracy, expected, random_outputs, context, monkeypatch) -> None:
    monkeypatch.setattr(module, "loss_attack_accuracy", lambda outputs, context: accuracy)
    assert module.indiscernibility(random_outputs(1), context()) == expected


def test_it_is_that_of_the_loss_attack(random_outputs, context) -> None:
    outputs, facts = random_outputs(1), context(evaluate_seed=3)
    accuracy = loss_attack_accuracy(outputs, facts)
    assert module.indiscernibility(outputs, facts) == pytest.approx(1 - 2 * abs(accuracy - 0.5), abs=1e-12)
    ours, theirs = (METRICS[n].attack for n in ("indiscernibility", "loss_attack_accuracy"))
    assert (ours.attack, ours.fit_on) == (theirs.attack, theirs.fit_on)
    assert ours.reported_quantity != theirs.reported_quantity
