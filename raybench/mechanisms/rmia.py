"""RMIA: is the ratio p(x | theta) / p(x) larger for a point than for most of the population?

Zarifzadeh et al. 2024 (ICML, arXiv:2312.03262). ``probability`` is the softmax probability of the true label in [0, 1]
throughout, [..., n]; reference models are rows.

Two cautions. For an audit of unlearning the references must never have seen the forget set (offline form), and the
population must not overlap the held-out points that serve as non-members.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.mechanisms.attacks import attack_auc

GRID = tuple(step / 10 for step in range(11))
LEAST_POPULATION = 100  # the score has steps of one over the population's size
LEAST_SIDE = 10  # members and non-members of an attacked reference model
_TINY = 1e-300  # keeps a ratio finite where no reference gives the label any probability


def mean_probability(probability: Tensor, models: Tensor | None = None) -> Tensor:
    """Mean over the references [m, n] for which ``models`` (bool [m, n], default all) holds: float64 [n].

    NaN for a point without such a reference.
    """
    _require_probabilities(probability)
    if models is None:
        return probability.double().mean(dim=0)
    weight = models.double()
    return (probability.double() * weight).sum(dim=0) / weight.sum(dim=0)


def prior_online(inside: Tensor, outside: Tensor) -> Tensor:
    """p(x) = (P_in + P_out) / 2 from the mean probabilities under references that saw x and that did not, [n]."""
    return (inside.double() + outside.double()) / 2


def prior_offline(outside: Tensor, a: float) -> Tensor:
    """p(x) = ((1 + a) P_out + (1 - a)) / 2, [n]: P_in is approximated by a P_out + 1 - a. ``a`` in [0, 1]."""
    if not 0 <= a <= 1:
        raise ValueError(f"a must be in [0, 1], got {a}")
    return ((1 + a) * outside.double() + (1 - a)) / 2


def ratio(probability: Tensor, prior: Tensor) -> Tensor:
    """r(x) = p(x | theta) / p(x) of the attacked model's ``probability`` [..., n] and ``prior`` [n]."""
    return probability.double() / prior.clamp_min(_TINY)


def rmia(targets: Tensor, population: Tensor, gamma: float = 1.0) -> Tensor:
    """Share of the population that x beats, r(x) >= gamma r(z): float64 like ``targets``, in [0, 1], high = member.

    ``targets`` [n] and ``population`` [z] are ratios under one attacked model. Costs a sort of the population.
    """
    if population.numel() < LEAST_POPULATION:
        raise MetricUnavailable(f"RMIA needs at least {LEAST_POPULATION} population points, got {population.numel()}")
    for role, values in (("targets", targets), ("population", population)):
        if not torch.isfinite(values).all():
            raise MetricUnavailable(f"the RMIA ratios of the {role} contain NaN or infinite values")
    bar = (population.double() * gamma).sort().values
    return torch.searchsorted(bar, targets.double().contiguous(), right=True).double() / bar.numel()


def choose_a(probability: Tensor, inside: Tensor, population: Tensor, gamma: float = 1.0) -> float:
    """The ``a`` of the grid 0, 0.1, ..., 1 whose attack on the reference models themselves has the largest AUC.

    Each reference in turn plays the attacked model: its members and non-members are known, the other references give
    P_out. The mean AUC over the references counts, the smallest ``a`` among equals. The attacked model of the audit,
    its forget set and the test set play no part.

    Args:
        probability: [m, n] of points that some references were trained on.
        inside: bool [m, n], which reference was trained on which point.
        population: [m, z] of points that no reference was trained on.

    Points without another reference that did not see them are left out. Raises ``MetricUnavailable`` for fewer than two
    references or where none keeps 10 members and 10 non-members.
    """
    areas = torch.tensor([_areas(j, probability, inside, population, gamma) for j in range(len(probability))])
    known = ~areas.isnan().any(dim=1) if areas.numel() else torch.zeros(0, dtype=torch.bool)
    if not known.any():
        raise MetricUnavailable(
            f"choosing a needs two reference models, one of which has {LEAST_SIDE} points it was trained on and "
            f"{LEAST_SIDE} it was not, each unseen by another; got {len(probability)} reference models"
        )
    mean = areas[known].mean(dim=0)
    return GRID[int((mean >= mean.max() - 1e-12).nonzero()[0])]


def _areas(attacked: int, probability: Tensor, inside: Tensor, population: Tensor, gamma: float) -> list[float]:
    """AUC of the offline attack on one reference, for every ``a``; NaN where it cannot be run."""
    others = torch.arange(len(probability)) != attacked
    if not others.any():
        return [float("nan")] * len(GRID)
    outside = mean_probability(probability[others], ~inside[others])
    usable = ~outside.isnan()
    members = inside[attacked][usable]
    if min(int(members.sum()), int((~members).sum())) < LEAST_SIDE:
        return [float("nan")] * len(GRID)
    outside, own = outside[usable], probability[attacked][usable]
    crowd = mean_probability(population[others])
    areas = []
    for a in GRID:
        score = rmia(ratio(own, prior_offline(outside, a)), ratio(population[attacked], prior_offline(crowd, a)), gamma)
        # Constant scores tell nothing apart: blind, and not a reason to give up on the other values of a.
        same = bool(score.min() == score.max())
        areas.append(0.5 if same else attack_auc(-score[members], -score[~members]))
    return areas


def _require_probabilities(probability: Tensor) -> None:
    if probability.shape[0] == 0:
        raise MetricUnavailable("RMIA needs at least one reference model, got 0")
    # Not "any outside": a comparison with NaN is false.
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise MetricUnavailable("the references' probabilities contain NaN or values outside [0, 1]")
