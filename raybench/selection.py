"""The settings that a search has tried, read back from rows, and what they cost (``raybench.rules`` choose one)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raybench.ledger import Ledger
from raybench.rounds import Search
from raybench.rules import OBJECTIVES, Tried, averaged

DISTANCE = OBJECTIVES["distance"][0]


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
            values = averaged(rows, search.plan.metric)
            yield Tried(number, index, point, values, all(row is not None for row in rows), ids)


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
