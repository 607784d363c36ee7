"""One self-contained HTML page of a results folder: no request leaves it, and all text in it is escaped."""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from raybench.errors import UserError
from raybench.folder import Folder, open_folder
from raybench.leaderboard.figure_data import Frames, Skip
from raybench.leaderboard.figures import COLOURS, FIGURES, STYLE
from raybench.leaderboard.page_curves import response_figures, roc_figures, steps
from raybench.leaderboard.page_data import (
    downloads,
    environment,
    problems_of,
    reruns,
    selected,
    table_of,
    winners,
)
from raybench.leaderboard.page_figures import (
    OTHERS,
    Drawing,
    accuracy,
    by_problem,
    front,
    lines_of,
    over_problems,
    palette,
    ranks,
)
from raybench.leaderboard.page_svg import to_svg
from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.leaderboard.roc import kept_outputs
from raybench.leaderboard.store import ResultStore
from raybench.version import __version__

MOST_FIGURES = 120
MOST_FIGURE_BYTES = 5_000_000
PAGE_STYLE: Any = STYLE | {"text.parse_math": False, "font.size": 10, "legend.fontsize": 9, "figure.dpi": 72.0}
VARIABLES = {"#000000": "ink", "#e5e5e5": "grid", "#ffffff": "paper", "#cccccc": "grid", OTHERS: "dim"} | {
    colour.lower(): f"s{index}" for index, colour in enumerate(COLOURS)
}
SECTIONS = {
    "front": "Accuracy against time",
    "accuracy": "What stays and what goes, against time",
    "ranks": "Rank groups",
    "overall": "Over all problems",
    "sweep": "Sweeps",
    "response": "What the search found",
    "steps": "Accuracy over steps",
    "roc": "Attack ROC curves",
}
SWEEPS = ("gamma", "lambda_map", "entropy", "images_or_codes", "path")


@dataclass(frozen=True)
class Card:
    """What a registry knows of a method; ``raybench.cards`` makes them, so that this package imports no plug-in."""

    name: str
    label: str
    summary: str = ""
    paper: str = ""
    link: str = ""
    needs: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()
    complexity: str = ""
    training: str = ""
    hparams: tuple[Mapping[str, Any], ...] = ()  # name, default, doc, and searched (a range) and role where it is
    deviations: tuple[str, ...] | None = None  # None: its docstring states none either way
    missing: str = ""  # why nothing is known of it


@dataclass
class Sources:
    """A results folder as the page reads it."""

    results: str
    frames: Frames
    spec: str
    folder: Folder
    files: Mapping[str, str]  # trial id -> its kept outputs

    @classmethod
    def read(cls, results: str | os.PathLike[str]) -> Sources:
        """Read a folder; ``UserError`` where it is none."""
        name = os.fspath(results)
        frames = Frames(load_leaderboard(results), load_trials(results), ResultStore(results).series())
        folder, spec = open_folder(results), ""
        if folder.has("spec.yaml"):
            with folder.open("spec.yaml") as file:
                spec = file.read().decode()
        return cls(name, frames, spec, folder, kept_outputs(folder))


@dataclass
class _Shown:
    """Figures of the page, and what was not drawn."""

    figures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    left_out: bool = False


def drawings(sources: Sources, cards: Sequence[Card], reasons: dict[str, str]) -> Iterator[Drawing]:
    """Every figure, the most important ones first. ``reasons``: section -> why it is empty, filled on the way."""
    frames = sources.frames
    colours = palette(frames.leaderboard)
    boards = [(problem, lines_of(group)) for problem, group in by_problem(frames.leaderboard)]
    for problem, lines in boards:
        if found := front(lines, problem, colours):
            yield found
    overall = over_problems(frames.leaderboard)
    if isinstance(overall, str):
        reasons["overall"] = overall
    else:
        yield overall
    for problem, lines in boards:
        if found := ranks(lines, problem):
            yield found
    for problem, lines in boards:
        yield from accuracy(lines, problem, colours)
    yield from _sweeps(frames, [problem for problem, _ in boards], reasons)
    if len(frames.series):
        yield from steps(frames)
    else:
        reasons["steps"] = "No curves were recorded: the spec says curves: false, or no final method has a checkpoint."
    scientific = {c.name: [str(h["name"]) for h in c.hparams if h.get("role") == "scientific"] for c in cards}
    yield from response_figures(frames, {name: names for name, names in scientific.items() if names})
    if not sources.files:
        reasons["roc"] = (
            "No outputs of trials are in this folder (artifacts/), so there is nothing to draw the curves from. "
            "A run leaves them with keep: [outputs], which is the default; shipped folders leave them out for size. "
            "The numbers of the attacks are in the downloads."
        )
    yield from roc_figures(frames, sources.folder, sources.files, colours)


