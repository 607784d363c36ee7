"""Divergences, activation distances and disagreement on hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from raybench.errors import MetricUnavailable
from raybench.metrics.activation_distance import activation_distance, activation_distance_l2
from raybench.metrics.js_divergence import js_divergence
from raybench.metrics.kl_divergence import kl_divergence
from raybench.metrics.prediction_disagreement import prediction_disagreement
from raybench.outputs import Outputs, SplitOutputs

PEAKED, THIRDS = [0.9, 0.05, 0.05], [1 / 3] * 3
ONE_HOT, TENTHS = [1.0] + [0.0] * 9, [0.1] * 10


def test_known_values(from_probabilities, context) -> None:
    # metrics.md section 4.
    ours, gold = from_probabilities([PEAKED]), from_probabilities([THIRDS])
    assert js_divergence(ours, gold, context()) == pytest.approx(0.184874, abs=5e-7)
    assert js_divergence(ours, gold, context()) / math.log(2) == pytest.approx(0.266717, abs=5e-7)  # in bits
    assert activation_distance(ours, gold, context()) == pytest.approx(1.133333, abs=5e-7)
    assert activation_distance_l2(ours, gold, context()) == pytest.approx(0.694022, abs=5e-7)
    assert kl_divergence(ours, gold, context()) == pytest.approx(
        sum(math.log(1 / 3 / p) for p in PEAKED) / 3, abs=1e-12
    )
    assert kl_divergence(gold, ours, context()) != kl_divergence(ours, gold, context())
    ours, gold = from_probabilities([ONE_HOT]), from_probabilities([TENTHS])  # logits of minus infinity
    assert js_divergence(ours, gold, context()) == pytest.approx(0.525597, abs=5e-7)
    assert activation_distance(ours, gold, context()) == pytest.approx(1.8, abs=1e-12)


def test_disjoint_predictions_reach_the_upper_ends(from_probabilities, context) -> None:
    ours, gold = from_probabilities([[1.0, 0.0]]), from_probabilities([[0.0, 1.0]])
    assert js_divergence(ours, gold, context()) == pytest.approx(math.log(2), abs=1e-15)
    assert activation_distance(ours, gold, context()) == 2.0
    assert activation_distance_l2(ours, gold, context()) == math.sqrt(2)


def test_divergence_and_excluded_classes(from_probabilities, context) -> None:
    sparse, full = from_probabilities([[0.5, 0.5, 0.0]]), from_probabilities([[0.25, 0.25, 0.5]])
    assert kl_divergence(full, sparse, context()) == pytest.approx(math.log(2), abs=1e-12)
    assert kl_divergence(sparse, from_probabilities([[0.5, 0.5, 0.0]]), context()) == 0.0
    with pytest.raises(MetricUnavailable, match="infinite: the unlearned model excludes"):
        kl_divergence(sparse, full, context())


def test_divergence_keeps_tiny_probabilities(context) -> None:
    # exp(-800) is 0 in float64; its logarithm is not.
    labels = torch.zeros(1, dtype=torch.int64)
    ours = Outputs({"forget": SplitOutputs(torch.tensor([[-800.0, 0.0]]), labels)})
    gold = Outputs({"forget": SplitOutputs(torch.tensor([[0.0, 0.0]]), labels)})
    assert kl_divergence(ours, gold, context()) == pytest.approx(400 - math.log(2), rel=1e-12)


def test_disagreement_counts_who_is_right(context) -> None:
    def answering(*answers: int) -> Outputs:
        logits = torch.nn.functional.one_hot(torch.tensor(answers), 3).float()
        return Outputs({"forget": SplitOutputs(logits, torch.zeros(len(answers), dtype=torch.int64))})

    # right/right, right/wrong, wrong/right, and two different errors, which agree.
    assert prediction_disagreement(answering(0, 0, 1, 1), answering(0, 2, 0, 2), context()) == 0.5


def test_means_over_samples_against_scipy(random_outputs, context) -> None:
    ours, gold = random_outputs(1), random_outputs(2)
    p, q = (o["forget"].probabilities.numpy() for o in (ours, gold))
    assert js_divergence(ours, gold, context()) == pytest.approx(np.mean(jensenshannon(p, q, axis=1) ** 2), abs=1e-12)
    assert activation_distance(ours, gold, context()) == pytest.approx(np.abs(p - q).sum() / len(p), abs=1e-12)
    expected = np.linalg.norm(p - q, axis=1).mean()
    assert activation_distance_l2(ours, gold, context()) == pytest.approx(expected, abs=1e-12)
    assert kl_divergence(ours, gold, context()) == pytest.approx(entropy(q, p, axis=1).mean(), abs=1e-12)


@pytest.mark.parametrize(
    "metric", [js_divergence, kl_divergence, activation_distance, activation_distance_l2, prediction_disagreement]
)
def test_different_samples_are_a_bug_not_a_missing_value(metric, random_outputs, context) -> None:
    ours, other = random_outputs(1), random_outputs(2)
    labels = (other["forget"].labels + 1) % 5
    with pytest.raises(ValueError, match="same samples in the same order"):
        metric(ours, Outputs({"forget": SplitOutputs(other["forget"].logits, labels)}), context())
    with pytest.raises(ValueError, match="same samples in the same order"):
        metric(ours, Outputs({"forget": other["test"]}), context())
