"""The leaderboard as a group-by of trial rows: one line per dataset, model, scenario, method and variant."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.errors import UserError, unknown
from raybench.folder import Folder
from raybench.leaderboard.cells import gates_hold
from raybench.leaderboard.lines import (
    AVERAGED,
    TOLD,
    columns_of,
    gold_floors,
    make_line,
    metrics_with_retrained,
    numbers_of,
    numeric_columns,
    take,
    text_or_none,
    values_by_seed,
)
from raybench.leaderboard.rank_statistics import front_probability
from raybench.leaderboard.render import render
from raybench.leaderboard.schema import (
    BOOL,
    INT,
    LINE,
    REAL,
    TEXT,
    MetricInfo,
    check_version,
    describe,
    metrics_of,
)
from raybench.leaderboard.statistics import Interval, as_null, pareto_mask, rank_groups
from raybench.leaderboard.store import ResultStore
from raybench.leaderboard.tuning import COLUMNS as TUNING
from raybench.leaderboard.tuning import TuningCost
from raybench.spec import STANDARD

__all__ = [
    "build_leaderboard",
    "frame_of",
    "leaderboard_schema",
    "load_leaderboard",
    "load_table",
    "load_trials",
    "pareto",
    "render",
    "write_leaderboard",
]

FILE = "leaderboard.parquet"
PROBLEM = ("dataset", "model", "scenario")
STANDING = ("final", "reference")  # the phases whose rows are on the leaderboard
Cost = Callable[[Mapping[str, Any]], float]
DISTANCE = "distance"  # the metric that ranks and that the front is drawn with


@dataclass(frozen=True)
class Wanted:
    """What a plan says of its leaderboard: the trials that count (a folder may hold rows of an earlier spec), and
    the tuning seconds of each line, keyed by the values of ``LINE``."""

    trial_ids: frozenset[str]
    tuning_s: Mapping[tuple[str, ...], float]


def leaderboard_schema(metrics: Sequence[MetricInfo], protocol: str = "") -> pa.Schema:
    """Schema of ``leaderboard.parquet``."""
    fields = [pa.field(name, TEXT) for name in (*LINE, "kind", "original_kind", "device_type")]
    for metric in metrics:
        for end in ("", "_lo", "_hi", "_retrained", "_gap", "_gap_lo", "_gap_hi", "_floor", "_floor_hi"):
            fields.append(pa.field(metric.name + end, REAL))
    fields += [pa.field(name, REAL) for name in ("unlearn_s", "unlearn_s_lo", "unlearn_s_hi", "tuning_s", *AVERAGED)]
    fields += [pa.field("peak_memory", INT), pa.field("artefact_bytes", INT), pa.field("forget_size", INT)]
    fields += [pa.field(name, TEXT) for name in ("hparams", "selected_on", "selected_by")]
    fields += [pa.field("tuned_here", REAL), pa.field("n", INT), pa.field("status", TEXT)]
    fields += [pa.field("status_counts", TEXT), pa.field("reason", TEXT), pa.field("gates", TEXT)]
    fields += [pa.field("rank_group", INT), pa.field("on_pareto_front", BOOL), pa.field("front_probability", REAL)]
    fields += [pa.field("unresolved", BOOL)]
    return pa.schema(fields, metadata=describe("leaderboard", metrics, protocol))


def build_leaderboard(
    trials: pd.DataFrame,
    searches: pd.DataFrame,
    metrics: Sequence[MetricInfo],
    forced: bool = False,
    wanted: Wanted | None = None,
) -> pa.Table:
    """The leaderboard of ``trials`` (each id once, in the order written).

    Every number is the mean over train seeds of the mean over unlearn seeds of the ok rows; ``_lo`` and
    ``_hi`` are the 95 % t-interval over train seeds (null for one). Gaps are signed. ``status`` is the worst
    of the finals, ``status_counts`` and ``reason`` say how many. A cell (line, train seed, unlearn seed) that
    was run with another setting later, say after a longer search, counts with its latest row, and only the
    newest method version counts; with ``wanted``, only the trials that a plan asks for. ``front_probability`` is how
    often a line is on the front when the train seeds are drawn anew. ``forced`` ranks with fewer than three train
    seeds; ``front_probability`` stays null there.
    """
    cost = TuningCost.of_frames(trials, searches).seconds if wanted is None else None
    return _table(trials, metrics, forced, wanted, cost)


def _table(
    trials: pd.DataFrame, metrics: Sequence[MetricInfo], forced: bool, wanted: Wanted | None, cost: Cost | None
) -> pa.Table:
    """``build_leaderboard`` of final and reference rows at least; ``cost``: tuning seconds of a line, without a plan
    that knows them."""
    rows = current_rows(trials if wanted is None else trials[trials["trial_id"].isin(wanted.trial_ids)])
    protocols = sorted(set(rows["protocol"])) if len(rows) else []
    check_protocols(protocols)
    with_retrained = metrics_with_retrained(rows, metrics)
    lines: list[dict[str, Any]] = []
    for problem, group in rows.groupby(list(PROBLEM), sort=True):
        lines += _problem_lines(dict(zip(PROBLEM, problem, strict=True)), group, metrics, with_retrained, forced)
    known = wanted.tuning_s if wanted is not None else {}
    for line in lines:
        key = tuple(line[name] for name in LINE)
        line["tuning_s"] = known.get(key, 0.0) if cost is None else cost(line)
    schema = leaderboard_schema(metrics, ",".join(protocols))
    columns = [pa.array([line.get(f.name) for line in lines], type=f.type, from_pandas=True) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)  # from_pandas: NaN is null


def check_protocols(protocols: Iterable[str]) -> None:
    """``UserError`` where there is more than one protocol version."""
    found = sorted(set(protocols))
    if len(found) > 1:
        raise UserError(
            f"a leaderboard compares rows of one protocol version, got {', '.join(found)}; "
            "give the new runs a results folder of their own"
        )


def current_rows(trials: pd.DataFrame) -> pd.DataFrame:
    """Final and reference rows that stand: the newest method version, then the latest row of each cell."""
    rows = trials[trials["phase"].isin(STANDING)]
    own = rows["original_kind"].notna() & (rows["original_kind"] != STANDARD)
    rows = rows[(rows["method"] != "original") | ~own]  # own trainings: a row each, no line
    newest = rows.groupby(list(LINE))["method_version"].transform("max")
    rows = rows[rows["method_version"] == newest]
    return rows.drop_duplicates([*LINE, "train_seed", "unlearn_seed"], keep="last")


def _problem_lines(
    problem: dict[str, Any],
    rows: pd.DataFrame,
    metrics: Sequence[MetricInfo],
    with_retrained: Sequence[str],
    forced: bool,
) -> list[dict[str, Any]]:
    floors = gold_floors(rows, metrics, with_retrained)
    columns = columns_of(rows[[*TOLD, *(name for name in (DISTANCE, "unlearn_s") if name in rows)]])
    numbers = numbers_of(rows, numeric_columns(metrics))
    at: dict[tuple[str, str], list[int]] = {}
    for position, key in enumerate(zip(columns["method"], columns["variant"], strict=True)):
        at.setdefault(key, []).append(position)
    lines = []
    distances: dict[str, dict[int, float]] = {}
    seconds: dict[str, dict[int, float]] = {}
    for method, variant in sorted(at):
        line = {**problem, "method": method, "variant": variant}
        group = take(columns, at[method, variant])
        line.update(make_line(line, group, numbers[at[method, variant]], metrics, floors))
        lines.append(line)
        if DISTANCE in floors and _competes(line):
            ok = take(group, [i for i, status in enumerate(group["status"]) if status == "ok"])
            distances[_key(line)], seconds[_key(line)] = values_by_seed(ok, DISTANCE), values_by_seed(ok, "unlearn_s")
    unresolved = _unresolved(lines, floors.get(DISTANCE))
    floor = as_null(floors[DISTANCE].mean) if DISTANCE in floors else None
    ranks = {} if unresolved else rank_groups(distances, floor, forced=forced)
    front = set(_front(lines, "unlearn_s", DISTANCE))
    chances = _front_chances(lines, seconds, distances)
    for i, line in enumerate(lines):
        line["unresolved"] = unresolved
        line["rank_group"] = ranks.get(_key(line))
        line["on_pareto_front"] = i in front
        line["front_probability"] = chances.get(_key(line))
    return lines


def _competes(line: dict[str, Any]) -> bool:
    return line["kind"] == "method" and line["status"] == "ok" and gates_hold(line["gates"])


def _key(line: dict[str, Any]) -> str:
    return f"{line['method']}/{line['variant']}"


def _unresolved(lines: Sequence[dict[str, Any]], floor: Interval | None) -> bool | None:
    """True where doing nothing is within the gold-vs-gold spread; ``None`` where the spread is not known."""
    originals = [
        line for line in lines if line["method"] == "original" and not math.isnan(line.get(DISTANCE, math.nan))
    ]
    if floor is None or math.isnan(floor.hi) or not originals:
        return None
    return not float(np.mean([line[DISTANCE] for line in originals])) > floor.hi


def _front(lines: Sequence[dict[str, Any]], cost: str, loss: str) -> list[int]:
    """Positions on the front of one problem; seconds are only compared within one device type."""
    front: list[int] = []
    for device in {line["device_type"] for line in lines}:
        at = [i for i, line in enumerate(lines) if _competes(line) and line["device_type"] == device]
        pairs = [[as_null(lines[i].get(name)) for i in at] for name in (cost, loss)]
        mask = pareto_mask(*(np.array(values, dtype=np.float64) for values in pairs))
        front += [i for i, on in zip(at, mask, strict=True) if on]
    return front


def _front_chances(
    lines: Sequence[dict[str, Any]],
    seconds: Mapping[str, Mapping[int, float]],
    distances: Mapping[str, Mapping[int, float]],
) -> dict[str, float | None]:
    """Line -> probability of a place on the front of its device type, for the lines that compete."""
    chances: dict[str, float | None] = {}
    for device in {line["device_type"] for line in lines}:
        own = {_key(line) for line in lines if line["device_type"] == device} & seconds.keys()
        chances |= front_probability({key: seconds[key] for key in own}, {key: distances[key] for key in own})
    return chances


def pareto(leaderboard: pd.DataFrame, cost: str = "unlearn_s", loss: str = "distance") -> pd.DataFrame:
    """The lines that no other line of the same dataset, model, scenario and device type beats on both numbers.

    Ties are kept; references, lines that are not ok and lines that fail a gate are not considered.
    """
    for name in (cost, loss):
        if name not in leaderboard.columns:
            raise unknown("column", name, map(str, leaderboard.columns))
    kept: list[Any] = []
    for _, group in leaderboard.groupby(list(PROBLEM), sort=False):
        lines = [{**line, "device_type": text_or_none(line.get("device_type"))} for line in group.to_dict("records")]
        kept += [group.index[i] for i in _front(lines, cost, loss)]  # type: ignore[arg-type]
    return leaderboard.loc[leaderboard.index.isin(kept)]


def load_trials(directory: str | os.PathLike[str], attempts: bool = False) -> pd.DataFrame:
    """All rows of a results folder, each id once (its last attempt), or every attempt."""
    return _open(directory).trials(attempts=attempts)


def load_leaderboard(directory: str | os.PathLike[str]) -> pd.DataFrame:
    """The leaderboard of a results folder: what its last run wrote, or a group-by of its rows where none ended yet.

    ``attrs["metrics"]`` holds unit and direction of each metric.
    """
    return frame_of(load_table(directory))


def load_table(directory: str | os.PathLike[str]) -> pa.Table:
    """``load_leaderboard`` as a table with its metadata (metrics, protocol version)."""
    stored = _stored(_open(directory).folder)
    return stored if stored is not None else _from_rows(directory)


def frame_of(table: pa.Table) -> pd.DataFrame:
    """A leaderboard's table as a frame, unit and direction of the metrics in ``attrs["metrics"]``."""
    frame: pd.DataFrame = table.to_pandas()
    frame.attrs["metrics"] = {m.name: {"unit": m.unit, "direction": m.direction} for m in metrics_of(table.schema)}
    return frame


