"""Training privacy of l1-sparse and SalUn: can retained training samples be told from unseen ones?"""

from __future__ import annotations

from raybench.mechanisms.attacks import told_apart
from raybench.metrics._features import confidences
from raybench.metrics._splits import usable
from raybench.outputs import MetricContext, Outputs
from raybench.registry import LOWER, METRICS, Attack


@METRICS.register(
    "training_privacy",
    label="Training privacy (confidence)",
    direction=LOWER,
    paper="arXiv:2304.04934",
    attack=Attack(
        attack="RBF support vector machine, C = 3, gamma = 1",
        score="probability of the true label",
        fit_on="as many of D_r as half of held-out, against that half, at most 1000 each",
        apply_to="the rest of D_r and the other half of held-out",
        reported_quantity="mean of the shares of members and of non-members judged right",
    ),
    fits=True,
)
def training_privacy(outputs: Outputs, context: MetricContext) -> float:
    """Balanced accuracy of the confidence attack on the retain set against held-out samples; 0.5: blind.

    The second number of the code behind ``confidence_attack``: it says nothing of D_f, but whether unlearning made
    the samples that stay more exposed. Halves are drawn by rank of p_y from ``evaluate_seed``; the fit sets have
    at most 1000 samples each, and no more than half of D_r where that is the smaller side.
    """
    members, non_members = usable(outputs, "retain"), usable(outputs, context.held_out)
    return told_apart(confidences(members), confidences(non_members), context.evaluate_seed)
