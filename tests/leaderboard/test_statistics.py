from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from raybench.leaderboard.statistics import holm, paired_p, pareto_mask, rank_groups, t_interval


@pytest.mark.parametrize(("n", "factor"), [(3, 2.484), (5, 1.242), (10, 0.715)])
def test_interval_equals_scipy_and_the_documented_factors(n, factor):
    values = np.random.default_rng(n).normal(size=n)
    mean, lo, hi, count = t_interval([*values, math.nan])
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert (mean, lo, hi, count) == pytest.approx((values.mean(), low, high, n))
    assert (hi - mean) / values.std(ddof=1) == pytest.approx(factor, abs=5e-4)
    # numpy's default spread (ddof = 0) would make it too small: by 18 % at n = 3.
    short = {3: 0.18, 5: 0.11, 10: 0.05}[n]
    assert factor * values.std() / (hi - mean) == pytest.approx(1 - short, abs=6e-3)


def test_interval_of_one_and_none():
    one, none = t_interval([0.5]), t_interval([])
    assert one.mean == 0.5
    assert one.n == 1
    assert math.isnan(one.lo)
    assert math.isnan(one.hi)
    assert math.isnan(none.mean)
    assert none.n == 0


@pytest.mark.parametrize("n", [2, 3, 10])
def test_paired_p_equals_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n), rng.normal(0.3, size=n)
    assert paired_p(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_paired_p_without_spread():
    assert paired_p([0.0, 0.0, 0.0]) == 1.0
    assert paired_p([0.1, 0.1, 0.1]) == 0.0
    assert paired_p([]) == 1.0


def test_holm_by_hand():
    # Sorted 0.01, 0.013, 0.03, 0.04 against 0.05/4, 0.05/3, 0.05/2, 0.05/1: the third fails and stops the rest,
    # although 0.04 alone is below 0.05. Plain Bonferroni (0.0125) would reject the first only.
    assert holm([0.04, 0.01, 0.03, 0.013]) == [False, True, False, True]
    assert holm([]) == []


def _by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_groups_are_found_one_after_the_other():
    noise = np.array([0.001, -0.001, 0.0005, -0.0005, 0.0])
    wobble = np.array([0.002, 0.001, -0.002, -0.001, 0.0])
    methods = {
        "far": _by_seed(*(0.30 + noise)),
        "best": _by_seed(*(0.10 + noise)),
        "near": _by_seed(*(0.1001 + wobble)),
        "middle": _by_seed(*(0.20 + wobble)),
    }
    assert rank_groups(methods) == {"best": 1, "near": 1, "middle": 2, "far": 3}
    # A floor above the gaps makes ties of differences that the test can see.
    assert rank_groups(methods, floor=0.15) == {"best": 1, "near": 1, "middle": 1, "far": 2}


def test_pairing_sees_what_independent_means_do_not():
    # Seeds differ by far more than the methods do, but the second is always 0.01 worse.
    seeds = np.array([0.1, 0.3, 0.5, 0.2])
    jitter = np.array([1e-4, -1e-4, 2e-4, 0.0])
    a, b = _by_seed(*seeds), _by_seed(*(seeds + 0.01 + jitter))
    assert stats.ttest_ind(list(a.values()), list(b.values())).pvalue > 0.9
    assert rank_groups({"a": a, "b": b}) == {"a": 1, "b": 2}


def test_fewer_than_three_train_seeds_are_not_ranked_unless_forced():
    methods = {"a": _by_seed(0.1, 0.11), "b": _by_seed(0.5, 0.52), "c": _by_seed(0.2, 0.2, 0.2)}
    assert rank_groups(methods) == {"a": None, "b": None, "c": 1}
    assert rank_groups({"a": _by_seed(0.1), "b": _by_seed(0.5)}, floor=0.05, forced=True) == {"a": 1, "b": 2}
    assert rank_groups({"a": _by_seed(0.1), "b": _by_seed(0.12)}, floor=0.05, forced=True) == {"a": 1, "b": 1}


def test_methods_without_common_seeds_are_not_told_apart():
    methods = {"a": {0: 0.1, 1: 0.1, 2: 0.1}, "b": {3: 0.9, 4: 0.9, 5: 0.9}}
    assert rank_groups(methods) == {"a": 1, "b": 1}
    assert rank_groups(methods, floor=0.05) == {"a": 1, "b": 1}


def test_front_by_hand_and_against_the_definition():
    assert pareto_mask([1, 2, 3, 1], [3, 2, 2, 3]).tolist() == [True, True, False, True]
    assert pareto_mask([1, math.nan, 0.5], [1, 0, math.nan]).tolist() == [True, False, False]
    rng = np.random.default_rng(0)
    points = rng.integers(0, 8, size=(60, 2)).astype(float)
    expected = [
        not any((q <= p).all() and (q < p).any() for q in points)  # the definition, spelled out
        for p in points
    ]
    assert pareto_mask(points[:, 0], points[:, 1]).tolist() == expected
    assert 0 < sum(expected) < 60
