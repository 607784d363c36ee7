"""Jensen-Shannon divergence to the retrained model's predictions."""

from __future__ import annotations

import math

import torch

from raybench.metrics._splits import paired
from raybench.outputs import MetricContext, Outputs
from raybench.registry import LOWER, METRICS


@METRICS.register(
    "js_divergence", label="JS divergence on D_f", unit="nats", range=(0.0, math.log(2)), direction=LOWER, pair=True
)
def js_divergence(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Mean over D_f of JS(p_u, p_g) = (KL(p_u || m) + KL(p_g || m)) / 2, m = (p_u + p_g) / 2, natural logarithm.

    SFR-on's code adds 1e-20 inside the logarithms; here 0 log 0 = 0 exactly, so equal predictions give 0.
    """
    ours, theirs = paired(outputs, retrained, "forget")
    p, q = ours.probabilities, theirs.probabilities
    m = (p + q) / 2
    terms = torch.xlogy(p, p) + torch.xlogy(q, q) - torch.xlogy(p, m) - torch.xlogy(q, m)
    # Rounding may leave the interval by an ulp.
    return float((terms.sum(dim=1) / 2).clamp(0.0, math.log(2)).mean().clamp(0.0, math.log(2)))
