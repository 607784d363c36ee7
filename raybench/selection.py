"""Which setting a search has found: its tried settings read back from rows, and the rules that choose one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybench.experiment import OBJECTIVES
from raybench.ledger import Ledger, Row
from raybench.rounds import Search

DISTANCE = OBJECTIVES["distance"][0]


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


def settings_of(search: Search, ledger: Ledger) -> Iterator[Tried]:
    """The settings that the searches table knows, in index order, up to the budget."""
    for number in range(search.rounds):
        for index in range(search.size_of(number)):
            keys = [(search.id, number, index, seed) for seed in search.plan.seeds]
            if any(key not in ledger.table for key in keys):
                return
            ids = tuple(ledger.table[key][0] for key in keys)
            rows = [ledger.rows.get(trial_id) for trial_id in ids]
            point = ledger.table[keys[0]][1]
            values = _objectives(rows, search.plan.metric)
            yield Tried(number, index, point, values, all(row is not None for row in rows), ids)


def _objectives(rows: Sequence[Row | None], metric: str) -> tuple[float, float] | None:
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
    Where no setting is usable it is the first one, and the note says so.
    """
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


def distance_floor(golds: Iterable[str], ledger: Ledger) -> float:
    """Mean gold-vs-gold distance (validation) over the rows ``golds`` (trial ids of the retrained models beside the
    reference) that exist; 0 with one gold model, and without one: a retrained-free search has no floor."""
    rows = [ledger.rows[trial_id] for trial_id in golds if trial_id in ledger.rows]
    found = [row[DISTANCE] for row in rows if row["status"] == "ok" and row.get(DISTANCE) is not None]
    return sum(found) / len(found) if found else 0.0


def tuning_cost(search: Search, ledger: Ledger) -> float:
    """Charged seconds of all trials of a search, and of retraining on its seeds where the objective used that."""
    ids = {trial_id for s in settings_of(search, ledger) for trial_id in s.trial_ids}
    rows = [ledger.rows[i] for i in ids if i in ledger.rows]
    seconds: float = sum(row["unlearn_s"] or 0.0 for row in rows if row.get("unlearn_s") is not None)
    used = rows if search.plan.selected_on == "retrained" else []
    retrains = {row["train_seed"]: row["retrain_s"] for row in used if row.get("retrain_s") is not None}
    return float(seconds + sum(retrains.values()))
