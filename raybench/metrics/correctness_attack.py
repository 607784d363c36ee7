"""The attack of l1-sparse and SalUn on whether the prediction is right."""

from __future__ import annotations

from raybench.metrics._features import correctness, share_judged_non_member, support_vector_attack
from raybench.outputs import MetricContext, Outputs
from raybench.registry import METRICS


@METRICS.register(
    "correctness_attack",
    label="MIA-efficacy (correctness)",
    paper="arXiv:2304.04934",
    attack=support_vector_attack("whether the prediction is the label"),
    fits=True,
)
def correctness_attack(outputs: Outputs, context: MetricContext) -> float:
    """Share of the forget set judged non-member by the attack that sees whether a prediction is right.

    Fit sets, machine and deviations as in ``confidence_attack``; the feature is 0 or 1, so the verdict is that of
    one of four rules. Where both fit sets are mostly right, everything is judged alike.
    """
    return share_judged_non_member(outputs, context, correctness)
