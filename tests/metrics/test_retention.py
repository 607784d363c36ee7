"""Retention: four ratios, and the one that does not exist."""

from __future__ import annotations

import pytest

from raybench.errors import MetricUnavailable
from raybench.evaluation import measure
from raybench.metrics.retention import forget_retention, retain_retention, validation_retention
from raybench.metrics.retention import test_retention as retention_on_test
from raybench.outputs import Outputs


def test_ratios_of_known_accuracies(with_accuracy, context) -> None:
    ours = {"retain": 8, "forget": 6, "validation": 5, "test": 9}
    gold = {"retain": 10, "forget": 4, "validation": 10, "test": 9}
    pair = [Outputs({n: with_accuracy(right, 10) for n, right in side.items()}) for side in (ours, gold)]
    assert retain_retention(*pair, context()) == pytest.approx(0.8, abs=1e-15)
    assert forget_retention(*pair, context()) == pytest.approx(1.5, abs=1e-15)
    assert validation_retention(*pair, context()) == pytest.approx(0.5, abs=1e-15)
    assert retention_on_test(*pair, context()) == 1.0
    columns, missing = measure(["forget_retention"], *pair, context())
    assert columns["forget_retention_retrained"] == 1.0
    assert columns["forget_retention_gap"] == pytest.approx(0.5, abs=1e-15)
    assert not missing


def test_no_ratio_to_zero(with_accuracy, context) -> None:
    ours, gold = (Outputs({"forget": with_accuracy(right, 10)}) for right in (3, 0))
    with pytest.raises(MetricUnavailable, match="accuracy on forget, which is 0"):
        forget_retention(ours, gold, context())
    assert forget_retention(gold, ours, context()) == 0.0
