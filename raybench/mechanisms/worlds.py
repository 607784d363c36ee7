"""Two worlds of models, seen through one number per example: what all per-example attacks and KLoM start from.

A *world* is a tensor [models, examples]: the statistic ``phi`` of every example under every model of one pipeline
(all retrained, or all trained and then unlearned). Examples are columns, in the same order in both worlds; models
are rows, in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.outputs import logit_statistic
from raybench.seeding import numpy_generator

__all__ = ["Ceiling", "Estimate", "gold_vs_gold", "logit_statistic", "over_models", "require_worlds"]

LEVEL = 0.95


class Estimate(NamedTuple):
    """A number with its interval."""

    value: float
    lo: float
    hi: float


class Ceiling(NamedTuple):
    """What a statistic says of two draws from one and the same world: its finite-sample bias."""

    mean: float
    sd: float  # over the random splits, which overlap: a spread, not a standard error
    models: int  # per side


def require_worlds(first: Tensor, second: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both worlds as float64, or ``MetricUnavailable`` with the reason: fewer than ``least`` models on a side, no
    examples, different examples, values that are not finite, one value everywhere."""
    for role, world in (("unlearned", first), ("retrained", second)):
        if world.ndim != 2:
            raise ValueError(f"a world must be [models, examples], got the shape {tuple(world.shape)} ({role})")
        if world.shape[0] < least:
            raise MetricUnavailable(f"needs at least {least} {role} models, got {world.shape[0]}")
        if world.shape[1] == 0:
            raise MetricUnavailable(f"the {role} models were asked about no example")
        if not torch.isfinite(world).all():
            raise MetricUnavailable(f"the statistic of the {role} models contains NaN or infinite values")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"both worlds must hold the same examples, got {first.shape[1]} and {second.shape[1]}")
    if min(first.min(), second.min()) == max(first.max(), second.max()):
        raise MetricUnavailable("the statistic is constant: every example looks the same under every model")
    return first.double(), second.double()


def over_models(folds: Tensor, seed: int, draws: int = 1000, level: float = LEVEL) -> Estimate:
    """Mean of ``folds`` [m, k] and its bootstrap percentile interval over the m models of one world and the k of the
    other.

    Rows and columns are drawn with replacement, independently (the two-way bootstrap of Owen 2007, arXiv:0712.1111,
    which errs to the wide side). Each fold was computed without the two models it is about; drawing models *before*
    the folds would put copies of a held-out model into its own fit. The order of the models does not matter.
    """
    table = _in_order(folds.double().numpy())
    rows, columns = table.shape
    rng = numpy_generator("over_models", seed)
    row_weight = rng.multinomial(rows, np.full(rows, 1 / rows), size=draws) / rows
    column_weight = rng.multinomial(columns, np.full(columns, 1 / columns), size=draws) / columns
    means = np.einsum("dr,rc,dc->d", row_weight, table, column_weight, optimize=True)
    lo, hi = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(float(table.mean()), float(lo), float(hi))


def gold_vs_gold(
    statistic: Callable[[Tensor, Tensor], float],
    gold: Tensor,
    seed: int,
    splits: int = 10,
    size: int | None = None,
) -> Ceiling:
    """What ``statistic(world, world)`` gives for two disjoint random draws of ``size`` models each (default: half)
    from ``gold`` [N, n]: the value that a perfect unlearning method would get at that number of models.

    The bias depends on the number of models, so a value from m models per side is to be read beside a ceiling with
    ``size`` = m (needs 2 m gold models), not beside one from fewer.
    """
    have = gold.shape[0]
    size = have // 2 if size is None else size
    if size < 1 or 2 * size > have:
        raise MetricUnavailable(f"gold against gold with {size} models per side needs {max(2 * size, 2)}, got {have}")
    rng = numpy_generator("gold_vs_gold", seed)
    values = []
    for _ in range(splits):
        order = torch.from_numpy(rng.permutation(have))
        values.append(float(statistic(gold[order[:size]], gold[order[size : 2 * size]])))
    return Ceiling(float(np.mean(values)), float(np.std(values, ddof=1)) if splits > 1 else 0.0, size)


def _in_order(table: np.ndarray) -> np.ndarray:
    """The rows and the columns sorted by what they contain: a draw by position then picks the same models whatever
    order they came in."""
    by_row = np.lexsort(np.sort(table, axis=1).T[::-1])
    by_column = np.lexsort(np.sort(table, axis=0)[::-1])
    return np.ascontiguousarray(table[by_row][:, by_column])
