"""Friedman, Nemenyi, front probabilities and ties against scipy, published tables, hand counts and enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raybench.errors import UserError
from raybench.leaderboard.rank_statistics import (
    compare_metrics,
    critical_difference,
    front_probability,
    mean_ranks,
    missing_problems,
)
from raybench.leaderboard.statistics import pareto_mask, rank_groups

Table = dict[str, dict[str, float]]


def as_table(values: np.ndarray) -> Table:
    return {f"p{i}": {f"m{j}": float(v) for j, v in enumerate(row)} for i, row in enumerate(values)}


# ---- Friedman and Nemenyi --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [0, 1, 6])  # few decimals: many ties
@pytest.mark.parametrize(("problems", "methods"), [(10, 3), (17, 6), (40, 11)])
def test_friedman_equals_scipy(problems: int, methods: int, decimals: int) -> None:
    rng = np.random.default_rng(problems + methods)
    values = rng.normal(np.linspace(0, 1, methods), 1.0, (problems, methods)).round(decimals)
    found = mean_ranks(as_table(values))
    expected = stats.friedmanchisquare(*values.T)
    assert found.statistic == pytest.approx(expected.statistic, rel=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert sum(found.ranks.values()) == pytest.approx(methods * (methods + 1) / 2)
    assert found.problems == problems


# Demsar 2006, table 5: critical values of the two-tailed Nemenyi test, for 2 to 10 classifiers.
PUBLISHED = {
    0.05: [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164],
    0.10: [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920],
}


@pytest.mark.parametrize("alpha", PUBLISHED)
def test_nemenyi_equals_the_published_critical_values(alpha: float) -> None:
    for methods, value in enumerate(PUBLISHED[alpha], start=2):
        quantile = critical_difference(methods, 20, alpha) / math.sqrt(methods * (methods + 1) / 120)
        assert quantile == pytest.approx(value, abs=1.01e-3)  # the last published digit is not always rounded


def test_the_published_example() -> None:
    """Demsar 2006, section 3.2.3: four classifiers on fourteen data sets, critical difference 1.25 at 0.05."""
    assert critical_difference(4, 14, 0.05) == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(4, 14, 0.10) == pytest.approx(1.12, abs=5e-3)


def test_groups_by_hand() -> None:
    """Twelve problems, always the order a < b < c < d: mean ranks 1, 2, 3, 4 and a critical difference of 1.354."""
    table = {f"p{i}": {"d": 4.0 + i, "b": 2.0 + i, "a": 1.0 + i, "c": 3.0 + i} for i in range(12)}
    found = mean_ranks(table)
    assert found.ranks == {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert list(found.ranks) == ["a", "b", "c", "d"]
    assert found.critical_difference == pytest.approx(1.354, abs=1e-3)
    assert found.groups == [("a", "b"), ("b", "c"), ("c", "d")]
    assert found.statistic == pytest.approx(36.0)  # 12 * 12 / 20 * (2.25 + 0.25 + 0.25 + 2.25)


def test_no_difference_is_one_group() -> None:
    same = {f"p{i}": {"a": 0.5, "b": 0.5, "c": 0.5} for i in range(10)}
    found = mean_ranks(same)
    assert (found.statistic, found.p, found.groups) == (0.0, 1.0, [("a", "b", "c")])
    rejected = sum(mean_ranks(as_table(np.random.default_rng(s).normal(size=(12, 5)))).p < 0.05 for s in range(200))
    assert rejected <= 20  # 10 expected; 20 is three standard errors up


def test_fewer_than_ten_problems_are_refused_with_the_number_missing() -> None:
    table = as_table(np.random.default_rng(0).normal(size=(12, 3)))
    assert missing_problems(table) == 0
    for name in ("p1", "p2", "p3"):  # a NaN, a gap, an infinity: problems that not every method finished
        table[name] = {"p1": {**table[name], "m0": math.nan}, "p2": {"m0": 1.0}, "p3": {**table[name], "m2": math.inf}}[
            name
        ]
    assert missing_problems(table) == 1
    with pytest.raises(UserError, match="need 10 problems on which every method has a number, got 9; 1 more to run"):
        mean_ranks(table)
    assert missing_problems({}) == 10
    with pytest.raises(UserError, match="two methods, got m0"):
        mean_ranks(as_table(np.zeros((10, 1))))


def test_the_order_of_problems_and_methods_does_not_matter() -> None:
    table = as_table(np.random.default_rng(1).normal(np.linspace(0, 2, 5), 1, (15, 5)))
    turned = {p: dict(reversed(by.items())) for p, by in reversed(table.items())}
    assert mean_ranks(turned) == mean_ranks(table)
    assert list(mean_ranks(turned).ranks) == list(mean_ranks(table).ranks)


# ---- The front -------------------------------------------------------------------------------------------------------


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_front_probability_against_every_draw() -> None:
    rng = np.random.default_rng(2)
    cost = {m: by_seed(*rng.normal(c, 0.6, 4)) for m, c in (("a", 1.0), ("b", 1.3), ("c", 1.6), ("d", 3.0))}
    loss = {m: by_seed(*rng.normal(v, 0.6, 4)) for m, v in (("a", 1.6), ("b", 1.2), ("c", 1.4), ("d", 3.0))}
    exact = dict.fromkeys(cost, 0.0)
    for draw in itertools.product(range(4), repeat=4):  # all 256 equally likely draws
        mean = {m: ([cost[m][s] for s in draw], [loss[m][s] for s in draw]) for m in cost}
        mask = pareto_mask(*([float(np.mean(mean[m][side])) for m in cost] for side in (0, 1)))
        for m, on in zip(cost, mask, strict=True):
            exact[m] += on / 256
    found = front_probability(cost, loss)
    assert any(0.05 < p < 0.95 for p in exact.values())
    for method, p in exact.items():
        assert abs(found[method] - p) <= 3 * math.sqrt(p * (1 - p) / 2000) + 1e-12, method


def test_a_clear_winner_a_clear_loser_and_a_trade() -> None:
    cost = {"fast": by_seed(1, 1.1, 0.9), "good": by_seed(5, 5.1, 4.9), "bad": by_seed(6, 6.1, 6.2)}
    loss = {"fast": by_seed(0.5, 0.4, 0.5), "good": by_seed(0.1, 0.1, 0.2), "bad": by_seed(0.9, 0.8, 0.9)}
    assert front_probability(cost, loss) == {"fast": 1.0, "good": 1.0, "bad": 0.0}
    loss["twin"], cost["twin"] = loss["good"], cost["good"]  # equal points both stay
    assert front_probability(cost, loss) == {"fast": 1.0, "good": 1.0, "bad": 0.0, "twin": 1.0}
    same = {"a": by_seed(1, 2, 3), "b": by_seed(1, 2, 3)}  # equal in one number, worse in the other: beaten
    assert front_probability(same, {"a": by_seed(1, 1, 1), "b": by_seed(2, 2, 2)}) == {"a": 1.0, "b": 0.0}


def test_seeds_are_paired() -> None:
    """Seeds differ more than the methods do, but b is worse than a on each: never on the front."""
    cost = {"a": by_seed(1, 5, 9, 2), "b": by_seed(1.1, 5.1, 9.1, 2.1)}
    loss = {"a": by_seed(3, 1, 8, 4), "b": by_seed(3.1, 1.1, 8.1, 4.1)}
    assert front_probability(cost, loss) == {"a": 1.0, "b": 0.0}


def test_few_seeds_gaps_and_order() -> None:
    cost = {"a": by_seed(1, 1, 1), "b": by_seed(2, 2), "c": by_seed(2, 2, math.nan), "d": by_seed(2, 3, 2, 3)}
    loss = {"a": by_seed(1, 1, 1), "b": by_seed(0, 0), "c": by_seed(0, 0, 0), "d": by_seed(2, 2, 2, 0.5)}
    found = front_probability(cost, loss)
    assert found["b"] is None  # two seeds
    assert found["c"] is None  # a NaN leaves two
    # a has no value at seed 3: it leads every draw that holds one of its own; d leads where its mean loss is below 1,
    # that is with three or four draws of seed 3 out of four.
    assert found["a"] == pytest.approx(1 - 0.25**4, abs=0.005)
    three_or_four = 4 * 0.25**3 * 0.75 + 0.25**4
    assert found["d"] == pytest.approx(three_or_four, abs=3 * math.sqrt(three_or_four / 2000))
    turned = front_probability(
        {m: dict(reversed(by.items())) for m, by in reversed(cost.items())}, dict(reversed(loss.items()))
    )
    assert turned == found
    assert front_probability({"a": by_seed(1)}, {"a": by_seed(1)}) == {"a": None}
    assert front_probability({"a": by_seed(1)}, {"a": by_seed(1)}, forced=True) == {"a": 1.0}
    assert front_probability({"a": by_seed(1, 1, 1)}, {}) == {"a": None}


# ---- Ties ------------------------------------------------------------------------------------------------------------


def tied(*arguments: Any, **options: Any) -> bool:
    """Whether no metric tells the two apart."""
    return not any(item.apart for item in compare_metrics(*arguments, **options).values())


METRICS = {"retain_accuracy": 0.99, "forget_accuracy": 0.91, "test_accuracy": 0.90, "tow": 0.95, "loss_attack": 0.52}


def run(seed: int, n: int = 5, losses: dict[str, float] | None = None) -> dict[str, dict[int, float]]:
    """Five metrics over n train seeds: what the seed does to all methods alike, and half a point of noise."""
    common, own = np.random.default_rng([7, n]), np.random.default_rng(seed)
    return {
        metric: {
            s: value + common.normal(0, 0.02) + own.normal(0, 0.005) - (losses or {}).get(metric, 0.0) for s in range(n)
        }
        for metric, value in METRICS.items()
    }


def test_a_planted_loss_of_three_points_is_found_at_five_seeds() -> None:
    found = [compare_metrics(run(2 * i), run(2 * i + 1, losses={"test_accuracy": 0.03})) for i in range(100)]
    hits = sum(one["test_accuracy"].apart for one in found)
    assert hits >= 90
    assert found[0]["test_accuracy"].difference.mean == pytest.approx(0.03, abs=0.015)
    assert not tied(run(0), run(1, losses={"test_accuracy": 0.03}))
    others = sum(item.apart for one in found for metric, item in one.items() if metric != "test_accuracy")
    assert others <= 12  # at most about five in a hundred comparisons of two methods


def test_two_runs_of_one_method_are_tied() -> None:
    apart = sum(not tied(run(2 * i), run(2 * i + 1)) for i in range(300))
    assert apart <= 0.05 * 300 + 3 * math.sqrt(300 * 0.05 * 0.95)
    # Without Holm one of the five metrics would be called different about four times as often.
    single = sum(min(m.p for m in compare_metrics(run(2 * i), run(2 * i + 1)).values()) <= 0.05 for i in range(300))
    assert single > 2 * apart
    assert tied(run(1), run(1))


def test_holm_over_metrics_equals_adjusted_p_values() -> None:
    for seed in range(20):
        first, second = run(seed), run(seed + 100, losses={"tow": 0.01, "test_accuracy": 0.02})
        found = compare_metrics(first, second)
        p = {m: stats.ttest_rel(list(first[m].values()), list(second[m].values())).pvalue for m in METRICS}
        assert {m: item.p for m, item in found.items()} == pytest.approx(p, rel=1e-9)
        adjusted, highest = {}, 0.0
        for i, metric in enumerate(sorted(p, key=lambda m: p[m])):
            highest = max(highest, (len(p) - i) * p[metric])
            adjusted[metric] = highest
        assert {m: item.adjusted for m, item in found.items()} == pytest.approx({m: min(1.0, adjusted[m]) for m in p})
        assert {m: item.apart for m, item in found.items()} == {m: adjusted[m] <= 0.05 for m in METRICS}


def test_without_common_seeds_it_is_welchs_test() -> None:
    for case in range(20):
        rng = np.random.default_rng(case)
        x, y = rng.normal(0.9, 0.01, 3 + case % 4), rng.normal(0.88, 0.03, 5)
        first, second = {"tow": dict(enumerate(x))}, {"tow": {100 + i: v for i, v in enumerate(y)}}
        found = compare_metrics(first, second)["tow"]
        expected = stats.ttest_ind(x, y, equal_var=False)
        interval = expected.confidence_interval()
        assert (found.test, found.n) == ("Welch", (len(x), 5))
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert found.difference[:3] == pytest.approx((x.mean() - y.mean(), interval.low, interval.high), rel=1e-9)
    two_common = compare_metrics({"tow": by_seed(1, 2, 3, 4)}, {"tow": {2: 1.0, 3: 2.0, 4: 3.0}})["tow"]
    assert (two_common.test, two_common.n) == ("Welch", (4, 3))
    flat = {"tow": by_seed(1, 1, 1)}
    assert compare_metrics(flat, {"tow": {5: 1.0, 6: 1.0, 7: 1.0}})["tow"].p == 1.0
    assert compare_metrics(flat, {"tow": {5: 2.0, 6: 2.0, 7: 2.0}})["tow"].p == 0.0


def test_under_the_floor_is_a_tie() -> None:
    first, second = {"tow": by_seed(0.9, 0.91, 0.92)}, {"tow": by_seed(0.88, 0.8901, 0.9)}
    assert not tied(first, second)
    assert tied(first, second, floors={"tow": 0.03})
    assert not tied(first, second, floors={"tow": 0.01, "other": 1.0})


def test_too_few_common_seeds_are_no_evidence() -> None:
    first = {"tow": by_seed(0.9, 0.91), "loss": by_seed(0.1, 0.1, math.nan)}
    assert [item.test for item in compare_metrics(first, first).values()] == ["", ""]
    assert compare_metrics(first, {"other": by_seed(1, 2, 3)}) == {}
    # A metric with too few seeds neither counts nor spends any of the level.
    one = compare_metrics({**first, "auc": by_seed(0.5, 0.6, 0.7)}, {**first, "auc": by_seed(0.4, 0.5001, 0.6)})
    assert (one["tow"].n, one["tow"].apart) == ((2, 2), False)
    assert math.isnan(one["tow"].p)
    assert one["auc"].apart


# ---- Rank groups of statistics.py, once more by hand and by another route --------------------------------------------


def test_rank_groups_by_hand() -> None:
    """Differences from a, over four seeds (t with 3 degrees of freedom; t at 0.05 / 3 is 4.857, at 0.05 / 2 4.177):

    b: 2 -1 2 -1 hundredths, mean 0.5, sd 1.732, t = 0.577, p = 0.60.
    c: 2 1 2 1, mean 1.5, sd 0.577, t = 5.196, p = 0.0138.
    d: 9 8 9 8, mean 8.5, t = 29.4, p = 0.0001. Holm in group 1: d (0.0001 <= 0.0167) and c (0.0138 <= 0.025) fall out,
    b stays. Group 2: d - c = 7 7 7 7, no spread, apart. So a b | c | d. With c at 2 0 2 0 (t = 1.73) it would stay.
    """
    base = np.array([0.10, 0.12, 0.11, 0.13])

    def method(*hundredths: float) -> dict[int, float]:
        return by_seed(*(base + np.array(hundredths) / 100))

    methods = {"d": method(9, 8, 9, 8), "b": method(2, -1, 2, -1), "c": method(2, 1, 2, 1), "a": method(0, 0, 0, 0)}
    p = stats.ttest_1samp([2, 1, 2, 1], 0).pvalue
    assert p == pytest.approx(0.0138, abs=1e-4)
    assert rank_groups(methods) == {"a": 1, "b": 1, "c": 2, "d": 3}
    assert rank_groups({**methods, "c": method(2, 0, 2, 0)}) == {"a": 1, "b": 1, "c": 1, "d": 2}
