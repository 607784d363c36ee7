"""Forget random samples: some people withdraw their data, whatever its class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raybench.data import Request
from raybench.errors import UserError
from raybench.registry import SAMPLE, SCENARIOS


@dataclass(frozen=True)
class RandomParams:
    """How many samples go: exactly one of the two fields. ``ValueError`` for none, both, or out of range."""

    fraction: float | None = None
    """Share of the training split, above 0 and below 1."""
    count: int | None = None
    """Number of samples, at least 1."""

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise ValueError(
                "scenario random must have exactly one of fraction and count, "
                f"got fraction {self.fraction!r} and count {self.count!r}; write for example `fraction: 0.1`"
            )
        if self.fraction is not None and not (isinstance(self.fraction, int | float) and 0 < self.fraction < 1):
            raise ValueError(f"fraction must be above 0 and below 1, got {self.fraction!r}; change it")
        whole = isinstance(self.count, int | np.integer) and not isinstance(self.count, bool)
        if self.count is not None and not (whole and self.count >= 1):
            raise ValueError(f"count must be an integer of at least 1, got {self.count!r}; change it")


@SCENARIOS.register("random", params=RandomParams, kind=SAMPLE, label="Random samples")
def random(
    images: np.ndarray, labels: np.ndarray, num_classes: int, params: RandomParams, rng: np.random.Generator
) -> Request:
    """Samples drawn uniformly without replacement (labels int64 [N]); a fraction is rounded to whole samples.

    Raises ``UserError`` where that leaves nothing to forget or nothing to retain.
    """
    total = len(labels)
    asked = f"count {params.count}" if params.fraction is None else f"fraction {params.fraction}"
    count = params.count if params.fraction is None else round(params.fraction * total)
    if count is None or not 1 <= count < total:
        raise UserError(
            f"scenario random must forget 1 to {total - 1} of {total} training samples, got {asked}; change it"
        )
    forget = np.zeros(total, dtype=bool)
    forget[rng.choice(total, size=count, replace=False)] = True
    return Request(forget=forget)
