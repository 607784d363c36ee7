"""Indiscernibility: how close the cross-validated loss attack comes to guessing."""

from __future__ import annotations

import dataclasses

from raybench.metrics.loss_attack import REGRESSION, loss_attack_accuracy
from raybench.outputs import MetricContext, Outputs
from raybench.registry import HIGHER, METRICS


@METRICS.register(
    "indiscernibility",
    label="Indiscernibility",
    direction=HIGHER,
    attack=dataclasses.replace(REGRESSION, reported_quantity="1 - |accuracy - 0.5| / 0.5"),
    fits=True,
)
def indiscernibility(outputs: Outputs, context: MetricContext) -> float:
    """1 - |a - 0.5| / 0.5 of a = ``loss_attack_accuracy``; 1: the attack guesses.

    From the code of the "Deep Unlearn" benchmark. An ideal of 1 needs D_f and unseen samples that the *retrained*
    model cannot tell apart, so read it beside that model's value. Over- and under-forgetting both lower it.
    """
    return 1.0 - abs(loss_attack_accuracy(outputs, context) - 0.5) / 0.5
