"""Ranks and tests against statsmodels and scikit-posthocs, on random tables (both come with the test extra)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raybench.leaderboard.rank_statistics import compare_metrics, mean_ranks
from raybench.leaderboard.statistics import holm, holm_adjusted, rank_groups

CASES = range(30)


@pytest.fixture
def statsmodels(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("gc.collect", lambda *_: 0)  # multipletests collects garbage at every call
    return pytest.importorskip("statsmodels.stats.api", reason="statsmodels is in the extra test")


@pytest.mark.filterwarnings("ignore")  # theirs
def test_nemenyi_tells_apart_what_scikit_posthocs_does() -> None:
    posthocs = pytest.importorskip("scikit_posthocs", reason="scikit-posthocs is in the extra test")
    apart_once = 0
    for case in range(12):  # the studentised range is slow
        rng = np.random.default_rng(case)
        problems, methods = int(rng.integers(10, 25)), int(rng.integers(3, 7))
        values = rng.normal(np.linspace(0, rng.uniform(0, 3), methods), 1.0, (problems, methods)).round(1)
        found = mean_ranks({f"p{i}": {f"m{j}": float(v) for j, v in enumerate(row)} for i, row in enumerate(values)})
        p = posthocs.posthoc_nemenyi_friedman(values).to_numpy()
        for i, j in itertools.combinations(range(methods), 2):
            together = any({f"m{i}", f"m{j}"} <= set(group) for group in found.groups)
            expected = found.p >= 0.05 or p[i, j] >= 0.05
            assert together == expected, (case, i, j, p[i, j])
            apart_once += not together
    assert apart_once > 15


def test_holm_equals_statsmodels(statsmodels: Any) -> None:
    for case in CASES:
        rng = np.random.default_rng(case)
        p = rng.uniform(0, 1, 1 + case % 9) ** rng.uniform(1, 6)
        rejected, adjusted, *_ = statsmodels.multipletests(p, alpha=0.05, method="holm")
        assert holm(p.tolist()) == rejected.tolist()
        assert holm_adjusted(p.tolist()) == pytest.approx(adjusted.tolist(), rel=1e-12)


def test_rank_groups_equal_a_loop_over_statsmodels(statsmodels: Any) -> None:
    sizes = set()
    for case in CASES:
        rng = np.random.default_rng([case, 1])
        values = rng.normal(rng.choice([0.0, 0.5, 1.0, 2.0], size=7)[:, None], 0.3, (7, 5)) + rng.normal(0, 1, 5)
        left, expected = list(range(7)), {}
        while left:
            best = min(left, key=lambda i: values[i].mean())
            others = [i for i in left if i != best]
            p = [statsmodels.DescrStatsW(values[i] - values[best]).ttest_mean(0.0)[1] for i in others]
            rejected = statsmodels.multipletests(p, method="holm")[0] if p else []
            tied = [best, *(i for i, apart in zip(others, rejected, strict=True) if not apart)]
            group = 1 + max(expected.values(), default=0)
            expected |= {f"m{i}": group for i in tied}
            left = [i for i in left if i not in tied]
        assert rank_groups({f"m{i}": dict(enumerate(values[i])) for i in range(7)}) == expected, case
        sizes.add(max(expected.values()))
    assert len(sizes) >= 3


def test_differences_equal_statsmodels(statsmodels: Any) -> None:
    for case in CASES:
        rng = np.random.default_rng([case, 2])
        x, y = rng.normal(0, 1, 4 + case % 5), rng.normal(1, 2, 6)
        first, second = dict(enumerate(x)), {50 + i: v for i, v in enumerate(y)}
        found = compare_metrics({"m": first}, {"m": second})["m"]
        means = statsmodels.CompareMeans(statsmodels.DescrStatsW(x), statsmodels.DescrStatsW(y))
        assert found.p == pytest.approx(means.ttest_ind(usevar="unequal")[1], rel=1e-9)
        assert found.difference[1:3] == pytest.approx(means.tconfint_diff(usevar="unequal"), rel=1e-9)
        paired = compare_metrics({"m": first}, {"m": dict(enumerate(y))})["m"]
        n = min(len(x), len(y))
        assert (paired.test, paired.n) == ("paired", (n, n))
        assert paired.p == pytest.approx(stats.ttest_rel(x[:n], y[:n]).pvalue, rel=1e-9)
