"""``raybench status``: how a run is doing, from its results folder alone, on any machine that sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from raybench.errors import UserError
from raybench.facts import kept_plan
from raybench.folder import open_folder
from raybench.leaderboard.lock import lives, name_of, read_holder
from raybench.leaderboard.store import ResultStore
from raybench.ledger import read_ledger
from raybench.progress import bad_line
from raybench.stages import count, trials_of

LATELY_S = 300.0  # the pace is that of the last five minutes, or since the driver started
NAMED = 10  # failed rows that people are shown; JSON has all
_COLUMNS = (
    "trial_id", "attempt", "status", "reason", "phase", "dataset", "model", "scenario", "method", "train_seed",
    "started_at", "wall_s",
)  # fmt: skip


def status(results: str) -> dict[str, Any]:
    """What is known of the run in ``results`` (path or URL). Writes nothing.

    ``state`` is running, finished or stopped; ``stages`` is null where this machine cannot make the plan (``note``
    says why); ages are by this machine's clock.
    """
    if not open_folder(results).exists():
        raise UserError(f"status must have a results folder, got {results}, which is not there; check the path")
    store, now = ResultStore(results), time.time()
    rows = store.trials(attempts=True, columns=list(_COLUMNS))
    holder = read_holder(store.folder)
    running = holder is not None and lives(holder)
    report: dict[str, Any] = {"results": results, "driver": None, "doing": {}, "stages": None, "note": ""}
    if holder is not None:
        report["driver"] = {
            "name": name_of(holder),
            "host": holder["host"],
            "heartbeat_age_s": max(0.0, now - float(holder["heartbeat"])),
            "alive": running,
        }
        report["doing"] = holder.get("doing", {}) if running else {}
    wanted: set[str] | None = None
    try:
        plan, ledger = kept_plan(results), read_ledger(store)
        report["stages"] = count(plan, ledger)
        wanted = {trial_id for trial_ids in trials_of(plan, ledger).values() for trial_id in trial_ids}
    except UserError as error:
        report["note"] = f"trials to come are unknown here: {error}"
    left = None if report["stages"] is None else sum(stage["to_run"] for stage in report["stages"].values())
    report["state"] = "running" if running else "finished" if left == 0 else "stopped"
    since = float(holder.get("since", now)) if holder is not None and running else None
    return report | _pace(rows, now, since, left) | _failed(rows, wanted)


def _pace(rows: pd.DataFrame, now: float, since: float | None, left: int | None) -> dict[str, Any]:
    """Rows lately, and how long the rest takes at that pace; null where no driver runs."""
    ended = rows["started_at"].map(lambda moment: moment.timestamp()) + rows["wall_s"].fillna(0.0)
    found: dict[str, Any] = {
        "rows": len(rows),
        "last_row_age_s": max(0.0, now - float(ended.max())) if len(rows) else None,
        "rows_per_minute": None,
        "left_s": None,
    }
    if since is None or now <= since:
        return found
    window = min(LATELY_S, now - since)
    pace = float((ended > now - window).sum()) / window
    found["rows_per_minute"] = 60.0 * pace
    if left is not None and pace > 0:
        found["left_s"] = left / pace
    return found


def _failed(rows: pd.DataFrame, wanted: set[str] | None) -> dict[str, Any]:
    """Failed rows that the spec asks for (a folder may hold those of an earlier version of it)."""
    last = rows.sort_values("attempt", kind="stable").drop_duplicates("trial_id", keep="last")
    failed = [
        row
        for row in last[last["status"] == "failed"].to_dict("records")
        if wanted is None or row["trial_id"] in wanted
    ]
    kept = ("trial_id", "phase", "dataset", "model", "scenario", "method", "train_seed", "status", "reason")
    return {
        "again": int(rows["attempt"].gt(0).sum()),  # rows of a second or later attempt
        "failed": [{key: row[key] for key in kept} for row in failed],
    }


def render_status(report: Mapping[str, Any], form: str) -> str:
    """The report as JSON or for people."""
    return json.dumps(report, indent=1) if form == "json" else _table(report)


def _table(report: Mapping[str, Any]) -> str:
    driver, doing = report["driver"], report["doing"]
    lines = [f"{report['results']}: {report['state']}"]
    if driver is not None:
        said = "heartbeat" if driver["alive"] else "gone, the same command goes on; last heartbeat"
        lines.append(f"driver: {driver['name']}, {said} {_span(driver['heartbeat_age_s'])} ago")
    if doing.get("slots"):
        slots = f"{doing['running']} of {doing['slots']} slots busy, {doing['waiting']} trials waiting"
        lines.append(f"now: {doing.get('stage', 'starting')}, {slots}")
    if report["stages"] is not None:
        lines.append(_stages(report["stages"]))
    if report["last_row_age_s"] is not None:
        lines.append(f"{report['rows']} rows, the last {_span(report['last_row_age_s'])} ago{_outlook(report)}")
    if report["again"]:
        lines.append(f"{report['again']} of them from a second or later attempt")
    lines += [bad_line(row) for row in report["failed"][:NAMED]]
    if len(report["failed"]) > NAMED:
        lines.append(f"... {len(report['failed'])} failed in all (--format json has every one)")
    return "\n".join([*lines, *filter(None, [report["note"]])])


def _outlook(report: Mapping[str, Any]) -> str:
    pace = "" if report["rows_per_minute"] is None else f"; {report['rows_per_minute']:.1f} a minute lately"
    return pace + ("" if not report["left_s"] else f", about {_span(report['left_s'])} left")


def _stages(stages: Mapping[str, Mapping[str, int]]) -> str:
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "trials", "done", "failed", "to run"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, stage in stages.items():
        if name != "oracles" or stage["total"]:
            table.add_row(name, *(str(stage[key]) for key in ("total", "done", "failed", "to_run")))
    console = Console(width=100, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def _span(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
