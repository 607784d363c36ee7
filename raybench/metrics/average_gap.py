"""Average gap of SalUn: four absolute gaps to the retrained model, equally weighted."""

from __future__ import annotations

import dataclasses

from raybench.metrics._splits import accuracy
from raybench.metrics.confidence_attack import confidence_attack
from raybench.outputs import MetricContext, Outputs
from raybench.registry import LOWER, METRICS


@METRICS.register(
    "average_gap", label="Average gap", direction=LOWER, paper="arXiv:2310.12508", pair=True, final_only=True
)
def average_gap(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Mean absolute gap to the retrained model over unlearning, retain and test accuracy and MIA-efficacy.

    A fraction, where the paper prints points. The gap of the unlearning accuracy is that of the forget accuracy.
    """
    context = dataclasses.replace(context, held_out="test")
    gaps = [abs(accuracy(outputs, split) - accuracy(retrained, split)) for split in ("forget", "retain", "test")]
    gaps.append(abs(confidence_attack(outputs, context) - confidence_attack(retrained, context)))
    return sum(gaps) / len(gaps)
