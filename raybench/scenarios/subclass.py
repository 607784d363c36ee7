"""Forget subclasses: one kind of thing goes, its superclass stays (CIFAR-20: rockets, but not vehicles)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raybench.data import Request, Source
from raybench.errors import UserError, nearest
from raybench.registry import SAMPLE, SCENARIOS


@dataclass(frozen=True)
class SubclassParams:
    """Which subclasses go. ``ValueError`` for something else than distinct names or numbers."""

    subclasses: tuple[int | str, ...] = (0,)
    """Names, or numbers from 0, of subclasses; a single one is taken for a list of one."""

    def __post_init__(self) -> None:
        given = self.subclasses
        listed = tuple(given) if isinstance(given, list | tuple) else (given,)
        fits = all(isinstance(s, str) or (isinstance(s, int) and not isinstance(s, bool) and s >= 0) for s in listed)
        if not listed or not fits or len(set(listed)) < len(listed):
            raise ValueError(
                f"subclasses must be distinct names or numbers from 0, at least one, got {given!r}; "
                "write them as [rocket, 69]"
            )
        object.__setattr__(self, "subclasses", listed)


@SCENARIOS.register("subclass", params=SubclassParams, kind=SAMPLE, label="Subclass")
def subclass(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    params: SubclassParams,
    rng: np.random.Generator,
    source: Source,
) -> Request:
    """All training samples of the given subclasses; their superclasses stay.

    The labels (int64 [N]) do not tell them apart from the rest of their superclass. Draws nothing from ``rng``.

    Raises ``UserError`` for a dataset without subclasses, for one that it lacks, and where a superclass would go whole
    (that is what the scenario ``class`` is for).
    """
    if source.fine is None:
        raise UserError(
            f"scenario subclass must have a dataset with subclasses (cifar20), got {source.name}; use scenario class"
        )
    names = list(source.fine_names)
    wanted = []
    for given in params.subclasses:
        number = names.index(given) if given in names else given
        if number not in source.fine:
            close = nearest(str(given), names)
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has {len(names)}, such as {names[0]}"
            raise UserError(f"subclasses of scenario subclass must be those of {source.name}, got {given!r}; {hint}")
        wanted.append(number)
    forget = np.isin(source.fine, wanted)
    gone = sorted(set(labels[forget].tolist()) - set(labels[~forget].tolist()))
    if gone:
        raise UserError(
            f"scenario subclass must leave a part of each superclass, got all subclasses of {gone[0]}; "
            "name fewer, or use the scenario class"
        )
    return Request(forget=forget)
