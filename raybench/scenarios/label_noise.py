"""Forget wrong labels: some of the training labels turn out to be false, and their effect has to go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raybench.data import Request
from raybench.errors import UserError
from raybench.registry import SAMPLE, SCENARIOS


@dataclass(frozen=True)
class LabelNoiseParams:
    """How much noise. ``ValueError`` for a share outside its range."""

    fraction: float = 0.1
    """Share of the training labels that are replaced, above 0 and below 1."""

    def __post_init__(self) -> None:
        if not (isinstance(self.fraction, int | float) and 0 < self.fraction < 1):
            raise ValueError(f"fraction must be above 0 and below 1, got {self.fraction!r}; change it")


@SCENARIOS.register(
    "label_noise", params=LabelNoiseParams, kind=SAMPLE, label="Label noise", corrupts=lambda params: True
)
def label_noise(
    images: np.ndarray, labels: np.ndarray, num_classes: int, params: LabelNoiseParams, rng: np.random.Generator
) -> Request:
    """A share of the samples, drawn uniformly, gets another class, drawn uniformly from the K - 1 wrong ones
    (symmetric noise); those samples with their wrong labels are the forget set.

    ``Request.labels`` int64 [N] holds the corrupted labels; the input is not written. Raises ``UserError`` where
    the share rounds to no sample or to all of them.
    """
    total = len(labels)
    count = round(params.fraction * total)
    if not 1 <= count < total:
        raise UserError(
            f"scenario label_noise must corrupt 1 to {total - 1} of {total} training labels, "
            f"got fraction {params.fraction}; change it"
        )
    chosen = rng.choice(total, size=count, replace=False)
    corrupted = labels.copy()
    # Adding 1 to K - 1 modulo K reaches each of the other classes from exactly one draw.
    corrupted[chosen] = (labels[chosen] + rng.integers(1, num_classes, size=count)) % num_classes
    forget = np.zeros(total, dtype=bool)
    forget[chosen] = True
    return Request(forget=forget, labels=corrupted)
