"""Expected calibration error: how far confidence is from accuracy on unseen data."""

from __future__ import annotations

import torch

from raybench.metrics._splits import usable
from raybench.outputs import MetricContext, Outputs
from raybench.registry import LOWER, METRICS

BINS = 15


@METRICS.register("calibration_error", label="Expected calibration error", direction=LOWER, paper="arXiv:1706.04599")
def calibration_error(outputs: Outputs, context: MetricContext) -> float:
    """Mean over the held-out samples of |accuracy - mean confidence| of their bin, confidence the largest softmax.

    Fifteen bins of equal width, ((i - 1)/15, i/15], as in Guo et al. 2017, equation 3. Held-out is test in finals
    and validation in a search; the remaining classes in class scenarios. Biased upwards with few samples a bin.
    """
    split = usable(outputs, context.held_out)
    confidence = split.probabilities.amax(dim=1)
    edges = torch.linspace(0.0, 1.0, BINS + 1, dtype=torch.float64)
    place = (torch.bucketize(confidence, edges) - 1).clamp(0, BINS - 1)
    excess = split.correct.double() - confidence  # summed over a bin: its size times (accuracy - mean confidence)
    return float(torch.zeros(BINS, dtype=torch.float64).index_add(0, place, excess).abs().sum() / len(split))
