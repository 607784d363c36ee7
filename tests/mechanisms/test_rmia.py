"""RMIA against the definition spelled out, closed forms and a model of memorisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from raybench.errors import MetricUnavailable
from raybench.mechanisms.attacks import attack_auc
from raybench.mechanisms.rmia import (
    GRID,
    choose_a,
    mean_probability,
    prior_offline,
    prior_online,
    ratio,
    rmia,
)


def uniform(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


def test_ratio_of_the_specification() -> None:
    prior = prior_offline(torch.tensor([0.5]), 0.3)
    assert prior.item() == pytest.approx(0.675, abs=1e-12)
    assert ratio(torch.tensor([0.9], dtype=torch.float64), prior).item() == pytest.approx(1.3333, abs=5e-5)
    assert prior_online(torch.tensor([0.8]), torch.tensor([0.5])).item() == pytest.approx(0.65)


def test_offline_is_the_online_form_with_the_approximated_inside() -> None:
    outside = uniform(0, 50)
    for a in GRID:
        assert torch.allclose(prior_offline(outside, a), prior_online(a * outside + 1 - a, outside))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        prior_offline(outside, 1.5)


@pytest.mark.parametrize("gamma", [0.7, 1.0, 2.0])
def test_score_is_the_share_of_pairs(gamma: float) -> None:
    targets, population = uniform(1, 60).round(decimals=1) + 0.1, uniform(2, 150).round(decimals=1) + 0.1
    expected = (targets[:, None] >= population[None] * gamma).double().mean(dim=1)
    assert torch.equal(rmia(targets, population, gamma), expected)


def test_auc_of_known_gaussian_ratios() -> None:
    """The score is monotone in r, so log r of N(1, 1) against N(0, 1) keeps the AUC of the Gaussians."""
    n, rng = 3000, np.random.default_rng(3)
    draws = [torch.from_numpy(np.exp(rng.normal(mean, 1, n))) for mean in (1.0, 0.0, 0.0)]
    members, strangers = rmia(draws[0], draws[2]), rmia(draws[1], draws[2])
    area = norm.cdf(1 / math.sqrt(2))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)  # Hanley and McNeil 1982
    error = math.sqrt((area * (1 - area) + (n - 1) * (q1 + q2 - 2 * area**2)) / n**2)
    assert abs(attack_auc(-members, -strangers) - area) < 3 * error
    # Two identical worlds: strangers against strangers.
    half = attack_auc(-strangers[: n // 2], -strangers[n // 2 :])
    assert abs(half - 0.5) < 3 * math.sqrt((n + 1) / (3 * n * n))


def sigmoid_world(seed: int, models: int, points: int, boost: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [models, points] with a difficulty per point, raised where the model saw the point."""
    rng = np.random.default_rng(seed)
    inside = torch.from_numpy(rng.random((models, points)) < 0.5)
    phi = torch.from_numpy(rng.normal(0, 2, points) + rng.normal(0, 0.7, (models, points)))
    return torch.sigmoid(phi + boost * inside), inside


def test_attack_beats_the_uncalibrated_confidence_where_difficulties_differ() -> None:
    probability, inside = sigmoid_world(4, 9, 3000, boost=1.0)
    crowd, _ = sigmoid_world(5, 9, 1000, boost=0.0)  # the population: nobody was trained on it
    a = choose_a(probability[1:], inside[1:], crowd[1:])
    outside = mean_probability(probability[1:], ~inside[1:])
    unseen = ~outside.isnan()
    assert unseen.sum() > 2900  # a few points were seen by all eight references
    score = rmia(
        ratio(probability[0, unseen], prior_offline(outside[unseen], a)),
        ratio(crowd[0], prior_offline(mean_probability(crowd[1:]), a)),
    )
    member, own = inside[0, unseen], probability[0, unseen]
    calibrated, raw = attack_auc(-score[member], -score[~member]), attack_auc(-own[member], -own[~member])
    assert calibrated > raw + 0.05
    with pytest.raises(MetricUnavailable, match="NaN"):
        rmia(ratio(probability[0], prior_offline(outside, a)), crowd[0])


def test_a_is_the_best_of_the_grid_spelled_out() -> None:
    probability, inside = sigmoid_world(6, 4, 300, boost=1.5)
    crowd = uniform(7, 4, 200)
    best: dict[float, float] = {}
    for a in GRID:
        areas = []
        for j in range(4):
            rest = [i for i in range(4) if i != j]
            scores: dict[bool, list[float]] = {True: [], False: []}
            z = crowd[j] / (((1 + a) * crowd[rest].mean(dim=0) + 1 - a) / 2)
            for x in range(300):
                unseen = [probability[i, x].item() for i in rest if not inside[i, x]]
                if unseen:
                    r = probability[j, x].item() / (((1 + a) * float(np.mean(unseen)) + 1 - a) / 2)
                    scores[bool(inside[j, x])].append(float((r >= z).double().mean()))
            areas.append(attack_auc(-torch.tensor(scores[True]), -torch.tensor(scores[False])))
        best[a] = float(np.mean(areas))
    assert len(set(best.values())) > 5  # the choice matters here
    assert choose_a(probability, inside, crowd) == max(best, key=lambda a: best[a])


def test_order_of_points_references_and_population_does_not_matter() -> None:
    probability, inside = sigmoid_world(8, 5, 200, boost=1.0)
    crowd = uniform(9, 5, 150)
    rows, points, people = torch.randperm(5), torch.randperm(200), torch.randperm(150)
    assert choose_a(probability[rows][:, points], inside[rows][:, points], crowd[rows][:, people]) == choose_a(
        probability, inside, crowd
    )
    whole = rmia(probability[0], crowd[0])
    assert torch.equal(rmia(probability[0][points], crowd[0][people]), whole[points])
    assert torch.equal(torch.cat([rmia(part, crowd[0]) for part in probability[0].split(7)]), whole)


def test_bad_input() -> None:
    targets, population = uniform(10, 20), uniform(11, 100)
    with pytest.raises(MetricUnavailable, match="100 population points, got 99"):
        rmia(targets, population[:99])
    with pytest.raises(MetricUnavailable, match="targets contain NaN"):
        rmia(targets * math.nan, population)
    with pytest.raises(MetricUnavailable, match="at least one reference"):
        mean_probability(torch.zeros(0, 5))
    with pytest.raises(MetricUnavailable, match="NaN or values outside"):
        mean_probability(torch.full((2, 5), math.nan))
    with pytest.raises(MetricUnavailable, match="NaN or values outside"):
        mean_probability(torch.tensor([[1.5]]))
    probability, inside = sigmoid_world(12, 3, 60, boost=1.0)
    crowd = uniform(13, 3, 100)
    with pytest.raises(MetricUnavailable, match=r"two reference models.*got 1 "):
        choose_a(probability[:1], inside[:1], crowd[:1])
    with pytest.raises(MetricUnavailable, match="two reference models"):
        choose_a(probability, torch.ones_like(inside), crowd)
    with pytest.raises(MetricUnavailable, match="got 0 "):
        choose_a(probability[:0], inside[:0], crowd[:0])
    # Constant scores are blind for every a: the first of the grid.
    assert choose_a(torch.ones(3, 60), inside, torch.ones(3, 100)) == 0.0
    # A label that no model gives any probability stays finite.
    assert ratio(torch.zeros(1), prior_offline(torch.zeros(1), 1.0)).item() == 0.0
