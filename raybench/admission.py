"""Whether a spec may go on in a results folder that has rows already; a ``UserError`` before anything runs there."""

from __future__ import annotations

import json

from raybench.errors import UserError
from raybench.leaderboard.store import ResultStore
from raybench.ledger import Ledger
from raybench.plan import Plan
from raybench.spec import PROTOCOL, SEARCH


def check_protocol(store: ResultStore, results: str) -> None:
    """Rows of another protocol version are not comparable; refuse the folder before anything runs there."""
    found = sorted(set(store.trials(columns=["protocol"])["protocol"]) - {PROTOCOL}) if store.ids() else []
    if found:
        raise UserError(
            f"a results folder must hold rows of one protocol version, got {', '.join(found)} in {results} and this "
            f"is {PROTOCOL}; give the new run another --results"
        )


def check_devices(store: ResultStore, results: str, plan: Plan) -> None:
    """The leaderboard would lose the lines of a device type that is not here."""
    if not plan.experiment.each_device or not store.ids():
        return
    lost = sorted(set(store.trials(columns=["device_type"])["device_type"]) - set(plan.device_types))
    if lost:
        raise UserError(
            f"devices: each must find the device types of the rows that are there, got no {', '.join(lost)} here "
            f"and such rows in {results}; go on where they ran, or give --results"
        )


def check_names(ledger: Ledger, plan: Plan, results: str) -> None:
    """With ``devices: each`` and without it the same reference rows stand under other names."""
    for request in plan.references():
        row, variant = ledger.rows.get(request.spec.trial_id), request.context.get("variant", request.spec.variant)
        if row is not None and row["variant"] != variant:
            raise UserError(
                "one results folder must be run with devices: each or without it, got "
                f"{request.spec.method} of variant {row['variant']!r} where this spec has {variant!r} in {results}; "
                "give the new run another --results (and the same --store)"
            )


def check_objective(ledger: Ledger, metric: str, results: str) -> None:
    """Two searches may share a trial: one that was run for another objective must have measured this one too."""
    for row in ledger.rows.values():
        known = row.get(metric) is not None or metric in json.loads(row.get("missing") or "{}")
        if row["phase"] == SEARCH and row["status"] == "ok" and not known:
            raise UserError(
                f"a search that minimises {metric} needs search trials that measured it, got trial {row['trial_id']} "
                f"without in {results}; give the new run another --results"
            )
