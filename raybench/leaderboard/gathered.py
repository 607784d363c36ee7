"""A leaderboard made anew from the rows that stand behind the lines of one or several results folders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa

from raybench.errors import UserError
from raybench.leaderboard.cells import mask
from raybench.leaderboard.query import (
    PROBLEM,
    Wanted,
    build_leaderboard,
    check_protocols,
    current_rows,
    frame_of,
    leaderboard_schema,
    load_table,
    load_trials,
)
from raybench.leaderboard.schema import LINE, SEARCHES_SCHEMA, MetricInfo, metrics_of, protocols_of
from raybench.leaderboard.statistics import MIN_TRAIN_SEEDS
from raybench.spec import TrialSpec

Key = tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """A results folder: its leaderboard as its last run left it, and the trials behind it."""

    folder: str
    table: pa.Table

    @cached_property
    def lines(self) -> dict[Key, dict[str, Any]]:
        """The lines by the values of ``LINE``."""
        return {tuple(line[name] for name in LINE): line for line in self.table.to_pylist()}

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The final and reference rows of the lines, with the settings that the lines have.

        ``UserError`` where the folder holds the leaderboard alone.
        """
        trials = load_trials(self.folder)
        if not len(trials):
            raise UserError(
                f"ranking anew needs the rows in trials/, got {self.folder} with its leaderboard alone; "
                "leave that folder out"
            )
        trials = trials[trials["phase"].isin(["final", "reference"])]
        counts = [
            (line := self.lines.get(tuple(row[name] for name in LINE))) is not None
            and (line["kind"] == "reference" or row["hparams"] == line["hparams"])
            for row in trials[[*LINE, "hparams"]].to_dict("records")
        ]
        return current_rows(trials[mask(counts)])

    @property
    def metrics(self) -> list[MetricInfo]:
        """The metrics of the leaderboard."""
        return metrics_of(self.table.schema)

    @property
    def problems(self) -> set[Key]:
        """The problems of the leaderboard."""
        return {key[: len(PROBLEM)] for key in self.lines}


def load_leaderboards(directories: Sequence[str | os.PathLike[str]], forced: bool = False) -> pd.DataFrame:
    """One leaderboard of several results folders (``load_leaderboard`` where there is one).

    Lines of a problem that only one folder has stand as they are. Where folders share a problem, its lines are ranked
    anew from their rows. ``forced`` ranks lines with fewer than three train seeds too, from the rows; a column
    ``rank_forced`` then marks them.

    Raises ``UserError`` for rows of different protocol versions, metrics of different versions, a problem that is
    named alike in two folders and is not the same (another recipe, other seeds of the split, another device type), and
    a line that two folders have with different trials.
    """
    names = [os.fspath(directory) for directory in directories]
    if len({os.path.abspath(name) for name in names}) < len(names):
        raise UserError(f"each results folder must be named once, got {', '.join(names)}; drop the repeated one")
    given = [Standing(name, load_table(name)) for name in names]
    if len(given) == 1 and not forced:
        return frame_of(given[0].table)
    check_protocols(p for standing in given for p in protocols_of(standing.table.schema))
    metrics = _metrics(given)
    shared = {p for p in set().union(*(s.problems for s in given)) if forced or sum(p in s.problems for s in given) > 1}
    tables = [s.table.filter(pa.array([key[:3] not in shared for key in s.lines], pa.bool_())) for s in given]
    if shared:
        rows = _joined(given, shared)
        tuning = {key: line["tuning_s"] for standing in given for key, line in standing.lines.items()}
        wanted = Wanted(frozenset(rows["trial_id"]), tuning)
        searches = SEARCHES_SCHEMA.empty_table().to_pandas()
        tables.append(build_leaderboard(rows, searches, metrics, forced=forced, wanted=wanted))
    table = pa.concat_tables([t.replace_schema_metadata(None) for t in tables], promote_options="permissive")
    schema = leaderboard_schema(metrics, ",".join(sorted(set().union(*(protocols_of(t.schema) for t in tables)))))
    for field in schema:
        if field.name not in table.schema.names:
            table = table.append_column(field.name, pa.nulls(table.num_rows, field.type))
    frame = frame_of(table.select(schema.names).cast(schema).sort_by([(name, "ascending") for name in LINE]))
    if forced:
        frame["rank_forced"] = frame["rank_group"].notna() & (frame["n"] < MIN_TRAIN_SEEDS)
    return frame


def _metrics(given: Sequence[Standing]) -> list[MetricInfo]:
    found: dict[str, tuple[MetricInfo, str]] = {}
    for standing in given:
        for metric in standing.metrics:
            other, folder = found.setdefault(metric.name, (metric, standing.folder))
            if other.version != metric.version:
                raise UserError(
                    f"a leaderboard compares one version of a metric, got {metric.name} {other.version} in {folder} "
                    f"and {metric.version} in {standing.folder}; run one of them again"
                )
    return [metric for metric, _ in found.values()]


def _joined(given: Sequence[Standing], shared: set[Key]) -> pd.DataFrame:
    """The rows of the problems ``shared``, each trial once."""
    problems: dict[Key, tuple[Any, str]] = {}  # by problem, and by the device type that the variant names
    lines: dict[Key, tuple[set[str], str]] = {}
    records: list[Mapping[Any, Any]] = []
    for standing in (s for s in given if s.problems & shared):
        rows = standing.rows
        rows = rows[mask(key in shared for key in zip(*(rows[name] for name in PROBLEM), strict=True))]
        for found, group in rows.groupby(list(LINE)):
            key = tuple(map(str, found))
            name = " / ".join(filter(None, key))
            identity = problem_identity(group["spec"].iloc[0])
            device = identity["device_type"] if key[-1].split(", ")[0] == identity["device_type"] else ""
            other, folder = problems.setdefault((*key[:3], device), (identity, standing.folder))
            if other != identity:
                raise UserError(
                    f"folders that share a problem must have trained it alike, got {' / '.join(key[:3])} in {folder} "
                    f"and in {standing.folder} with different {differing_parts(other, identity)}; leave one folder out"
                )
            ids = set(group["trial_id"])
            seen, folder = lines.setdefault(key, (ids, standing.folder))
            if seen != ids and (group["phase"] == "final").any():
                raise UserError(
                    f"a line must come from one folder, got {name} with other trials in {folder} than in "
                    f"{standing.folder}; leave one folder out"
                )
        records += rows.to_dict("records")
    return pd.DataFrame(records).drop_duplicates("trial_id", ignore_index=True)


def problem_identity(spec: str) -> dict[str, Any]:
    """What identifies the problem of a trial (JSON of its spec) but for the train seed."""
    identity = TrialSpec.from_dict(json.loads(spec)).problem.identity
    del identity["train_seed"]
    return identity


def differing_parts(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The names of what two problems (``problem_identity``) do not share."""
    return ", ".join(name for name in first if first[name] != second.get(name))
