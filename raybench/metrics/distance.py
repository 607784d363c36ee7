"""How far an unlearned model is from the retrained one: the number that searches minimise and lines rank by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from raybench.metrics._splits import accuracy, usable
from raybench.metrics.loss_attack import loss_attack_auc
from raybench.outputs import MetricContext, Outputs
from raybench.registry import CLASSIFICATION, DENOISING, LOWER, METRICS

BOTH = {CLASSIFICATION, DENOISING}
LOSSES = ("retain", "forget")

# What must agree with the retrained model. In class scenarios the held-out accuracy is that of the remaining
# classes and the attack compares D_f with the forgotten classes' held-out samples. A term that cannot be
# computed makes the distance unavailable: an average over fewer terms would be another metric.
TERMS: tuple[tuple[str, Callable[[Outputs, MetricContext], float]], ...] = (
    ("retain_accuracy", lambda outputs, context: accuracy(outputs, "retain")),
    ("forget_accuracy", lambda outputs, context: accuracy(outputs, "forget")),
    ("held_out_accuracy", lambda outputs, context: accuracy(outputs, context.held_out)),
    ("loss_attack_auc", loss_attack_auc),
)


def distance_terms(outputs: Outputs, retrained: Outputs, context: MetricContext, held_out: str) -> dict[str, float]:
    """Absolute gap of each term, in [0, 1]. ``held_out``: ``validation`` or ``test``, whatever the context says.

    Of denoisers, which have no accuracy, the mean losses stand in its place, by the difference relative to the larger.
    Raises ``MetricUnavailable`` when a term is, for either model.
    """
    context = dataclasses.replace(context, held_out=held_out)
    if context.task == DENOISING:
        gaps = {f"{name}_loss": _relative(*(_loss(of, name) for of in (outputs, retrained))) for name in LOSSES}
        gaps["held_out_loss"] = _relative(*(_loss(of, held_out) for of in (outputs, retrained)))
        return gaps | {"loss_attack_auc": abs(loss_attack_auc(outputs, context) - loss_attack_auc(retrained, context))}
    return {name: abs(term(outputs, context) - term(retrained, context)) for name, term in TERMS}


@METRICS.register("distance", label="Distance to retrained", direction=LOWER, pair=True, final_only=True, tasks=BOTH)
def distance(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Mean absolute gap to the retrained model over retain, forget and test accuracy and the loss attack's AUC."""
    return _mean(distance_terms(outputs, retrained, context, "test"))


@METRICS.register(
    "distance_validation", label="Distance to retrained (validation)", direction=LOWER, pair=True, tasks=BOTH
)
def distance_validation(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """The same with validation in place of test, in a search and in finals alike: what a search may minimise."""
    return _mean(distance_terms(outputs, retrained, context, "validation"))


def _loss(outputs: Outputs, split: str) -> float:
    return float(usable(outputs, split).losses.mean())


def _relative(ours: float, theirs: float) -> float:
    """Difference in units of the larger, in [0, 1]."""
    return abs(ours - theirs) / max(ours, theirs) if ours != theirs else 0.0


def _mean(terms: dict[str, float]) -> float:
    return sum(terms.values()) / len(terms)
