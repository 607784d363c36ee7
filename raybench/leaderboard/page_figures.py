"""What the page draws of a leaderboard, per problem: distance and accuracy against time, and the rank groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from raybench.leaderboard.cells import Record, gates_hold, number
from raybench.leaderboard.figure_data import accuracy_columns, line_name
from raybench.leaderboard.figures import COLOURS, LEGEND, MARKERS
from raybench.leaderboard.overall import overall, sentence
from raybench.leaderboard.page_svg import tip
from raybench.leaderboard.query import DISTANCE, PROBLEM
from raybench.leaderboard.rank_statistics import MeanRanks

Problem = tuple[str, ...]  # dataset, model, scenario
SIZE = (5.2, 3.9)
OTHERS = "#8a8a8a"  # lines that have no colour of their own
INK = "black"


@dataclass(frozen=True)
class Drawing:
    """A figure and what is said of it."""

    kind: str
    problem: Problem | None
    title: str
    label: str  # in words, for those who do not see it
    figure: Figure
    note: str = ""


@dataclass
class Palette:
    """A colour and a marker per line name, the same in every figure; the others are grey."""

    names: list[str] = field(default_factory=list)

    def colour(self, name: str) -> str:
        return COLOURS[self.names.index(name)] if name in self.names else OTHERS

    def marker(self, name: str) -> str:
        return MARKERS[self.names.index(name)] if name in self.names else "."


def name_of(line: Record) -> str:
    """How a line is called."""
    return line_name(line["method"], line["variant"])


def by_problem(frame: pd.DataFrame) -> Iterator[tuple[Problem, pd.DataFrame]]:
    """The rows of every dataset, model and scenario, sorted."""
    for key, group in frame.groupby(list(PROBLEM), sort=True):
        yield tuple(map(str, key)), group


def lines_of(frame: pd.DataFrame) -> list[Record]:
    """The lines of a frame as plain records."""
    return [{str(key): value for key, value in record.items()} for record in frame.to_dict("records")]


def competing(lines: Sequence[Record]) -> list[Record]:
    """Methods with a number that passed the gates, nearest to the retrained model first."""
    found = [r for r in lines if r["kind"] == "method" and r["status"] == "ok" and gates_hold(r["gates"])]
    return sorted(found, key=lambda r: (number(r.get(DISTANCE)), name_of(r)))


def palette(leaderboard: pd.DataFrame) -> Palette:
    """Colours go to the lines that are most often on a front, then to those that come first most often."""
    score: dict[str, list[float]] = {}
    for _, group in by_problem(leaderboard):
        for place, line in enumerate(competing(lines_of(group))):
            item = score.setdefault(name_of(line), [0.0, 0.0])
            item[0] -= line["on_pareto_front"] is True
            item[1] -= 1.0 / (1 + place)
    return Palette(sorted(score, key=lambda name: (*score[name], name))[: len(COLOURS)])


def front(lines: Sequence[Record], problem: Problem, colours: Palette) -> Drawing | None:
    """Distance to the retrained model against seconds of unlearning, with the front and the reference points."""
    shown = [r for r in competing(lines) if number(r["unlearn_s"]) > 0 and number(r.get(DISTANCE)) >= 0]
    if not shown:
        return None
    figure, axis = _one_panel()
    for line in shown:
        _point(axis, line, DISTANCE, colours)
    for device in sorted({str(r["device_type"]) for r in shown}):
        on = [r for r in shown if r["on_pareto_front"] is True and str(r["device_type"]) == device]
        on.sort(key=lambda r: float(r["unlearn_s"]))
        x, y = [r["unlearn_s"] for r in on], [100 * r[DISTANCE] for r in on]
        axis.step(x, y, where="post", color=INK, lw=1.0, ls="-", zorder=1.5, alpha=0.6)
    _references(axis, lines, DISTANCE)
    logarithmic_axis(axis.xaxis)
    axis.set(xlabel="unlearning (s, log)", ylabel="distance (%)")
    values = [100 * number(r[DISTANCE]) for r in shown]
    if min(values) > 0 and max(values) > 10 * min(values):  # else the near ones lie on top of each other
        logarithmic_axis(axis.yaxis)
        axis.set(ylabel="distance (%, log)")
        retrained = [100 * number(r.get(DISTANCE)) for r in lines if r["method"] == "retrain"]
        axis.set_ylim(0.6 * min(values + [v for v in retrained if v > 0]), min(104.0, axis.get_ylim()[1]))
    else:
        top = axis.get_ylim()[1]
        axis.set_ylim(-0.03 * top, min(104.0, top))
    _legend(axis, shown, colours)
    _names(axis, shown, lines)
    named = ", ".join(name_of(r) for r in shown if r["on_pareto_front"] is True) or "none"
    label = f"Distance against time on {' / '.join(problem)}: {len(shown)} methods; on the front: {named}"
    return Drawing("front", problem, "distance against time", label, figure)


def accuracy(lines: Sequence[Record], problem: Problem, colours: Palette) -> Iterator[Drawing]:
    """Accuracy on what must stay and on what must go, against seconds; the dashed line is the retrained model's."""
    shown = [r for r in competing(lines) if number(r["unlearn_s"]) > 0]
    for column in accuracy_columns(pd.DataFrame(lines)):
        drawn = [r for r in shown if not math.isnan(number(r.get(column)))]
        if not drawn:
            continue
        figure, axis = _one_panel()
        for line in drawn:
            _point(axis, line, column, colours)
        level = [number(r.get(f"{column}_retrained")) for r in drawn]
        level = [value for value in level if not math.isnan(value)]
        if level:
            axis.axhline(100 * sum(level) / len(level), color=INK, lw=1.0, ls="--")
        _references(axis, lines, column)
        logarithmic_axis(axis.xaxis)
        axis.set(xlabel="unlearning (s, log)", ylabel="accuracy (%)")
        low, high = axis.get_ylim()
        axis.set_ylim(max(-4.0, low), min(104.0, high))
        _legend(axis, drawn, colours)
        label = f"Accuracy on {LEGEND[column]} against time on {' / '.join(problem)}, {len(drawn)} methods"
        yield Drawing("accuracy", problem, f"{LEGEND[column]}: accuracy against time", label, figure)


