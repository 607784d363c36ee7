"""Repeated requests: small random sets withdraw one after the other; a method starts each time from what it left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raybench.data import Request
from raybench.errors import UserError
from raybench.registry import SAMPLE, SCENARIOS


@dataclass(frozen=True)
class RepeatedParams:
    """How many requests of what size. ``ValueError`` for values outside their ranges."""

    requests: int = 5
    """Number of requests."""
    fraction: float = 0.02
    """Share of the training split that each of them withdraws, above 0 and below 1."""

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise ValueError(f"requests must be at least 1, got {self.requests}; change it")
        if not (isinstance(self.fraction, int | float) and 0 < self.fraction < 1):
            raise ValueError(f"fraction must be above 0 and below 1, got {self.fraction!r}; change it")


@SCENARIOS.register(
    "repeated",
    params=RepeatedParams,
    kind=SAMPLE,
    label="Repeated requests",
    in_turn=lambda params: params.requests > 1,
)
def repeated(
    images: np.ndarray, labels: np.ndarray, num_classes: int, params: RepeatedParams, rng: np.random.Generator
) -> Request:
    """Disjoint random sets (labels int64 [N]), asked for one after the other; D_f is all of them together.

    The sets of n requests are the first n of those of n + 1 requests, so the lines of ``requests`` 1, 2, ... of one
    spec show how a method drifts from retraining, and its cost is that of the whole sequence. Raises ``UserError``
    where a request would be empty or nothing would be retained.
    """
    total, size = len(labels), round(params.fraction * len(labels))
    if size < 1 or params.requests * size >= total:
        raise UserError(
            f"scenario repeated must withdraw at least one of {total} samples a request and keep some, got "
            f"{params.requests} requests of {size}; change requests or fraction"
        )
    order = rng.permutation(total)
    given = []
    for number in range(params.requests):
        mask = np.zeros(total, dtype=bool)
        mask[order[number * size : (number + 1) * size]] = True
        given.append(mask)
    return Request(forget=np.any(given, axis=0), given=tuple(given))
