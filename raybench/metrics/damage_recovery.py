"""Damage recovery: how much of the test accuracy that a corruption took is won back."""

from __future__ import annotations

from raybench.errors import MetricUnavailable
from raybench.metrics._splits import accuracy
from raybench.outputs import MetricContext, Outputs
from raybench.registry import HIGHER, METRICS

LEAST_DAMAGE = 0.005  # less than this is the noise of two trainings


@METRICS.register(
    "damage_recovery", label="Damage recovery", unit="ratio", range=(None, None), direction=HIGHER, final_only=True
)
def damage_recovery(outputs: Outputs, context: MetricContext) -> float:
    """(test accuracy - the original's) / (the clean model's - the original's).

    0: nothing won back, 1: as a model that was trained on the data before the scenario corrupted them; below 0: made
    worse. Missing where the corruption cost less than half a point, as a backdoor should. The side-effect protocol of
    Jang, Kim and Youn 2025 (doi:10.1609/aaai.v39i25.34822), put on a scale.
    """
    names = ("clean_test_accuracy", "original_test_accuracy")
    if any(name not in context.extras for name in names):
        raise MetricUnavailable("needs a clean model, which only scenarios that change labels or images have")
    clean, original = (context.extras[name] for name in names)
    if clean - original < LEAST_DAMAGE:
        raise MetricUnavailable(f"the corruption cost {clean - original:.4f} of test accuracy: nothing to recover")
    return (accuracy(outputs, "test") - original) / (clean - original)
