"""Which samples the confidence attack is fitted on and applied to."""

from __future__ import annotations

import pytest
import torch

from raybench.errors import MetricUnavailable
from raybench.metrics.confidence_attack import confidence_attack
from raybench.outputs import Outputs, SplitOutputs


def confident(low: float, high: float, size: int = 120) -> SplitOutputs:
    """Two classes, label 1, with the label's probability spread over [low, high]."""
    p = torch.linspace(low, high, size, dtype=torch.float64)
    return SplitOutputs(torch.stack([(1 - p).log(), p.log()], dim=1).float(), torch.ones(size, dtype=torch.int64))


def test_share_of_the_forget_set_that_looks_unseen(context) -> None:
    retain, unseen = confident(0.9, 0.99), confident(0.1, 0.3)
    mixed = SplitOutputs(
        torch.cat([confident(0.92, 0.98, 30).logits, confident(0.1, 0.3, 90).logits]),
        torch.ones(120, dtype=torch.int64),
    )
    for forget, expected in ((retain, 0.0), (unseen, 1.0), (mixed, 0.75)):
        outputs = Outputs({"retain": retain, "forget": forget, "test": unseen})
        assert confidence_attack(outputs, context()) == expected


def test_non_members_are_the_held_out_remaining_classes(context) -> None:
    # The forgotten classes' test samples look like members; fitting on them would turn the verdict over.
    outputs = Outputs(
        {
            "retain": confident(0.9, 0.99),
            "forget": confident(0.1, 0.3),
            "validation": confident(0.1, 0.3),
            "test": confident(0.1, 0.3),
            "validation_forgotten": confident(0.9, 0.99),
            "test_forgotten": confident(0.9, 0.99),
        }
    )
    for held_out in ("validation", "test"):
        assert confidence_attack(outputs, context(True, held_out=held_out)) == 1.0


def test_constant_confidences_and_too_few_samples_have_a_reason(context) -> None:
    same = confident(0.5, 0.5)
    with pytest.raises(MetricUnavailable, match="constant"):
        confidence_attack(Outputs({"retain": same, "forget": same, "test": same}), context())
    with pytest.raises(MetricUnavailable, match="at least 2 non-members, got 1"):
        confidence_attack(Outputs({"retain": same, "forget": same, "test": confident(0.5, 0.5, 1)}), context())
