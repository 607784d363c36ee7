"""What the page draws of trials: accuracy over a method's steps, responses to hyperparameters, attack ROC curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raybench.folder import Folder
from raybench.leaderboard.figure_data import Frames, curves, line_name
from raybench.leaderboard.figures import GO, STAY
from raybench.leaderboard.page_figures import (
    INK,
    OTHERS,
    SIZE,
    Drawing,
    Palette,
    Problem,
    by_problem,
    competing,
    lines_of,
    logarithmic_axis,
    name_of,
)
from raybench.leaderboard.page_svg import tip
from raybench.leaderboard.query import PROBLEM
from raybench.leaderboard.response import MOST_POINTS, Response, binned, grid, logarithmic, responses
from raybench.leaderboard.roc import GRID, mean_curves
from raybench.spec import STANDARD

MOST_PANELS = 12  # of one figure of steps
MOST_CURVES = 9  # of one ROC figure
SHOWN = (("retain_accuracy", STAY, "retain set"), ("forget_accuracy", GO, "forget set"))


def finals_with_names(trials: pd.DataFrame) -> pd.DataFrame:
    """Final rows that are ok, the latest of each cell, with their line's name in ``line``."""
    rows = trials[(trials["phase"] == "final") & (trials["status"] == "ok")]
    rows = rows.drop_duplicates([*PROBLEM, "method", "variant", "train_seed", "unlearn_seed"], keep="last")
    names = [line_name(m, v) for m, v in zip(rows["method"], rows["variant"], strict=True)]
    return rows.assign(line=names)


def steps(frames: Frames) -> Iterator[Drawing]:
    """Retain and forget accuracy at the checkpoints of each method, one panel a line: mean and interval over seeds."""
    finals = finals_with_names(frames.trials)
    series = frames.series[frames.series["name"].isin([name for name, _, _ in SHOWN])]
    finals = finals[finals["trial_id"].isin(set(series["trial_id"]))]
    boards = dict(by_problem(frames.leaderboard))
    for problem, group in by_problem(finals):
        title = " / ".join(problem)
        order = [name_of(r) for r in competing(lines_of(boards[problem]))] if problem in boards else []
        present = set(group["line"])
        names = [name for name in order if name in present] + sorted(present - set(order))
        shown = names[:MOST_PANELS]
        columns = min(2, len(shown))
        rows = math.ceil(len(shown) / columns)
        figure = Figure(figsize=(2.9 * columns, 0.7 + 1.6 * rows), layout="constrained")
        axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False, sharey=True)))
        for axis, name in zip(axes, shown, strict=False):
            part = group[group["line"] == name].assign(one=0)
            for column, colour, label in SHOWN:
                table = curves(part, series, column, ["one"])
                if len(table):
                    (drawn,) = axis.plot(table["step"], 100 * table["mean"], color=colour, lw=1.3, marker="o", ms=2.5)
                    tip(drawn, f"{name}: {label} ends at {100 * table['mean'].iloc[-1]:.1f} %")
                    axis.fill_between(
                        table["step"], 100 * table["lo"], 100 * table["hi"], color=colour, alpha=0.15, lw=0
                    )
                level = part.get(f"{column}_retrained", pd.Series(dtype=float)).astype(float).mean()
                if not math.isnan(level):
                    axis.axhline(100 * level, color=colour, lw=0.9, ls="--")
            axis.set(title=name, ylim=(-4, 104))
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(shown) - columns) : len(shown)]:
            axis.set_xlabel("step")
        for _, colour, label in SHOWN:
            axes[0].plot([], [], color=colour, label=label)
        axes[0].plot([], [], color=INK, ls="--", lw=0.9, label="retrained")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.supylabel("accuracy (%)", fontsize=9)
        rest = (
            f"the {len(shown)} lines nearest to the retrained model of {len(names)}" if len(names) > len(shown) else ""
        )
        label = f"Retain and forget accuracy over steps on {title}: {', '.join(shown)}"
        yield Drawing("steps", problem, "accuracy over steps", label, figure, rest)


def response_figures(frames: Frames, scientific: Mapping[str, Sequence[str]]) -> Iterator[Drawing]:
    """The search's objective against the hyperparameters that a method's idea turns on."""
    for response in responses(frames.trials, scientific):
        yield _response(response)


def _response(response: Response) -> Drawing:
    names = response.names
    pair = len(names) >= 2
    panels = len(names) + pair
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(3.0 * columns if columns > 1 else SIZE[0], 0.4 + 2.3 * rows), layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axis, name in zip(axes, names, strict=False):
        _one(axis, response, name)
    if pair:
        _two(figure, axes[len(names)], response, names[0], names[1])
    for axis in axes[panels:]:
        axis.set_visible(False)
    count = len(response.settings)
    label = (
        f"{response.objective.replace('_', ' ')} of {response.method} on {' / '.join(response.problem)} against "
        f"{', '.join(names)}, {count} settings"
    )
    note = "dashed: the selected value" + ("; bins of settings: median, 10 to 90 %" if count > MOST_POINTS else "")
    return Drawing("response", response.problem, f"{response.method}: {' x '.join(names)}", label, figure, note)


