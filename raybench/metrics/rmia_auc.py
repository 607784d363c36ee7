"""RMIA, the recommended per-example attack: is a forget sample likelier than models that never saw it would have it?

Unlike the population attacks it judges every sample against itself: an easy sample is likely under any model, and only
what goes beyond that is memory. Needs ``oracles`` in the spec, retrained models beside the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.mechanisms.attacks import attack_auc, attack_tpr
from raybench.mechanisms.rmia import choose_a, mean_probability, prior_offline, ratio, rmia
from raybench.metrics._splits import unseen, usable
from raybench.outputs import MetricContext, Outputs, Shadow, SplitOutputs
from raybench.registry import METRICS, ORACLES, Attack

A = 0.3
FALSE_POSITIVE_RATE = 0.01
ATTACK = {
    "attack": "RMIA, offline",
    "score": "share of the population whose p(x | theta) / p(x) is not larger",
    "fit_on": "retrained models beside the reference (oracles)",
    "apply_to": "D_f against unseen samples of the same classes",
}


@METRICS.register(
    "rmia_auc",
    label="RMIA AUC",
    paper="arXiv:2312.03262",
    final_only=True,
    pool=ORACLES,
    attack=Attack(**ATTACK, reported_quantity="AUC, members D_f"),
)
def rmia_auc(outputs: Outputs, context: MetricContext) -> float:
    """Probability that a random forget sample has a higher RMIA score than a random unseen one, ties one half.

    Offline form (Zarifzadeh et al. 2024): p(x) = ((1 + a) P_out + 1 - a) / 2 with P_out the mean probability of the
    label under the oracles, which never saw D_f nor the test images. ``a`` is the value of the grid 0, 0.1, ..., 1
    that attacks the spec's ``shadows`` best, models trained on random halves of the data; without them 0.3, the
    authors' value for CIFAR-10. The population are the validation images. 0.5: blind; below: D_f is less likely than to
    models that never saw it, over-forgotten.
    """
    members, others = _scores(outputs, context)
    return attack_auc(-members, -others)


@METRICS.register(
    "rmia_tpr",
    label="RMIA TPR at 1 % FPR",
    paper="arXiv:2312.03262",
    final_only=True,
    pool=ORACLES,
    attack=Attack(**ATTACK, reported_quantity="share of D_f accused at 1 % false alarms"),
)
def rmia_tpr(outputs: Outputs, context: MetricContext) -> float:
    """Share of D_f that RMIA (see ``rmia_auc``) accuses where it accuses at most 1 % of the unseen; blind: 0.01."""
    members, others = _scores(outputs, context)
    return attack_tpr(-members, -others, FALSE_POSITIVE_RATE)


def _scores(outputs: Outputs, context: MetricContext) -> tuple[Tensor, Tensor]:
    """RMIA scores float64 of D_f [n] and of the unseen samples [m], in [0, 1], high = member."""
    oracles, shadows = context.oracles(), context.shadows()
    if not oracles:
        raise MetricUnavailable("RMIA needs retrained models beside the reference; set oracles in the spec")
    crowd = [name for name in ("validation", "validation_forgotten") if outputs.has(name)]
    a = _choose(shadows, crowd) if shadows else A
    parts: tuple[Callable[[Outputs], SplitOutputs], ...] = (
        lambda of: usable(of, "forget"),
        lambda of: unseen(of, context),
    )
    targets, others = (_ratios(part, outputs, oracles, a) for part in parts)
    population = torch.cat([_ratios(lambda of, name=name: usable(of, name), outputs, oracles, a) for name in crowd])  # type: ignore[misc]
    return rmia(targets, population), rmia(others, population)


def _ratios(part: Callable[[Outputs], SplitOutputs], outputs: Outputs, oracles: Sequence[Outputs], a: float) -> Tensor:
    outside = mean_probability(torch.stack([part(oracle).confidences for oracle in oracles]))
    return ratio(part(outputs).confidences, prior_offline(outside, a))


def _choose(shadows: Sequence[Shadow], crowd: Sequence[str]) -> float:
    """``a`` from the shadow models alone: the attacked model plays no part."""
    own, population = (
        torch.stack([torch.cat([usable(s.outputs, name).confidences for name in names]) for s in shadows])
        for names in (("forget", "retain"), crowd)
    )
    inside = torch.stack([torch.cat([s.inside["forget"], s.inside["retain"]]) for s in shadows])
    return choose_a(own, inside, population)
