"""What the figures show, as plain tables: means and 95 % intervals over train seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raybench.leaderboard.query import PROBLEM
from raybench.leaderboard.statistics import t_interval


class Skip(Exception):
    """A figure does not apply to these rows; the text says why."""


@dataclass(frozen=True)
class Frames:
    """A results folder as ``load_leaderboard``, ``load_trials`` and ``ResultStore.series`` give it."""

    leaderboard: pd.DataFrame
    trials: pd.DataFrame
    series: pd.DataFrame


def finals_of(frames: Frames, method: str) -> pd.DataFrame:
    """Final rows of a method that are ok; ``Skip`` where there are none.

    A cell (line, seeds) that was run with another setting later counts with its latest row, as in the leaderboard.
    """
    trials = frames.trials
    rows = trials[(trials["phase"] == "final") & (trials["status"] == "ok") & (trials["method"] == method)]
    if not len(rows):
        raise Skip(f"no final rows of {method}")
    return rows.drop_duplicates([*PROBLEM, "method", "variant", "train_seed", "unlearn_seed"], keep="last")


def swept(rows: pd.DataFrame, names: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, rows) of every problem and line family in which each of ``names`` has at least two values.

    The rows have a column per name with the setting's value. Variants that differ in those names alone are one
    family. ``Skip`` where there is none.
    """
    settings = [json.loads(text) for text in rows["hparams"]]
    rows = rows.assign(**{name: [s.get(name) for s in settings] for name in names})
    rows = rows.assign(family=[_family(variant, names) for variant in rows["variant"]])
    found = False
    for key, group in rows.groupby([*PROBLEM, "family"], sort=True):
        if all(group[name].nunique(dropna=False) > 1 for name in names):
            found = True
            yield " / ".join(filter(None, map(str, key))), group
    if not found:
        raise Skip(f"fewer than two values of {' or of '.join(names)} in the rows of {rows['method'].iloc[0]}")


def _family(variant: str, names: Sequence[str]) -> str:
    own = tuple(f"{name}{sign}" for name in names for sign in "= ")  # a sweep writes n=1, people also n 1
    start = "|".join([r"\w+=", *(re.escape(name) + " " for name in names)])
    parts = [part for part in re.split(f", (?={start})", variant) if not part.startswith(own)]
    return ", ".join(parts)


def intervals(rows: pd.DataFrame, keys: Sequence[str], column: str) -> pd.DataFrame:
    """Columns ``keys``, mean, lo, hi, seeds: per key the mean of ``column`` over train seeds (of means over unlearn
    seeds) with its interval. Keys without a value are left out; a null key is a key like any other."""
    records = []
    for key, group in rows.groupby(list(keys), sort=True, dropna=False):
        if column not in group:
            continue
        values = group[column].astype("float64").groupby(group["train_seed"]).mean().dropna()
        if len(values):
            found = t_interval(values)
            values_of = {"mean": found.mean, "lo": found.lo, "hi": found.hi, "seeds": found.n}
            records.append({**dict(zip(keys, key, strict=True)), **values_of})
    return pd.DataFrame(records, columns=[*keys, "mean", "lo", "hi", "seeds"])


def accuracy_columns(rows: pd.DataFrame) -> tuple[str, str]:
    """(what must stay, what must go): test accuracy, and that of the forgotten classes where there are any."""
    forgotten = "test_accuracy_forgotten"
    has = forgotten in rows and rows[forgotten].notna().any()
    return "test_accuracy", forgotten if has else "forget_accuracy"


def reported(rows: pd.DataFrame, name: str) -> pd.Series[float]:
    """A scalar that the method itself reported, per row."""
    values = [json.loads(text).get(name) if isinstance(text, str) else None for text in rows["reported"]]
    return pd.Series(values, index=rows.index, dtype="float64")


def retrained(rows: pd.DataFrame, column: str) -> float:
    """The retrained model's mean of a metric, over the train seeds of ``rows``."""
    name = f"{column}_retrained"
    return float(rows[name].astype("float64").mean()) if name in rows else float("nan")


def curves(rows: pd.DataFrame, series: pd.DataFrame, name: str, keys: Sequence[str]) -> pd.DataFrame:
    """``intervals`` of a curve per key and step, at the steps that every row of the key has: where some runs have
    stopped, a mean over the others would be of other seeds."""
    points = series[series["name"] == name].merge(rows[["trial_id", "train_seed", *keys]], on="trial_id")
    sizes = rows.groupby(list(keys), dropna=False)["trial_id"].transform("nunique")
    points = points.merge(rows[["trial_id"]].assign(runs=sizes), on="trial_id")
    present = points.groupby([*keys, "step"], dropna=False)["trial_id"].transform("nunique")
    return intervals(points[present == points["runs"]], [*keys, "step"], "y")


def order(values: Sequence[Any]) -> list[Any]:
    """Numbers in order, nulls (a gate that is off) last."""
    known = sorted({float(v) for v in values if v is not None and not _null(v)})
    return [*known, None] if any(v is None or _null(v) for v in values) else known


def _null(value: Any) -> bool:
    return bool(isinstance(value, float) and np.isnan(value))


def pick(table: pd.DataFrame, column: str, value: Any) -> pd.DataFrame:
    """Rows whose ``column`` is ``value``, null included."""
    return table[table[column].isna()] if value is None else table[table[column] == value]


def problems(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, rows) of every dataset, model and scenario."""
    for key, group in frame.groupby(list(PROBLEM), sort=True):
        yield " / ".join(map(str, key)), group


def sequences(trials: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, rows) of every sequence of requests: final rows that are ok, with the columns ``requests`` and ``line``.

    ``Skip`` where no sequence has two lengths.
    """
    rows = trials[(trials["phase"] == "final") & (trials["status"] == "ok")]
    rows = _in_sequence(
        rows.drop_duplicates([*PROBLEM, "method", "variant", "train_seed", "unlearn_seed"], keep="last")
    )
    names = [line_name(method, variant) for method, variant in zip(rows["method"], rows["variant"], strict=True)]
    found = False
    for title, group in rows.assign(line=names).groupby("sequence", sort=True):
        if group["requests"].nunique() > 1:
            found = True
            yield str(title), group
    if not found:
        raise Skip("no scenario repeated with two numbers of requests")


def floors(leaderboard: pd.DataFrame, title: str) -> tuple[list[float], list[float]]:
    """Numbers of requests of a sequence, and in points the distance between two retrained models after each."""
    lines = _in_sequence(leaderboard)
    floor = lines[lines["sequence"] == title].groupby("requests")["distance_floor"].mean()
    return floor.index.tolist(), (100 * floor).tolist()


def _in_sequence(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the scenario ``repeated`` with the columns ``requests`` and ``sequence``, what they have in common."""
    rows = rows[rows["scenario"].str.startswith("repeated(")]
    count = r"(, )?requests=(\d+)"
    others = rows["scenario"].str.replace(count, "", regex=True)
    return rows.assign(
        requests=rows["scenario"].str.extract(count)[1].astype("float64"),
        sequence=[" / ".join(key) for key in zip(rows["dataset"], rows["model"], others, strict=True)],
    )


def line_name(method: str, variant: str) -> str:
    """How a line is called in a legend."""
    return f"{method} ({variant})" if variant else method
