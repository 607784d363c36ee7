"""Completeness is the Jaccard index of two sets of predictions, taken here as sets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raybench.metrics.completeness import completeness
from raybench.outputs import MetricContext, Outputs


def test_by_sets(random_outputs: Callable[..., Outputs], context: Callable[..., MetricContext]) -> None:
    ours, theirs = random_outputs(1), random_outputs(2)
    one, other = (set(enumerate(o["forget"].logits.argmax(1).tolist())) for o in (ours, theirs))
    expected = len(one & other) / len(one | other)
    assert 0 < expected < 1
    assert completeness(ours, theirs, context()) == pytest.approx(expected, abs=1e-12)
    assert completeness(ours, ours, context()) == 1.0


def test_no_prediction_alike_is_zero(
    from_probabilities: Callable[..., Outputs], context: Callable[..., MetricContext]
) -> None:
    ours, theirs = from_probabilities([[0.9, 0.1]] * 4), from_probabilities([[0.2, 0.8]] * 4)
    assert completeness(ours, theirs, context()) == 0.0
