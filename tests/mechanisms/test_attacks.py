"""Membership attacks against scikit-learn, closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.svm import SVC

from raybench.errors import MetricUnavailable
from raybench.mechanisms.attacks import (
    attack_accuracy,
    attack_auc,
    attack_balanced_accuracy,
    attack_tpr,
    judged_member,
    judged_non_member,
    told_apart,
)


def normal(seed: int, size: int, mean: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, 1.0, size))


def labelled(members: torch.Tensor, non_members: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's inputs: 1 = member, score = minus the loss."""
    label = np.repeat([1, 0], [len(members), len(non_members)])
    return label, -torch.cat([members, non_members]).numpy()


@pytest.mark.parametrize("decimals", [0, 1, 8])  # few decimals: many ties, within and across the groups
@pytest.mark.parametrize(("n", "m"), [(2, 150), (300, 120), (400, 1000)])
def test_auc_and_tpr_agree_with_scikit_learn(n: int, m: int, decimals: int) -> None:
    members, non_members = normal(n, n, -1.0).round(decimals=decimals), normal(m + 1, m).round(decimals=decimals)
    label, score = labelled(members, non_members)
    assert attack_auc(members, non_members) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    for rate in (0.01, 0.07, 0.5):
        assert attack_tpr(members, non_members, rate) == pytest.approx(tpr[fpr <= rate].max(), abs=1e-12)


def test_auc_counts_ties_one_half() -> None:
    # Pairs: 1 beats 2 and 3; 2 ties with 2 and beats 3 -> (2 + 1.5) / 4.
    assert attack_auc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])) == 0.875


@pytest.mark.parametrize("shift", [-1.5, 0.0, 0.5, 2.0])
def test_auc_of_two_gaussians(shift: float) -> None:
    n = 4000
    expected = norm.cdf(shift / math.sqrt(2))  # P(N(0,1) < N(shift,1))
    area = max(expected, 1 - expected)
    # Hanley and McNeil 1982, the variance of the Mann-Whitney statistic.
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = math.sqrt((area * (1 - area) + (n - 1) * (q1 + q2 - 2 * area**2)) / n**2)
    assert abs(attack_auc(normal(1, n), normal(2, n, shift)) - expected) < 3 * error


@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_accuracy_of_two_gaussians(shift: float) -> None:
    n = 5000
    expected = norm.cdf(abs(shift) / 2)  # the best threshold lies half-way; over-forgetting is detected as well
    error = math.sqrt(expected * (1 - expected) / (2 * n * 0.1))  # one fold's test size: folds overlap
    assert abs(attack_accuracy(normal(3, n), normal(4, n, shift), seed=0) - expected) < 3 * error


def test_tpr_of_two_gaussians() -> None:
    n, shift = 20_000, 2.0
    expected = norm.cdf(norm.ppf(0.01, loc=shift))  # members below the non-members' 1 % quantile
    # The spread of that quantile from 200 of 20 000 samples dominates: density ratio times its own error.
    slope = norm.pdf(norm.ppf(0.01) + shift) / norm.pdf(norm.ppf(0.01))
    error = math.sqrt(expected * (1 - expected) / n + slope**2 * 0.01 * 0.99 / n)
    assert abs(attack_tpr(normal(5, n), normal(6, n, shift), 0.01) - expected) < 3 * error


def test_accuracy_balances_the_groups() -> None:
    # Without balancing, a 20:1 mixture of the same distribution gives the majority share, 0.95.
    assert attack_accuracy(normal(7, 4000), normal(8, 200), seed=0) < 0.65


def test_accuracy_clips_infinite_losses() -> None:
    endless = torch.full((50,), math.inf, dtype=torch.float64)
    assert attack_accuracy(torch.linspace(0, 1, 50, dtype=torch.float64), endless, seed=0) == 1.0


def test_svc_equals_a_direct_fit_when_nothing_is_sub_sampled() -> None:
    members, non_members, targets = (torch.sigmoid(normal(s, 80, m)) for s, m in ((9, 2.0), (10, 0.0), (11, 1.0)))
    feature = torch.cat([members, non_members]).numpy()[:, None]
    judge = SVC(C=3, kernel="rbf", gamma="auto").fit(feature, np.repeat([1, 0], 80))
    expected = 1 - judge.predict(targets.numpy()[:, None]).mean()
    assert 0.1 < expected < 0.9
    assert judged_non_member(members, non_members, targets, seed=0) == pytest.approx(expected, abs=1e-12)


