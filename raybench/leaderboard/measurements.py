"""Metrics that were measured after their rows: put into the rows they belong to, and told apart from those to come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from raybench.leaderboard.parts import Part
from raybench.leaderboard.schema import REAL, TEXT, metric_columns, metrics_of

Known = tuple[list[dict[str, Any]], frozenset[tuple[str, int]]]
_ROW = ["trial_id", "attempt"]


@dataclass
class Measured:
    """What is known of one trial: metric and version that its own run measured under ``evaluate_seed``, and (metric,
    version, evaluate seed, pool) of what was measured later."""

    attempt: int
    evaluate_seed: int | None
    in_trial: frozenset[tuple[str, int]]
    later: dict[tuple[str, int, int, str], bool] = field(default_factory=dict)  # whether there is a number

    def has(self, metric: str, version: int, evaluate_seed: int, pool: str, number: bool = False) -> bool:
        """Whether this measurement exists: as a number, or (unless ``number``) as the reason why there is none."""
        found = self.later.get((metric, version, evaluate_seed, pool))
        if found is not None:
            return found or not number
        return not pool and self.evaluate_seed == evaluate_seed and (metric, version) in self.in_trial


def known_in_part(part: Part) -> Known:
    """The rows of one part of ``trials/`` (id, attempt, evaluate seed) and the metrics that all of them have."""
    metrics = frozenset((metric.name, metric.version) for metric in metrics_of(part.schema))
    return part.read([*_ROW, "evaluate_seed"]).to_pylist(), metrics


def measured_of(parts: Iterable[Known], later: pa.Table) -> dict[str, Measured]:
    """By trial id, for the last attempt of each trial."""
    found: dict[str, Measured] = {}
    for rows, metrics in parts:
        for row in rows:
            old = found.get(row["trial_id"])
            if old is None or old.attempt < row["attempt"]:
                found[row["trial_id"]] = Measured(row["attempt"], row.get("evaluate_seed"), metrics)
    columns = ["trial_id", "attempt", "value", "metric", "version", "evaluate_seed", "pool"]
    for trial_id, attempt, value, *key in zip(*(later[name].to_pylist() for name in columns), strict=True):
        if trial_id in found and found[trial_id].attempt == attempt:
            found[trial_id].later[tuple(key)] = value is not None
    return found


def with_measurements(trials: pa.Table, later: pa.Table) -> pa.Table:
    """``trials`` with what was measured later in the columns of each metric, and in ``missing`` its reasons.

    Of several measurements of one metric the one of the newest version stands, the last written among equals.
    """
    if not later.num_rows:
        return trials
    frame = later.to_pandas()
    frame["written"] = range(len(frame))
    frame = frame.sort_values(["version", "written"]).drop_duplicates([*_ROW, "metric"], keep="last")
    keys = pd.MultiIndex.from_frame(trials.select(_ROW).to_pandas())
    metadata = trials.schema.metadata
    for metric, group in frame.groupby("metric", sort=True):
        at = keys.get_indexer(pd.MultiIndex.from_frame(group[_ROW]))
        group, at = group[at >= 0], at[at >= 0]
        for name, source in zip(metric_columns(str(metric)), ("value", "retrained", "gap"), strict=True):
            values = (
                trials[name].to_pandas()
                if name in trials.schema.names
                else pd.Series([None] * len(keys), dtype="float64")
            )
            values = values.astype("float64").to_numpy(copy=True)
            values[at] = group[source].to_numpy(dtype="float64")
            trials = _put(trials, name, pa.array(values, type=REAL, from_pandas=True))
    return _put(trials, "missing", _reasons(trials, frame, keys)).replace_schema_metadata(metadata)


def _reasons(trials: pa.Table, frame: pd.DataFrame, keys: pd.MultiIndex) -> pa.Array:
    texts = trials["missing"].to_pylist()
    at = keys.get_indexer(pd.MultiIndex.from_frame(frame[_ROW]))
    changed: dict[int, dict[str, str]] = {}
    for position, metric, reason in zip(at.tolist(), frame["metric"], frame["reason"], strict=True):
        if position >= 0:
            told = changed.setdefault(position, _loaded(texts[position]))
            told.pop(metric, None)
            if isinstance(reason, str):
                told[metric] = reason
    for position, told in changed.items():
        texts[position] = json.dumps(told, sort_keys=True, separators=(",", ":")) if told else None
    return pa.array(texts, type=TEXT)


def _loaded(text: str | None) -> dict[str, str]:
    found: Mapping[str, str] = json.loads(text) if text else {}
    return dict(found)


def _put(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.schema.names:
        return table.set_column(table.schema.names.index(name), name, values)
    place = table.schema.names.index("missing")  # metrics stand before it
    return table.add_column(place, name, values)
