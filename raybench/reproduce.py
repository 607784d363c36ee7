"""``raybench reproduce``: run the spec of a source document, and put its published numbers beside ours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.errors import unknown
from raybench.folder import open_folder
from raybench.leaderboard.comparison import SCHEMA, VERDICTS, compare
from raybench.leaderboard.published import Published, published_names, read_published
from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.leaderboard.schema import describe
from raybench.leaderboard.store import ResultStore
from raybench.progress import Reporter
from raybench.registry import KINDS
from raybench.run import Options, Outcome, run
from raybench.spec_file import read_spec

SCALES = ("tiny", "full")
FILE, PAGE = "reproduce.parquet", "reproduce.md"
_COLUMNS = ("row", "problem", "metric", "published", "ours", "n", "difference", "verdict")
_KNOWN = ("methods", "models", "datasets", "scenarios")


def spec_of(name: str, scale: str) -> str:
    """The shipped spec of a document at a scale; unknown words are a ``UserError``."""
    if name not in published_names():
        raise unknown("document", name, published_names())
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    return f"reproduce_{name}_{scale}"


def reproduce(
    name: str, scale: str = "tiny", options: Options | None = None, settings: Sequence[str] = ()
) -> tuple[Outcome, pd.DataFrame]:
    """Run (or go on with) the spec, compare, and leave ``reproduce.parquet`` and ``reproduce.md`` in the results.

    Says what the spec needs before it starts. Bad input and missing data are a ``UserError`` before any training.
    """
    spec, options = spec_of(name, scale), options or Options()
    reporter = Reporter(quiet=options.quiet, verbose=options.verbose)
    reporter.say(" ".join(f"{spec}: {read_spec(spec)['description']}".split()))
    outcome = run(spec, options=options, settings=settings, reporter=reporter)
    published = read_published(name)
    frame = compared(published, scale, outcome.results)
    write(outcome.results, published, scale, frame)
    return outcome, frame


def compared(published: Published, scale: str, results: str) -> pd.DataFrame:
    """The comparison of a results folder that a spec of ``scale`` has filled."""
    return compare(
        published.cells,
        published.scales[scale],
        {kind: set(KINDS[kind].names()) for kind in _KNOWN},
        load_leaderboard(results),
        load_trials(results),
        ResultStore(results).series(),
    )


def write(results: str, published: Published, scale: str, frame: pd.DataFrame) -> None:
    """``reproduce.parquet`` (fractions, seconds) and ``reproduce.md`` (percent), by atomic replaces."""
    folder = open_folder(results)
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(describe("reproduce")))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder.put(FILE, sink.getvalue().to_pybytes())
    folder.put(PAGE, page(published, scale, frame).encode())


def page(published: Published, scale: str, frame: pd.DataFrame) -> str:
    """The comparison as Markdown, one table per published table; reasons are numbered notes below it."""
    text = [f"# {published.title}, `--scale {scale}`", "", f"Published in: {published.paper}. {summary(frame)}", ""]
    text += ["*agrees*: the published value lies within our 95 % interval over train seeds, widened by the printed sd,"]
    text += ["rounding and reading; it says that the two cannot be told apart. *difference* is ours minus published,"]
    text += ["*n* our train seeds."]
    for table, title in published.tables.items():
        part = frame[frame["table"] == table]
        rows, notes = _rows(part)
        source = "; ".join(dict.fromkeys(part["source"]))
        evidence = ", ".join(dict.fromkeys(part["evidence"]))
        text += ["", f"## {title}", "", f"Source: {source} ({evidence}).", ""]
        lines = [_COLUMNS, ["---"] * len(_COLUMNS), *rows]
        text += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        text += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))] if notes else []
    return "\n".join(text) + "\n"


def table(published: Published, frame: pd.DataFrame) -> str:
    """The comparison for a terminal."""
    text: list[str] = []
    for name, title in published.tables.items():
        rows, notes = _rows(frame[frame["table"] == name])
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
        lines = [_COLUMNS, ["-" * width for width in widths], *rows]
        text += [title]
        text += ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        text += [*(f"  [{number}] {note}" for number, note in enumerate(notes, 1)), ""]
    return "\n".join([*text, summary(frame)])


def summary(frame: pd.DataFrame) -> str:
    """How many cells of each verdict."""
    counts = frame["verdict"].value_counts()
    found = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts.index)
    return f"{len(frame)} cells: {found}."


def _rows(part: pd.DataFrame) -> tuple[list[list[str]], list[str]]:
    """The table's rows as text, and the notes that their verdicts point to."""
    notes: list[str] = []
    rows = []
    for record in part.to_dict("records"):
        note = _note(record)
        if note and note not in notes:
            notes.append(note)
        rows.append([*_shown(record), record["verdict"] + (f" [{notes.index(note) + 1}]" if note else "")])
    return rows, notes


def _note(record: dict[Any, Any]) -> str:
    """The reason, with our problem where another stands for the published one."""
    ours = record["our_problem"]
    other = not pd.isna(ours) and ours != _problem(record)
    return ": ".join(filter(None, (f"here {ours}" if other else "", record["reason"])))


def _problem(record: dict[Any, Any]) -> str:
    return " / ".join((record["dataset"], record["model"], record["scenario"]))


def _shown(record: dict[Any, Any]) -> Iterator[str]:
    unit = record["unit"]
    scale, sign = (100.0, " %") if unit in ("percent", "fraction") else (1.0, "" if unit == "ratio" else f" {unit}")
    yield record["row"]
    yield _problem(record)
    yield record["metric"] + sign
    yield _number(record["published"], record["published_sd"], scale, as_printed=True)
    yield _number(record["ours"], _half(record), scale)
    yield str(int(record["n"])) if record["n"] else ""
    yield "" if pd.isna(record["difference"]) else f"{record['difference'] * scale:+.{_digits(scale)}f}"


def _half(record: dict[Any, Any]) -> float:
    return math.nan if pd.isna(record["ours_hi"]) else record["ours_hi"] - record["ours"]


def _number(value: Any, half: Any, scale: float, as_printed: bool = False) -> str:
    if pd.isna(value):
        return ""
    digits = 2 if as_printed else _digits(scale)
    return " ± ".join(_short(v * scale, digits) for v in (value, half) if not pd.isna(v))


def _short(value: float, digits: int) -> str:
    """At least one decimal and at most ``digits``: 95.9, 99.85."""
    text = f"{value:.{digits}f}"
    return text[:-1] if digits == 2 and text.endswith("0") else text


def _digits(scale: float) -> int:
    return 1 if scale == 100.0 else 2
