"""One line of the leaderboard from its rows: means, intervals over train seeds, costs, gates and status."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from raybench.leaderboard.schema import STATUSES, MetricInfo
from raybench.leaderboard.statistics import Interval, t_interval

REFERENCES = ("original", "retrain")
AVERAGED = ("speedup", "retrain_s", "original_train_s", "forward_passes", "backward_passes", "retrain_share", "cpu_s")
_FIRST = ("original_kind", "device_type", "selected_on", "selected_by", "hparams")


def metrics_with_retrained(rows: pd.DataFrame, metrics: Sequence[MetricInfo]) -> list[str]:
    """The metrics whose rows have a retrained value beside them.

    A metric of a pair of models (distance, divergences) has none: it is itself the difference.
    """
    names = [metric.name for metric in metrics]
    return [name for name in names if f"{name}_retrained" in rows and rows[f"{name}_retrained"].notna().any()]


def gold_floors(
    rows: pd.DataFrame, metrics: Sequence[MetricInfo], with_retrained: Sequence[str]
) -> dict[str, Interval]:
    """Metric -> mean absolute difference between two retrained models of one problem, over train seeds."""
    golds = rows[(rows["method"] == "retrain") & (rows["unlearn_seed"] >= 1) & (rows["status"] == "ok")]
    return {
        m.name: interval_of(golds, f"{m.name}_gap" if m.name in with_retrained else m.name, absolute=True)
        for m in metrics
    }


def make_line(
    line: Mapping[str, Any], rows: pd.DataFrame, metrics: Sequence[MetricInfo], floors: Mapping[str, Interval]
) -> dict[str, Any]:
    """The columns of a line that its own ``rows`` (and the floors of its problem) decide."""
    rows = rows.sort_values(["train_seed", "unlearn_seed"], kind="stable")
    rows = compared_rows(rows)
    ok = rows[rows["status"] == "ok"]
    out: dict[str, Any] = {"kind": "reference" if line["method"] in REFERENCES else "method"}
    for metric in metrics:
        name, floor = metric.name, floors[metric.name]
        value, gap = interval_of(ok, name), interval_of(ok, f"{name}_gap")
        out |= {name: value.mean, f"{name}_lo": value.lo, f"{name}_hi": value.hi}
        out |= {f"{name}_gap": gap.mean, f"{name}_gap_lo": gap.lo, f"{name}_gap_hi": gap.hi}
        out[f"{name}_retrained"] = interval_of(ok, f"{name}_retrained").mean
        out |= {f"{name}_floor": floor.mean, f"{name}_floor_hi": floor.hi}
    seconds = interval_of(ok, "unlearn_s")
    out |= {"unlearn_s": seconds.mean, "unlearn_s_lo": seconds.lo, "unlearn_s_hi": seconds.hi}
    out |= {name: interval_of(ok, name).mean for name in AVERAGED}
    out |= {name: _largest(ok, name) for name in ("peak_memory", "artefact_bytes")}
    size = rows["forget_size"].dropna()
    out["forget_size"] = round(size.mean()) if len(size) else None
    shown = ok if len(ok) else rows
    out |= {name: text_or_none(shown[name].iloc[0]) for name in _FIRST}
    tuned = ok["tuned_here"].dropna().astype(float)
    out["tuned_here"] = float(tuned.mean()) if len(tuned) else None
    out["n"] = int(ok["train_seed"].nunique())
    out["gates"] = merged_gates(ok["gates"])
    return out | status_of(rows)


def compared_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """A line's rows without the reference that gaps are measured from (``retrain`` at gold index 0), where there are
    further ones."""
    beside = rows[(rows["method"] != "retrain") | (rows["unlearn_seed"] >= 1)]
    return beside if len(beside) else rows


def values_by_seed(rows: pd.DataFrame, column: str, absolute: bool = False) -> dict[int, float]:
    """Train seed -> mean over unlearn seeds (of absolute values if asked); seeds without a value are left out."""
    if column not in rows:
        return {}
    by: dict[int, list[float]] = {}  # plain Python: a group-by of so few rows costs a hundred times as much
    for seed, value in zip(rows["train_seed"].tolist(), rows[column].astype("float64").tolist(), strict=True):
        if not math.isnan(value):
            by.setdefault(seed, []).append(abs(value) if absolute else value)
    return {seed: sum(by[seed]) / len(by[seed]) for seed in sorted(by)}


def interval_of(rows: pd.DataFrame, column: str, absolute: bool = False) -> Interval:
    """Mean over train seeds of ``values_by_seed``, with its interval."""
    return t_interval(list(values_by_seed(rows, column, absolute).values()))


def _largest(rows: pd.DataFrame, column: str) -> int | None:
    values = rows[column].dropna()
    return int(values.max()) if len(values) else None


def text_or_none(value: Any) -> str | None:
    """Null where a column holds no text."""
    return value if isinstance(value, str) else None


def merged_gates(column: Iterable[Any]) -> str:
    """Gate -> true when it holds in every row that could judge it, null when none could."""
    merged: dict[str, bool | None] = {}
    for text in column:
        for gate, holds in json.loads(text).items() if isinstance(text, str) else ():
            before = merged.get(gate)
            merged[gate] = before if holds is None else bool(holds) and before is not False
    return json.dumps(merged, sort_keys=True)


def status_of(rows: pd.DataFrame) -> dict[str, Any]:
    """``status`` (the worst), ``status_counts`` (JSON) and ``reason`` of a line's rows."""
    found = rows["status"].value_counts()
    counts = {status: int(found[status]) for status in STATUSES if status in found.index}
    worst = max(counts, key=STATUSES.index)
    reason = None
    if worst != "ok":
        reasons = rows.loc[rows["status"] == worst, "reason"].dropna()
        told = str(reasons.iloc[0]) if len(reasons) else worst
        reason = told if counts[worst] == len(rows) else f"{counts[worst]} of {len(rows)} {worst}: {told}"
    return {"status": worst, "status_counts": json.dumps(counts), "reason": reason}
