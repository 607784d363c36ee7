"""``raybench show``: everything of one row, and the command that makes it again."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

import pandas as pd

from raybench.errors import UserError
from raybench.leaderboard.schema import CORE, JSON_COLUMNS, metric_columns
from raybench.leaderboard.store import ResultStore

Row = dict[str, Any]
_LISTED = 5  # of the ids that a prefix fits


def find_row(results: str, prefix: str) -> Row:
    """The last attempt of the trial whose id is ``prefix``, or the only one that starts with it.

    JSON columns are parsed, null is None. None or several that fit are a ``UserError``.
    """
    store = ResultStore(results)
    if not store.folder.exists():
        raise UserError(f"a results folder must exist, got {results}; check --results")
    trials = store.trials()
    ids = trials["trial_id"]
    fits = trials[ids == prefix] if (ids == prefix).any() else trials[ids.str.startswith(prefix)]
    if len(fits) != 1:
        said = "none" if not len(fits) else ", ".join(ids[fits.index][:_LISTED])
        more = f" and {len(fits) - _LISTED} more" if len(fits) > _LISTED else ""
        raise UserError(
            f"a trial must be an id, or the start of one id, in {results}, got {prefix!r} which fits {said}{more}; "
            "the ids are in the column trial_id of raybench.load_trials"
        )
    row = {str(name): _plain(value) for name, value in fits.iloc[0].to_dict().items()}
    return {name: json.loads(v) if name in JSON_COLUMNS and isinstance(v, str) else v for name, v in row.items()}


def _plain(value: Any) -> Any:
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return value.item() if hasattr(value, "item") else value


def command(row: Row, results: str) -> str:
    """What runs this trial alone once more, beside its row."""
    return f"raybench again {row['trial_id']} --results {shlex.quote(results)}"


def metrics_of_row(row: Row) -> list[str]:
    """The metrics that a row has columns of, in the row's order."""
    core = {column.name for column in CORE} | {"missing"}
    return [n for n in row if n not in core and all(c in row for c in metric_columns(n)) and f"{n}_gap" in row]


def render_row(row: Row, results: str, form: str = "table") -> str:
    """Everything of a row, for people or as one JSON object (with ``command``)."""
    if form == "json":
        return json.dumps({**row, "command": command(row, results)}, indent=2, allow_nan=False)
    text = [
        f"{row['dataset']} / {row['model']} / {row['scenario']}: {row['method']}"
        + (f" ({row['variant']})" if row["variant"] else ""),
        f"trial {row['trial_id']}, {row['phase']}, {row['status']}" + (f": {row['reason']}" if row["reason"] else ""),
    ]
    metrics = metrics_of_row(row)
    missing = row.get("missing") or {}
    width = max((len(name) for name in (*metrics, *row)), default=0)
    table = [("metric", "value", "retrained", "gap")]
    for name in metrics:
        numbers = [_number(row[column]) for column in metric_columns(name)]
        if any(numbers) or name in missing:
            table.append((name, *(numbers if any(numbers) else (f"missing: {missing[name]}", "", ""))))
    text += ["", *(f"{a:{width}}  {b:>12}  {c:>12}  {d:>12}".rstrip() for a, b, c, d in table)]
    for title, group in (("Hyperparameters", row["hparams"]), ("Gates", row["gates"]), ("Reported", row["reported"])):
        if group:
            text += ["", title, *(f"  {name:{width - 2}}  {json.dumps(value)}" for name, value in group.items())]
    for group_name in ("identity", "status", "cost", "provenance"):
        lines = [
            f"  {c.name:{width - 2}}  {_number(row.get(c.name))}{' ' + c.unit if c.unit and c.unit != 'UTC' else ''}"
            for c in CORE
            if c.group == group_name and c.name not in JSON_COLUMNS and row.get(c.name) not in (None, "")
        ]
        if lines:
            text += ["", group_name.capitalize(), *lines]
    return "\n".join([*text, "", f"again: {command(row, results)}"])


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
