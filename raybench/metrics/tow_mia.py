"""ToW-MIA of RUM: the tug of war with a membership attack in place of the forget accuracy."""

from __future__ import annotations

import dataclasses
import math

from raybench.metrics._splits import accuracy
from raybench.metrics.confidence_attack import confidence_attack
from raybench.outputs import MetricContext, Outputs
from raybench.registry import HIGHER, METRICS


@METRICS.register("tow_mia", label="ToW-MIA", direction=HIGHER, paper="arXiv:2406.01257", pair=True, final_only=True)
def tow_mia(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """``tow`` with 1 - |MIA(u) - MIA(g)| for D_f; MIA is ``confidence_attack``, a share of D_f. 1 = retrained."""
    context = dataclasses.replace(context, held_out="test")
    factors = [1.0 - abs(accuracy(outputs, split) - accuracy(retrained, split)) for split in ("retain", "test")]
    factors.append(1.0 - abs(confidence_attack(outputs, context) - confidence_attack(retrained, context)))
    return math.prod(factors)