def _sweeps(frames: Frames, known: Sequence[tuple[str, ...]], reasons: dict[str, str]) -> Iterator[Drawing]:
    skipped = []
    for name in SWEEPS:
        draw: Callable[[Frames], Any] = FIGURES[name]
        what = (draw.__doc__ or name).strip().splitlines()[0]
        try:
            for title, figure in draw(frames):
                problem = next((p for p in known if f"{title} / ".startswith(" / ".join(p) + " / ")), None)
                yield Drawing("sweep", problem, name.replace("_", " "), f"{what} {title}", figure, what)
        except Skip as reason:
            skipped.append(f"{name.replace('_', ' ')}: {reason}")
    reasons["sweep"] = "Not drawn: " + "; ".join(skipped) + "." if skipped else ""


def write_page(sources: Sources, cards: Sequence[Card], out: Path) -> int:
    """Write the page, whole or not at all; gives its size in bytes."""
    data = render_page(sources, cards).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = out.with_name(f".{out.name}.{os.getpid()}")
        scratch.write_bytes(data)
        os.replace(scratch, out)
    except OSError as error:
        raise UserError(f"--out must be a file that can be written, got {out} ({error.strerror or error})") from error
    return len(data)


def write_figures(sources: Sources, cards: Sequence[Card], folder: Path) -> list[Path]:
    """Every figure of the page as SVG and PDF, for papers."""
    place, written = open_folder(folder), []
    used: set[str] = set()
    with mpl.rc_context(PAGE_STYLE):
        for drawing in drawings(sources, cards, {}):
            stem = _stem(drawing, used)
            place.put(f"{stem}.svg", to_svg(drawing.figure, drawing.label).encode())
            place.put(f"{stem}.pdf", _pdf(drawing))
            written += [folder / f"{stem}.svg", folder / f"{stem}.pdf"]
    return written


def _stem(drawing: Drawing, used: set[str]) -> str:
    """What the figure shows and of which problem, as a file name that no other figure has."""
    title = "" if drawing.title.replace(" ", "_").startswith(drawing.kind) else drawing.title
    words = " ".join((drawing.kind, title, *(drawing.problem or ())))
    stem = re.sub(r"[^A-Za-z0-9.]+", "_", words).strip("_.")[:120]
    while stem in used:
        stem += "_"
    used.add(stem)
    return stem


def _pdf(drawing: Drawing) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Title": drawing.label, "CreationDate": None}
    drawing.figure.savefig(buffer, format="pdf", metadata=metadata)
    return buffer.getvalue()


def code(text: str) -> Markup:
    """Escaped text, with what a docstring writes in double backquotes as code."""
    parts = str(text).split("``")
    if len(parts) % 2 == 0:  # one of them has no partner
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def render_page(sources: Sources, cards: Sequence[Card]) -> str:
    """The page as text."""
    frames = sources.frames
    shown = _draw(sources, cards)
    problems_found = problems_of(frames.leaderboard)
    behind = reruns(frames.leaderboard, frames.trials)
    environment_ = Environment(
        loader=PackageLoader("raybench.leaderboard"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment_.filters["code"] = code
    templates = Path(__file__).parent / "templates"
    return environment_.get_template("page.html").render(
        title=", ".join(sorted(frames.trials["experiment"].unique())) or "leaderboard",
        results=sources.results,
        folder=shlex.quote(sources.results.rstrip("/")),
        version=__version__,
        problems=problems_found,
        winners=winners(frames.leaderboard),
        table=table_of(frames.leaderboard),
        sections=SECTIONS,
        shown=shown,
        cards=[(card, behind.get(card.name, [])) for card in cards],
        selected=selected,
        environment=environment(frames.trials),
        spec=sources.spec,
        downloads=downloads(frames.leaderboard, sources.results),
        style=Markup((templates / "page.css").read_text()),
        script=Markup((templates / "page.js").read_text()),
    )


def _draw(sources: Sources, cards: Sequence[Card]) -> _Shown:
    shown = _Shown()
    numbers = {problem: index for index, problem in enumerate(problems_of(sources.frames.leaderboard))}
    size = count = 0
    with mpl.rc_context(PAGE_STYLE):
        for drawing in drawings(sources, cards, shown.reasons):
            if count >= MOST_FIGURES or size >= MOST_FIGURE_BYTES:
                shown.left_out = True
                break
            text = to_svg(drawing.figure, drawing.label, f"f{count}-", VARIABLES)
            count, size = count + 1, size + len(text)
            item = {
                "svg": Markup(text),
                "problem": "" if drawing.problem is None else numbers[drawing.problem],
                "where": "" if drawing.problem is None else " / ".join(drawing.problem),
                "title": drawing.title,
                "note": drawing.note,
                "wide": drawing.figure.get_figwidth() > 7,
            }
            shown.figures.setdefault(drawing.kind, []).append(item)
    return shown
