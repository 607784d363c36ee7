"""How far an experiment is: trials per stage, from the plan and the rows that exist."""

from __future__ import annotations

from collections.abc import Sequence

from raybench.ledger import Ledger
from raybench.plan import Plan
from raybench.selection import settings_of


def trials_of(plan: Plan, ledger: Ledger) -> dict[str, list[str]]:
    """Ids of the trials of each stage as far as they are known: settings of later rounds and finals are not."""
    settings = [found for search in plan.searches() for found in settings_of(search, ledger)]
    return {
        "references": list({request.spec.trial_id: None for request in plan.references()}),
        "search": [trial_id for setting in settings for trial_id in setting.trial_ids],
        "finals": [request.spec.trial_id for request in plan.finals(ledger)],
        "oracles": [request.spec.trial_id for request in plan.oracles(ledger)],
    }


def count(plan: Plan, ledger: Ledger) -> dict[str, dict[str, int]]:
    """Trials per stage: total, done (a row exists), failed (of these), to_run."""
    known = trials_of(plan, ledger)
    totals = {
        "references": len(known["references"]),
        "search": sum(search.plan.trials * len(search.plan.seeds) for search in plan.searches()),
        "finals": plan.count_finals(),
        "oracles": plan.count_oracles(),
    }
    return {stage: _stage(ledger, totals[stage], trial_ids) for stage, trial_ids in known.items()}


def _stage(ledger: Ledger, total: int, trial_ids: Sequence[str]) -> dict[str, int]:
    rows = [ledger.rows[trial_id] for trial_id in trial_ids if trial_id in ledger.rows]
    failed = sum(row["status"] == "failed" for row in rows)
    return {"total": total, "done": len(rows), "failed": failed, "to_run": total - len(rows)}
