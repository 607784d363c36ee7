"""One line of the leaderboard from its rows: means, intervals over train seeds, costs, gates and status."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raybench.leaderboard.schema import STATUSES, MetricInfo, metric_columns
from raybench.leaderboard.statistics import IN_TURN, Interval, t_factor, t_interval

Columns = Mapping[str, Sequence[Any]]  # rows as equally long lists, by column
REFERENCES = ("original", "retrain")
AVERAGED = ("speedup", "retrain_s", "original_train_s", "forward_passes", "backward_passes", "retrain_share", "cpu_s")
_FIRST = ("original_kind", "device_type", "selected_on", "selected_by", "hparams")
# What a line is told from beside its numbers.
TOLD = (
    "method", "variant", "status", "reason", "train_seed", "unlearn_seed", "forget_size", "peak_memory",
    "artefact_bytes", "tuned_here", "gates", *_FIRST,
)  # fmt: skip


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
    line: Mapping[str, Any],
    rows: Columns,
    numbers: NDArray[np.float64],
    metrics: Sequence[MetricInfo],
    floors: Mapping[str, Interval],
) -> dict[str, Any]:
    """The columns of a line that its own rows (and the floors of its problem) decide: ``rows`` has ``TOLD``, and
    ``numbers`` the columns ``numeric_columns(metrics)`` of the same rows, [rows, columns], NaN where there is none."""
    seeds = list(zip(rows["train_seed"], rows["unlearn_seed"], strict=True))
    at = set(compared(rows["method"], rows["unlearn_seed"]))
    order = [i for i in sorted(range(len(seeds)), key=seeds.__getitem__) if i in at]
    right = [i for i in order if rows["status"][i] == "ok"]
    ok, rows = take(rows, right), take(rows, order)
    names = numeric_columns(metrics)
    found = dict(zip(names, intervals(numbers[right], ok["train_seed"]), strict=True))
    out: dict[str, Any] = {"kind": "reference" if line["method"] in REFERENCES else "method"}
    for metric in metrics:
        name, floor = metric.name, floors[metric.name]
        value, retrained, gap = (found[column] for column in metric_columns(name))
        out |= {name: value.mean, f"{name}_lo": value.lo, f"{name}_hi": value.hi}
        out |= {f"{name}_gap": gap.mean, f"{name}_gap_lo": gap.lo, f"{name}_gap_hi": gap.hi}
        out[f"{name}_retrained"] = retrained.mean
        out |= {f"{name}_floor": floor.mean, f"{name}_floor_hi": floor.hi}
    seconds = found["unlearn_s"]
    out |= {"unlearn_s": seconds.mean, "unlearn_s_lo": seconds.lo, "unlearn_s_hi": seconds.hi}
    out |= {name: found[name].mean for name in AVERAGED}
    for name in ("peak_memory", "artefact_bytes"):
        known = _numbers(ok[name])
        out[name] = int(max(known)) if known else None
    size = _numbers(rows["forget_size"])
    out["forget_size"] = round(sum(size) / len(size)) if size else None
    shown = ok if right else rows
    out |= {name: text_or_none(shown[name][0]) for name in _FIRST}
    tuned = _numbers(ok["tuned_here"])
    out["tuned_here"] = sum(tuned) / len(tuned) if tuned else None
    out["n"] = len(set(ok["train_seed"]))
    out["gates"] = merged_gates(ok["gates"])
    return out | status_of(rows)


def numeric_columns(metrics: Sequence[MetricInfo]) -> list[str]:
    """The columns that a line has means of."""
    return [*(column for metric in metrics for column in metric_columns(metric.name)), "unlearn_s", *AVERAGED]


def numbers_of(rows: pd.DataFrame, names: Sequence[str]) -> NDArray[np.float64]:
    """[rows, columns]; NaN where a row has no number, or the rows no such column."""
    out = np.full((len(rows), len(names)), np.nan)
    for i, name in enumerate(names):
        if name in rows:
            out[:, i] = rows[name].to_numpy(dtype=np.float64, na_value=np.nan)
    return out


def intervals(numbers: NDArray[np.float64], seeds: Sequence[int]) -> list[Interval]:
    """``interval_of`` of each column of ``numbers`` [rows, columns], a row for each of the train ``seeds``."""
    count, columns = numbers.shape
    absent = np.isnan(numbers)
    whole = ~absent.any(axis=0) & np.isfinite(numbers).all(axis=0)
    quick = 2 <= count <= IN_TURN and len(set(seeds)) == count
    found = [Interval(math.nan, math.nan, math.nan, 0)] * columns
    if quick:  # all at once, to the same bit: NumPy adds rows up one after the other
        values = numbers[:, whole]
        mean = values.sum(axis=0) / count
        spread = np.sqrt(((values - mean) * (values - mean)).sum(axis=0) / (count - 1))
        half = t_factor(count - 1) * spread / math.sqrt(count)
        ends = zip(mean.tolist(), (mean - half).tolist(), (mean + half).tolist(), strict=True)
        for column, (middle, low, high) in zip(np.flatnonzero(whole).tolist(), ends, strict=True):
            found[column] = Interval(middle, low, high, count)
    for column in np.flatnonzero(~absent.all(axis=0) & ~(whole & quick)).tolist():
        found[column] = interval_of({"train_seed": seeds, "value": numbers[:, column].tolist()}, "value")
    return found


def columns_of(rows: pd.DataFrame) -> Columns:
    """The rows as plain lists: looking a few of them up in a frame costs a hundred times as much."""
    return {str(name): rows[name].tolist() for name in rows.columns}


def take(rows: Columns, positions: Sequence[int]) -> Columns:
    """The rows at ``positions``."""
    return {name: [values[i] for i in positions] for name, values in rows.items()}


def compared(methods: Sequence[str], unlearn_seeds: Sequence[int]) -> list[int]:
    """Positions of a line's rows without the reference that gaps are measured from (``retrain`` at gold index 0), where
    there are further ones."""
    beside = [i for i, (m, seed) in enumerate(zip(methods, unlearn_seeds, strict=True)) if m != "retrain" or seed >= 1]
    return beside or list(range(len(methods)))


def compared_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """``compared``, of rows in a frame."""
    return rows.iloc[compared(rows["method"].tolist(), rows["unlearn_seed"].tolist())]


def values_by_seed(rows: pd.DataFrame | Columns, column: str, absolute: bool = False) -> dict[int, float]:
    """Train seed -> mean over unlearn seeds (of absolute values if asked); seeds without a value are left out."""
    if column not in rows:
        return {}
    by: dict[int, list[float]] = {}  # plain Python: a group-by of so few rows costs a hundred times as much
    for seed, value in zip(rows["train_seed"], rows[column], strict=True):
        if value is not None and not math.isnan(value):
            by.setdefault(seed, []).append(float(abs(value) if absolute else value))
    return {seed: sum(by[seed]) / len(by[seed]) for seed in sorted(by)}


def interval_of(rows: pd.DataFrame | Columns, column: str, absolute: bool = False) -> Interval:
    """Mean over train seeds of ``values_by_seed``, with its interval."""
    return t_interval(list(values_by_seed(rows, column, absolute).values()))


def _numbers(values: Iterable[Any]) -> list[float]:
    """Those that are there, as numbers."""
    return [float(value) for value in values if value is not None and value == value]


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


def status_of(rows: pd.DataFrame | Columns) -> dict[str, Any]:
    """``status`` (the worst), ``status_counts`` (JSON) and ``reason`` of a line's rows."""
    found = list(rows["status"])
    counts = {status: found.count(status) for status in STATUSES if status in found}
    worst = max(counts, key=STATUSES.index)
    reason = None
    if worst != "ok":
        reasons = [text_or_none(r) for s, r in zip(found, rows["reason"], strict=True) if s == worst]
        told = next((reason for reason in reasons if reason is not None), worst)
        reason = told if counts[worst] == len(found) else f"{counts[worst]} of {len(found)} {worst}: {told}"
    return {"status": worst, "status_counts": json.dumps(counts), "reason": reason}
