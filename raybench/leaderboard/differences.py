"""What differs between two results beyond noise: line by line and metric by metric, over train seeds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from raybench.errors import UserError, unknown
from raybench.leaderboard.gathered import Standing, differing_parts, problem_identity
from raybench.leaderboard.lines import (
    compared_rows,
    gold_floors,
    merged_gates,
    metrics_with_retrained,
    status_of,
    values_by_seed,
)
from raybench.leaderboard.query import PROBLEM, check_protocols, current_rows, load_table
from raybench.leaderboard.rank_statistics import PAIRED, MetricDifference, compare_metrics
from raybench.leaderboard.render import FORMATS
from raybench.leaderboard.schema import LINE, MetricInfo
from raybench.leaderboard.statistics import MIN_TRAIN_SEEDS, as_null
from raybench.leaderboard.tables import as_latex, as_markdown, as_plain

DIFFERENCE, SAME, SMALL, UNTESTED = "difference", "no difference", "under the floor", "too few seeds"
STATUS = "status"  # the metric of a record that tells of a line's status and gates
NAMED = 6  # lines that a note lists by name
COLUMNS = (
    *LINE, "metric", "unit", "direction", "a", "b", "difference", "difference_lo", "difference_hi",
    "n_a", "n_b", "test", "p", "p_holm", "floor", "verdict", "reason",
)  # fmt: skip
Key = tuple[str, ...]
Side = Mapping[Key, pd.DataFrame]  # line -> rows


def compare(
    a: str | os.PathLike[str] | pd.DataFrame,
    b: str | os.PathLike[str] | pd.DataFrame,
    metrics: Sequence[str] | None = None,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """What changed from ``a`` to ``b``: one record per line that both have and metric, with the columns ``COLUMNS``.

    Args:
        a: a results folder (its leaderboard's rows count), or trials as ``load_trials`` gives them.
        b: likewise; ``difference`` is b minus a, with its 95 % interval.
        metrics: only these (default: all that both have). Fewer metrics leave more of the level to each.
        alpha: chance of a false alarm, over all lines and metrics together (Holm).

    Values are means over unlearn seeds, compared by train seed: a paired t-test where three seeds or more are shared,
    Welch's where they are not. ``verdict`` is ``difference``, ``no difference``, ``under the floor`` (the test
    rejects, and two retrained models differ by more; the larger floor of both counts) or ``too few seeds``. A line
    whose status differs, or that breaks a sanity gate on one side only, is a difference in a record of its own with
    metric ``status``. ``attrs["notes"]``: lines that one side alone has, and problems that were trained differently.

    Raises ``UserError`` where no line is in both, nothing has three train seeds a side, a metric is unknown, or the
    protocol versions differ.
    """
    first, second = _rows_of(a), _rows_of(b)
    check_protocols([*first[0]["protocol"], *second[0]["protocol"]])
    infos = _shared_metrics(first[1], second[1], metrics)
    sides = _by_line(first[0]), _by_line(second[0])
    lines = [key for key in sides[0] if key in sides[1]]
    if not lines:
        raise UserError("a comparison needs a line (dataset, model, scenario, method, variant) in both, got none")
    values = [_values(side, lines, infos) for side in sides]
    # A metric without a value on either side does not apply there.
    keys = [k for k in values[0] if values[0][k] or values[1][k]]
    floors = [_floors(rows, infos) for rows in (first[0], second[0])]
    both = {p: max(by[p] for by in floors if p in by) for p in {*floors[0], *floors[1]}}
    at = {k: both[p] for k in keys if (p := (*k[: len(PROBLEM)], k[-1])) in both}
    found = compare_metrics({k: values[1][k] for k in keys}, values[0], at, alpha)
    if not any(item.test for item in found.values()):
        most = max((min(item.n) for item in found.values()), default=0)
        raise UserError(
            f"a comparison needs {MIN_TRAIN_SEEDS} train seeds a side, got {most} at most; run both with more seeds"
        )
    records = []
    for key in lines:
        for metric in infos:
            if (k := (*key, metric.name)) in found:
                records.append(_record(key, metric, found[k], _means(values, k, found[k].test), at.get(k), alpha))
        records += _status_records(key, sides[0][key], sides[1][key])
    frame = pd.DataFrame(records, columns=list(COLUMNS))
    frame.attrs["notes"] = _notes(*sides)
    return frame


def _rows_of(given: str | os.PathLike[str] | pd.DataFrame) -> tuple[pd.DataFrame, dict[str, MetricInfo]]:
    """The rows that stand, ok or not, and what is known of their metrics."""
    if isinstance(given, pd.DataFrame):
        names = [str(name).removesuffix("_gap") for name in given.columns if str(name).endswith("_gap")]
        rows = current_rows(given)
        kept = given.attrs.get("metrics", {})
        return rows, {name: MetricInfo(name, **kept.get(name, {"unit": "", "direction": ""})) for name in names}
    folder = os.fspath(given)
    standing = Standing(folder, load_table(folder))
    return standing.rows, {metric.name: metric for metric in standing.metrics}


def _shared_metrics(
    first: Mapping[str, MetricInfo], second: Mapping[str, MetricInfo], wanted: Sequence[str] | None
) -> list[MetricInfo]:
    shared = [name for name in first if name in second]
    for name in wanted or ():
        if name not in shared:
            raise unknown("metric of both", name, shared)
    names = shared if wanted is None else list(dict.fromkeys(wanted))
    for name in names:
        if first[name].version != second[name].version:
            raise UserError(
                f"a comparison needs one version of a metric, got {name} {first[name].version} and "
                f"{second[name].version}; run the older one again, or name the other metrics with --metrics"
            )
    return [first[name] for name in names]


def _by_line(rows: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    return {tuple(map(str, key)): compared_rows(group) for key, group in rows.groupby(list(LINE), sort=True)}


def _means(values: Sequence[Mapping[Key, Mapping[int, float]]], key: Key, test: str) -> list[float]:
    """The mean of each side, of a paired test over the common seeds alone."""
    first, second = values[0][key], values[1][key]
    common = first.keys() & second.keys() if test == PAIRED else first.keys() | second.keys()
    given = [[value for seed, value in by.items() if seed in common] for by in (first, second)]
    return [math.fsum(side) / len(side) if side else math.nan for side in given]


def _values(side: Side, lines: Sequence[Key], infos: Sequence[MetricInfo]) -> dict[Key, dict[int, float]]:
    """(line, metric) -> train seed -> value of the ok rows."""
    ok = {key: side[key][side[key]["status"] == "ok"] for key in lines}
    return {(*key, m.name): values_by_seed(ok[key], m.name) for key in lines for m in infos}


def _floors(rows: pd.DataFrame, infos: Sequence[MetricInfo]) -> dict[Key, float]:
    """(problem, metric) -> mean gold-vs-gold difference; absent where there is one retrained model."""
    found = {}
    with_retrained = metrics_with_retrained(rows, infos)
    for problem, group in rows.groupby(list(PROBLEM)):
        for name, floor in gold_floors(group, infos, with_retrained).items():
            if not math.isnan(floor.mean):
                found[(*map(str, problem), name)] = floor.mean
    return found


def _record(
    key: Key, metric: MetricInfo, item: MetricDifference, means: Sequence[float], floor: float | None, alpha: float
) -> dict[str, Any]:
    if item.apart:
        verdict = DIFFERENCE
    elif not item.test:
        verdict = UNTESTED
    else:
        verdict = SMALL if item.adjusted <= alpha else SAME
    return dict(zip(LINE, key, strict=True)) | {
        "metric": metric.name,
        "unit": metric.unit,
        "direction": metric.direction,
        "a": means[0],
        "b": means[1],
        "difference": item.difference.mean,
        "difference_lo": item.difference.lo,
        "difference_hi": item.difference.hi,
        "n_a": item.n[1],
        "n_b": item.n[0],
        "test": item.test or None,
        "p": item.p,
        "p_holm": item.adjusted,
        "floor": math.nan if floor is None else floor,
        "verdict": verdict,
    }


def _status_records(key: Key, first: pd.DataFrame, second: pd.DataFrame) -> list[dict[str, Any]]:
    """One record where a line's status or broken gates differ."""
    states = [_state(rows) for rows in (first, second)]
    if states[0] == states[1]:
        return []
    record = dict(zip(LINE, key, strict=True)) | {"metric": STATUS, "n_a": len(first), "n_b": len(second)}
    return [record | {"verdict": DIFFERENCE, "reason": " -> ".join(states)}]