def ranks(lines: Sequence[Record], problem: Problem) -> Drawing | None:
    """Every line's distance with its interval, coloured by rank group, above the gold-vs-gold floor."""
    shown = [r for r in competing(lines) if not math.isnan(number(r.get(DISTANCE)))]
    if not shown:
        return None
    figure = Figure(figsize=(SIZE[0], 1.1 + 0.17 * len(shown)), layout="constrained")
    axis = figure.subplots()
    for at, line in enumerate(shown):
        group = number(line["rank_group"])
        colour = OTHERS if math.isnan(group) else COLOURS[(int(group) - 1) % len(COLOURS)]
        drawn = axis.errorbar(
            [100 * line[DISTANCE]], [at], xerr=_bars(line, DISTANCE, 100.0), color=colour, marker="o", ms=4, lw=1.0
        )
        where = "not ranked" if math.isnan(group) else f"rank group {int(group)}"
        tip(drawn.lines[0], f"{_said(line, DISTANCE)}; {where}")
        if not math.isnan(group):
            axis.annotate(str(int(group)), (1.01, at), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    floor, above = number(shown[0].get(f"{DISTANCE}_floor")), number(shown[0].get(f"{DISTANCE}_floor_hi"))
    if not math.isnan(floor):
        high = floor if math.isnan(above) else above
        axis.axvspan(0, 100 * high, color=OTHERS, alpha=0.15, lw=0)
        axis.axvline(100 * floor, color=INK, lw=1.0, ls="--", label="floor: retrained against retrained")
    for line in lines:
        if line["method"] == "original" and not math.isnan(number(line.get(DISTANCE))):
            axis.axvline(100 * line[DISTANCE], color=INK, lw=1.0, ls=":", label="original: doing nothing")
    axis.set_yticks(range(len(shown)), [name_of(r) for r in shown])
    axis.set(ylim=(len(shown) - 0.4, -0.6), xlabel="distance to the retrained model (%)")
    axis.set_xlim(left=0.0)
    axis.grid(visible=False, axis="y")
    if axis.get_legend_handles_labels()[1]:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    groups = len({r["rank_group"] for r in shown if not math.isnan(number(r["rank_group"]))})
    said = f"{groups} rank groups" if groups else "not ranked"
    label = f"Distance of {len(shown)} methods on {' / '.join(problem)}, {said}; nearest: {name_of(shown[0])}"
    note = "unresolved: doing nothing is within the floor" if shown[0]["unresolved"] is True else ""
    return Drawing("ranks", problem, "rank groups", label, figure, note)


def over_problems(leaderboard: pd.DataFrame) -> Drawing | str:
    """Mean ranks over problems with Nemenyi's critical difference, or why there are none."""
    found = overall(leaderboard)
    said = sentence(found)
    said = said[0].upper() + said[1:] + "."
    if found.ranks is None:
        return said
    names = {key: line_name(*line) for key, line in found.lines.items()}
    return _mean_ranks(found.ranks, names, said)


def _mean_ranks(result: MeanRanks, called: Mapping[str, str], note: str) -> Drawing:
    keys = list(result.ranks)
    names = [called[key] for key in keys]
    figure = Figure(figsize=(SIZE[0], 1.1 + 0.17 * len(names)), layout="constrained")
    axis = figure.subplots()
    for at, (key, name) in enumerate(zip(keys, names, strict=True)):
        (drawn,) = axis.plot([result.ranks[key]], [at], marker="o", color=COLOURS[0], ls="")
        tip(drawn, f"{name}: mean rank {result.ranks[key]:.2f} over {result.problems} problems")
    for at, group in enumerate(result.groups):  # a bar joins the methods that are not told apart
        spots = [keys.index(key) for key in group]
        x = len(names) + 0.6 + 0.4 * at
        axis.plot([x, x], [min(spots) - 0.2, max(spots) + 0.2], color=COLOURS[1], lw=3, solid_capstyle="butt")
    axis.set_yticks(range(len(names)), names)
    axis.set(ylim=(len(names) - 0.4, -0.6), xlabel=f"mean rank over {result.problems} problems (1 = nearest)")
    axis.grid(visible=False, axis="y")
    note += " A bar joins methods that are not told apart."
    label = f"Mean ranks of {len(names)} methods over {result.problems} problems; first: {names[0]}"
    return Drawing("overall", None, "mean ranks over problems", label, figure, note)


def logarithmic_axis(axis: Any) -> None:
    """Powers of ten as plain numbers: names on the page are untrusted text, so no text is read as mathematics."""
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())  # they cost half of the drawing time


