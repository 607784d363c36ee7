"""Training privacy: which samples it is about, and which way it reads."""

from __future__ import annotations

import pytest
import torch

from raybench.errors import MetricUnavailable
from raybench.metrics.training_privacy import training_privacy
from raybench.outputs import Outputs, SplitOutputs


def confident(low: float, high: float, size: int) -> SplitOutputs:
    """Two classes, label 1, with the label's probability spread over [low, high]."""
    p = torch.linspace(low, high, size, dtype=torch.float64)
    return SplitOutputs(torch.stack([(1 - p).log(), p.log()], dim=1).float(), torch.ones(size, dtype=torch.int64))


def test_exposed_and_hidden_members(context) -> None:
    apart = Outputs({"retain": confident(0.9, 0.99, 300), "test": confident(0.1, 0.3, 200)})
    assert training_privacy(apart, context()) == 1.0
    mixed = Outputs({"retain": confident(0.1, 0.9, 400), "test": confident(0.1, 0.9, 400)})
    assert training_privacy(mixed, context()) == pytest.approx(0.5, abs=0.1)


def test_the_forget_set_does_not_matter(random_outputs, context) -> None:
    outputs = random_outputs(1)
    other = Outputs({**outputs, "forget": outputs["validation"]})
    assert training_privacy(other, context()) == training_privacy(outputs, context())
    assert training_privacy(outputs, context(held_out="validation")) != training_privacy(outputs, context())


def test_too_few_samples_have_a_reason(context) -> None:
    outputs = Outputs({"retain": confident(0.1, 0.9, 40), "test": confident(0.1, 0.9, 3)})
    with pytest.raises(MetricUnavailable, match="at least 4 non-members, got 3"):
        training_privacy(outputs, context())
