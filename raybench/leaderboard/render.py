"""The leaderboard for people (table, markdown, latex: percent, mean ± half width) and for programs (csv, json)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import IO, Any

import pandas as pd

from raybench.errors import unknown
from raybench.leaderboard.cells import GROUP, Cells, cells, gates_hold, mask, shown_metrics
from raybench.leaderboard.statistics import MIN_TRAIN_SEEDS
from raybench.leaderboard.tables import as_markdown, latex_text

FORMATS = ("table", "csv", "markdown", "latex", "json")
_BY = ("dataset", "model", "scenario", "method", "variant", "kind", "device_type", "status")
_WORDS = (*GROUP, "method", "variant", "status")  # columns of text, which LaTeX sets from the left
_NAMED = 6  # lines that a note names
_BOLD, _DIM, _GREEN, _RED, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"


def render(
    leaderboard: pd.DataFrame,
    format: str = "table",
    by: str | None = None,
    model: str | None = None,
    pareto: bool = False,
    gated: bool = False,
    metrics: Sequence[str] | None = None,
    colour: bool = False,
) -> str:
    """The leaderboard as text.

    Args:
        leaderboard: as ``load_leaderboard`` gives it; units and directions come from its ``attrs["metrics"]``.
        format: table, csv, markdown, latex (booktabs, best in bold) or json (a list of objects that
            ``leaderboard.schema.json`` describes).
        by: column that groups and comes first, such as scenario.
        model: only this model.
        pareto: only the lines on the front.
        gated: also lines that fail a sanity gate.
        metrics: metrics to show (default: distance and the next five); csv and json always hold all columns.
        colour: the table with escape codes for a terminal (see ``wants_colour``).

    Within a group the lines are sorted by distance. Bad arguments raise ``UserError``.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if by is not None and by not in _BY:
        raise unknown("column to group by", by, _BY)
    frame = leaderboard
    if model is not None:
        frame = only_model(frame, model)
    if pareto:
        frame = frame[mask(value is True for value in frame["on_pareto_front"])]
    hidden = frame[mask(not gates_hold(text) for text in frame["gates"])]
    if not gated:
        frame = frame.drop(hidden.index)
    keys = list(dict.fromkeys(([by] if by else []) + GROUP))
    sort = [*keys, *(["distance"] if "distance" in frame else []), "method", "variant"]
    frame = frame.sort_values(list(dict.fromkeys(sort)), na_position="last", kind="stable")
    if format == "csv":
        return frame.to_csv(index=False, lineterminator="\n")
    if format == "json":
        return json.dumps(_records(frame), indent=2, allow_nan=False)
    info: dict[str, dict[str, str]] = leaderboard.attrs.get("metrics", {})
    shown = shown_metrics(frame, info, metrics)
    table = cells(frame, keys, shown, info)
    grouped = len(keys) if by is None else 0
    if format == "latex":
        return _latex(table, grouped)
    notes = _notes(frame, [m for m in info if m not in shown], hidden.iloc[:0] if gated else hidden)
    if format == "markdown":
        return as_markdown(table.header, table.rows, notes)
    return _plain(table, notes, grouped, colour)


def only_model(leaderboard: pd.DataFrame, model: str) -> pd.DataFrame:
    """The lines of a model; an unknown one is a ``UserError``."""
    if model not in set(leaderboard["model"]):
        raise unknown("model", model, set(leaderboard["model"]))
    return leaderboard[leaderboard["model"] == model]


