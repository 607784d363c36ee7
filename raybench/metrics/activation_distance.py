"""Activation distance to the retrained model: L1 on probabilities (Golatkar et al. 2020), or L2 (Bad Teacher, SSD)."""

from __future__ import annotations

import math

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
    """Mean over D_f of the L1 norm of p_u - p_g. Bad Teacher and SSD print ``activation_distance_l2``."""
    ours, theirs = paired(outputs, retrained, "forget")
    per_sample = (ours.probabilities - theirs.probabilities).abs().sum(dim=1)
    return float(per_sample.mean().clamp(max=2.0))


@METRICS.register(
    "activation_distance_l2",
    label="Activation distance on D_f (L2)",
    unit="probability",
    range=(0.0, math.sqrt(2.0)),
    direction=LOWER,
    paper="arXiv:2205.08096",
    pair=True,
)
def activation_distance_l2(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Mean over D_f of the L2 norm of p_u - p_g: the activation distance of Bad Teacher and SSD."""
    ours, theirs = paired(outputs, retrained, "forget")
    per_sample = (ours.probabilities - theirs.probabilities).norm(dim=1)
    return float(per_sample.mean().clamp(max=math.sqrt(2.0)))
