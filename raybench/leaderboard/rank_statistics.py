"""Who is better over many problems, over many seeds, over several metrics; plain functions of numbers.

``leaderboard.statistics`` ranks the methods of one problem by one number. Here: Friedman and Nemenyi over problems, the
probability of a place on the accuracy-time front, and whether two methods differ in any of several metrics.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from raybench.errors import UserError
from raybench.leaderboard.statistics import MIN_TRAIN_SEEDS, Interval, holm_adjusted, paired_p, t_interval, welch
from raybench.seeding import numpy_generator

MIN_PROBLEMS = 10  # fewer, and the chi-squared law of Friedman's statistic is not to be trusted (Demsar 2006)
DRAWS = 2000
PAIRED, WELCH = "paired", "Welch"
K = TypeVar("K", bound=Hashable)


class MeanRanks(NamedTuple):
    """Friedman's test with Nemenyi's critical difference over problems (1 = best)."""

    ranks: dict[str, float]  # method -> mean rank, best first
    statistic: float  # chi-squared with (methods - 1) degrees of freedom, corrected for ties
    p: float
    critical_difference: float
    groups: list[tuple[str, ...]]  # maximal sets of methods that are not told apart, best first
    problems: int


class MetricDifference(NamedTuple):
    """One metric of two methods: first minus second, paired by train seed or (Welch) not."""

    difference: Interval  # 95 %; NaN where there is nothing to say
    p: float  # not corrected; NaN where it is not tested
    adjusted: float  # Holm's, over the metrics that are tested
    n: tuple[int, int]  # train seeds a side that count
    test: str  # PAIRED, WELCH or empty: too few seeds
    apart: bool  # rejected by Holm, and not under the floor


def complete_problems(distances: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The problems of ``distances`` (problem -> method -> number) on which every method has a finite number."""
    methods = {method for by in distances.values() for method in by}
    return [p for p, by in distances.items() if all(math.isfinite(by.get(m, math.nan)) for m in methods)]


def missing_problems(distances: Mapping[str, Mapping[str, float]]) -> int:
    """How many problems there are still to run before ``mean_ranks`` answers; 0 when it does."""
    return max(0, MIN_PROBLEMS - len(complete_problems(distances)))


def mean_ranks(distances: Mapping[str, Mapping[str, float]], alpha: float = 0.05) -> MeanRanks:
    """Friedman's test over problems, then Nemenyi's critical difference (Demsar 2006, JMLR 7, section 3.2).

    ``distances``: problem -> method -> distance to the retrained model, low = good; equal ones share a rank. A problem
    that lacks a method is left out. Methods that share a group differ by less than the critical difference in mean
    rank; if Friedman's test does not reject, all of them are one group. Raises ``UserError`` for fewer than 10 problems
    (with the number missing) or fewer than two methods.
    """
    from scipy.stats import rankdata  # half a second when cold: only who ranks over problems pays

    usable = complete_problems(distances)
    methods = sorted({method for by in distances.values() for method in by})
    if missing := missing_problems(distances):
        raise UserError(
            f"mean ranks need {MIN_PROBLEMS} problems on which every method has a number, got {len(usable)}; "
            f"{missing} more to run"
        )
    if len(methods) < 2:
        raise UserError(f"mean ranks need at least two methods, got {', '.join(methods) or 'none'}")
    table = np.array([[distances[problem][method] for method in methods] for problem in usable], dtype=np.float64)
    ranks = rankdata(table, axis=1)  # ties share their mean rank
    n, k = ranks.shape
    mean = ranks.mean(axis=0)
    # sum over problems of (t^3 - t) over groups of t tied methods
    ties = sum(float((c**3 - c).sum()) for c in (np.unique(row, return_counts=True)[1] for row in ranks))
    free = 1.0 - ties / (n * k * (k * k - 1))
    statistic = 12 * n / (k * (k + 1)) * float(np.sum((mean - (k + 1) / 2) ** 2)) / free if free > 1e-12 else 0.0
    p = float(chdtrc(k - 1, statistic))
    width = critical_difference(k, n, alpha)
    order = sorted(range(k), key=lambda i: (mean[i], methods[i]))
    best_first = {methods[i]: float(mean[i]) for i in order}
    groups = _cliques(best_first, width) if p < alpha else [tuple(best_first)]
    return MeanRanks(best_first, statistic, p, width, groups, n)


@functools.lru_cache
def critical_difference(methods: int, problems: int, alpha: float = 0.05) -> float:
    """Nemenyi: mean ranks that differ by at least this are told apart at level ``alpha``, over all pairs at once.

    q sqrt(k (k + 1) / (6 N)), q the upper quantile of the studentised range of k normals divided by sqrt(2).
    """
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * problems))