def wants_colour(stream: IO[str]) -> bool:
    """Whether escape codes belong on a stream: only on a terminal, and not where NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


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


def _notes(frame: pd.DataFrame, more: list[str], hidden: pd.DataFrame) -> list[str]:
    notes = []
    unresolved = frame[mask(value is True for value in frame["unresolved"])]
    for key in unresolved[GROUP].drop_duplicates().itertuples(index=False):
        notes.append(f"unresolved, not ranked: {' / '.join(key)} (doing nothing is within the gold-vs-gold floor)")
    notes += _unranked(frame)
    if len(hidden):
        broken = [name for text in hidden["gates"] for name, holds in json.loads(text).items() if holds is False]
        one = "1 line that fails a sanity gate is"
        many = one if len(hidden) == 1 else f"{len(hidden)} lines that fail a sanity gate are"
        names = ", ".join(dict.fromkeys(broken))
        notes.append(f"{many} hidden ({names}); --gated shows, raybench list gates explains")
    skipped = frame[mask(value == "skipped" for value in frame["status"])]
    for reason, lines in skipped.groupby("reason", sort=True):
        where = ", ".join(dict.fromkeys(f"{m} on {c}/{s}" for m, c, s in lines[["method", "model", "scenario"]].values))
        notes.append(f"skipped: {where}: {reason}")
    if more:
        notes.append(f"more metrics in csv and json: {', '.join(more)}")
    return notes


def _unranked(frame: pd.DataFrame) -> list[str]:
    """Who has no rank for want of seeds, and who has one all the same."""
    notes = []
    ready = mask(_rankable(record) for record in frame.to_dict("records"))
    for key, lines in frame[ready & frame["rank_group"].isna().to_numpy()].groupby(GROUP, sort=True):
        names = [f"{m} ({v})" if v else m for m, v in lines[["method", "variant"]].values]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        who = f"{', '.join(names[:_NAMED])}{more} on {' / '.join(map(str, key))}"
        few = f"fewer than {MIN_TRAIN_SEEDS} train seeds"
        notes.append(f"not ranked, {few}: {who}; --force-rank ranks them all the same")
    if "rank_forced" in frame and frame["rank_forced"].any():
        notes.append(f"ranks marked forced rest on fewer than {MIN_TRAIN_SEEDS} train seeds and are no evidence")
    return notes


def _rankable(record: dict[Any, Any]) -> bool:
    """Whether only the number of train seeds can keep a line from its rank."""
    sound = record["kind"] == "method" and record["status"] == "ok" and gates_hold(record["gates"])
    return sound and record["unresolved"] is not True and record["n"] < MIN_TRAIN_SEEDS


def _plain(table: Cells, notes: list[str], grouped: int, colour: bool) -> str:
    """Aligned columns. The first ``grouped`` ones stand once as a heading over their lines."""
    short = [cell.replace("_accuracy", "") for cell in table.header[grouped:]]
    columns = zip(short, *(r[grouped:] for r in table.rows), strict=True)
    widths = [max(len(text) for text in column) for column in columns]

    def line(cells: Sequence[str], styles: Sequence[str] = ()) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        if not colour or not styles:
            return "  ".join(padded).rstrip()
        return "  ".join(_styled(text, style) for text, style in zip(padded, styles, strict=True)).rstrip()

    rule = line(["-" * width for width in widths])
    text = [] if grouped else [line(short), rule]
    heading: list[str] = []
    for i, row in enumerate(table.rows):
        if row[:grouped] != heading:
            heading = row[:grouped]
            title = " / ".join(heading)
            text += ["", _styled(title, _BOLD) if colour else title, line(short), rule]
        text.append(line(row[grouped:], [_style(table, i, j) for j in range(grouped, len(row))]))
    return "\n".join(text + (["", *notes] if notes else [])).lstrip("\n") + "\n"


def _style(table: Cells, i: int, j: int) -> str:
    record, title = table.records[i], table.header[j]
    if title == "status" and record["status"] != "ok":
        return _DIM if record["status"] == "skipped" else _RED
    if (i, j) in table.best:
        return _BOLD
    if title in ("front", "method") and record["on_pareto_front"] is True:
        return _GREEN
    return _DIM if record["kind"] == "reference" else ""


def _styled(text: str, style: str) -> str:
    """Codes around the words alone, so that trailing blanks can be cut off."""
    bare = text.rstrip()
    return f"{style}{bare}{_PLAIN}{text[len(bare) :]}" if style and bare else text


def _latex(table: Cells, grouped: int) -> str:
    """A tabular for the packages booktabs alone. The first ``grouped`` columns stand once over their lines."""

    header = table.header[grouped:]
    body: list[str] = []
    heading: list[str] = []
    for i, row in enumerate(table.rows):
        if row[:grouped] != heading:
            heading = row[:grouped]
            title = " / ".join(map(latex_text, heading))
            body += [*([r"\midrule"] if body else []), rf"\multicolumn{{{len(header)}}}{{l}}{{\emph{{{title}}}}} \\"]
        marked = [(latex_text(cell), (i, j + grouped) in table.best) for j, cell in enumerate(row[grouped:])]
        body.append(" & ".join(rf"\textbf{{{cell}}}" if best else cell for cell, best in marked) + r" \\")
    sides = "".join("l" if title in _WORDS else "r" for title in header)
    top = [
        "% Needs the package booktabs. Bold: the best; of the distance, all that a paired test does not tell from it.",
        rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        " & ".join(map(latex_text, header)) + r" \\",
    ]
    return "\n".join([*top, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"
