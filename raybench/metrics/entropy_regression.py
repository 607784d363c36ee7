"""Membership attack of Golatkar et al., Bad Teacher and SSD: a classifier on the entropy of the softmax."""

from __future__ import annotations

from raybench.mechanisms.attacks import judged_member
from raybench.metrics._features import entropies
from raybench.metrics._splits import usable
from raybench.outputs import MetricContext, Outputs
from raybench.registry import METRICS, Attack


@METRICS.register(
    "entropy_regression",
    label="Entropy attack, member share",
    paper="arXiv:2308.07707",
    attack=Attack(
        attack="logistic regression, classes weighted to balance, L2 with C = 1",
        score="entropy of the softmax",
        fit_on="all of D_r against all of held-out (remaining classes in class scenarios)",
        apply_to="D_f",
        reported_quantity="share of D_f judged member",
    ),
    fits=True,
)
def entropy_regression(outputs: Outputs, context: MetricContext) -> float:
    """Share of the forget set that a regression on the entropy takes for *members*; high: looks trained on.

    The opposite of MIA-efficacy (``confidence_attack``), under the same name in papers. SSD's classifier; Golatkar
    et al. (arXiv:2003.02960) and Bad Teacher (arXiv:2205.08096) fit a support vector machine. The retrained model
    is the target, not 0: it generalises to D_f. Entropy ignores labels, so a model that is sure of a wrong class
    counts as one that remembers. Differs from SSD's code: in class scenarios the held-out samples are those of the
    remaining classes, where its test set contains the forgotten one.
    """
    return judged_member(
        members=entropies(usable(outputs, "retain")),
        non_members=entropies(usable(outputs, context.held_out)),
        targets=entropies(usable(outputs, "forget")),
    )