def front_probability(
    cost: Mapping[str, Mapping[int, float]],
    loss: Mapping[str, Mapping[int, float]],
    draws: int = DRAWS,
    forced: bool = False,
) -> dict[str, float | None]:
    """How often a method is on the cost-loss Pareto front when the train seeds are drawn anew.

    A bootstrap of the *means*, as the front on the page is one of means: train seeds are drawn with replacement, the
    same draw for all methods (paired), each method's cost and loss are averaged over it, and the share of the ``draws``
    on whose front the method is counts. A constant answer, 0 or 1, at three seeds is weak evidence: there are ten
    different draws. The result does not depend on the order of methods or seeds.

    Args:
        cost: method -> train seed -> cost, say ``unlearn_s`` (unlearn seeds averaged).
        loss: method -> train seed -> distance to the retrained model.
        forced: let methods with fewer than ``MIN_TRAIN_SEEDS`` train seeds compete too.

    Methods with too few seeds that have both numbers get ``None`` and do not compete. A method that lacks a seed counts
    with the others of the draw, and is absent from a draw that holds none of its own.
    """
    both = {
        method: {
            seed: (cost[method][seed], loss[method][seed])
            for seed in cost[method].keys() & loss.get(method, {}).keys()
            if math.isfinite(cost[method][seed]) and math.isfinite(loss[method][seed])
        }
        for method in cost
    }
    need = 1 if forced else MIN_TRAIN_SEEDS
    competing = sorted(method for method, by in both.items() if len(by) >= need)
    result: dict[str, float | None] = dict.fromkeys(cost)
    if not competing:
        return result
    seeds = sorted({seed for method in competing for seed in both[method]})
    values = np.array([[both[m].get(s, (math.nan, math.nan)) for s in seeds] for m in competing])  # [methods, seeds, 2]
    have = ~np.isnan(values[..., 0])
    drawn = numpy_generator("front_probability").multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), draws)
    weights, times = np.unique(drawn, axis=0, return_counts=True)  # three seeds have ten different draws
    share = weights @ have.T.astype(np.float64)  # [draws, methods]
    total = np.einsum("ds,msv->dmv", weights.astype(np.float64), np.nan_to_num(values))
    means = np.divide(total, share[..., None], out=np.full_like(total, np.nan), where=share[..., None] > 0)
    on_front = _fronts(means)
    return result | dict(zip(competing, (times @ on_front / draws).tolist(), strict=True))


def compare_metrics(
    first: Mapping[K, Mapping[int, float]],
    second: Mapping[K, Mapping[int, float]],
    floors: Mapping[K, float] | None = None,
    alpha: float = 0.05,
) -> dict[K, MetricDifference]:
    """Two methods over the metrics that both have: t-tests over train seeds, Holm over the metrics.

    ``first`` and ``second``: metric -> train seed -> value (unlearn seeds averaged); a key may as well be a line and a
    metric, then the level holds for all lines together. ``floors``: metric -> gold-vs-gold floor; a mean difference
    below it is a tie whatever the test says. With ``MIN_TRAIN_SEEDS`` common seeds the test is paired over them, else
    Welch's with as many seeds a side, else there is none.
    """
    found = {}
    for metric in first:
        if metric in second:
            found[metric] = _difference(_finite(first[metric]), _finite(second[metric]))
    tested = [metric for metric, item in found.items() if item.test]
    adjusted = dict(zip(tested, holm_adjusted([found[metric].p for metric in tested]), strict=True))
    for metric, value in adjusted.items():
        large = not abs(found[metric].difference.mean) < (floors or {}).get(metric, 0.0)  # a NaN is no floor
        found[metric] = found[metric]._replace(adjusted=value, apart=value <= alpha and large)
    return found


def _finite(by: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in by.items() if math.isfinite(value)}


def _difference(first: Mapping[int, float], second: Mapping[int, float]) -> MetricDifference:
    """Not corrected yet."""
    common = sorted(first.keys() & second.keys())
    if len(common) >= MIN_TRAIN_SEEDS:
        d = [first[seed] - second[seed] for seed in common]
        return MetricDifference(t_interval(d), paired_p(d), math.nan, (len(d), len(d)), PAIRED, False)
    x, y = ([by[seed] for seed in sorted(by)] for by in (first, second))
    sizes = (len(x), len(y))
    if min(sizes) >= MIN_TRAIN_SEEDS:
        return MetricDifference(*welch(x, y), math.nan, sizes, WELCH, False)
    mean = float(np.mean(x) - np.mean(y)) if min(sizes) else math.nan
    return MetricDifference(Interval(mean, math.nan, math.nan, min(sizes)), math.nan, math.nan, sizes, "", False)


def _cliques(ranks: Mapping[str, float], width: float) -> list[tuple[str, ...]]:
    """Maximal runs of methods, sorted by mean rank, whose ends differ by less than ``width``."""
    names = list(ranks)
    runs: list[tuple[str, ...]] = []
    reached = 0
    for start, first in enumerate(names):
        end = start + 1
        while end < len(names) and ranks[names[end]] - ranks[first] < width:
            end += 1
        if end > reached:  # else inside the run before
            runs.append(tuple(names[start:end]))
            reached = end
    return runs


def _fronts(means: NDArray[np.float64]) -> NDArray[np.bool_]:
    """``statistics.pareto_mask`` for each of [draws, methods, (cost, loss)] at once; NaN is never on a front."""
    a, b = means[:, :, None, :], means[:, None, :, :]
    # [draws, by, beaten]; comparisons with NaN are false
    beats: NDArray[np.bool_] = np.logical_and(np.all(a <= b, axis=-1), np.any(a < b, axis=-1))
    front: NDArray[np.bool_] = np.isfinite(means).all(axis=-1) & ~np.any(beats, axis=1)
    return front