def _one_panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.subplots()


def _bars(line: Record, name: str, scale: float) -> list[list[float]]:
    ends = (number(line[name]) - number(line.get(f"{name}_lo")), number(line.get(f"{name}_hi")) - number(line[name]))
    return [[0.0 if math.isnan(v) else max(0.0, v) * scale] for v in ends]


def _point(axis: Axes, line: Record, column: str, colours: Palette) -> None:
    name = name_of(line)
    seconds = _bars(line, "unlearn_s", 1.0)
    seconds[0][0] = min(seconds[0][0], 0.7 * line["unlearn_s"])  # an interval below zero has no place on a log axis
    on = line["on_pareto_front"] is True
    known = name in colours.names
    drawn = axis.errorbar(
        [line["unlearn_s"]], [100 * line[column]], _bars(line, column, 100.0), seconds, color=colours.colour(name),
        marker=colours.marker(name), markersize=7 if on else 5, ls="", elinewidth=0.7,
        zorder=3 if known else 2, alpha=1.0 if known or on else 0.7,
    )  # fmt: skip
    tip(
        drawn.lines[0], f"{_said(line, column)} in {number(line['unlearn_s']):.3g} s" + (", on the front" if on else "")
    )


def _said(line: Record, column: str) -> str:
    value, hi = number(line[column]), number(line.get(f"{column}_hi"))
    half = "" if math.isnan(hi) else f" ± {100 * (hi - value):.1f}"
    return f"{name_of(line)}: {column.replace('_', ' ')} {100 * value:.1f}{half} %"


