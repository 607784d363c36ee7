"""Retention: accuracy as a ratio to the retrained model's, one per split."""

from __future__ import annotations

from raybench.errors import MetricUnavailable
from raybench.metrics._splits import accuracy
from raybench.outputs import MetricContext, Outputs
from raybench.registry import METRICS

# Direction ``match_retrained``: 1 is the target on every split, and above 1 is as far from it as below.


@METRICS.register("retain_retention", label="Retention, retain set", unit="ratio", range=(0.0, None), pair=True)
def retain_retention(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Accuracy on the retain set divided by the retrained model's; below 1: unlearning did damage."""
    return _ratio(outputs, retrained, "retain")


@METRICS.register("forget_retention", label="Retention, forget set", unit="ratio", range=(0.0, None), pair=True)
def forget_retention(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Accuracy on the forget set divided by the retrained model's; above 1: under-forgotten.

    Unavailable where the retrained model has none of it right, as it often does in class scenarios.
    """
    return _ratio(outputs, retrained, "forget")


@METRICS.register("validation_retention", label="Retention, validation", unit="ratio", range=(0.0, None), pair=True)
def validation_retention(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Accuracy on validation (class scenarios: remaining classes) divided by the retrained model's."""
    return _ratio(outputs, retrained, "validation")


@METRICS.register(
    "test_retention", label="Retention, test", unit="ratio", range=(0.0, None), pair=True, final_only=True
)
def test_retention(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Accuracy on test (class scenarios: remaining classes) divided by the retrained model's."""
    return _ratio(outputs, retrained, "test")


def _ratio(outputs: Outputs, retrained: Outputs, split: str) -> float:
    ours, theirs = accuracy(outputs, split), accuracy(retrained, split)
    if theirs == 0.0:
        raise MetricUnavailable(f"a ratio to the retrained model's accuracy on {split}, which is 0, does not exist")
    return ours / theirs
