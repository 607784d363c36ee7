"""Forget whole classes: a person, a product or a topic has to go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raybench.data import Request
from raybench.errors import UserError
from raybench.registry import CLASS, SCENARIOS


@dataclass(frozen=True)
class ClassParams:
    """Which classes go. ``ValueError`` for something else than distinct class numbers."""

    classes: tuple[int, ...] = (0,)
    """Class numbers, from 0; a single number is taken for a list of one. Kept sorted."""

    def __post_init__(self) -> None:
        given = self.classes
        classes = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not classes or any(isinstance(c, bool) or not isinstance(c, int | np.integer) or c < 0 for c in classes):
            raise ValueError(f"classes must be class numbers from 0, at least one, got {given!r}; write them as [0, 3]")
        if len(set(classes)) < len(classes):
            raise ValueError(f"classes must differ, got {given!r}; name each once")
        object.__setattr__(self, "classes", tuple(sorted(int(c) for c in classes)))


@SCENARIOS.register("class", params=ClassParams, kind=CLASS, label="Class")
def class_(
    images: np.ndarray, labels: np.ndarray, num_classes: int, params: ClassParams, rng: np.random.Generator
) -> Request:
    """All training samples of the given classes (labels int64 [N]); draws nothing from ``rng``.

    Raises ``UserError`` for a class that the dataset lacks, and where no class would be left.
    """
    present = np.unique(labels)
    absent = [label for label in params.classes if label not in present]
    if absent:
        raise UserError(
            f"classes of scenario class must be classes of the dataset, got {', '.join(map(str, absent))}; "
            f"it has training samples of {', '.join(map(str, present))}"
        )
    if len(params.classes) == len(present):
        raise UserError(
            f"scenario class must leave at least one class to retain, got all {len(present)}; name fewer classes"
        )
    return Request(forget=np.isin(labels, params.classes), forget_classes=params.classes)
