"""The score of the NeurIPS 2023 unlearning challenge, and its part that judges forgetting.

Triantafillou et al. 2024 (arXiv:2406.09073) and the organisers' code; the arithmetic is in ``mechanisms.challenge``. An
estimate at the number of models used, not comparable with the leaderboard's 512 a side, and biased below 1 even for
retrained models: both the value and its retrained counterpart (gold against gold) are means over draws of half of each
world.
"""

from __future__ import annotations

from raybench.mechanisms.challenge import final_score
from raybench.mechanisms.challenge import forgetting_quality as quality
from raybench.metrics._worlds import mean_accuracy, phi_of
from raybench.outputs import MetricContext, Worlds
from raybench.registry import HALF_WORLDS, METRICS, Attack

ABOUT = {"paper": "arXiv:2406.09073", "range": (0.0, None), "final_only": True, "pool": HALF_WORLDS}
ATTACK = Attack(
    attack="best of all thresholds and intervals, per sample",
    score="phi",
    fit_on="both worlds",
    apply_to="D_f under unlearned against D_f under retrained models",
    reported_quantity="mean points of epsilon, 1 for an epsilon below 0.5, halved every further 0.5",
)


@METRICS.register("challenge_score", label="Challenge score (estimate)", **ABOUT)
def challenge_score(worlds: Worlds, context: MetricContext) -> float:
    """F x (retain accuracy / retrained) x (test accuracy / retrained), F of ``forgetting_quality``.

    An estimate at half of the oracles a side: compare it with the retrained value, not with 1.
    """
    retain, test = (
        (mean_accuracy(worlds.unlearned, split), mean_accuracy(worlds.gold, split)) for split in ("retain", "test")
    )
    return final_score(quality(*phi_of(worlds, "forget")), retain, test)


@METRICS.register("forgetting_quality", label="Challenge forgetting quality (estimate)", attack=ATTACK, **ABOUT)
def forgetting_quality(worlds: Worlds, context: MetricContext) -> float:
    """F: mean points of epsilon per forget sample. An estimate at half of the oracles a side."""
    return quality(*phi_of(worlds, "forget"))
