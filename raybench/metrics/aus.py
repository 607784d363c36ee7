"""Adaptive unlearning score (AUS): test accuracy kept, against how the forget set differs from unseen data."""

from __future__ import annotations

from raybench.errors import MetricUnavailable
from raybench.metrics._splits import accuracy
from raybench.outputs import MetricContext, Outputs
from raybench.registry import HIGHER, METRICS

ORIGINAL_TEST_ACCURACY = "original_test_accuracy"  # key in ``context.extras``


@METRICS.register(
    "aus", label="AUS", unit="score", range=(0.0, 2.0), direction=HIGHER, paper="arXiv:2312.02052", final_only=True
)
def aus(outputs: Outputs, context: MetricContext) -> float:
    """(1 - (A_t^o - A_t)) / (1 + |target - A_f|), A accuracies on test (t) and D_f (f), o the original model.

    ``target`` is A_t for random samples and 0 in class scenarios, where A_t is that of the remaining classes. The
    original model's test accuracy comes in ``context.extras["original_test_accuracy"]``. Above 1 only where
    unlearning improves the test accuracy. It never looks at a retrained model: report it beside that model's value.
    """
    test, forget = accuracy(outputs, "test"), accuracy(outputs, "forget")
    original = context.extras.get(ORIGINAL_TEST_ACCURACY)
    if original is None:
        raise MetricUnavailable("aus needs the original model's test accuracy, which this row does not have")
    target = 0.0 if context.forget_classes else test
    return (1.0 - (original - test)) / (1.0 + abs(target - forget))
