"""What a search minimises, and the rules that choose one of the settings it tried; plain functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAPER = "paper"
RULES = ("distance", "knee", PAPER)
# Objective of a search -> the metric it minimises beside sample passes, and what that looks at (``selected_on``).
OBJECTIVES = {"distance": ("distance_validation", "retrained"), "retrained_free": ("retrained_free", "validation")}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Tried:
    """One setting of a search: its point, averaged (objective, passes) where every seed is ok, None otherwise.
    ``complete``: all its trials have rows."""

    round: int
    index: int
    point: Mapping[str, Any]
    values: tuple[float, float] | None
    complete: bool
    trial_ids: tuple[str, ...]


def averaged(rows: Sequence[Row | None], metric: str) -> tuple[float, float] | None:
    """Mean of (``metric``, share of a retraining's passes) over the rows of a setting's seeds; None where one of them
    is absent, not ok or without a finite number."""
    values = []
    for row in rows:
        if row is None or row["status"] != "ok":
            return None
        distance, passes = row.get(metric), row.get("retrain_share")
        if distance is None or passes is None or not math.isfinite(distance) or not math.isfinite(passes):
            return None
        values.append((distance, passes))
    return sum(v[0] for v in values) / len(values), sum(v[1] for v in values) / len(values)


def choose(settings: Sequence[Tried], rule: str, floor: float) -> tuple[Tried, str]:
    """The setting a rule selects and what is said of it.

    ``distance``: the smallest value of the objective, those within the floor of it told apart by sample passes.
    ``knee``: on the front of objective against passes, the setting nearest to the ideal corner (both axes scaled to
    the front, so that hopeless settings have no say).
    ``paper``: the first one, whatever its values: the method's default for the searched fields (a spec that asks for
    it without having it there is refused).
    Where no setting is usable it is the first one, and the note says so.
    """
    if rule == PAPER:
        return settings[0], rule
    usable = [s for s in settings if s.values is not None]
    if not usable:
        return settings[0], f"{rule} (no setting was usable: the first one stands)"
    if rule == "distance":
        best = min(s.values[0] for s in usable if s.values)
        tied = [s for s in usable if s.values and s.values[0] <= best + floor]
        return min(tied, key=lambda s: (s.values[1] if s.values else 0, s.values, s.round, s.index)), rule
    front = [s for s in usable if not any(_beats(other, s) for other in usable)]
    low = [min(s.values[i] for s in front if s.values) for i in (0, 1)]
    span = [max(s.values[i] for s in front if s.values) - low[i] or 1.0 for i in (0, 1)]

    def corner(setting: Tried) -> float:
        assert setting.values is not None
        return math.hypot(*((setting.values[i] - low[i]) / span[i] for i in (0, 1)))

    return min(front, key=lambda s: (corner(s), s.round, s.index)), rule


def _beats(one: Tried, other: Tried) -> bool:
    """Whether ``one`` is at least as good on both objectives and better on one."""
    assert one.values is not None
    assert other.values is not None
    return one.values != other.values and all(a <= b for a, b in zip(one.values, other.values, strict=True))
