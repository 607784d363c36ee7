"""The leaderboard as rows of text, the same for a terminal, a paper and the page: percent, mean ± half width."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raybench.errors import unknown

GROUP = ["dataset", "model", "scenario"]
_FIRST = ("distance", "retain_accuracy", "forget_accuracy", "test_accuracy")
_SHOWN_METRICS = 4  # what fits a terminal; csv and json have them all
_RANKED = "distance"  # the metric that the rank groups are of
Infos = dict[str, dict[str, str]]  # metric -> unit, direction
Record = dict[str, Any]


@dataclass(frozen=True)
class Cells:
    """A table of text. ``best`` holds (row, column) of what is best among the methods of a problem."""

    header: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]
    records: list[Record]  # the leaderboard lines behind the rows


def shown_metrics(frame: pd.DataFrame, info: Infos, wanted: Sequence[str] | None = None) -> list[str]:
    """The metrics that a table has room for, or those ``wanted``; an unknown one is a ``UserError``."""
    if wanted is not None:
        for name in wanted:
            if f"{name}_lo" not in frame:
                raise unknown("metric", name, info)
        return list(wanted)
    filled = [name for name in info if name in frame and frame[name].notna().any()]
    first = [name for name in _FIRST if name in filled]
    return (first + [name for name in filled if name not in first])[:_SHOWN_METRICS]


def cells(frame: pd.DataFrame, keys: Sequence[str], shown: Sequence[str], info: Infos) -> Cells:
    """The rows of ``frame`` in its order: ``keys``, method, rank, front, the metrics ``shown``, costs, status."""
    front = [*keys, *(c for c in ("method", "variant") if c not in keys and (c == "method" or (frame[c] != "").any()))]
    columns: list[tuple[str, Callable[[Record], str]]] = [(c, _word(c)) for c in front]
    columns.append(("rank", _rank))
    columns.append(("front", _front))
    first_metric = len(columns)
    for name in shown:
        unit = info.get(name, {}).get("unit", "")
        columns.append(
            (f"{name} %" if unit == "fraction" else name, interval_cell(name, 100.0 if unit == "fraction" else 1.0))
        )
    columns.append(("unlearn s", interval_cell("unlearn_s", 1.0)))
    columns.append(("speedup", lambda r: "" if pd.isna(r["speedup"]) else f"{r['speedup']:.3g}x"))
    columns.append(("tuning s", lambda r: "" if pd.isna(r["tuning_s"]) else f"{r['tuning_s']:.3g}"))
    columns.append(("n", lambda r: str(int(r["n"]))))
    columns.append(("status", _status))
    records: list[Record] = [{str(k): v for k, v in r.items()} for r in frame.to_dict("records")]
    rows = [[cell(record) for _, cell in columns] for record in records]
    best: set[tuple[int, int]] = set()
    problems: dict[tuple[str, ...], list[int]] = {}
    for i, record in enumerate(records):
        if record["kind"] == "method" and record["status"] == "ok":
            problems.setdefault(tuple(record[c] for c in GROUP), []).append(i)
    for at in problems.values():
        for j, name in enumerate(shown):
            printed = {i: rows[i][first_metric + j].split(" ± ")[0] for i in at}
            best |= {(i, first_metric + j) for i in _best(records, printed, name, info)}
    return Cells([title for title, _ in columns], rows, best, records)


def _best(records: Sequence[Record], printed: dict[int, str], name: str, info: Infos) -> set[int]:
    """The best ones of a problem's rows (row -> the mean as printed) by a metric. For the metric that is ranked, all
    that the paired test does not tell from the best, and none where the problem is not resolved; for others, those
    that print like the best."""
    scores = {i: badness(records[i], name, info) for i in printed}
    known = [score for score in scores.values() if math.isfinite(score)]
    if not known or (name == _RANKED and any(records[i]["unresolved"] is True for i in printed)):
        return set()
    best = {i for i, score in scores.items() if score == min(known)}
    if name == _RANKED:
        groups = {records[i]["rank_group"] for i in best if not pd.isna(records[i]["rank_group"])}
        return best | {i for i in printed if records[i]["rank_group"] in groups}
    return best | {i for i in printed if printed[i] in {printed[j] for j in best}}


def badness(record: Record, name: str, info: Infos) -> float:
    """How far a line is from good in one metric; smaller is better, NaN without a value."""
    direction = info.get(name, {}).get("direction", "lower")
    if direction == "match_retrained":
        return abs(float(record[f"{name}_gap"]))
    return -float(record[name]) if direction == "higher" else float(record[name])


def interval_cell(name: str, scale: float) -> Callable[[Record], str]:
    """Writes a column's mean and half width; percent have one decimal, other numbers three digits."""

    def cell(record: Record) -> str:
        value, hi = number(record[name]), number(record[f"{name}_hi"])
        if math.isnan(value):
            return ""
        half = (hi - value) * scale
        if scale == 100.0:
            return f"{value * scale:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
        digits = min(digits, 6)
        return f"{value:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")

    return cell


def number(value: Any) -> float:
    """A cell of a frame as a float; NaN for every kind of null."""
    return math.nan if value is None or value is pd.NA else float(value)


def _word(column: str) -> Callable[[Record], str]:
    return lambda record: "" if pd.isna(record[column]) else str(record[column])


def _rank(record: Record) -> str:
    forced = " forced" if record.get("rank_forced") is True else ""
    return "" if pd.isna(record["rank_group"]) else f"{int(record['rank_group'])}{forced}"


def _front(record: Record) -> str:
    """The star, and the probability of a place on the front where it says more: it is neither 0 nor 1."""
    star = "*" if record["on_pareto_front"] is True else ""
    chance = number(record.get("front_probability"))  # leaderboards of earlier versions have none
    if math.isnan(chance) or f"{chance:.2f}" == ("1.00" if star else "0.00"):
        return star
    return f"{star} {chance:.2f}".strip()


def _status(record: Record) -> str:
    counts = json.loads(record["status_counts"])
    worst, total = record["status"], sum(counts.values())
    return worst if counts.get(worst) == total else f"{worst} {counts.get(worst, 0)}/{total}"


def gates_hold(text: Any) -> bool:
    """Whether no gate of a line's JSON is broken (a gate that could not be judged is not)."""
    return not isinstance(text, str) or all(holds is not False for holds in json.loads(text).values())


def mask(holds: Iterable[bool]) -> NDArray[np.bool_]:
    """A row mask; a plain list would name columns when it is empty."""
    return np.array(list(holds), dtype=np.bool_)
