"""Prediction disagreement with the retrained model (Golatkar et al. 2020)."""

from __future__ import annotations

from raybench.metrics._splits import paired
from raybench.outputs import MetricContext, Outputs
from raybench.registry import LOWER, METRICS


@METRICS.register(
    "prediction_disagreement",
    label="Prediction disagreement on D_f",
    direction=LOWER,
    paper="arXiv:2003.02960",
    pair=True,
)
def prediction_disagreement(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Share of D_f that one of the two models has right and the other wrong.

    The code reports the count; this is divided by |D_f|. Two different wrong answers agree, as both are errors.
    """
    ours, theirs = paired(outputs, retrained, "forget")
    return int((ours.correct != theirs.correct).sum()) / len(ours)
