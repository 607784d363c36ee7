"""Outputs of a model against scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, log_loss

from raybench.errors import MetricUnavailable
from raybench.outputs import MetricContext, Outputs, SplitOutputs


def make(n: int = 12, scale: float = 3.0) -> SplitOutputs:
    draw = torch.Generator().manual_seed(n)
    logits = scale * torch.randn(n, 4, generator=draw)
    return SplitOutputs(logits, torch.randint(4, (n,), generator=draw))


def test_against_scipy_and_sklearn() -> None:
    out = make()
    logits, labels = out.logits.double().numpy(), out.labels.numpy()
    np.testing.assert_allclose(out.log_probabilities.numpy(), log_softmax(logits, axis=1), rtol=1e-12)
    np.testing.assert_allclose(out.probabilities.numpy(), softmax(logits, axis=1), rtol=1e-12)
    assert float(out.losses.mean()) == pytest.approx(
        log_loss(labels, softmax(logits, axis=1), labels=range(4)), rel=1e-9
    )
    np.testing.assert_allclose(out.confidences.numpy(), softmax(logits, axis=1)[np.arange(12), labels], rtol=1e-12)
    assert float(out.correct.double().mean()) == accuracy_score(labels, logits.argmax(1))
    assert len(out) == 12


def test_extreme_logits_stay_finite() -> None:
    out = SplitOutputs(torch.tensor([[1e4, -1e4], [1e4, -1e4]]), torch.tensor([0, 1]))
    assert out.losses.tolist() == [0.0, 2e4]
    assert out.confidences.tolist() == [1.0, 0.0]


def test_absent_and_empty_splits_are_a_reason() -> None:
    outputs = Outputs({"retain": make(), "test": SplitOutputs(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))})
    assert outputs.has("retain")
    assert not outputs.has("test")
    assert not outputs.has("forget")
    assert len(outputs["retain"]) == 12
    with pytest.raises(MetricUnavailable, match="forget"):
        outputs["forget"]
    with pytest.raises(MetricUnavailable, match="test split is empty"):
        outputs["test"]
    assert set(outputs) == {"retain", "test"}


def test_unseen_samples_match_the_forget_set() -> None:
    parts = ("validation", "test", "validation_forgotten", "test_forgotten")
    outputs = Outputs({name: make(i + 2) for i, name in enumerate(parts)})
    assert MetricContext(4, "test").unseen(outputs) is outputs["test"]
    assert MetricContext(4, "validation").unseen(outputs) is outputs["validation"]
    assert MetricContext(4, "test", (1,)).unseen(outputs) is outputs["test_forgotten"]
    assert MetricContext(4, "validation", (1,)).unseen(outputs) is outputs["validation_forgotten"]


def test_what_outputs_remember() -> None:
    """Once per key, never across outputs; a reason is not kept."""
    outputs, asked = Outputs({"retain": make()}), []

    def once(value: float) -> float:
        asked.append(value)
        return value

    assert [outputs.remember(("a",), lambda: once(1.0)) for _ in range(2)] == [1.0, 1.0]
    assert outputs.remember(("b",), lambda: once(2.0)) == 2.0
    assert Outputs(outputs).remember(("a",), lambda: once(3.0)) == 3.0
    assert asked == [1.0, 2.0, 3.0]

    def missing() -> float:
        raise MetricUnavailable("no luck")

    for _ in range(2):
        with pytest.raises(MetricUnavailable, match="no luck"):
            outputs.remember(("c",), missing)