def _state(rows: pd.DataFrame) -> str:
    gates = merged_gates(rows.loc[rows["status"] == "ok", "gates"])
    broken = [name for name, holds in json.loads(gates).items() if holds is False]
    return str(status_of(rows)["status"]) + (f", fails {', '.join(broken)}" if broken else "")


def _notes(first: Side, second: Side) -> list[str]:
    notes = []
    for name, mine, other in (("a", first, second), ("b", second, first)):
        alone = [" / ".join(filter(None, key)) for key in mine if key not in other]
        if alone:
            more = f"; and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
            notes.append(f"only in {name}: {'; '.join(alone[:NAMED])}{more}")
    for key in first:
        if key in second:
            parts = differing_parts(*(problem_identity(side[key]["spec"].iloc[0]) for side in (first, second)))
            if parts:
                notes.append(f"trained differently ({parts}): {' / '.join(key[: len(PROBLEM)])}")
    return list(dict.fromkeys(notes))


def found_difference(frame: pd.DataFrame) -> bool:
    """Whether ``compare`` found anything."""
    return bool((frame["verdict"] == DIFFERENCE).any())


def summary(frame: pd.DataFrame, alpha: float = 0.05) -> str:
    """What was compared and what was found, in one line."""
    tested = frame[frame["test"].notna()]
    lines = len(frame[list(LINE)].drop_duplicates())
    tests = ", ".join(f"{count} {test}" for test, count in tested["test"].value_counts().items())
    counts = frame["verdict"].value_counts()
    small = f", {counts[SMALL]} under the floor" if SMALL in counts.index else ""
    found = counts.get(DIFFERENCE, 0)
    said = "no difference" if not found else "1 difference" if found == 1 else f"{found} differences"
    return (
        f"{said}{small}: {_count(lines, 'line')}, {_count(len(tested), 'test')} ({tests}), Holm over all at {alpha:g}"
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def render_differences(frame: pd.DataFrame, format: str = "table", every: bool = False) -> str:
    """The comparison as text: table, csv, markdown, latex or json.

    Tables hold what differs or is under the floor (everything with ``every``); csv and json all records.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format == "csv":
        return frame.to_csv(index=False, lineterminator="\n")
    if format == "json":
        records = [{str(k): _plain(v) for k, v in record.items()} for record in frame.to_dict("records")]
        found = {"difference": found_difference(frame), "notes": frame.attrs.get("notes", []), "records": records}
        return json.dumps(found, indent=2, allow_nan=False)
    shown = frame if every else frame[frame["verdict"].isin([DIFFERENCE, SMALL])]
    notes = [summary(frame), *frame.attrs.get("notes", [])]
    if not len(shown):
        return "\n".join(("% " if format == "latex" else "") + note for note in notes) + "\n"
    header = ["problem", "method", "metric", "a", "b", "b - a", "p (Holm)", "floor", "n", "verdict"]
    write = {"table": as_plain, "markdown": as_markdown, "latex": as_latex}[format]
    return write(header, [_row(record) for record in shown.to_dict("records")], notes)


def _plain(value: Any) -> Any:
    return None if value is pd.NA else as_null(value)


def _row(record: Mapping[Any, Any]) -> list[str]:
    method = f"{record['method']} ({record['variant']})" if record["variant"] else str(record["method"])
    problem = " / ".join(str(record[name]) for name in PROBLEM)
    if record["metric"] == STATUS:
        return [problem, method, STATUS, *[""] * 5, f"{record['n_a']}, {record['n_b']}", str(record["reason"])]
    percent = record["unit"] == "fraction"
    half = (record["difference_hi"] - record["difference"]) * (100 if percent else 1)
    numbers = [_number(record[name], percent) for name in ("a", "b")]
    change = _number(record["difference"], percent, sign="+") + ("" if math.isnan(half) else f" ± {half:.2g}")
    p = "" if pd.isna(record["p_holm"]) else f"{record['p_holm']:.2g}"
    seeds = f"{record['n_a']}, {record['n_b']}" + (f" {record['test']}" if record["test"] else "")
    name = f"{record['metric']} %" if percent else str(record["metric"])
    return [problem, method, name, *numbers, change, p, _number(record["floor"], percent), seeds, record["verdict"]]


def _number(value: Any, percent: bool, sign: str = "") -> str:
    if pd.isna(value):
        return ""
    return f"{value * 100:{sign}.1f}" if percent else f"{value:{sign}.3g}"
