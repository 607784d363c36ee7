"""LiRA and U-LiRA against closed forms, direct refits and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from raybench.errors import MetricUnavailable
from raybench.mechanisms.attacks import attack_auc, attack_tpr
from raybench.mechanisms.likelihood_ratio import (
    Gaussians,
    fit_gaussians,
    lira,
    lira_offline,
    standardised,
    ulira,
)
from raybench.mechanisms.worlds import logit_statistic, over_models


def normal(seed: int, *shape: int, mean: float = 0.0, sd: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, sd, shape))


def gaussians(mean: float, variance: float) -> Gaussians:
    return Gaussians(torch.tensor([mean], dtype=torch.float64), torch.tensor([variance], dtype=torch.float64))


def test_scores_of_the_specification() -> None:
    inside, outside = gaussians(2.0, 1.0), gaussians(0.0, 1.0)
    scores = lira(torch.tensor([[1.0], [1.5]]), inside, outside)
    assert scores.flatten().tolist() == pytest.approx([0.0, 1.0], abs=1e-12)
    logits = torch.tensor([[[0.9, 0.1]]]).log()
    assert logit_statistic(logits, torch.tensor([0])).item() == pytest.approx(2.197225, abs=5e-7)


def test_online_and_offline_scores_equal_scipy() -> None:
    phi = normal(0, 4, 1).double()
    inside, outside = gaussians(1.2, 0.49), gaussians(-0.3, 2.25)
    expected = norm.logpdf(phi, 1.2, 0.7) - norm.logpdf(phi, -0.3, 1.5)
    np.testing.assert_allclose(lira(phi, inside, outside), expected, rtol=1e-12)
    np.testing.assert_allclose(lira_offline(phi, outside), 1 - norm.sf(phi, -0.3, 1.5), rtol=1e-12)
    # Far out the probability says 1.0 for everything; the standardised score still ranks.
    far = torch.tensor([[20.0], [30.0]])
    assert lira_offline(far, outside).flatten().tolist() == [1.0, 1.0]
    assert standardised(far, outside)[0] < standardised(far, outside)[1]


def test_fits_equal_numpy_under_a_mask() -> None:
    phi = normal(1, 12, 30, sd=3.0)
    inside = torch.from_numpy(np.random.default_rng(2).random((12, 30)) < 0.5)
    inside[:2] = True
    for mask in (inside, ~inside | torch.eye(12, 30).bool() | (torch.arange(12)[:, None] > 9)):
        columns = [phi[mask[:, x], x].numpy() for x in range(30)]
        each = fit_gaussians(phi, mask, variance="per_example")
        np.testing.assert_allclose(each.mean, [c.mean() for c in columns], rtol=1e-12)
        np.testing.assert_allclose(each.variance, [c.var(ddof=1) for c in columns], rtol=1e-10)
        pooled = sum(((c - c.mean()) ** 2).sum() for c in columns) / sum(len(c) - 1 for c in columns)
        np.testing.assert_allclose(fit_gaussians(phi, mask).variance, np.full(30, pooled), rtol=1e-12)


def test_the_global_variance_ignores_how_far_apart_the_examples_are() -> None:
    phi = normal(3, 400, 5) + 100.0 * torch.arange(5)
    assert fit_gaussians(phi).variance[0].item() == pytest.approx(1.0, abs=3 * math.sqrt(2 / 1995))


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.5])
def test_lira_auc_of_two_known_gaussians(distance: float) -> None:
    n = 4000
    inside, outside = gaussians(distance, 1.0), gaussians(0.0, 1.0)
    members = lira(normal(5, n, 1, mean=distance), inside, outside).flatten()
    strangers = lira(normal(6, n, 1), inside, outside).flatten()
    area = norm.cdf(distance / math.sqrt(2))
    if distance == 0.0:
        assert members.abs().max() == 0.0
        with pytest.raises(MetricUnavailable, match="constant"):
            attack_auc(-members, -strangers)
        return
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)  # Hanley and McNeil 1982
    error = math.sqrt((area * (1 - area) + (n - 1) * (q1 + q2 - 2 * area**2)) / n**2)
    assert abs(attack_auc(-members, -strangers) - area) < 3 * error


def test_folds_equal_a_direct_refit() -> None:
    unlearned, gold = normal(7, 5, 40, mean=0.7, sd=1.5), normal(8, 4, 40)
    for variance in ("global", "per_example"):
        audit = ulira(unlearned, gold, variance, false_positive_rate=0.1)
        example = torch.zeros(40, dtype=torch.float64)
        for i in range(5):
            for j in range(4):
                fit_u = fit_gaussians(unlearned[torch.arange(5) != i], variance=variance)
                fit_g = fit_gaussians(gold[torch.arange(4) != j], variance=variance)
                positive, negative = lira(unlearned[i], fit_u, fit_g), lira(gold[j], fit_u, fit_g)
                label = np.repeat([1, 0], 40)
                score = torch.cat([positive, negative])
                assert audit.auc[i, j].item() == pytest.approx(roc_auc_score(label, score), abs=1e-12)
                fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
                assert audit.tpr is not None
                assert audit.tpr[i, j].item() == pytest.approx(tpr[fpr <= 0.1 + 1e-12].max(), abs=1e-12)
                assert audit.tpr[i, j].item() == attack_tpr(-positive, -negative, 0.1)
                hits = ((positive > 0).double() + (negative < 0).double()) / 2
                assert audit.accuracy[i, j].item() == pytest.approx(hits.mean().item(), abs=1e-12)
                example += hits
        np.testing.assert_allclose(audit.examples, example / 20, rtol=1e-12)


def test_two_known_worlds_give_the_closed_form() -> None:
    distance, models, n = 1.5, 64, 300
    audit = ulira(normal(9, models, n, mean=distance), normal(10, models, n), false_positive_rate=0.01)
    assert audit.tpr is not None
    expected = {"auc": norm.cdf(distance / math.sqrt(2)), "accuracy": norm.cdf(distance / 2)}
    for name, value in expected.items():
        found = over_models(getattr(audit, name), seed=0)
        error = (found.hi - found.lo) / (2 * 1.96)
        assert abs(found.value - value) < 3 * error, name
        assert found.lo < value < found.hi, name
    # Its cut is an order statistic of 300 examples, so the closed form holds only roughly.
    assert audit.tpr.mean() == pytest.approx(norm.sf(norm.isf(0.01) - distance), abs=0.03)


@pytest.mark.parametrize("shared", [0.0, 2.0])  # a shift that all examples of a model share
@pytest.mark.parametrize("variance", ["global", "per_example"])
def test_two_identical_worlds_give_one_half(variance: str, shared: float) -> None:
    found: dict[str, list[float]] = {"auc": [], "accuracy": [], "tpr": []}
    for seed in range(60):
        worlds = normal(seed, 2, 8, 50) + shared * normal(1000 + seed, 2, 8, 1)
        audit = ulira(worlds[0], worlds[1], variance, false_positive_rate=0.02)
        for name, values in found.items():
            values.append(float(getattr(audit, name).mean()))
    for name in ("auc", "accuracy"):
        error = np.std(found[name], ddof=1) / math.sqrt(60)
        assert abs(np.mean(found[name]) - 0.5) < 3 * error, name
        assert error < (0.03 if shared else 0.02), name  # the check can see a small bias


def test_one_model_held_out_at_a_time_would_be_biased() -> None:
    """Why the folds leave out a pair: the same null worlds, scores of single held-out models compared across fits."""
    unlearned, gold = normal(0, 2, 6, 2000)
    rest = torch.arange(6)

    def fit(world: torch.Tensor) -> Gaussians:
        return fit_gaussians(world, variance="per_example")

    positive = torch.stack([lira(unlearned[i], fit(unlearned[rest != i]), fit(gold)) for i in range(6)])
    negative = torch.stack([lira(gold[j], fit(unlearned), fit(gold[rest != j])) for j in range(6)])
    areas = (positive[:, None] > negative[None]).double().mean(dim=(0, 1))  # per example
    assert areas.mean() < 0.5 - 5 * areas.std() / math.sqrt(2000)
    assert ulira(unlearned, gold, "per_example").auc.mean() == pytest.approx(0.5, abs=0.01)


def test_order_and_batching_of_examples_and_models_do_not_matter() -> None:
    unlearned, gold = normal(11, 6, 200, mean=0.5), normal(12, 7, 200)
    examples, rows, columns = torch.randperm(200), torch.randperm(6), torch.randperm(7)
    one = ulira(unlearned, gold, "per_example")
    other = ulira(unlearned[rows][:, examples], gold[columns][:, examples], "per_example")
    np.testing.assert_allclose(other.auc, one.auc[rows][:, columns], atol=1e-9)
    np.testing.assert_allclose(other.examples, one.examples[examples], atol=1e-9)
    assert over_models(other.auc, seed=3) == pytest.approx(over_models(one.auc, seed=3), abs=1e-9)
    # With variances of their own, examples do not know of each other: any batch gives the same.
    part = ulira(unlearned[:, :64], gold[:, :64], "per_example")
    np.testing.assert_allclose(part.examples, one.examples[:64], atol=1e-12)


def test_examples_without_spread_tie_and_do_not_break_the_rest() -> None:
    unlearned, gold = normal(13, 6, 10, mean=0.5), normal(14, 6, 10)
    unlearned[:, :4], gold[:, :4] = 1.0, 1.0
    audit = ulira(unlearned, gold, "per_example")
    assert audit.examples[:4].tolist() == [0.5] * 4
    fit_u = fit_gaussians(unlearned[1:], variance="per_example")
    fit_g = fit_gaussians(gold[1:], variance="per_example")
    score = torch.cat([lira(unlearned[0], fit_u, fit_g), lira(gold[0], fit_u, fit_g)])
    assert len(score.unique()) < 20  # ties, each worth one half
    assert audit.auc[0, 0].item() == pytest.approx(roc_auc_score(np.repeat([1, 0], 10), score), abs=1e-12)


def test_refusals_say_why() -> None:
    world = normal(15, 5, 20)
    with pytest.raises(MetricUnavailable, match="at least 3 unlearned models, got 2"):
        ulira(world[:2], world)
    with pytest.raises(MetricUnavailable, match="at least 3 retrained models, got 1"):
        ulira(world, world[:1])
    with pytest.raises(MetricUnavailable, match="NaN"):
        ulira(world.clone().index_fill_(1, torch.tensor([3]), math.nan), world)
    with pytest.raises(MetricUnavailable, match="constant"):
        ulira(torch.ones(5, 20), torch.ones(5, 20))
    with pytest.raises(MetricUnavailable, match="spread"):
        ulira(torch.ones(5, 20), world)
    with pytest.raises(MetricUnavailable, match="needs 100 examples, got 20"):
        ulira(world, world, false_positive_rate=0.01)
    with pytest.raises(MetricUnavailable, match="no example"):
        ulira(world[:, :0], world[:, :0])
    with pytest.raises(MetricUnavailable, match="2 models"):
        fit_gaussians(world[:1], variance="per_example")
    with pytest.raises(MetricUnavailable, match="NaN"):
        fit_gaussians(world * math.nan)
    with pytest.raises(MetricUnavailable, match="spread"):
        fit_gaussians(torch.ones(4, 3))
    with pytest.raises(ValueError, match="per_example"):
        fit_gaussians(world, variance="local")
