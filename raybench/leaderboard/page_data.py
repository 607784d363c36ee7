"""What the page says in words and tables, as plain data: who wins where, the lines, the environment, the downloads."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.leaderboard.cells import GROUP, Record, cells, gates_hold, interval_cell, number, shown_metrics
from raybench.leaderboard.page_figures import Problem, by_problem, competing, lines_of, name_of
from raybench.leaderboard.query import DISTANCE, PROBLEM

MOST_LINES = 4000  # of the table: more would make it slow to sort on a phone
MOST_DOWNLOAD = 1_500_000  # bytes that one embedded file may take
MOST_TRIALS = 40  # whose commands a card lists


@dataclass(frozen=True)
class Winner:
    """What wins on one problem, in the words of the summary."""

    problem: Problem
    nearest: str = ""
    distance: str = ""
    tied: tuple[str, ...] = ()  # what a paired test does not tell from the nearest
    fastest: str = ""  # of these
    seconds: str = ""
    retrain: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table. ``gated`` is empty where every gate holds."""

    problem: int
    cells: tuple[str, ...]
    best: tuple[bool, ...]
    kind: str
    gated: str


@dataclass(frozen=True)
class Download:
    """A file inside the page: ``url`` is a data URL, or empty with the reason in ``note``."""

    name: str
    what: str
    url: str
    note: str = ""


@dataclass(frozen=True)
class Reruns:
    """Of one line of a card: its settings, and the trials behind its numbers."""

    where: str
    hparams: dict[str, Any]
    trials: tuple[tuple[int, str], ...]  # train seed, trial id
    more: int = 0


@dataclass
class Table:
    """The table of the page, without the lines that there is no room for."""

    header: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    left_out: int = 0


def problems_of(leaderboard: pd.DataFrame) -> list[Problem]:
    """Every dataset, model and scenario, sorted."""
    found = leaderboard[list(PROBLEM)].drop_duplicates().sort_values(list(PROBLEM))
    return [tuple(map(str, values)) for values in found.itertuples(index=False)]


def winners(leaderboard: pd.DataFrame) -> list[Winner]:
    """Per problem: the nearest to the retrained model, what is tied with it, and the fastest of these on the same
    device type, beside retraining there."""
    found = []
    for problem, group in by_problem(leaderboard):
        lines = lines_of(group)
        good = [r for r in competing(lines) if not math.isnan(number(r.get(DISTANCE)))]
        device = (good or lines)[0]["device_type"]
        retrain = next((_seconds(r) for r in lines if r["method"] == "retrain" and r["device_type"] == device), "")
        if not good:
            note = "no method has a result that passes the gates"
            if competing(lines):
                note = "the distance to the retrained model was not measured (metrics of the spec)"
            found.append(Winner(problem, retrain=retrain, note=note))
            continue
        first = good[0]
        if first["unresolved"] is True:
            note = "unresolved: doing nothing is as near as a second retrained model, so nothing is ranked"
            found.append(Winner(problem, retrain=retrain, note=note))
            continue
        ranked = not math.isnan(number(first["rank_group"]))
        tied = [r for r in good if ranked and r["rank_group"] == first["rank_group"]] or [first]
        fastest = min((r for r in tied if r["device_type"] == device), key=lambda r: number(r["unlearn_s"]))
        found.append(
            Winner(
                problem,
                name_of(first),
                interval_cell(DISTANCE, 100.0)(first),
                tuple(name_of(r) for r in tied if r is not first),
                name_of(fastest),
                _seconds(fastest),
                retrain,
                "" if ranked else "not ranked: fewer than three train seeds",
            )
        )
    return found


def _seconds(line: Record) -> str:
    value = number(line["unlearn_s"])
    return "" if math.isnan(value) else f"{value:.3g} s"


def table_of(leaderboard: pd.DataFrame) -> Table:
    """All lines, sorted as in the terminal; lines that fail a gate are marked, the page hides them at first."""
    problems = {problem: index for index, problem in enumerate(problems_of(leaderboard))}
    sort = [*GROUP, *([DISTANCE] if DISTANCE in leaderboard else []), "method", "variant"]
    frame = leaderboard.sort_values(sort, na_position="last", kind="stable")
    left_out = max(0, len(frame) - MOST_LINES)
    frame = frame.head(MOST_LINES)
    info = leaderboard.attrs.get("metrics", {})
    found = cells(frame, GROUP, shown_metrics(leaderboard, info), info)
    # What a phone shows without scrolling stands first: name, rank, front and the first metric; then the problem.
    at = found.header.index("rank")
    first, rest = range(at, at + 3), range(at + 3, len(found.header))
    alone = len({problem[0] for problem in problems}) == 1  # one dataset need not be said in every line
    rows = []
    for i, record in enumerate(found.records):
        broken = (
            () if gates_hold(record["gates"]) else [k for k, v in json.loads(record["gates"]).items() if v is False]
        )
        problem = tuple(str(record[name]) for name in PROBLEM)
        rows.append(
            Row(
                problems[problem],
                (
                    name_of(record),
                    *(found.rows[i][j] for j in first),
                    " / ".join(problem[alone:]),
                    *(found.rows[i][j] for j in rest),
                ),
                (False, *((i, j) in found.best for j in first), False, *((i, j) in found.best for j in rest)),
                record["kind"],
                ", ".join(broken),
            )
        )
    titles = [title.replace("_accuracy", "").replace("_", " ") for title in found.header]
    return Table(["method", *titles[at : at + 3], "problem", *titles[at + 3 :]], rows, left_out)