def _called(response: Response) -> str:
    return f"{response.objective.replace('_', ' ')} (%)"


def _one(axis: Axes, response: Response, name: str) -> None:
    settings = response.settings
    if len(settings) > MOST_POINTS:
        table = binned(settings, name)
        (drawn,) = axis.plot(table["x"], 100 * table["median"], color=STAY, marker="o", ms=3)
        axis.fill_between(table["x"], 100 * table["lo"], 100 * table["hi"], color=STAY, alpha=0.15, lw=0)
    else:
        known = settings.dropna(subset=[name])
        (drawn,) = axis.plot(known[name], 100 * known["y"], color=STAY, marker="o", ms=3.5, ls="")
    best = settings.nsmallest(1, "y").iloc[0]
    tip(drawn, f"{response.method}: best {100 * best['y']:.1f} % at {name} {best[name]:.4g}")
    for value in response.selected[name][:5]:
        axis.axvline(value, color=GO, lw=0.9, ls="--")
    if logarithmic(settings[name]):
        logarithmic_axis(axis.xaxis)
    axis.set(xlabel=name, ylabel=_called(response))


def _two(figure: Figure, axis: Axes, response: Response, x: str, y: str) -> None:
    settings = response.settings.dropna(subset=[x, y])
    if len(settings) > MOST_POINTS:
        ex, ey, cells = grid(settings, x, y)
        image: Any = axis.pcolormesh(ex, ey, 100 * np.ma.masked_invalid(cells), cmap="viridis_r", rasterized=True)
    else:
        image = axis.scatter(settings[x], settings[y], c=100 * settings["y"], cmap="viridis_r", s=22, lw=0)
    for name, side in ((x, axis.xaxis), (y, axis.yaxis)):
        if logarithmic(settings[name]):
            logarithmic_axis(side)
    axis.set(xlabel=x, ylabel=y)
    figure.colorbar(image, ax=axis, label=_called(response))


def roc_figures(frames: Frames, folder: Folder, files: Mapping[str, str], colours: Palette) -> Iterator[Drawing]:
    """ROC curves of the loss attack, D_f against never-trained samples: the mean over seeds, both axes logarithmic."""
    if not files:
        return
    finals = finals_with_names(frames.trials)
    references = frames.trials[(frames.trials["phase"] == "reference") & (frames.trials["status"] == "ok")]
    boards = dict(by_problem(frames.leaderboard))
    for problem, group in by_problem(finals[finals["trial_id"].isin(set(files))]):
        order = [name_of(r) for r in competing(lines_of(boards[problem]))] if problem in boards else []
        shown = [name for name in order if name in set(group["line"])][:MOST_CURVES]
        drawn = mean_curves(group[group["line"].isin(shown)], folder, files)
        same = references[(references[list(PROBLEM)] == list(problem)).all(axis=1)]
        plain = same[(same["method"] == "retrain") | (same["original_kind"] == STANDARD)]
        named = [line_name(m, v) for m, v in zip(plain["method"], plain["variant"], strict=True)]
        bases = mean_curves(plain.assign(line=named), folder, files)
        if not drawn:
            continue
        yield _roc(problem, drawn, bases, colours, len(set(group["line"])))


def _roc(
    problem: Problem,
    drawn: Mapping[str, tuple[np.ndarray, int]],
    bases: Mapping[str, tuple[np.ndarray, int]],
    colours: Palette,
    total: int,
) -> Drawing:
    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    keep = GRID >= 1e-3
    for name, (rate, count) in drawn.items():
        (line,) = axis.plot(GRID[keep], rate[keep], color=colours.colour(name), lw=1.2, label=name)
        tip(line, f"{name}: area {np.trapezoid(rate, GRID):.3f}, mean of {count} trials")
    for name in sorted(bases, reverse=True):
        style = "-" if name == "retrain" else ":" if name == "original" else (0, (1 + len(name) % 4, 1, 4, 1))
        (line,) = axis.plot(GRID[keep], bases[name][0][keep], color=INK, lw=1.4, ls=style, label=name)
        tip(line, f"{name}: area {np.trapezoid(bases[name][0], GRID):.3f}, mean of {bases[name][1]} trials")
    axis.plot([1e-3, 1], [1e-3, 1], color=OTHERS, lw=0.8, ls="--", label="blind")
    logarithmic_axis(axis.xaxis)
    logarithmic_axis(axis.yaxis)
    axis.set(xlim=(1e-3, 1), ylim=(1e-3, 1.05))
    axis.set(xlabel="false positive rate", ylabel="true positive rate")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    label = f"ROC curves of the loss attack on {' / '.join(problem)}: {', '.join([*drawn, *bases])}"
    note = f"the {len(drawn)} lines nearest to the retrained model of {total}" if total > len(drawn) else ""
    return Drawing("roc", problem, "loss attack", label, figure, note)
