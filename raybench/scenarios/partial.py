"""Partial knowledge: only a part of what must be forgotten is known, the rest stands among the data to retain."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from raybench.data import Request
from raybench.errors import UserError
from raybench.registry import SAMPLE, SCENARIOS
from raybench.space import resolve


@dataclass(frozen=True)
class PartialParams:
    """What must go, and how much of it is known. ``ValueError`` for a share outside its range."""

    known: float = 0.5
    """Share of D_f that the method is told of, above 0 and below 1."""
    of: str = "label_noise"
    """The scenario that makes D_f: one of samples that has a ``fraction``."""
    fraction: float = 0.2
    """The ``fraction`` of that scenario."""

    def __post_init__(self) -> None:
        if not (isinstance(self.known, int | float) and 0 < self.known < 1):
            raise ValueError(f"known must be above 0 and below 1, got {self.known!r}; change it")


@SCENARIOS.register(
    "partial",
    params=PartialParams,
    kind=SAMPLE,
    label="Partial knowledge",
    paper="arXiv:2402.14015",
    corrupts=lambda params: _inner(params)[0].corrupts(_inner(params)[1]),
)
def partial(
    images: np.ndarray, labels: np.ndarray, num_classes: int, params: PartialParams, rng: np.random.Generator
) -> Request:
    """The request of another scenario, of which a method is given a random part (Goel et al. 2024, corrective
    unlearning): the rest of D_f stands in the retain set that it trains on. Metrics and the retrained model go by all
    of D_f.

    Raises ``UserError`` where the other scenario does, where it is none of samples with a fraction, and where the share
    rounds to none or all of D_f.
    """
    entry, inner = _inner(params)
    request: Request = entry.fn(images, labels, num_classes, inner, rng)
    if request.repeats > 1:
        raise UserError(f"scenario partial must be of a scenario that repeats no sample, got {params.of}; change of")
    members = np.flatnonzero(request.forget)
    count = round(params.known * len(members))
    if not 1 <= count < len(members):
        raise UserError(
            f"scenario partial must know 1 to {len(members) - 1} of {len(members)} samples to forget, got known "
            f"{params.known}; change it"
        )
    known = np.zeros(len(labels), dtype=bool)
    known[rng.choice(members, size=count, replace=False)] = True
    return dataclasses.replace(request, given=(known,))


def _inner(params: PartialParams) -> tuple[Any, Any]:
    """The scenario within, and its parameters."""
    entry = SCENARIOS[params.of]
    names = [field.name for field in dataclasses.fields(entry.params)]
    if entry.kind != SAMPLE or "fraction" not in names or params.of == "partial":
        raise UserError(
            f"scenario partial must be of a scenario of samples with a fraction, got {params.of}; change of"
        )
    return entry, resolve(entry.params, {"fraction": params.fraction}, f"scenario {params.of}")