def environment(trials: pd.DataFrame) -> list[tuple[str, str]]:
    """What ran, with which versions, on which devices."""
    facts = [("trials", f"{len(trials):,} rows: {_counted(trials['phase'])}; {_counted(trials['status'])}")]
    for title, column in (
        ("experiment", "experiment"),
        ("protocol", "protocol"),
        ("raybench", "raybench_version"),
        ("commit", "git_commit"),
        ("torch", "torch_version"),
        ("ray", "ray_version"),
        ("CUDA", "cuda_version"),
        ("device type", "device_type"),
        ("device", "device_name"),
        ("nodes", "node"),
        ("threads a trial", "threads"),
        ("train seeds", "train_seed"),
    ):
        if column in trials and trials[column].notna().any():
            values = sorted(trials[column].dropna().unique().tolist())
            said = [f"{v:g}" if isinstance(v, float) else str(v) for v in values[:12]]
            facts.append((title, ", ".join(said) + (f" and {len(values) - 12} more" if len(values) > 12 else "")))
    if "wall_s" in trials and trials["wall_s"].notna().any():
        facts.append(("wall time of all trials", f"{trials['wall_s'].sum() / 3600:.3g} device hours"))
    if "started_at" in trials and trials["started_at"].notna().any():
        first, last = trials["started_at"].min(), trials["started_at"].max()
        facts.append(("ran", f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"))
    return facts


def _counted(column: pd.Series[Any]) -> str:
    return ", ".join(f"{count:,} {value}" for value, count in column.value_counts().items())


def downloads(leaderboard: pd.DataFrame, results: str) -> list[Download]:
    """The leaderboard as CSV and Parquet inside the page, where they are small enough."""
    name = shlex.quote(results)
    text = leaderboard.to_csv(index=False, lineterminator="\n").encode()
    if len(text) > MOST_DOWNLOAD * 3 // 4:
        text, ending, kind = gzip.compress(text, mtime=0), "csv.gz", "application/gzip"
    else:
        ending, kind = "csv", "text/csv;charset=utf-8"
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(leaderboard, preserve_index=False), sink, compression="zstd")
    return [
        _embedded(f"leaderboard.{ending}", "every column, for spreadsheets", kind, text,
                  f"raybench leaderboard {name} --format csv"),
        _embedded("leaderboard.parquet", "every column, for pandas", "application/vnd.apache.parquet", sink.getvalue(),
                  f"it is {name}/leaderboard.parquet"),
    ]  # fmt: skip


def _embedded(name: str, what: str, kind: str, data: bytes, other: str) -> Download:
    if 4 * len(data) // 3 > MOST_DOWNLOAD:
        return Download(name, what, "", f"too large to be inside the page ({len(data) / 1e6:.1f} MB): {other}")
    return Download(name, what, f"data:{kind};base64,{base64.b64encode(data).decode()}")


def reruns(leaderboard: pd.DataFrame, trials: pd.DataFrame) -> dict[str, list[Reruns]]:
    """Method -> its lines with their settings and the trials behind their numbers."""
    rows = trials[trials["phase"].isin(["final", "reference"]) & (trials["status"] == "ok")]
    rows = rows.drop_duplicates([*PROBLEM, "method", "variant", "train_seed", "unlearn_seed"], keep="last")
    columns = [*PROBLEM, "method", "variant"]
    behind = dict(iter(rows.groupby(columns)))
    found: dict[str, list[Reruns]] = {}
    for line in lines_of(leaderboard.sort_values(columns)):
        group = behind.get(tuple(line[name] for name in columns))
        if group is None:
            continue
        listed = sorted(zip(group["train_seed"].tolist(), group["trial_id"].tolist(), strict=True))
        where = " / ".join(str(line[name]) for name in PROBLEM)
        hparams = json.loads(line["hparams"]) if isinstance(line["hparams"], str) else {}
        mine = found.setdefault(line["method"], [])
        room = max(0, MOST_TRIALS - sum(len(r.trials) for r in mine))
        title = f"{where} ({line['variant']})" if line["variant"] else where
        mine.append(Reruns(title, hparams, tuple(listed[:room]), max(0, len(listed) - room)))
    return found


def selected(lines: Sequence[Reruns], name: str) -> str:
    """The values that a hyperparameter has in a card's lines, in order of their first use."""
    values = list(dict.fromkeys(_short(line.hparams[name]) for line in lines if name in line.hparams))
    return ", ".join(values[:8]) + (f" and {len(values) - 8} more" if len(values) > 8 else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "off" if value is None else str(value)
