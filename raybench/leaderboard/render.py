"""The leaderboard for people (table, markdown, latex: percent, mean ± half width) and for programs (csv, json)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raybench.errors import unknown

FORMATS = ("table", "csv", "markdown", "latex", "json")
_GROUP = ["dataset", "model", "scenario"]
_BY = ("dataset", "model", "scenario", "method", "variant", "kind", "device_type", "status")
_FIRST = ("distance", "retain_accuracy", "forget_accuracy", "test_accuracy")
_SHOWN_METRICS = 4  # what fits a terminal; csv and json have them all
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
}


def render(
    leaderboard: pd.DataFrame,
    format: str = "table",
    by: str | None = None,
    model: str | None = None,
    pareto: bool = False,
    gated: bool = False,
    metrics: Sequence[str] | None = None,
) -> str:
    """The leaderboard as text.

    Args:
        leaderboard: as ``load_leaderboard`` gives it; units and directions come from its ``attrs["metrics"]``.
        format: table, csv, markdown, latex (booktabs, best in bold) or json (a list of objects).
        by: column that groups and comes first, such as scenario.
        model: only this model.
        pareto: only the lines on the front.
        gated: also lines that fail a sanity gate.
        metrics: metrics to show (default: distance and the next five); csv and json always hold all columns.

    Within a group the lines are sorted by distance. Bad arguments raise ``UserError``.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if by is not None and by not in _BY:
        raise unknown("column to group by", by, _BY)
    frame = leaderboard
    if model is not None:
        if model not in set(frame["model"]):
            raise unknown("model", model, set(frame["model"]))
        frame = frame[frame["model"] == model]
    if pareto:
        frame = frame[_mask(value is True for value in frame["on_pareto_front"])]
    hidden = frame[_mask(not gates_hold(text) for text in frame["gates"])]
    if not gated:
        frame = frame.drop(hidden.index)
    keys = list(dict.fromkeys(([by] if by else []) + _GROUP))
    sort = [*keys, *(["distance"] if "distance" in frame else []), "method", "variant"]
    frame = frame.sort_values(list(dict.fromkeys(sort)), na_position="last", kind="stable")
    if format == "csv":
        return frame.to_csv(index=False, lineterminator="\n")
    if format == "json":
        return json.dumps(_records(frame), indent=2, allow_nan=False)
    info: dict[str, dict[str, str]] = leaderboard.attrs.get("metrics", {})
    shown = _shown(frame, info, metrics)
    header, rows, bold = _cells(frame, keys, shown, info)
    notes = _notes(frame, [m for m in info if m not in shown], 0 if gated else len(hidden))
    if format == "latex":
        return _latex(header, rows, bold)
    if format == "markdown":
        return _markdown(header, rows, notes)
    return _plain(header, rows, notes, len(keys) if by is None else 0)


def _mask(holds: Iterable[bool]) -> NDArray[np.bool_]:
    return np.array(list(holds), dtype=np.bool_)  # a plain list would name columns when it is empty


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    records = []
    for record in frame.to_dict("records"):
        clean: dict[str, Any] = {}
        for name, value in record.items():
            key = str(name)
            if value is None or (isinstance(value, float) and not math.isfinite(value)) or value is pd.NA:
                clean[key] = None
            elif key in ("hparams", "gates", "status_counts"):
                clean[key] = json.loads(value)
            elif key in ("rank_group", "peak_memory", "artefact_bytes", "forget_size", "n"):
                clean[key] = int(value)  # pandas makes integers with gaps floating
            else:
                clean[key] = value
        records.append(clean)
    return records


def _shown(frame: pd.DataFrame, info: dict[str, dict[str, str]], wanted: Sequence[str] | None) -> list[str]:
    if wanted is not None:
        for name in wanted:
            if f"{name}_lo" not in frame:
                raise unknown("metric", name, info)
        return list(wanted)
    filled = [name for name in info if name in frame and frame[name].notna().any()]
    first = [name for name in _FIRST if name in filled]
    return (first + [name for name in filled if name not in first])[:_SHOWN_METRICS]


