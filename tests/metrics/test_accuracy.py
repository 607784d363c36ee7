"""Accuracies and their class-scenario relatives, on counts known beforehand."""

from __future__ import annotations

import pytest
import torch

from raybench.errors import MetricUnavailable
from raybench.metrics.a_r import a_r
from raybench.metrics.accuracy import (
    forget_accuracy,
    retain_accuracy,
    validation_accuracy,
    validation_accuracy_forgotten,
)
from raybench.metrics.accuracy import (
    test_accuracy as accuracy_on_test,
)
from raybench.metrics.accuracy import (
    test_accuracy_forgotten as accuracy_on_test_forgotten,
)
from raybench.metrics.e_f import e_f
from raybench.metrics.unlearning_accuracy import unlearning_accuracy
from raybench.outputs import Outputs, SplitOutputs


def test_each_accuracy_reads_its_own_split(with_accuracy, context) -> None:
    places = {"retain": 9, "forget": 2, "validation": 8, "test": 7, "validation_forgotten": 1, "test_forgotten": 3}
    outputs, facts = Outputs({name: with_accuracy(right, 10) for name, right in places.items()}), context(True)
    assert retain_accuracy(outputs, facts) == 0.9
    assert forget_accuracy(outputs, facts) == 0.2
    assert validation_accuracy(outputs, facts) == 0.8
    assert accuracy_on_test(outputs, facts) == 0.7
    assert validation_accuracy_forgotten(outputs, facts) == 0.1
    assert accuracy_on_test_forgotten(outputs, facts) == 0.3
    assert unlearning_accuracy(outputs, facts) == 0.8
    assert e_f(outputs, facts) == 0.7
    assert a_r(outputs, facts) == 0.7


def test_samples_count_not_batches(with_accuracy, context) -> None:
    # metrics.md section 1: ten batches of 100 at 0.9 and one of 10 at 0.0; the mean of batches would be 0.818,
    # that of the samples is 0.891.
    batches = [with_accuracy(90, 100)] * 10 + [with_accuracy(0, 10)]
    whole = SplitOutputs(torch.cat([b.logits for b in batches]), torch.cat([b.labels for b in batches]))
    assert retain_accuracy(Outputs({"retain": whole}), context()) == pytest.approx(900 / 1010, abs=1e-12)
    assert retain_accuracy(Outputs({"retain": whole}), context()) == pytest.approx(0.891, abs=5e-4)


@pytest.mark.parametrize("metric", [e_f, a_r])
def test_class_metrics_need_a_class_scenario(metric, with_accuracy, context) -> None:
    outputs = Outputs({"test": with_accuracy(7, 10), "test_forgotten": with_accuracy(1, 10)})
    with pytest.raises(MetricUnavailable, match="class scenarios only"):
        metric(outputs, context())


def test_a_class_switched_off_by_minus_infinity_has_an_accuracy(context) -> None:
    logits = torch.tensor([[float("-inf"), 1.0, 0.0], [float("-inf"), 0.0, 1.0]])
    outputs = Outputs({"forget": SplitOutputs(logits, torch.tensor([0, 2]))})
    assert forget_accuracy(outputs, context()) == 0.5
