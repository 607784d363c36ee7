"""Kullback-Leibler divergence from the retrained model's predictions to the unlearned model's."""

from __future__ import annotations

import torch

from raybench.errors import MetricUnavailable
from raybench.metrics._splits import paired
from raybench.outputs import MetricContext, Outputs
from raybench.registry import LOWER, METRICS


@METRICS.register(
    "kl_divergence", label="KL divergence on D_f", unit="nats", range=(0.0, None), direction=LOWER, pair=True
)
def kl_divergence(outputs: Outputs, retrained: Outputs, context: MetricContext) -> float:
    """Mean over D_f of KL(p_g || p_u) = sum_k p_g log(p_g / p_u), natural logarithm, g the retrained model.

    Not symmetric, and unbounded: unavailable where the unlearned model gives probability 0 to a class that the
    retrained model does not exclude (``js_divergence`` exists there). SFR-on's code adds 1e-20 inside the
    logarithms; here the logarithms are those of the softmax, so no probability is too small for them.
    """
    ours, theirs = paired(outputs, retrained, "forget")
    p = theirs.probabilities
    ratio = theirs.log_probabilities - ours.log_probabilities
    # A class that the retrained model excludes adds nothing, whatever the other says of it.
    per_sample = torch.where(p > 0, p * ratio, 0.0).sum(dim=1).clamp(min=0.0)
    mean = float(per_sample.mean())
    if mean == float("inf"):
        raise MetricUnavailable("the divergence is infinite: the unlearned model excludes a class with probability 0")
    return mean
