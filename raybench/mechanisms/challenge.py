"""Forgetting quality of the NeurIPS 2023 unlearning challenge: epsilon per example, points per epsilon, their mean F.

Organisers' code ``google-deepmind/unlearning_evaluation`` (metric.py) and Triantafillou et al. 2024 (arXiv:2406.09073).
Worlds are phi tensors [models, examples], see ``mechanisms.worlds``; the leaderboard used 512 models per world.

Deviations: every distinct threshold is tried instead of 100 per unit of phi (same rules, same limits, so epsilon is at
least the organisers' and does not depend on a grid); an example on which all models agree has epsilon 0 where theirs
divides by zero; one without any usable threshold has 0 where theirs stops, by testing the truth of a whole array; the
two worlds may differ in size (N is the smaller).

An estimate at the N used: the maximum over many thresholds is biased upward, so two identical worlds do not give F = 1
(two normal worlds give about 0.18 at N = 16, 32 and 64). Read F beside ``worlds.gold_vs_gold`` at the same N.
Cheap forms for small N: ``mechanisms.challenge_estimate``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.mechanisms.worlds import require_worlds

DELTA = 1e-5
CAP = 50.0
BUCKET = 0.5
BUFFER = 2.0  # how far the ends of an interval rule may lie from the narrower world's, in units of phi
PEAKED = 0.01  # ratio of the worlds' ranges below which epsilon is the cap
LEAST_MODELS = 8
_CELLS = 4_000_000  # pairs of thresholds looked at in one go: bounds the memory


def epsilon(fpr: Tensor, fnr: Tensor, delta: float = DELTA) -> Tensor:
    """Epsilon that an attack with these error rates certifies, float64, elementwise, >= 0.

    inf where both rates are 0, NaN (discarded) where exactly one is: too few models to say.
    """
    fpr, fnr = fpr.double(), fnr.double()
    # Where 1 - delta - rate is not positive, that side certifies nothing.
    one = (1 - delta - fpr).clamp_min(0).log() - fnr.log()
    other = (1 - delta - fnr).clamp_min(0).log() - fpr.log()
    value = torch.maximum(one, other).clamp_min(0.0)
    value = torch.where((fpr == 0) | (fnr == 0), torch.nan, value)
    return torch.where((fpr == 0) & (fnr == 0), torch.inf, value)


def epsilons(unlearned: Tensor, gold: Tensor, delta: float = DELTA) -> Tensor:
    """Epsilon of every example, float64 [n] in [0, 50], low = cannot be told from gold, from phi [m, n] and [k, n].

    The largest over all single-threshold and interval attacks. Raises ``MetricUnavailable`` for fewer than 8 models in
    a world, NaN, constant phi. Cost per example: the square of m + k table look-ups.
    """
    unlearned, gold = require_worlds(unlearned, gold, LEAST_MODELS)
    wrong_u, wrong_g = (torch.arange(len(world) + 1).double() / len(world) for world in (unlearned, gold))
    # The formula is symmetric in the two rates, so the table need not know which world is the positive one.
    table = epsilon(wrong_u[:, None], wrong_g[None, :], delta).nan_to_num(nan=0.0, posinf=CAP)
    found = best_attack(unlearned, gold, table).clamp(max=CAP)
    narrow, wide = torch.stack([_range(unlearned), _range(gold)]).sort(dim=0).values
    return torch.where((wide > 0) & (narrow < PEAKED * wide), CAP, found)


def best_attack(unlearned: Tensor, gold: Tensor, table: Tensor) -> Tensor:
    """Largest entry of ``table`` [m + 1, k + 1] that an attack reaches, per example [n]: ``table[i, j]`` is the worth
    of an attack that errs on i unlearned and j gold models.

    Attacks: (1) phi >= t belongs to the world with the larger median (unlearned where equal); (2) l <= phi <= r belongs
    to the world with the smaller range (the lower median's where equal), r within 2 of that world's maximum and r - l
    within 2 of its range. Worlds are float64 and finite.
    """
    total = len(unlearned) + len(gold)
    pieces = max(1, _CELLS // (total + 1) ** 2)
    columns = zip(unlearned.split(pieces, dim=1), gold.split(pieces, dim=1), strict=True)
    return torch.cat([_best_of_piece(u, g, table) for u, g in columns])


def points(values: Tensor, models: int) -> Tensor:
    """Points of epsilons [n] with N = ``models`` per world: 1, 1/2, 1/4, ... in buckets [0, 0.5), [0.5, 1), ... as long
    as a bucket's end is at most ceil(ln(N - 1)); 0 beyond. Float64 [n]."""
    if models < 3:
        raise MetricUnavailable(f"the challenge score has no bucket for fewer than 3 models, got {models}")
    buckets = int(math.ceil(math.log(models - 1)) / BUCKET)
    place = (values.double() / BUCKET).floor()
    return torch.where(place < buckets, 0.5**place, 0.0)


def forgetting_quality(unlearned: Tensor, gold: Tensor, delta: float = DELTA) -> float:
    """F in [0, 1], high = cannot be told from gold: mean points of the examples, from phi [m, n] and [k, n]."""
    return float(points(epsilons(unlearned, gold, delta), min(len(unlearned), len(gold))).mean())


def final_score(quality: float, retain: tuple[float, float], test: tuple[float, float]) -> float:
    """F x (RA / RA of gold) x (TA / TA of gold); ``retain`` and ``test`` are (unlearned, gold) accuracies averaged over
    the models. From 0 to about 1 (the ratios can exceed 1)."""
    if retain[1] <= 0 or test[1] <= 0:
        raise MetricUnavailable(f"the retrained accuracies must be positive, got {retain[1]:g} and {test[1]:g}")
    return quality * retain[0] / retain[1] * test[0] / test[1]


def _range(world: Tensor) -> Tensor:
    return world.amax(dim=0) - world.amin(dim=0)


def _best_of_piece(unlearned: Tensor, gold: Tensor, table: Tensor) -> Tensor:
    (m, n), k = unlearned.shape, gold.shape[0]
    values, order = torch.cat([unlearned, gold]).T.sort(dim=1)  # [n, m + k]
    is_u = (order < m).long()
    zero = torch.zeros(n, 1, dtype=torch.long)
    below_u = torch.cat([zero, is_u.cumsum(dim=1)], dim=1)  # [n, cuts]: unlearned models below each cut
    below_g = torch.cat([zero, (1 - is_u).cumsum(dim=1)], dim=1)
    edge = torch.full((n, 1), torch.inf, dtype=torch.float64)
    under, over = torch.cat([-edge, values], dim=1), torch.cat([values, edge], dim=1)
    real = under < over  # no cut between equal values

    u_above = (unlearned.quantile(0.5, dim=0) >= gold.quantile(0.5, dim=0))[:, None]
    single = table[torch.where(u_above, below_u, m - below_u), torch.where(u_above, k - below_g, below_g)]
    best = torch.where(real, single, 0.0).amax(dim=1)

    u_range, g_range = _range(unlearned), _range(gold)
    u_narrow = torch.where(u_above[:, 0], u_range < g_range, u_range <= g_range)
    width = torch.minimum(u_range, g_range)[:, None]
    top = torch.where(u_narrow, unlearned.amax(dim=0), gold.amax(dim=0))[:, None]
    # An end may lie anywhere between its neighbours: l in (under, over], r in [under, over) and near the top.
    first, last = under.maximum(top - BUFFER), over.minimum(top + BUFFER)
    ends = real & (first <= last) & (over > top - BUFFER)
    fits = (first[:, None, :] - over[:, :, None] <= (width + BUFFER)[:, :, None]) & (
        last[:, None, :] - under[:, :, None] > (width - BUFFER)[:, :, None]
    )
    in_u = (below_u[:, None, :] - below_u[:, :, None]).clamp_min(0)  # [n, left cut, right cut]
    in_g = (below_g[:, None, :] - below_g[:, :, None]).clamp_min(0)
    narrow = u_narrow[:, None, None]
    double = table[torch.where(narrow, m - in_u, in_u), torch.where(narrow, in_g, k - in_g)]
    allowed = fits & real[:, :, None] & ends[:, None, :]
    return best.maximum(torch.where(allowed, double, 0.0).amax(dim=(1, 2)))
