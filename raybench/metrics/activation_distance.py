"""Activation distance to the retrained model (Golatkar et al. 2020), L1 on probabilities."""

from __future__ import annotations

from raybench.metrics._splits import paired
from raybench.outputs import MetricContext, Outputs
from raybench.registry import LOWER, METRICS


@METRICS.register(
    "activation_distance",
    label="Activation distance on D_f (L1)",
    unit="probability",
    range=(0.0, 2.0),
    direction=LOWER,
    paper="arXiv:2003.02960",
    pair=True,
)
def activation_distance(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Mean over D_f of the L1 norm of p_u - p_g. Bad Teacher and SSD print the L2 norm under the same name."""
    ours, theirs = paired(outputs, retrained, "forget")
    per_sample = (ours.probabilities - theirs.probabilities).abs().sum(dim=1)
    return float(per_sample.mean().clamp(max=2.0))