def _references(axis: Axes, lines: Sequence[Record], column: str) -> None:
    """Retraining is a star; doing nothing costs 0 s, which a log axis cannot show, so it is a dotted line."""
    for line in lines:
        if math.isnan(number(line.get(column))):
            continue
        if line["method"] == "retrain" and number(line["unlearn_s"]) > 0:
            drawn = axis.errorbar(
                [line["unlearn_s"]], [100 * line[column]], _bars(line, column, 100.0), color=INK, marker="*",
                markersize=10, ls="", elinewidth=0.7, zorder=4,
            )  # fmt: skip
            tip(drawn.lines[0], f"{_said(line, column)} in {number(line['unlearn_s']):.3g} s: the reference")
        elif line["method"] == "original":
            tip(axis.axhline(100 * line[column], color=INK, lw=1.0, ls=":"), f"{_said(line, column)} in 0 s")


def _legend(axis: Axes, shown: Sequence[Record], colours: Palette) -> None:
    names = [name_of(r) for r in shown]
    for name in [n for n in colours.names if n in names]:
        axis.plot([], [], color=colours.colour(name), marker=colours.marker(name), ls="", label=name)
    grey = sum(name not in colours.names for name in names)
    if grey:
        axis.plot([], [], color=OTHERS, marker=".", ls="", label=f"{grey} more")
    axis.plot([], [], color=INK, marker="*", ls="", markersize=8, label="retrain")
    axis.plot([], [], color=INK, ls=":", lw=1.0, label="original (0 s)")
    figure: Any = axis.figure
    longest = max(len(name) for name in axis.get_legend_handles_labels()[1])
    columns = 3 if longest <= 18 else 2
    rows = math.ceil(len(axis.get_legend_handles_labels()[1]) / columns)
    figure.set_figheight(SIZE[1] + 0.2 * (rows - 2))  # the legend takes no room from the axes
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, handletextpad=0.3)


def _names(axis: Axes, shown: Sequence[Record], lines: Sequence[Record]) -> None:
    """Names beside the points of the front, each at the first spot where it covers neither a name nor a point; without
    one the hover text and the table must do."""
    figure: Any = axis.figure
    figure.draw_without_rendering()

    def spot(line: Record) -> tuple[float, float]:
        x, y = axis.transData.transform((line["unlearn_s"], 100 * line[DISTANCE]))
        return float(x), float(y)

    retrained = [r for r in lines if r["method"] == "retrain" and number(r["unlearn_s"]) > 0]
    known = [r for r in (*shown, *retrained) if not math.isnan(number(r.get(DISTANCE)))]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in map(spot, known)]
    room = axis.bbox
    front_ = sorted((r for r in shown if r["on_pareto_front"] is True), key=spot)
    for line in front_:
        (x, y), text = spot(line), name_of(line)
        wide, high = 4.9 * len(text), 9.5  # of a name in pixels at 72 dots an inch, near enough to keep names apart
        for dx, dy in ((6, 4), (6, -12), (-6, 4), (-6, -12), (6, 15), (-6, 15), (6, -23), (-6, -23)):
            x0 = x + dx if dx > 0 else x + dx - wide
            box = (x0, y + dy, x0 + wide, y + dy + high)
            inside = room.x0 <= box[0] and box[2] <= room.x1 and room.y0 <= box[1] and box[3] <= room.y1
            if inside and not any(_overlap(box, other) for other in taken):
                side = "left" if dx > 0 else "right"
                at = (line["unlearn_s"], 100 * line[DISTANCE])
                axis.annotate(text, at, (dx, dy), textcoords="offset points", fontsize=8.5, ha=side)
                taken.append(box)
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
