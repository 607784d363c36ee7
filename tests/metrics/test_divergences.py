"""js_divergence and activation_distance on hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from raybench.metrics.activation_distance import activation_distance
from raybench.metrics.js_divergence import js_divergence
from raybench.outputs import Outputs, SplitOutputs

PEAKED, THIRDS = [0.9, 0.05, 0.05], [1 / 3] * 3
ONE_HOT, TENTHS = [1.0] + [0.0] * 9, [0.1] * 10


def test_known_values(from_probabilities, context) -> None:
    # metrics.md section 4.
    ours, gold = from_probabilities([PEAKED]), from_probabilities([THIRDS])
    assert js_divergence(ours, gold, context()) == pytest.approx(0.184874, abs=5e-7)
    assert activation_distance(ours, gold, context()) == pytest.approx(1.133333, abs=5e-7)
    ours, gold = from_probabilities([ONE_HOT]), from_probabilities([TENTHS])  # logits of minus infinity
    assert js_divergence(ours, gold, context()) == pytest.approx(0.525597, abs=5e-7)
    assert activation_distance(ours, gold, context()) == pytest.approx(1.8, abs=1e-12)


def test_disjoint_predictions_reach_the_upper_ends(from_probabilities, context) -> None:
    ours, gold = from_probabilities([[1.0, 0.0]]), from_probabilities([[0.0, 1.0]])
    assert js_divergence(ours, gold, context()) == pytest.approx(math.log(2), abs=1e-15)
    assert activation_distance(ours, gold, context()) == 2.0


def test_means_over_samples_against_scipy(random_outputs, context) -> None:
    ours, gold = random_outputs(1), random_outputs(2)
    p, q = (o["forget"].probabilities.numpy() for o in (ours, gold))
    assert js_divergence(ours, gold, context()) == pytest.approx(np.mean(jensenshannon(p, q, axis=1) ** 2), abs=1e-12)
    assert activation_distance(ours, gold, context()) == pytest.approx(np.abs(p - q).sum() / len(p), abs=1e-12)


@pytest.mark.parametrize("metric", [js_divergence, activation_distance])
def test_different_samples_are_a_bug_not_a_missing_value(metric, random_outputs, context) -> None:
    ours, other = random_outputs(1), random_outputs(2)
    labels = (other["forget"].labels + 1) % 5
    with pytest.raises(ValueError, match="same samples in the same order"):
        metric(ours, Outputs({"forget": SplitOutputs(other["forget"].logits, labels)}), context())
    with pytest.raises(ValueError, match="same samples in the same order"):
        metric(ours, Outputs({"forget": other["test"]}), context())