def test_svc_orientation() -> None:
    generator = np.random.default_rng(0)
    high, low = torch.from_numpy(generator.uniform(0.8, 1, 300)), torch.from_numpy(generator.uniform(0, 0.2, 300))
    assert judged_non_member(high, low, targets=low, seed=0) == 1.0
    assert judged_non_member(high, low, targets=high, seed=0) == 0.0


def test_svc_fit_sets_are_balanced() -> None:
    # Ten members for each non-member of the same distribution: an unbalanced fit calls every target a member.
    verdict = judged_non_member(normal(12, 3000), normal(13, 300), targets=normal(14, 500), seed=0)
    assert 0.2 < verdict < 0.8


def test_balanced_accuracy_of_two_gaussians() -> None:
    n = 5000
    for shift, threshold in ((2.0, 1.0), (0.5, 0.0), (-1.0, 0.3)):
        expected = (norm.cdf(threshold) + norm.sf(threshold - shift)) / 2
        error = math.sqrt(0.5 / n) / 2  # of the mean of two shares, each of variance at most 1 / (4 n)
        assert abs(attack_balanced_accuracy(normal(25, n), normal(26, n, shift), threshold) - expected) < 3 * error


def test_balanced_accuracy_counts_by_hand() -> None:
    members, non_members = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 5.0])
    # Below 1: one member of four; a loss of exactly 1 is not below, so both non-members are cleared.
    assert attack_balanced_accuracy(members, non_members, 1.0) == (0.25 + 1.0) / 2
    with pytest.raises(MetricUnavailable, match="finite threshold, got inf"):
        attack_balanced_accuracy(members, non_members, math.inf)


def test_svc_on_vectors_equals_a_direct_fit() -> None:
    sides = [normal(s, 240, m).reshape(80, 3) for s, m in ((27, 1.0), (28, 0.0), (29, 0.5))]
    feature = torch.cat(sides[:2]).numpy()
    judge = SVC(C=3, kernel="rbf", gamma=1 / 3).fit(feature, np.repeat([1, 0], 80))
    expected = 1 - judge.predict(sides[2].numpy()).mean()
    assert 0.1 < expected < 0.9
    assert judged_non_member(*sides, seed=0) == pytest.approx(expected, abs=1e-12)


def test_vectors_are_drawn_whatever_their_order() -> None:
    sides = [torch.randint(3, (200, 4), generator=torch.Generator().manual_seed(s)).double() for s in (1, 2, 3)]
    sides[0][:, 3] += 0.5
    order = torch.randperm(200, generator=torch.Generator().manual_seed(4))
    for at_most in (50, 1000):
        verdict = judged_non_member(*sides, seed=1, at_most=at_most)
        assert verdict > 0.0
        assert judged_non_member(*(side[order] for side in sides), seed=1, at_most=at_most) == verdict
    assert told_apart(*sides[:2], seed=1) == told_apart(sides[0][order], sides[1][order], seed=1)


def test_telling_apart_what_is_apart_and_what_is_not() -> None:
    assert told_apart(normal(30, 400, 9.0), normal(31, 300), seed=0) == 1.0
    blind = [told_apart(normal(100 + s, 900), normal(200 + s, 400), seed=s) for s in range(20)]
    assert abs(np.mean(blind) - 0.5) < 3 * np.std(blind, ddof=1) / math.sqrt(20)
    # Two Gaussians two apart: the best threshold gets norm.cdf(1) = 0.841 of each side right.
    seen = [told_apart(normal(100 + s, 900), normal(200 + s, 800, 2.0), seed=s) for s in range(5)]
    assert np.mean(seen) == pytest.approx(norm.cdf(1.0), abs=0.02)


def test_told_apart_judges_no_sample_that_it_was_fitted_on() -> None:
    # Every value is its own class: with gamma = 1 the machine learns the fit set by heart, so its own samples would
    # be right nearly always. What it has not seen is a coin toss.
    values = torch.arange(0, 800, dtype=torch.float64) * 10
    order = torch.randperm(800, generator=torch.Generator().manual_seed(0))
    assert told_apart(values[order[:400]], values[order[400:]], seed=0) == pytest.approx(0.5, abs=0.1)


