"""Intervals, paired rank groups and Pareto fronts; plain functions of numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
IN_TURN = 7  # NumPy adds up to so many values one after the other
MIN_TRAIN_SEEDS = 3  # fewer give no ranking unless it is forced


class Interval(NamedTuple):
    """Mean with its two-sided t-interval; NaN where there is nothing to say."""

    mean: float
    lo: float
    hi: float
    n: int


def t_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean of the finite ``values`` and its t-interval; ``lo`` and ``hi`` are NaN for fewer than two values.

    At 95 % the half width is 2.484, 1.242 and 0.715 sample standard deviations for n = 3, 5 and 10.
    """
    given = [value for value in np.asarray(values, dtype=np.float64).tolist() if math.isfinite(value)]
    n = len(given)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = _sum(given) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    spread = math.sqrt(_sum([(value - mean) * (value - mean) for value in given]) / (n - 1))
    half = t_factor(n - 1, level) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def _sum(values: Sequence[float]) -> float:
    """NumPy's sum, which for a few values takes ten times as long."""
    if len(values) > IN_TURN:
        return float(np.sum(values))
    total = 0.0
    for value in values:
        total += value
    return total


@functools.lru_cache
def t_factor(freedom: int, level: float = LEVEL) -> float:
    """Half width of Student's two-sided interval in standard errors."""
    return float(stdtrit(freedom, 0.5 + level / 2))


def paired_p(differences: ArrayLike) -> float:
    """Two-sided p-value of the paired t-test from the pairs' differences.

    Equal differences leave no spread to judge by: p is 1 if they are zero and 0 otherwise. One pair likewise.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = len(d)
    if n == 0:
        return 1.0
    mean = float(d.mean())
    error = float(d.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if error <= 1e-15 * abs(mean) or error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2.0 * stdtr(n - 1, -abs(mean / error)))


def holm(p_values: Sequence[float], alpha: float = 0.05) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for step, i in enumerate(order):
        if p_values[i] > alpha / (len(p_values) - step):
            break
        rejected[i] = True
    return rejected


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: ``holm`` rejects at a level where they are at most that level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for step, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - step)))
        adjusted[i] = highest
    return adjusted


def welch(first: ArrayLike, second: ArrayLike, level: float = LEVEL) -> tuple[Interval, float]:
    """Mean of ``first`` minus mean of ``second`` with its interval, and the two-sided p-value of Welch's t-test.

    At least two values a side, all finite. Without any spread p is 1 for equal means and 0 otherwise. ``n`` of the
    interval is the smaller side's.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    parts = [float(side.var(ddof=1)) / len(side) for side in (x, y)]
    mean, error, n = float(x.mean() - y.mean()), math.sqrt(sum(parts)), min(len(x), len(y))
    if error <= 1e-15 * abs(mean) or error == 0.0:
        return Interval(mean, mean, mean, n), 1.0 if mean == 0.0 else 0.0
    freedom = sum(parts) ** 2 / sum(v**2 / (len(side) - 1) for v, side in zip(parts, (x, y), strict=True))
    half = float(stdtrit(freedom, 0.5 + level / 2)) * error
    return Interval(mean, mean - half, mean + half, n), float(2.0 * stdtr(freedom, -abs(mean / error)))


def rank_groups(
    distances: Mapping[str, Mapping[int, float]],
    floor: float | None = None,
    alpha: float = 0.05,
    forced: bool = False,
) -> dict[str, int | None]:
    """Rank groups of methods by distance: group 1 cannot be told from the best, then the same for the rest.

    Args:
        distances: method -> train seed -> distance to the retrained model (unlearn seeds averaged).
        floor: gold-vs-gold distance; a mean difference below it is a tie whatever the test says.
        alpha: family-wise level of each group's comparisons with its best method.
        forced: rank methods with fewer than ``MIN_TRAIN_SEEDS`` train seeds too.

    Methods with too few train seeds get ``None``. Pairs are formed over the train seeds that both have.
    With a single train seed (forced only) every difference of at least the floor separates.
    """
    need = 1 if forced else MIN_TRAIN_SEEDS
    clean = {name: {s: d for s, d in by.items() if math.isfinite(d)} for name, by in distances.items()}
    left = {name: by for name, by in clean.items() if len(by) >= need}
    result: dict[str, int | None] = dict.fromkeys(distances)
    group = 0
    while left:
        group += 1
        best = min(left, key=lambda name: (float(np.mean(list(left[name].values()))), name))
        others = [name for name in left if name != best]
        pairs = [_differences(left[name], left[best]) for name in others]
        # Without enough common train seeds there is no evidence of a difference.
        rejected = holm([paired_p(d) if len(d) >= need else 1.0 for d in pairs], alpha)
        tied = [best]
        for name, d, apart in zip(others, pairs, rejected, strict=True):
            if not apart or (floor is not None and abs(float(np.mean(d))) < floor):
                tied.append(name)
        for name in tied:
            result[name] = group
            del left[name]
    return result


def _differences(first: Mapping[int, float], second: Mapping[int, float]) -> NDArray[np.float64]:
    return np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def pareto_mask(cost: ArrayLike, loss: ArrayLike) -> NDArray[np.bool_]:
    """True for points that no other point beats: at most as much of both and less of one. Ties stay; NaN never is."""
    c, l_ = np.asarray(cost, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    usable = np.isfinite(c) & np.isfinite(l_)
    # beats[i, j]: point i beats point j
    no_worse = (c[:, None] <= c[None, :]) & (l_[:, None] <= l_[None, :])
    better = (c[:, None] < c[None, :]) | (l_[:, None] < l_[None, :])
    beats = no_worse & better & usable[:, None]
    front: NDArray[np.bool_] = usable & ~beats.any(axis=0)
    return front


def as_null(value: Any) -> Any:
    """NaN as ``None``, everything else as it is."""
    return None if isinstance(value, float) and math.isnan(value) else value
