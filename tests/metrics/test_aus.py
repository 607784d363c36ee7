"""AUS by hand, for random samples and for classes."""

from __future__ import annotations

import pytest

from raybench.errors import MetricUnavailable
from raybench.metrics.aus import aus
from raybench.outputs import Outputs


def test_by_hand(with_accuracy, context) -> None:
    outputs = Outputs({"forget": with_accuracy(95, 100), "test": with_accuracy(80, 100)})
    extras = {"original_test_accuracy": 0.9}
    # (1 - (0.9 - 0.8)) / (1 + |0.8 - 0.95|), and in class scenarios / (1 + |0 - 0.95|).
    assert aus(outputs, context(extras=extras)) == pytest.approx(0.9 / 1.15, abs=1e-12)
    assert aus(outputs, context(True, extras=extras)) == pytest.approx(0.9 / 1.95, abs=1e-12)
    perfect = Outputs({"forget": with_accuracy(0, 100), "test": with_accuracy(90, 100)})
    assert aus(perfect, context(True, extras=extras)) == pytest.approx(1.0, abs=1e-12)


def test_without_the_original_model_there_is_none(with_accuracy, context) -> None:
    outputs = Outputs({"forget": with_accuracy(95, 100), "test": with_accuracy(80, 100)})
    with pytest.raises(MetricUnavailable, match="original model's test accuracy"):
        aus(outputs, context(extras={}))