def test_told_apart_with_few_members_keeps_half_of_them_to_judge() -> None:
    assert told_apart(normal(32, 4, 9.0), normal(33, 300), seed=0) == 1.0
    with pytest.raises(MetricUnavailable, match="at least 4 members, got 3"):
        told_apart(normal(32, 3), normal(33, 300), seed=0)


def test_regression_finds_the_point_half_way_whatever_the_sizes() -> None:
    # Balanced classes, equal spreads: the boundary is the middle, although there are ten members a non-member.
    members, non_members = normal(34, 20_000), normal(35, 2000, 2.0)
    targets = torch.linspace(-1, 3, 401, dtype=torch.float64)  # the middle, 1, is their 201st
    assert judged_member(members, non_members, targets) == pytest.approx(0.5, abs=3 / math.sqrt(2000) / 4)
    assert judged_member(members.flip(0), non_members, targets.flip(0)) == judged_member(members, non_members, targets)


def test_the_seed_picks_the_sub_sample() -> None:
    members, non_members, targets = normal(15, 3000), normal(16, 3000, 0.5), normal(17, 500)
    verdicts = {judged_non_member(members, non_members, targets, seed, at_most=50) for seed in range(4)}
    assert len(verdicts) > 1
    assert judged_non_member(members, non_members, targets, 1, at_most=50) in verdicts
    scores = {attack_accuracy(members, non_members[:500], seed) for seed in range(4)}
    assert len(scores) > 1


def test_order_does_not_matter() -> None:
    members, non_members, targets = normal(18, 700), normal(19, 300, 0.5), normal(20, 200)
    shuffled = [x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))] for x in (members, non_members)]
    other = targets.flip(0)
    assert attack_auc(*shuffled) == attack_auc(members, non_members)
    assert attack_tpr(*shuffled, 0.01) == attack_tpr(members, non_members, 0.01)
    assert attack_accuracy(*shuffled, seed=3) == attack_accuracy(members, non_members, seed=3)
    for at_most in (100, 1000):
        assert judged_non_member(*shuffled, other, 3, at_most) == judged_non_member(
            members, non_members, targets, 3, at_most
        )


def test_global_random_state_is_untouched() -> None:
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    attack_accuracy(normal(21, 60), normal(22, 50), seed=0)
    judged_non_member(normal(21, 60), normal(22, 50), normal(23, 10), seed=0)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_reasons() -> None:
    many, one, same = normal(24, 200), torch.zeros(1, dtype=torch.float64), torch.zeros(200, dtype=torch.float64)
    broken = torch.where(torch.arange(200) == 5, math.nan, many)
    with pytest.raises(MetricUnavailable, match="at least 2 members, got 1"):
        attack_auc(one, many)
    with pytest.raises(MetricUnavailable, match="at least 2 non-members, got 0"):
        attack_auc(many, many[:0])
    with pytest.raises(MetricUnavailable, match="at least 100 non-members, got 99"):
        attack_tpr(many, many[:99], 0.01)
    with pytest.raises(MetricUnavailable, match="at least 10 members, got 9"):
        attack_accuracy(many[:9], many, 0)
    with pytest.raises(MetricUnavailable, match="at least 2 non-members, got 1"):
        judged_non_member(many, one, many, 0)
    for attack in (
        lambda a, b: attack_auc(a, b),
        lambda a, b: attack_tpr(a, b, 0.01),
        lambda a, b: attack_accuracy(a, b, 0),
        lambda a, b: attack_balanced_accuracy(a, b, 0.5),
        lambda a, b: judged_non_member(a, b, many, 0),
        lambda a, b: judged_member(a, b, many),
        lambda a, b: told_apart(a, b, 0),
    ):
        with pytest.raises(MetricUnavailable, match="constant"):
            attack(same, same)
        with pytest.raises(MetricUnavailable, match="of the non-members contain NaN"):
            attack(many, broken)
        with pytest.raises(MetricUnavailable, match="of the members contain NaN"):
            attack(broken, many)