def _cells(
    frame: pd.DataFrame, keys: list[str], shown: list[str], info: dict[str, dict[str, str]]
) -> tuple[list[str], list[list[str]], set[tuple[int, int]]]:
    """Header, rows, and the (row, column) of the best value of each metric among the ok methods of a problem."""
    front = keys + [c for c in ("method", "variant") if c not in keys and (c == "method" or (frame[c] != "").any())]
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [(c, _word(c)) for c in front]
    columns.append(("rank", lambda r: "" if pd.isna(r["rank_group"]) else str(int(r["rank_group"]))))
    columns.append(("front", lambda r: "*" if r["on_pareto_front"] is True else ""))
    first_metric = len(columns)
    for name in shown:
        unit = info.get(name, {}).get("unit", "")
        columns.append(
            (f"{name} %" if unit == "fraction" else name, _interval(name, 100.0 if unit == "fraction" else 1.0))
        )
    columns.append(("unlearn s", _interval("unlearn_s", 1.0)))
    columns.append(("speedup", lambda r: "" if pd.isna(r["speedup"]) else f"{r['speedup']:.3g}x"))
    columns.append(("tuning s", lambda r: "" if pd.isna(r["tuning_s"]) else f"{r['tuning_s']:.3g}"))
    columns.append(("n", lambda r: str(int(r["n"]))))
    columns.append(("status", _status))
    records: list[dict[str, Any]] = [{str(k): v for k, v in r.items()} for r in frame.to_dict("records")]
    rows = [[cell(record) for _, cell in columns] for record in records]
    bold: set[tuple[int, int]] = set()
    problems: dict[tuple[str, ...], list[int]] = {}
    for i, record in enumerate(records):
        if record["kind"] == "method" and record["status"] == "ok":
            problems.setdefault(tuple(record[c] for c in _GROUP), []).append(i)
    for at in problems.values():
        for j, name in enumerate(shown):
            scores = {i: _badness(records[i], name, info) for i in at}
            known = [score for score in scores.values() if math.isfinite(score)]
            bold |= {(i, first_metric + j) for i, score in scores.items() if known and score == min(known)}
    return [title for title, _ in columns], rows, bold


def _badness(record: dict[str, Any], name: str, info: dict[str, dict[str, str]]) -> float:
    direction = info.get(name, {}).get("direction", "lower")
    if direction == "match_retrained":
        return abs(float(record[f"{name}_gap"]))
    return -float(record[name]) if direction == "higher" else float(record[name])


def _word(column: str) -> Callable[[dict[str, Any]], str]:
    return lambda record: "" if pd.isna(record[column]) else str(record[column])


def _interval(name: str, scale: float) -> Callable[[dict[str, Any]], str]:
    def cell(record: dict[str, Any]) -> str:
        value, hi = record[name], record[f"{name}_hi"]
        if pd.isna(value):
            return ""
        half = math.nan if pd.isna(hi) else (hi - value) * scale
        if scale == 100.0:
            return f"{value * scale:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
        digits = min(digits, 6)
        return f"{value:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")

    return cell


def _status(record: dict[str, Any]) -> str:
    counts = json.loads(record["status_counts"])
    worst, total = record["status"], sum(counts.values())
    return worst if counts.get(worst) == total else f"{worst} {counts.get(worst, 0)}/{total}"


def _notes(frame: pd.DataFrame, more: list[str], gated: int) -> list[str]:
    notes = []
    unresolved = frame[_mask(value is True for value in frame["unresolved"])]
    for key in unresolved[_GROUP].drop_duplicates().itertuples(index=False):
        notes.append(f"unresolved, not ranked: {' / '.join(key)} (doing nothing is within the gold-vs-gold floor)")
    if gated:
        notes.append(
            "1 line that fails a sanity gate is hidden"
            if gated == 1
            else f"{gated} lines that fail a sanity gate are hidden"
        )
    skipped = frame[_mask(value == "skipped" for value in frame["status"])]
    for reason, lines in skipped.groupby("reason", sort=True):
        where = ", ".join(dict.fromkeys(f"{m} on {c}/{s}" for m, c, s in lines[["method", "model", "scenario"]].values))
        notes.append(f"skipped: {where}: {reason}")
    if more:
        notes.append(f"more metrics in csv and json: {', '.join(more)}")
    return notes


def _plain(header: list[str], rows: list[list[str]], notes: list[str], grouped: int) -> str:
    """Aligned columns. The first ``grouped`` ones stand once as a heading over their lines."""
    short = [cell.replace("_accuracy", "") for cell in header[grouped:]]
    widths = [max(len(text) for text in column) for column in zip(short, *(r[grouped:] for r in rows), strict=True)]

    def line(cells: list[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    text = [] if grouped else [line(short), line(["-" * width for width in widths])]
    heading: list[str] = []
    for row in rows:
        if row[:grouped] != heading:
            heading = row[:grouped]
            text += ["", " / ".join(heading), line(short), line(["-" * width for width in widths])]
        text.append(line(row[grouped:]))
    return "\n".join(text + (["", *notes] if notes else [])).lstrip("\n") + "\n"


def _markdown(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join(text + ([""] + [f"{note}  " for note in notes] if notes else [])) + "\n"


def _latex(header: list[str], rows: list[list[str]], bold: set[tuple[int, int]]) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX.get(c, c) for c in text)

    body = []
    for i, row in enumerate(rows):
        cells = [rf"\textbf{{{escape(cell)}}}" if (i, j) in bold else escape(cell) for j, cell in enumerate(row)]
        body.append(" & ".join(cells) + r" \\")
    top = [rf"\begin{{tabular}}{{{'l' * len(header)}}}", r"\toprule", " & ".join(map(escape, header)) + r" \\"]
    return "\n".join([*top, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def gates_hold(text: Any) -> bool:
    """Whether no gate of a line's JSON is broken (a gate that could not be judged is not)."""
    return not isinstance(text, str) or all(holds is not False for holds in json.loads(text).values())
