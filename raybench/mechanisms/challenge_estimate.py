"""Cheap forms of the challenge's epsilon for 32 to 64 models per world: estimates, not comparable with the leaderboard.

Both take phi tensors [models, examples] of the two worlds and give an epsilon per example, to be turned into points by
``challenge.points``. Neither reads the distributions the way ``challenge.epsilons`` does:

- ``certified_epsilons`` replaces every error rate by its Clopper-Pearson upper bound. It reads low: with 0 errors among
  256 models no more than 4.23 can be claimed. The bounds hold for one attack at a time; the maximum over attacks is not
  corrected for how many were tried.
- ``gaussian_epsilons`` fits a normal distribution to each world and asks what ``resolution`` models per world would
  show of those. It reads what the tails of a normal distribution say, whether or not phi has such tails.
"""

from __future__ import annotations

import torch
from scipy.special import betaincinv, ndtri
from torch import Tensor

from raybench.mechanisms.challenge import CAP, DELTA, LEAST_MODELS, best_attack, epsilon
from raybench.mechanisms.worlds import require_worlds

LEVEL = 0.95
RESOLUTION = 512  # models per world on the leaderboard
_STEPS = 401


def upper_bounds(models: int, level: float = LEVEL) -> Tensor:
    """Upper end of the two-sided Clopper-Pearson interval of a rate, for 0, 1, ..., ``models`` errors: [models + 1]."""
    errors = torch.arange(models).double().numpy()
    bounds = torch.ones(models + 1, dtype=torch.float64)
    bounds[:-1] = torch.from_numpy(betaincinv(errors + 1, models - errors, 0.5 + level / 2))
    return bounds


def certified_epsilons(unlearned: Tensor, gold: Tensor, delta: float = DELTA, level: float = LEVEL) -> Tensor:
    """Largest epsilon [n] that an attack of the challenge certifies with both error rates at their upper bounds."""
    unlearned, gold = require_worlds(unlearned, gold, LEAST_MODELS)
    table = epsilon(upper_bounds(len(unlearned), level)[:, None], upper_bounds(len(gold), level)[None, :], delta)
    return best_attack(unlearned, gold, table).clamp(max=CAP)


def gaussian_epsilons(unlearned: Tensor, gold: Tensor, delta: float = DELTA, resolution: int = RESOLUTION) -> Tensor:
    """Epsilon [n] of the best threshold or interval attack on normal fits to both worlds, in [0, ln(resolution - 1)].

    Fits have a mean and a variance per example; intervals are centred on the narrower world's mean. Error rates are
    taken as at least 1 / ``resolution`` and at most its complement, so thresholds beyond where a world reaches that are
    not tried: what so many models could show.
    """
    unlearned, gold = require_worlds(unlearned, gold, LEAST_MODELS)
    means = torch.stack([unlearned.mean(dim=0), gold.mean(dim=0)])  # [2, n]
    spreads = torch.stack([unlearned.std(dim=0), gold.std(dim=0)]).clamp_min(1e-12)
    u_above, u_narrow = means[0] >= means[1], spreads[0] <= spreads[1]
    centre = torch.where(u_narrow, means[0], means[1])
    least = 1 / resolution
    outermost, widest = ndtri(1 - least), ndtri(1 - least / 2) * spreads.amin(dim=0)
    best = torch.zeros(unlearned.shape[1], dtype=torch.float64)
    for share in torch.linspace(0, 1, _STEPS, dtype=torch.float64):
        cuts = means + (2 * share - 1) * outermost * spreads  # one per world
        half = share * widest
        inside = _below(centre + half, means, spreads) - _below(centre - half, means, spreads)
        for found, u_positive in (
            (1 - _below(cuts[0], means, spreads), u_above),
            (1 - _below(cuts[1], means, spreads), u_above),
            (inside, u_narrow),
        ):
            wrong_u = torch.where(u_positive, 1 - found[0], found[0]).clamp(least, 1 - least)
            wrong_g = torch.where(u_positive, found[1], 1 - found[1]).clamp(least, 1 - least)
            best = best.maximum(epsilon(wrong_u, wrong_g, delta))
    return best


def _below(cut: Tensor, means: Tensor, spreads: Tensor) -> Tensor:
    """P(phi < cut) in both worlds, [2, n]."""
    share: Tensor = torch.special.ndtr((cut - means) / spreads)
    return share
