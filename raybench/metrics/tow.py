"""Tug of war (ToW) of RUM: forgetting, retaining and generalising like the retrained model, as one product."""

from __future__ import annotations

import math

from raybench.metrics._splits import accuracy
from raybench.outputs import MetricContext, Outputs
from raybench.registry import HIGHER, METRICS

SPLITS = ("forget", "retain", "test")


@METRICS.register("tow", label="ToW", direction=HIGHER, paper="arXiv:2406.01257", pair=True, final_only=True)
def tow(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Product over D_f, D_r and the test set of 1 - |accuracy gap to the retrained model|; 1 = retrained.

    The test factor is on the remaining classes in class scenarios.
    """
    return math.prod(1.0 - abs(accuracy(outputs, split) - accuracy(retrained, split)) for split in SPLITS)
