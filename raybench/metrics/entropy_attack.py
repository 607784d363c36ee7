"""The attack of l1-sparse and SalUn on the entropy of the softmax."""

from __future__ import annotations

from raybench.metrics._features import entropies, share_judged_non_member, support_vector_attack
from raybench.outputs import MetricContext, Outputs
from raybench.registry import METRICS


@METRICS.register(
    "entropy_attack",
    label="MIA-efficacy (entropy)",
    paper="arXiv:2304.04934",
    attack=support_vector_attack("entropy of the softmax"),
    fits=True,
)
def entropy_attack(outputs: Outputs, context: MetricContext) -> float:
    """Share of the forget set judged non-member by the attack that sees the entropy of the softmax.

    Fit sets, machine and deviations as in ``confidence_attack``. The label does not enter: a model that is sure of
    a wrong class looks like one that has learned the sample.
    """
    return share_judged_non_member(outputs, context, entropies)
