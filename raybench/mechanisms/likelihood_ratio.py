"""LiRA and U-LiRA: per-example likelihood-ratio attacks from Gaussian fits to ``phi`` (see ``mechanisms.worlds``).

Carlini et al. 2022 (arXiv:2112.03570) for membership; Hayes et al. 2025 (SaTML, arXiv:2403.01218) and SCRUB (Kurmanji
et al. 2023, arXiv:2302.09880) for unlearning, where the question is: unlearned, or never seen?

Deviations from published code: the statistic is phi and never 0/1 correctness, which leaves zero variances; the global
variance is pooled *within* examples (the code of Carlini et al. takes the spread over all values, differences between
examples included); worlds are attacked in folds that leave out one model of each world (see ``ulira``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.mechanisms.worlds import require_worlds

GLOBAL = "global"
PER_EXAMPLE = "per_example"
LEAST_MODELS = 3  # one is held out, two are the fewest with a variance
_FLOOR = 1e-12  # smallest variance of an example, in units of the global one


class Gaussians(NamedTuple):
    """One normal distribution of phi per example: ``mean`` and ``variance``, float64 [n]."""

    mean: Tensor
    variance: Tensor


class Audit(NamedTuple):
    """U-LiRA over m unlearned and k never-seen models; each fold [m, k] attacks the two models that it left out."""

    auc: Tensor  # [m, k], in [0, 1], 0.5 = blind
    accuracy: Tensor  # [m, k], balanced, at likelihood ratio 1
    tpr: Tensor | None  # [m, k], at the false positive rate asked for
    examples: Tensor  # [n], balanced accuracy of every example over the folds


def fit_gaussians(phi: Tensor, inside: Tensor | None = None, variance: str = GLOBAL) -> Gaussians:
    """Normal fits to ``phi`` [models, n], one per example, over the models where ``inside`` (bool [models, n]) holds.

    ``variance``: ``"per_example"`` (two models each at least, 64 or more advised) or ``"global"``: one value for all
    examples, pooled within them, for few models. Raises ``MetricUnavailable`` for too few models, NaN, no spread.
    """
    values = phi.double()
    if not torch.isfinite(values).all():
        raise MetricUnavailable("the attack statistic contains NaN or infinite values")
    weight = torch.ones_like(values) if inside is None else inside.double()
    count = weight.sum(dim=0)
    least = 2 if variance == PER_EXAMPLE else 1
    if values.numel() == 0 or count.min() < least:
        fewest = int(count.min()) if values.numel() else 0
        raise MetricUnavailable(f"a {variance} fit needs {least} models on each side of every example, got {fewest}")
    mean = (values * weight).sum(dim=0) / count
    square = ((values - mean).square() * weight).sum(dim=0)
    freedom = float((count - 1).sum())
    pooled = square.sum() / freedom if freedom else torch.zeros(())
    if not pooled > 0:
        raise MetricUnavailable("no example has a spread over the models: nothing to fit a variance to")
    return Gaussians(mean, _variance(square / (count - 1), pooled, variance))


def lira(phi: Tensor, inside: Gaussians, outside: Gaussians) -> Tensor:
    """Online LiRA: log N(phi; inside) - log N(phi; outside) in nats, high = member. ``phi`` [..., n], as the result.

    Carlini et al. 2022, algorithm 1.
    """
    return _log_density(phi.double(), *inside) - _log_density(phi.double(), *outside)


def lira_offline(phi: Tensor, outside: Gaussians) -> Tensor:
    """Offline LiRA: 1 - P(phi of a model that did not see the example > ``phi``), in [0, 1], high = member [..., n].

    It reaches 1.0 exactly some eight standard deviations out; rank by ``standardised``, which has the same order.
    """
    probability: Tensor = torch.special.ndtr(standardised(phi, outside))
    return probability


def standardised(phi: Tensor, outside: Gaussians) -> Tensor:
    """``phi`` [..., n] in standard deviations above the mean of the models that did not see the example."""
    return (phi.double() - outside.mean) / outside.variance.sqrt()


def ulira(unlearned: Tensor, gold: Tensor, variance: str = GLOBAL, false_positive_rate: float | None = None) -> Audit:
    """U-LiRA: tell unlearned models from models that never saw the examples, by phi ``unlearned`` [m, n] and
    ``gold`` [k, n] of the same n examples.

    Fold (i, j) fits both worlds without the unlearned model i and the gold model j and then attacks these two: the
    examples under i are the positives, under j the negatives. AUC and the true positive rate are taken over examples
    inside a fold; ``worlds.over_models`` gives means and intervals. Leaving out a pair, and not one model at a time,
    makes two identical worlds come out at exactly 0.5 in expectation: scores of models held out one at a time are
    compared across different fits, and their AUC is biased below 0.5 (Airola et al. 2011, Computational Statistics &
    Data Analysis 55, on leave-one-out and leave-pair-out).

    Raises ``MetricUnavailable`` for fewer than 3 models in a world (32 and more advised), NaN, constant phi, and for a
    ``false_positive_rate`` that one example exceeds.
    """
    unlearned, gold = require_worlds(unlearned, gold, LEAST_MODELS)
    (models, count), others = unlearned.shape, gold.shape[0]
    needed = 0 if false_positive_rate is None else round(1 / false_positive_rate)
    if count < needed:
        raise MetricUnavailable(
            f"a false positive rate of {false_positive_rate:g} needs {needed} examples, got {count}"
        )
    fit_u, fit_g = _without_one(unlearned, variance), _without_one(gold, variance)
    own_g = _log_density(gold, *fit_g)  # [k, n]: gold model j under the gold fit without it
    auc, accuracy, tpr = (torch.empty(models, others, dtype=torch.float64) for _ in range(3))
    examples = torch.zeros(count, dtype=torch.float64)
    allowed = int((false_positive_rate or 0.0) * count + 1e-9)
    for i in range(models):
        mean, spread = fit_u.mean[i], fit_u.variance[i]
        # Scores [k, n] under the fits of the folds (i, 0), ..., (i, k - 1).
        positive = _log_density(unlearned[i], mean, spread) - _log_density(unlearned[i], *fit_g)
        negative = _log_density(gold, mean, spread) - own_g
        ranked = negative.sort(dim=1).values
        below = torch.searchsorted(ranked, positive, right=False)
        not_above = torch.searchsorted(ranked, positive, right=True)
        auc[i] = (below + not_above).sum(dim=1).double() / (2 * count**2)
        hits = (_above_zero(positive) + 1 - _above_zero(negative)) / 2
        accuracy[i] = hits.mean(dim=1)
        examples += hits.sum(dim=0)
        if false_positive_rate is not None:
            cut = ranked[:, max(count - 1 - allowed, 0), None]
            tpr[i] = (positive > cut).double().mean(dim=1) if allowed < count else 1.0
    return Audit(auc, accuracy, None if false_positive_rate is None else tpr, examples / (models * others))


def _without_one(world: Tensor, variance: str) -> Gaussians:
    """Fits to ``world`` [m, n] without model i, for every i: mean and variance [m, n], by downdating the sums."""
    models = world.shape[0]
    mean = world.mean(dim=0)
    away = world - mean
    left = mean - away / (models - 1)
    square = (away.square().sum(dim=0) - away.square() * models / (models - 1)).clamp_min(0.0)
    each = square / (models - 2)
    pooled = each.mean(dim=1, keepdim=True)
    if not (pooled > 0).all():
        raise MetricUnavailable("no example has a spread over the models: nothing to fit a variance to")
    return Gaussians(left, _variance(each, pooled, variance))


def _variance(each: Tensor, pooled: Tensor, variance: str) -> Tensor:
    if variance == GLOBAL:
        return pooled.expand_as(each)
    if variance == PER_EXAMPLE:
        return each.maximum(_FLOOR * pooled)
    raise ValueError(f"variance must be {GLOBAL!r} or {PER_EXAMPLE!r}, got {variance!r}")


def _log_density(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((values - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def _above_zero(scores: Tensor) -> Tensor:
    """1 above zero, 0 below, one half at it: no score decides nothing."""
    return (scores.sign() + 1) / 2
