"""Mean loss on each split, weighted by samples: cross-entropy in nats, of a denoiser the squared error of the noise
(per pixel, at fixed steps and noise; predicting nothing costs 1)."""

from __future__ import annotations

import math

from raybench.errors import MetricUnavailable
from raybench.metrics._splits import usable
from raybench.outputs import MetricContext, Outputs
from raybench.registry import CLASSIFICATION, DENOISING, METRICS

BOTH = {CLASSIFICATION, DENOISING}


@METRICS.register("retain_loss", label="Retain loss", unit="nats", range=(0.0, None), tasks=BOTH)
def retain_loss(outputs: Outputs, context: MetricContext) -> float:
    """Mean cross-entropy on the training images of the retain set."""
    return _mean_loss(outputs, "retain")


@METRICS.register("forget_loss", label="Forget loss", unit="nats", range=(0.0, None), tasks=BOTH)
def forget_loss(outputs: Outputs, context: MetricContext) -> float:
    """Mean cross-entropy on the training images of the forget set."""
    return _mean_loss(outputs, "forget")


@METRICS.register("validation_loss", label="Validation loss", unit="nats", range=(0.0, None), tasks=BOTH)
def validation_loss(outputs: Outputs, context: MetricContext) -> float:
    """Mean cross-entropy on the validation set (class scenarios: remaining classes)."""
    return _mean_loss(outputs, "validation")


@METRICS.register("test_loss", label="Test loss", unit="nats", range=(0.0, None), tasks=BOTH, final_only=True)
def test_loss(outputs: Outputs, context: MetricContext) -> float:
    """Mean cross-entropy on the test set (class scenarios: remaining classes)."""
    return _mean_loss(outputs, "test")


def _mean_loss(outputs: Outputs, split: str) -> float:
    mean = float(usable(outputs, split).losses.mean())
    if math.isinf(mean):
        raise MetricUnavailable(f"the mean loss on the {split} split is infinite: a true class has probability 0")
    return mean
