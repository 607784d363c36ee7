"""The attack of l1-sparse and SalUn on the whole softmax."""

from __future__ import annotations

from raybench.metrics._features import probabilities, share_judged_non_member, support_vector_attack
from raybench.outputs import MetricContext, Outputs
from raybench.registry import METRICS


@METRICS.register(
    "probability_attack",
    label="MIA-efficacy (probability)",
    paper="arXiv:2304.04934",
    attack=support_vector_attack("the whole softmax"),
    fits=True,
)
def probability_attack(outputs: Outputs, context: MetricContext) -> float:
    """Share of the forget set judged non-member by the attack that sees the whole vector of probabilities.

    Fit sets, machine and deviations as in ``confidence_attack``; as many features as classes, gamma their inverse.
    In class scenarios no sample of the forgotten classes is in the fit sets.
    """
    return share_judged_non_member(outputs, context, probabilities)
