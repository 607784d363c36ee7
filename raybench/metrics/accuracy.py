"""Accuracy on each split, weighted by samples, with test-time transforms.

Published code that averages per-batch accuracies gives the short last batch the weight of a full one (SSD,
UNSIR, Bad Teacher); these do not. In class scenarios ``validation`` and ``test`` hold the remaining classes
and the forgotten classes stand apart, so the ``_forgotten`` metrics exist only there. None of these is better
when larger by itself: the value to meet is the retrained model's.
"""

from __future__ import annotations

from raybench.metrics._splits import accuracy
from raybench.outputs import MetricContext, Outputs
from raybench.registry import METRICS


@METRICS.register("retain_accuracy", label="Retain accuracy (RA)")
def retain_accuracy(outputs: Outputs, context: MetricContext) -> float:
    """Accuracy on the training images of the retain set."""
    return accuracy(outputs, "retain")


@METRICS.register("forget_accuracy", label="Forget accuracy")
def forget_accuracy(outputs: Outputs, context: MetricContext) -> float:
    """Accuracy on the training images of the forget set."""
    return accuracy(outputs, "forget")


@METRICS.register("validation_accuracy", label="Validation accuracy")
def validation_accuracy(outputs: Outputs, context: MetricContext) -> float:
    """Accuracy on the validation set (class scenarios: remaining classes)."""
    return accuracy(outputs, "validation")


@METRICS.register("validation_accuracy_forgotten", label="Validation accuracy, forgotten classes")
def validation_accuracy_forgotten(outputs: Outputs, context: MetricContext) -> float:
    """Accuracy on the validation images of the forgotten classes (class scenarios only)."""
    return accuracy(outputs, "validation_forgotten")


@METRICS.register("test_accuracy", label="Test accuracy (TA)", final_only=True)
def test_accuracy(outputs: Outputs, context: MetricContext) -> float:
    """Accuracy on the test set (class scenarios: remaining classes)."""
    return accuracy(outputs, "test")


@METRICS.register("test_accuracy_forgotten", label="Test accuracy, forgotten classes", final_only=True)
def test_accuracy_forgotten(outputs: Outputs, context: MetricContext) -> float:
    """Accuracy on the test images of the forgotten classes (class scenarios only)."""
    return accuracy(outputs, "test_forgotten")
