"""Attack success rate of a backdoor: how often its pattern still gets the class that it asks for."""

from __future__ import annotations

from raybench.errors import MetricUnavailable
from raybench.metrics._splits import accuracy
from raybench.outputs import MetricContext, Outputs
from raybench.registry import METRICS


@METRICS.register("backdoor_success", label="Backdoor success", paper="arXiv:1708.06733", final_only=True)
def backdoor_success(outputs: Outputs, context: MetricContext) -> float:
    """Share of test images of other classes that the model gives the backdoor's target once they carry its pattern.

    0 to 1; to be matched to the retrained model's, which never saw the pattern and makes that mistake by chance only.
    """
    if not outputs.has("test_triggered"):
        raise MetricUnavailable("is defined for backdoor scenarios only: no test image has a pattern")
    return accuracy(outputs, "test_triggered")