def write_leaderboard(directory: str | os.PathLike[str], wanted: Wanted | None = None) -> None:
    """Write ``leaderboard.parquet`` by an atomic replace; a file with the same content keeps its bytes."""
    store = _open(directory)
    table = _from_rows(directory, wanted)
    try:
        old = _stored(store.folder)
    except UserError:
        old = None  # damaged or foreign: it is derived, so it is simply replaced
    if old is not None and old.equals(table, check_metadata=True):
        return
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    store.folder.put(FILE, sink.getvalue().to_pybytes())


def _open(directory: str | os.PathLike[str]) -> ResultStore:
    store = ResultStore(directory)
    if not store.folder.exists():
        raise UserError(f"a results folder must exist, got {store.folder}; run an experiment with --results first")
    return store


def _from_rows(directory: str | os.PathLike[str], wanted: Wanted | None = None) -> pa.Table:
    store = _open(directory)
    trials = store.trials(phases=STANDING)
    if not len(trials) and not store.ids():
        stored = _stored(store.folder)
        if stored is not None:
            return stored
        raise UserError(
            f"a results folder must hold rows in trials/, got {store.folder}; run an experiment there first"
        )
    cost = None if wanted is not None else TuningCost(store.table(TUNING), store.tried()).seconds
    return _table(trials, store.metrics_on_disk(), False, wanted, cost)


def _stored(folder: Folder) -> pa.Table | None:
    try:
        with folder.open(FILE) as file:
            table = pq.ParquetFile(file).read()
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{folder}/{FILE} is damaged ({type(error).__name__}); delete it, it is derived") from error
    check_version(table.schema, "leaderboard", f"{folder}/{FILE}")
    return table
