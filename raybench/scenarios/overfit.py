"""Forget what was learned too well: some samples stood in the training set many times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raybench.data import Request
from raybench.errors import UserError
from raybench.registry import SAMPLE, SCENARIOS


@dataclass(frozen=True)
class OverfitParams:
    """How many samples are over-represented, and how much. ``ValueError`` for values out of range."""

    fraction: float = 0.01
    """Share of the training split, above 0 and below 1."""
    repeats: int = 20
    """How often each of them stands in the training set of the original model, at least 2."""

    def __post_init__(self) -> None:
        if not (isinstance(self.fraction, int | float) and 0 < self.fraction < 1):
            raise ValueError(f"fraction must be above 0 and below 1, got {self.fraction!r}; change it")
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or not 2 <= self.repeats <= 10_000:
            raise ValueError(f"repeats must be an integer from 2 to 10000, got {self.repeats!r}; change it")


@SCENARIOS.register("overfit", params=OverfitParams, kind=SAMPLE, label="Over-represented samples")
def overfit(
    images: np.ndarray, labels: np.ndarray, num_classes: int, params: OverfitParams, rng: np.random.Generator
) -> Request:
    """A share of the samples that the original model saw ``repeats`` times an epoch.

    They are drawn uniformly without replacement (1 %).

    After the over-fitting study of the rewinding document, which trains on 1 % of CIFAR-10 for too long and forgets
    that 1 %. Ours keeps the other 99 % beside it, as D_r, since a retrained model needs some. D_f holds every copy.
    Raises ``UserError`` where the share rounds to no sample or to all of them.
    """
    total = len(labels)
    count = round(params.fraction * total)
    if not 1 <= count < total:
        raise UserError(
            f"scenario overfit must forget 1 to {total - 1} of {total} training samples, got fraction "
            f"{params.fraction}; change it"
        )
    forget = np.zeros(total, dtype=bool)
    forget[rng.choice(total, size=count, replace=False)] = True
    return Request(forget=forget, repeats=params.repeats)
