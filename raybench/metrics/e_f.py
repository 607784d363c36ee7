"""E_F, the error on the forget classes of Mnemonic (class forgetting only)."""

from __future__ import annotations

from raybench.errors import MetricUnavailable
from raybench.metrics._splits import accuracy
from raybench.outputs import MetricContext, Outputs
from raybench.registry import HIGHER, METRICS


@METRICS.register("e_f", label="E_F", direction=HIGHER, final_only=True)
def e_f(outputs: Outputs, context: MetricContext) -> float:
    """Error rate on the test images of the forgotten classes.

    The paper does not state whether train or test images are meant; test images are used here, as the error on
    training images is ``unlearning_accuracy`` already.
    """
    if not context.forget_classes:
        raise MetricUnavailable("e_f is defined for class scenarios only: no class was forgotten")
    return 1.0 - accuracy(outputs, "test_forgotten")
