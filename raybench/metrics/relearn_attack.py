"""Fine-tune attack: how much of the forget set a few steps of training bring back, at the worst learning rate.

A step sees as many samples of D_r as of D_f, so that calling everything the forgotten class does not pay. Read it
against the retrained model's value: few steps teach a class anew as well.
"""

from __future__ import annotations

import contextlib
import copy

import torch

from raybench.data import Batch
from raybench.errors import MetricUnavailable
from raybench.mechanisms.relearning import Diverged, accuracy_on, drawn, relearning
from raybench.outputs import MetricContext
from raybench.probe import Probe
from raybench.registry import METRICS

BUDGETS = (1, 5, 20)  # steps
LEARNING_RATES = (0.001, 0.01, 0.1)
MOMENTUM = 0.9
HALF_BATCH = 32


@METRICS.register("relearn_attack", label="Fine-tune attack", probe=True)
def relearn_attack(probe: Probe, context: MetricContext) -> float:
    """Accuracy on D_f after fine-tuning, averaged over budgets of 1, 5 and 20 steps, each at its worst learning rate.

    SGD with momentum 0.9 and learning rate 0.001, 0.01 or 0.1 (the worst gives the highest accuracy), 32 samples of
    D_f and 32 of D_r in a step, drawn with replacement, the same for every model.
    """
    return sum(_worst(probe, BUDGETS)) / len(BUDGETS)


@METRICS.register("relearn_attack_1", label="Fine-tune attack, 1 step", probe=True)
def relearn_attack_1(probe: Probe, context: MetricContext) -> float:
    """Accuracy on D_f after 1 step of the fine-tune attack at its worst learning rate."""
    return _worst(probe, (1,))[0]


@METRICS.register("relearn_attack_5", label="Fine-tune attack, 5 steps", probe=True)
def relearn_attack_5(probe: Probe, context: MetricContext) -> float:
    """Accuracy on D_f after 5 steps of the fine-tune attack at its worst learning rate."""
    return _worst(probe, (5,))[0]


@METRICS.register("relearn_attack_20", label="Fine-tune attack, 20 steps", probe=True)
def relearn_attack_20(probe: Probe, context: MetricContext) -> float:
    """Accuracy on D_f after 20 steps of the fine-tune attack at its worst learning rate."""
    return _worst(probe, (20,))[0]


def _worst(probe: Probe, budgets: tuple[int, ...]) -> list[float]:
    """For each budget the highest accuracy on D_f over the learning rates; the runs start from ``probe.model``.

    A learning rate that diverges before a budget is spent is a failed attack there.
    """
    curves = [_curve(probe, lr, budgets) for lr in LEARNING_RATES]
    found = [[curve[steps] for curve in curves if steps in curve] for steps in budgets]
    if not all(found):
        raise MetricUnavailable("the fine-tune attack met losses that are not finite at every learning rate")
    return [max(accuracies) for accuracies in found]


def _curve(probe: Probe, lr: float, budgets: tuple[int, ...]) -> dict[int, float]:
    """Steps -> accuracy on D_f, as far as the loss stays finite."""
    model, generator = copy.deepcopy(probe.model), probe.generator("relearn_attack")

    def draw() -> Batch:
        (x, y), (x_kept, y_kept) = (drawn(probe.splits[n], HALF_BATCH, generator) for n in ("forget", "retain"))
        return torch.cat([x, x_kept]), torch.cat([y, y_kept])

    found: dict[int, float] = {}
    with contextlib.suppress(Diverged):
        for step in relearning(probe, model, draw, lr=lr, momentum=MOMENTUM):
            if step in budgets:
                found[step] = accuracy_on(model, probe.splits["forget"])
            if step >= max(budgets):
                break
    return found
