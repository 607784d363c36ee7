"""Published cells beside the lines of a leaderboard: value, difference, verdict and its reason. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import pandas as pd
import pyarrow as pa

from raybench.leaderboard.published import PEAK, Cell, StandIn
from raybench.leaderboard.statistics import Interval, as_null, t_interval

AGREES, DIFFERS = "agrees", "differs"
NOT_BUILT, NOT_RUN, NOT_COMPARABLE = "not built", "not run", "not comparable"
VERDICTS = (AGREES, DIFFERS, NOT_COMPARABLE, NOT_RUN, NOT_BUILT)
ONE_SEED = "one train seed, so ours has no interval"

_TEXT = ("table", "row", "method", "variant", "dataset", "model", "scenario", "metric")
_REAL = ("published", "published_sd", "tolerance", "ours", "ours_lo", "ours_hi", "difference")
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in (*_TEXT, "our_problem")),
        *(pa.field(name, pa.float64()) for name in _REAL),
        pa.field("n", pa.int64()),
        *(pa.field(name, pa.string()) for name in ("verdict", "reason", "unit", "evidence", "source")),
    ]
)
_NOTHING = Interval(math.nan, math.nan, math.nan, 0)
_LINE = ("dataset", "model", "scenario", "method", "variant")
# Curves are named after the split that they look at, metrics after the accuracy.
_CURVES = {"test_accuracy_forgotten": "test_forgotten_accuracy"}


def compare(
    cells: Sequence[Cell],
    stand_ins: Sequence[StandIn],
    known: Mapping[str, AbstractSet[str]],
    leaderboard: pd.DataFrame,
    trials: pd.DataFrame,
    series: pd.DataFrame,
) -> pd.DataFrame:
    """One record per cell, in their order, with the columns of ``SCHEMA``.

    ``known``: registered names under methods, models, datasets and scenarios. ``leaderboard``, ``trials`` and
    ``series`` as a results folder has them. A cell agrees where the published value lies within our 95 % interval
    widened by its tolerance (printed sd, reading and rounding); with few seeds that interval is wide, so agreeing
    means that the two cannot be told apart.
    """
    lines = {tuple(line[name] for name in _LINE): line for line in leaderboard.to_dict("records")}
    finals = trials[trials["phase"].isin(["final", "reference"]) & (trials["status"] == "ok")]
    return pd.DataFrame(
        [_record(cell, *_judge(cell, stand_ins, known, lines, finals, series)) for cell in cells], columns=SCHEMA.names
    )


def _record(cell: Cell, value: Interval, problem: str, verdict: str, reason: str) -> dict[str, Any]:
    difference = None if cell.published is None else as_null(value.mean - cell.published)
    return {
        "table": cell.table,
        "row": cell.row,
        "method": cell.method,
        "variant": cell.variant,
        "dataset": cell.dataset,
        "model": cell.model,
        "scenario": cell.scenario,
        "metric": cell.what,
        "our_problem": problem or None,
        "published": cell.published,
        "published_sd": cell.sd,
        "tolerance": cell.tolerance,
        "ours": as_null(value.mean),
        "ours_lo": as_null(value.lo),
        "ours_hi": as_null(value.hi),
        "difference": difference,
        "n": value.n,
        "verdict": verdict,
        "reason": "; ".join(filter(None, (reason, cell.note if value.n else ""))),
        "unit": cell.unit,
        "evidence": cell.evidence,
        "source": cell.source,
    }


def _judge(
    cell: Cell,
    stand_ins: Sequence[StandIn],
    known: Mapping[str, AbstractSet[str]],
    lines: Mapping[tuple[Any, ...], Mapping[Any, Any]],
    finals: pd.DataFrame,
    series: pd.DataFrame,
) -> tuple[Interval, str, str, str]:
    """(our value, our problem, verdict, reason)."""
    if cell.method is None:
        return _NOTHING, "", NOT_BUILT, f"method {cell.row}"
    if cell.method not in known["methods"]:
        return _NOTHING, "", NOT_BUILT, f"method {cell.method}"
    mapped = [item for item in stand_ins if item.published == cell.problem]
    ours = [item for item in mapped if item.ours is not None]
    if not ours:
        missing = _missing(cell, known)
        if missing:
            return _NOTHING, "", NOT_BUILT, missing
        return _NOTHING, "", NOT_RUN, mapped[0].reason if mapped else "no problem of this scale stands for it"
    # Several may stand for one: the first that was run counts. With devices: each the line of the GPU does, if any.
    names = [cell.variant, *(", ".join(filter(None, (device, cell.variant))) for device in ("cuda", "cpu"))]
    keys = [((*(item.ours or ()), cell.method, name), item) for item in ours for name in names]
    found = next(((key, item.reason) for key, item in keys if key in lines), None)
    others = [other for key, _ in keys[: len(names)] if (other := _on_other_data(key, lines)) is not None]
    key: tuple[Any, ...] | None = found[0] if found else others[0] if others else None
    why = found[1] if found else ""
    if key is None:
        return _NOTHING, " / ".join(ours[0].ours or ()), NOT_RUN, f"no line {_name(cell)} in these results"
    if found is None:  # the spec was run with --set problems.0.dataset=..., say on a part of the images
        why = f"run on {key[0]}"
    line, problem = lines[key], " / ".join(key[:3])
    if cell.metric is None:
        return _NOTHING, problem, NOT_COMPARABLE, cell.reason
    value = _value(cell, line, finals, series)
    if math.isnan(value.mean):
        return value, problem, *_absent(cell, line)
    reasons = [text for text in (cell.reason, why) if text]
    if line["status"] != "ok":
        reasons.append(str(line["reason"]))
    if cell.published is None:
        return value, problem, NOT_COMPARABLE, "; ".join(["the source gives no number", *reasons])
    if cell.reason or why:
        return value, problem, NOT_COMPARABLE, "; ".join(reasons)
    if math.isnan(value.lo):
        return value, problem, NOT_COMPARABLE, "; ".join([*reasons, ONE_SEED])
    within = value.lo - cell.tolerance <= cell.published <= value.hi + cell.tolerance
    return value, problem, AGREES if within else DIFFERS, "; ".join(reasons)


def _on_other_data(key: tuple[Any, ...], lines: Mapping[tuple[Any, ...], Any]) -> tuple[Any, ...] | None:
    """The same model, scenario, method and variant on another dataset, where there is exactly one."""
    found = [other for other in lines if other[1:] == key[1:]]
    return found[0] if len(found) == 1 else None


def _missing(cell: Cell, known: Mapping[str, AbstractSet[str]]) -> str:
    parts = (("dataset", cell.dataset), ("model", cell.model), ("scenario", cell.scenario.partition("(")[0]))
    return ", ".join(f"{kind} {name}" for kind, name in parts if name not in known[f"{kind}s"])


def _name(cell: Cell) -> str:
    return f"{cell.method} ({cell.variant})" if cell.variant else str(cell.method)


def _absent(cell: Cell, line: Mapping[Any, Any]) -> tuple[str, str]:
    if line["status"] != "ok":
        return NOT_RUN, f"{line['status']}: {line['reason']}"
    if isinstance(cell.at, int):
        return NOT_RUN, f"no run of this scale has a checkpoint at step {cell.at}"
    if cell.at == PEAK:
        return NOT_RUN, "the method has no checkpoints, so no curve"
    return NOT_COMPARABLE, f"{cell.metric} was not measured here"


def _value(cell: Cell, line: Mapping[Any, Any], finals: pd.DataFrame, series: pd.DataFrame) -> Interval:
    """Our number, with its interval over train seeds."""
    assert cell.metric is not None
    column = f"{cell.metric}_gap" if cell.part == "gap" else cell.metric
    if cell.at is None and f"{column}_lo" in line:
        mean, lo, hi = (_number(line.get(column + end)) for end in ("", "_lo", "_hi"))
        return Interval(mean, lo, hi, int(line["n"]))
    rows = finals
    for name in _LINE:
        rows = rows[rows[name] == line[name]]
    rows = rows.drop_duplicates(["train_seed", "unlearn_seed"], keep="last")
    if cell.at is None:
        values = rows[column].astype("float64") if column in rows else pd.Series(dtype="float64")
    else:
        values = rows["trial_id"].map(_points(series, _CURVES.get(cell.metric, cell.metric), cell.at))
    return t_interval(values.astype("float64").groupby(rows["train_seed"]).mean())


def _points(series: pd.DataFrame, name: str, at: int | str) -> pd.Series[float]:
    """Trial id -> the curve's value at a step, or its highest."""
    curve = series[series["name"] == name]
    if at == PEAK:
        return curve.groupby("trial_id")["y"].max()
    return curve[curve["step"] == at].set_index("trial_id")["y"]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
