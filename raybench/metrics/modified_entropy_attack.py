"""The attack of l1-sparse and SalUn on the modified entropy, as its paper defines it."""

from __future__ import annotations

from raybench.metrics._features import modified_entropies, share_judged_non_member, support_vector_attack
from raybench.outputs import MetricContext, Outputs
from raybench.registry import METRICS


@METRICS.register(
    "modified_entropy_attack",
    label="MIA-efficacy (modified entropy)",
    paper="arXiv:2304.04934",
    attack=support_vector_attack("modified entropy of the softmax and the label"),
    fits=True,
)
def modified_entropy_attack(outputs: Outputs, context: MetricContext) -> float:
    """Share of the forget set judged non-member by the attack that sees the modified entropy.

    -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k), Song and Mittal 2021 (arXiv:2003.10595): an entropy that is
    low only where the model is sure of the true class. Fit sets, machine and deviations as in
    ``confidence_attack``. Differs from the official code, which logs p for 1 - p and takes the label's column for
    every label of the batch: p = (.7, .2, .1) with label 0 has 0.162, and 3.467 there. Values end at 100 nats, so
    that a class switched off still has one.
    """
    return share_judged_non_member(outputs, context, modified_entropies)
