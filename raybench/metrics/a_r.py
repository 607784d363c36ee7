"""A_R, the accuracy on the remaining classes of Mnemonic (class forgetting only)."""

from __future__ import annotations

from raybench.errors import MetricUnavailable
from raybench.metrics._splits import accuracy
from raybench.outputs import MetricContext, Outputs
from raybench.registry import HIGHER, METRICS


@METRICS.register("a_r", label="A_R", direction=HIGHER, final_only=True)
def a_r(outputs: Outputs, context: MetricContext) -> float:
    """Accuracy on the test images of the remaining classes; ``test`` holds exactly those in class scenarios."""
    if not context.forget_classes:
        raise MetricUnavailable("a_r is defined for class scenarios only: no class was forgotten")
    return accuracy(outputs, "test")
