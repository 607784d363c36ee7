"""Unlearning accuracy (UA) of the SalUn and l1-sparse line of work."""

from __future__ import annotations

from raybench.metrics._splits import accuracy
from raybench.outputs import MetricContext, Outputs
from raybench.registry import METRICS


@METRICS.register("unlearning_accuracy", label="Unlearning accuracy (UA)", paper="arXiv:2304.04934")
def unlearning_accuracy(outputs: Outputs, context: MetricContext) -> float:
    """1 - accuracy on the training images of the forget set.

    One is the target only where the retrained model reaches it (class forgetting); for random samples the
    retrained model's value is close to its test error.
    """
    return 1.0 - accuracy(outputs, "forget")
