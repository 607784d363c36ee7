"""Completeness: how far what the unlearned model says of D_f is what the retrained model says of it."""

from __future__ import annotations

from raybench.metrics._splits import paired
from raybench.outputs import MetricContext, Outputs
from raybench.registry import HIGHER, METRICS


@METRICS.register("completeness", label="Completeness on D_f", direction=HIGHER, paper="arXiv:2209.02299", pair=True)
def completeness(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Jaccard index of the two sets of (sample, predicted class) over D_f (Nguyen et al. 2022, the overlap of outputs).

    a / (2 n - a) with a of n predictions alike: 1 where all are, 0 where none is. Weak: it sees the winner only.
    """
    ours, theirs = paired(outputs, retrained, "forget")
    alike = int((ours.logits.argmax(dim=1) == theirs.logits.argmax(dim=1)).sum())
    return alike / (2 * len(ours) - alike)
