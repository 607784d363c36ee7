"""MIA-efficacy of l1-sparse and SalUn: a support vector machine on the probability of the true label."""

from __future__ import annotations

from raybench.metrics._features import confidences, share_judged_non_member, support_vector_attack
from raybench.outputs import MetricContext, Outputs
from raybench.registry import METRICS


@METRICS.register(
    "confidence_attack",
    label="MIA-efficacy (confidence)",
    paper="arXiv:2304.04934",
    attack=support_vector_attack("probability of the true label"),
    fits=True,
)
def confidence_attack(outputs: Outputs, context: MetricContext) -> float:
    """Share of the forget set that the attack judges to be non-members.

    Fitted on retain samples (members) against held-out samples (non-members; remaining classes in class
    scenarios), feature p_y, RBF kernel, C = 3, gamma = 1 / number of features. Near 1 is the target only in
    class forgetting, elsewhere it is the retrained model's value.

    Differs from the official code: the fit sets are of equal size, at most 1000 each, and drawn over the whole
    split, where the code takes the *first* |D_t| retain samples in index order, unbalanced when D_r is smaller,
    and fits on all of them (minutes for 20 000). They are drawn by rank of p_y, so the value depends on
    ``evaluate_seed`` but not on sample order.
    """
    return share_judged_non_member(outputs, context, confidences)
