"""LiRA, offline: is a forget sample fitted better than models that never saw it would fit it?

Carlini et al. 2022 (arXiv:2112.03570), the one-sided form from models that never saw the target; the arithmetic is in
``mechanisms.likelihood_ratio``. Needs ``oracles`` in the spec: retrained models saw neither D_f nor the test images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.mechanisms.attacks import attack_auc, attack_tpr
from raybench.mechanisms.likelihood_ratio import fit_gaussians, standardised
from raybench.metrics._splits import unseen, usable
from raybench.outputs import MetricContext, Outputs, SplitOutputs
from raybench.registry import METRICS, ORACLES, Attack

FALSE_POSITIVE_RATE = 0.01
LEAST = 2  # oracles: the fewest with a spread
ATTACK = {
    "attack": "LiRA, offline",
    "score": "phi in standard deviations above its mean under models that did not see the sample, global variance",
    "fit_on": "retrained models beside the reference (oracles)",
    "apply_to": "D_f against unseen samples of the same classes",
}
PAPER = "arXiv:2112.03570"


@METRICS.register(
    "lira_auc",
    label="LiRA AUC",
    paper=PAPER,
    final_only=True,
    pool=ORACLES,
    attack=Attack(**ATTACK, reported_quantity="AUC, members D_f"),
)
def lira_auc(outputs: Outputs, context: MetricContext) -> float:
    """Probability that a random forget sample has a higher offline LiRA score than a random unseen one.

    The variance is pooled over samples: with 8 to 64 oracles one per sample is noise. 0.5: blind; below:
    over-forgotten.
    """
    members, others = _scores(outputs, context)
    return attack_auc(-members, -others)


@METRICS.register(
    "lira_tpr",
    label="LiRA TPR at 1 % FPR",
    paper=PAPER,
    final_only=True,
    pool=ORACLES,
    attack=Attack(**ATTACK, reported_quantity="share of D_f accused at 1 % false alarms"),
)
def lira_tpr(outputs: Outputs, context: MetricContext) -> float:
    """Share of D_f that LiRA (see ``lira_auc``) accuses where it accuses at most 1 % of the unseen; blind: 0.01."""
    members, others = _scores(outputs, context)
    return attack_tpr(-members, -others, FALSE_POSITIVE_RATE)


def _scores(outputs: Outputs, context: MetricContext) -> tuple[Tensor, Tensor]:
    """Scores float64 of D_f [n] and of the unseen samples [m], in standard deviations, high = member."""
    oracles = context.oracles()
    if len(oracles) < LEAST:
        raise MetricUnavailable(f"LiRA needs at least {LEAST} oracles, got {len(oracles)}; set oracles in the spec")
    parts: tuple[Callable[[Outputs], SplitOutputs], ...] = (
        lambda of: usable(of, "forget"),
        lambda of: unseen(of, context),
    )
    sizes = [len(part(outputs)) for part in parts]
    own = torch.cat([part(outputs).phi for part in parts])
    pool = torch.stack([torch.cat([part(oracle).phi for part in parts]) for oracle in oracles])
    members, others = standardised(own, fit_gaussians(pool)).split(sizes)
    return members, others
