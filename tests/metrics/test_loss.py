"""Mean losses against torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch

from raybench.errors import MetricUnavailable
from raybench.metrics.loss import forget_loss, retain_loss, validation_loss
from raybench.metrics.loss import test_loss as loss_on_test
from raybench.outputs import Outputs, SplitOutputs


def test_losses_are_the_mean_cross_entropy_of_their_split(random_outputs, context) -> None:
    outputs = random_outputs(0)
    values = {
        "retain": retain_loss(outputs, context()),
        "forget": forget_loss(outputs, context()),
        "validation": validation_loss(outputs, context()),
        "test": loss_on_test(outputs, context()),
    }
    for name, value in values.items():
        split = outputs[name]
        expected = torch.nn.functional.cross_entropy(split.logits.double(), split.labels)
        assert value == pytest.approx(float(expected), abs=1e-12)


def test_an_infinite_loss_has_a_reason(context) -> None:
    logits = torch.tensor([[float("-inf"), 1.0], [0.0, 1.0]])
    outputs = Outputs({"forget": SplitOutputs(logits, torch.tensor([0, 1]))})
    with pytest.raises(MetricUnavailable, match="infinite"):
        forget_loss(outputs, context())
