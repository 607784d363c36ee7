"""Figures of the source documents, from the rows of a results folder: SVG and PNG, accuracies in percent."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raybench.folder import open_folder
from raybench.leaderboard.figure_data import (
    Frames,
    Skip,
    accuracy_columns,
    curves,
    finals_of,
    floors,
    intervals,
    line_name,
    order,
    pick,
    problems,
    reported,
    retrained,
    sequences,
    swept,
)
from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.leaderboard.store import ResultStore

Drawn = Iterator[tuple[str, Figure]]  # (what the file name ends in, figure)
# Okabe and Ito's colours, which people with colour-blindness tell apart; black is kept for the references.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C6D1F", "#5D3A9B", "#A8C545")
MARKERS = "os^Dv<>pXh"
STAY, GO = COLOURS[0], COLOURS[1]  # what must stay, what must go
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 4,
    "svg.hashsalt": "raybench",  # the same rows make the same bytes
    "svg.fonttype": "none",
}
DPI = 160
PAPER_NAMES = {"e_f": "E_F: error on the forgotten class (%)", "a_r": "A_R: accuracy on the others (%)"}
DRIFT = (  # column, label, what brings it to a percentage (_line multiplies by 100)
    ("distance", "distance to the retrained model (points)", 1.0),
    ("test_accuracy", "test accuracy (%)", 1.0),
    ("unlearn_s", "unlearning so far (s, log)", 0.01),
)
LEGEND = {
    "test_accuracy": "remaining data (test)",
    "test_accuracy_forgotten": "forgotten class (test)",
    "forget_accuracy": "forget set (training)",
}


def draw_all(results: str | os.PathLike[str], out: str | None = None) -> tuple[list[str], dict[str, str]]:
    """Draw every figure that applies into ``<results>/figures`` (or ``out``).

    Gives the files written, and name -> reason of the figures that the rows do not allow.
    """
    frames = Frames(load_leaderboard(results), load_trials(results), ResultStore(results).series())
    folder = str(Path(out).expanduser()) if out is not None else f"{os.fspath(results)}/figures"
    drawn: list[str] = []
    skipped: dict[str, str] = {}
    with mpl.rc_context(STYLE):
        for name, draw in FIGURES.items():
            try:
                for title, figure in draw(frames):
                    drawn += _save(figure, folder, f"{name}_{re.sub(r'[^A-Za-z0-9.]+', '_', title).strip('_')}")
            except Skip as reason:
                skipped[name] = str(reason)
    return drawn, skipped


def _save(figure: Figure, folder: str, name: str) -> list[str]:
    store = open_folder(folder)
    paths = []
    for form, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=DPI, metadata=metadata)
        store.put(f"{name}.{form}", buffer.getvalue())
        paths.append(f"{folder}/{name}.{form}")
    return paths


def gamma(frames: Frames) -> Drawn:
    """DeepClean's threshold against accuracy and against the share of weights that it updates."""
    rows = finals_of(frames, "deepclean")
    controls = frames.trials[frames.trials["method"] == "random_mask"]
    both = pd.concat([rows, finals_of(frames, "random_mask")]) if len(controls) else rows
    for title, group in swept(both, ["gamma"]):
        group = group.assign(selected=reported(group, "selected"))
        figure, (top, bottom) = _panels(2, 1, (6.6, 4.8), share_x=True)
        columns = accuracy_columns(group)
        for column, colour in zip(columns, (STAY, GO), strict=True):
            for method, style in (("deepclean", "-"), ("random_mask", ":")):
                table = intervals(group[group["method"] == method], ["gamma"], column)
                label = LEGEND[column] + (", random mask" if method == "random_mask" else "")
                _line(top, table["gamma"], table, colour, label, style)
            top.axhline(100 * retrained(group, column), color=colour, lw=0.8, ls="--")
        _line(bottom, *_xy(intervals(group[group["method"] == "deepclean"], ["gamma"], "selected")), COLOURS[2], None)
        top.set(title=f"{title} (95 % intervals)", ylabel="accuracy (%)", ylim=(-3, 103), xscale="log")
        top.plot([], [], color="black", lw=0.8, ls="--", label="retrained")
        top.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        values = order(group["gamma"].tolist())
        bottom.set_xticks(values, [f"{value:g}" for value in values])
        bottom.set_xticks([], minor=True)
        bottom.set(xlabel="gamma (weights with a Fisher ratio above it are reset)", ylabel="weights updated (%)")
        bottom.set_ylim(bottom=0)
        yield title, figure


def lambda_map(frames: Frames) -> Drawn:
    """E_F and A_R of the mnemonic code over lambda1 x lambda2."""
    for title, group in swept(finals_of(frames, "mnemonic"), ["lambda1", "lambda2"]):
        group = _with_paper_names(group)
        figure, axes = _panels(1, 2, (7.6, 3.4))
        for axis, (column, label) in zip(axes, PAPER_NAMES.items(), strict=True):
            table = intervals(group, ["lambda2", "lambda1"], column)
            grid = 100 * table.pivot(index="lambda2", columns="lambda1", values="mean")
            image = axis.imshow(grid, origin="lower", vmin=0, vmax=100, cmap="viridis", aspect="auto")
            for (i, j), value in np.ndenumerate(grid.to_numpy()):
                if not np.isnan(value):
                    axis.text(j, i, f"{value:.0f}", ha="center", va="center", color="black" if value > 60 else "white")
            axis.set_xticks(range(len(grid.columns)), [f"{v:g}" for v in grid.columns])
            axis.set_yticks(range(len(grid.index)), [f"{v:g}" for v in grid.index])
            axis.set(xlabel="lambda1", ylabel="lambda2", title=label)
            axis.grid(visible=False)
            figure.colorbar(image, ax=axis, shrink=0.9)
        figure.suptitle(f"{title} (mean of {group['train_seed'].nunique()} seeds)", fontsize=9)
        yield title, figure


def images_or_codes(frames: Frames) -> Drawn:
    """The mnemonic step from n real images per class, beside the step from codes."""
    codes = finals_of(frames, "mnemonic")
    codes = codes.assign(lambdas=_lambdas(codes))
    for title, group in swept(finals_of(frames, "mnemonic_data"), ["n"]):
        group = _with_paper_names(group.assign(lambdas=_lambdas(group)))
        first = group.iloc[0]
        same = (codes[["dataset", "model", "scenario"]] == first[["dataset", "model", "scenario"]]).all(axis=1)
        alike = same & codes["lambdas"].isin(set(group["lambdas"]))  # at the same lambdas; or every line tuned its own
        beside = _with_paper_names(codes[alike if alike.any() else same])
        lines = sorted(beside["variant"].unique())
        figure, axes = _panels(1, 2, (7.6, 3.2 + 0.16 * len(lines)))
        for axis, (column, label) in zip(axes, PAPER_NAMES.items(), strict=True):
            table = intervals(group, ["n"], column)
            _line(axis, np.arange(len(table)), table, STAY, "n real images per class")
            spots = len(table) + np.arange(len(lines))
            for spot, variant in zip(spots, lines, strict=True):
                _line(axis, [spot], intervals(beside[beside["variant"] == variant], ["variant"], column), GO, None, "")
            axis.set_xticks([*range(len(table)), *spots], [*(f"{v:g}" for v in table["n"]), *_letters(lines)])
            axis.set(xlabel="real images per class | codes", ylabel=label, ylim=(-3, 103))
        notes = "\n".join(f"{letter}: {line or 'codes'}" for letter, line in zip(_letters(lines), lines, strict=True))
        figure.suptitle(title, fontsize=9)
        figure.supxlabel(notes, fontsize=8, ha="left", x=0.08)
        yield title, figure


def entropy(frames: Frames) -> Drawn:
    """GKT's entropy cutoff: retain and forget accuracy in the end, and both over the pseudo-batches."""
    for title, group in swept(finals_of(frames, "gkt"), ["entropy_cutoff"]):
        cutoffs = order(group["entropy_cutoff"].tolist())
        figure, axes = _panels(1, 3, (10.5, 3.4))
        columns = accuracy_columns(group)
        for column, colour in zip(columns, (STAY, GO), strict=True):
            table = intervals(group, ["entropy_cutoff"], column)
            table = pd.concat([pick(table, "entropy_cutoff", value) for value in cutoffs])
            _line(axes[0], np.arange(len(table)), table, colour, LEGEND[column], "")
        axes[0].set_xticks(range(len(cutoffs)), [_cutoff(value) for value in cutoffs])
        axes[0].set(xlabel="entropy cutoff (nats)", ylabel="accuracy of the result (%)", ylim=(-3, 103))
        axes[0].legend()
        shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, max(1, len(cutoffs) - (None in cutoffs))))
        for axis, column in zip(axes[1:], columns, strict=True):
            name = {"test_accuracy_forgotten": "test_forgotten_accuracy"}.get(column, column)
            table = curves(group, frames.series, name, ["entropy_cutoff"])
            for index, value in enumerate(cutoffs):
                colour = "black" if value is None else shades[index]
                part = pick(table, "entropy_cutoff", value)
                axis.plot(part["step"], 100 * part["mean"], color=colour, lw=1.2, label=_cutoff(value))
                axis.fill_between(part["step"], 100 * part["lo"], 100 * part["hi"], color=colour, alpha=0.12, lw=0)
            axis.set(xlabel="pseudo-batches", ylabel=f"{LEGEND[column]}: accuracy (%)", ylim=(-3, 103))
        axes[2].legend(title="cutoff", title_fontsize=8)
        figure.suptitle(f"{title} (95 % intervals, {group['train_seed'].nunique()} seeds)", fontsize=9)
        yield title, figure


def path(frames: Frames) -> Drawn:
    """The way of every method: test accuracy against forget accuracy at its checkpoints, one thin line per seed."""
    finals = frames.trials[(frames.trials["phase"] == "final") & (frames.trials["status"] == "ok")]
    wide = frames.series.pivot_table(index=["trial_id", "step"], columns="name", values="y").reset_index()
    needed = {"test_accuracy", "forget_accuracy"}
    if not needed <= set(wide.columns):
        raise Skip("no curves of test and forget accuracy")
    points = wide.merge(finals[["trial_id", "dataset", "model", "scenario", "method", "variant"]], on="trial_id")
    for title, group in problems(points):
        group = group.assign(line=[line_name(m, v) for m, v in zip(group["method"], group["variant"], strict=True)])
        names = sorted(group["line"].unique())
        if len(names) > len(COLOURS):
            raise Skip(f"{len(names)} lines on {title}, more than the {len(COLOURS)} colours that can be told apart")
        figure, (axis,) = _panels(1, 1, (6.4, 3.8))
        for _, run in group.groupby("trial_id", sort=True):
            at = names.index(run["line"].iloc[0])
            run = run.sort_values("step")
            x, y = 100 * run["forget_accuracy"], 100 * run["test_accuracy"]
            axis.plot(x, y, color=COLOURS[at], lw=0.8, alpha=0.7)
            axis.plot(x.iloc[-1:], y.iloc[-1:], color=COLOURS[at], marker=MARKERS[at], ls="")
        for at, name in enumerate(names):
            axis.plot([], [], color=COLOURS[at], marker=MARKERS[at], lw=0.8, label=name)
        _references(axis, frames.leaderboard, title, "forget_accuracy", "test_accuracy")
        axis.set(
            title=title.replace(" / ", "\n", 1),
            xlabel="forget accuracy (%, marks: end of a run)",
            ylabel="test accuracy (%)",
        )
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        yield title, figure


def time(frames: Frames) -> Drawn:
    """Accuracy on what must stay and on what must go, against the seconds of unlearning."""
    for title, group in problems(frames.leaderboard):
        lines = group[(group["kind"] == "method") & group["unlearn_s"].gt(0)]
        if len(lines) > len(COLOURS):
            raise Skip(f"{len(lines)} lines on {title}, more than the {len(COLOURS)} colours that can be told apart")
        columns = [c for c in accuracy_columns(lines) if c in lines]
        if not len(lines) or len(columns) < 2:
            continue
        figure, axes = _panels(1, 2, (8.6, 3.4))
        for axis, column in zip(axes, columns, strict=True):
            for at, line in enumerate(lines.sort_values(["method", "variant"]).to_dict("records")):
                _point(axis, line, column, COLOURS[at], MARKERS[at], line_name(line["method"], line["variant"]))
            for line in group[group["method"] == "retrain"].to_dict("records"):
                _point(axis, line, column, "black", "*", "retrain", 8.0)
            for line in group[group["method"] == "original"].to_dict("records"):
                axis.axhline(100 * line[column], color="black", lw=0.8, ls=":", label="original (0 s)")
            axis.set(xlabel="unlearning (s, log)", ylabel=f"{LEGEND[column]}: accuracy (%)", xscale="log")
            axis.set_ylim(*_room(axis))
        axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        name = title.replace(" / ", "\n", 1)
        figure.suptitle(f"{name} (95 % intervals over train seeds)", fontsize=9)
        yield title, figure


def drift(frames: Frames) -> Drawn:
    """Successive requests: distance to the retrained model, test accuracy and seconds so far after each of them.

    A scenario ``repeated`` with k requests is the first k of one sequence, so a line joins the same sequence.
    """
    for title, group in sequences(frames.trials):
        figure, axes = _panels(1, 3, (10.5, 3.4))
        names = sorted(group["line"].unique())
        if len(names) > len(COLOURS):
            raise Skip(f"{len(names)} lines on {title}, more than the {len(COLOURS)} colours that can be told apart")
        for axis, (column, label, scale) in zip(axes, DRIFT, strict=True):
            for at, name in enumerate(names):
                table = intervals(group[group["line"] == name], ["requests"], column)
                table[["mean", "lo", "hi"]] *= scale
                _line(axis, table["requests"] + 0.04 * (at - len(names) / 2), table, COLOURS[at], name)
            steps = sorted(group["requests"].unique())
            if column == "distance":
                axis.plot(
                    *floors(frames.leaderboard, title), color="black", lw=0.8, ls=":", label="two retrained models"
                )
                axis.set_ylim(bottom=0)
            elif column == "test_accuracy":
                held = [100 * retrained(group[group["requests"] == k], column) for k in steps]
                axis.plot(steps, held, color="black", lw=0.8, ls="--", label="retrained")
                axis.set_ylim(*_room(axis))
            axis.set_xticks(steps)
            axis.set(xlabel="requests so far", ylabel=label)
        axes[2].set_yscale("log")
        named = {
            label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        axes[2].legend(named.values(), named.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.suptitle(f"{title} (95 % intervals, {group['train_seed'].nunique()} seeds)", fontsize=9)
        yield title, figure


FIGURES: dict[str, Callable[[Frames], Drawn]] = {
    "gamma": gamma,
    "lambda_map": lambda_map,
    "images_or_codes": images_or_codes,
    "entropy": entropy,
    "path": path,
    "time": time,
    "drift": drift,
}


def _panels(rows: int, columns: int, size: tuple[float, float], share_x: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(np.ravel(figure.subplots(rows, columns, sharex=share_x, squeeze=False)))


def _xy(table: pd.DataFrame) -> tuple[Any, pd.DataFrame]:
    return table.iloc[:, 0], table


def _line(axis: Axes, x: Any, table: pd.DataFrame, colour: str, label: str | None, style: str = "-") -> None:
    """Means in percent with their intervals; a single seed has a mark without bars."""
    if len(table):
        below, above = (
            100 * (table[a] - table[b]).fillna(0.0).clip(lower=0.0) for a, b in (("mean", "lo"), ("hi", "mean"))
        )
        axis.errorbar(x, 100 * table["mean"], [below, above], color=colour, label=label, ls=style, marker="o",
                      lw=1.2, elinewidth=0.8, capsize=2)  # fmt: skip


def _point(
    axis: Axes, line: dict[Any, Any], column: str, colour: str, marker: str, label: str, size: float = 4.0
) -> None:
    def bars(name: str, scale: float) -> list[list[float]]:
        pair = (line[name] - line[f"{name}_lo"], line[f"{name}_hi"] - line[name])
        return [[0.0 if pd.isna(v) else max(0.0, float(v)) * scale] for v in pair]  # equal seeds may round below zero

    if not pd.isna(line[column]):
        seconds = bars("unlearn_s", 1.0)
        seconds[0][0] = min(seconds[0][0], 0.7 * line["unlearn_s"])  # an interval below zero has no place on a log axis
        axis.errorbar([line["unlearn_s"]], [100 * line[column]], bars(column, 100.0), seconds, color=colour,
                      marker=marker, markersize=size, ls="", elinewidth=0.7, label=label)  # fmt: skip


def _room(axis: Axes) -> tuple[float, float]:
    """Limits of an axis of percentages: what the means span, never more than 0 to 100 and a little."""
    low, high = axis.get_ylim()
    return max(-4.0, low), min(104.0, high)


def _references(axis: Axes, leaderboard: pd.DataFrame, title: str, x: str, y: str) -> None:
    for found, group in problems(leaderboard):
        for method, marker in (("original", "P"), ("retrain", "*")):
            lines = group[(group["method"] == method) & (found == title)]
            axis.plot(100 * lines[x], 100 * lines[y], color="black", marker=marker, markersize=8, ls="",
                      label=method if len(lines) else None)  # fmt: skip


def _with_paper_names(rows: pd.DataFrame) -> pd.DataFrame:
    """A_R and E_F from the test accuracies they are made of, for specs that did not ask for them."""
    if "a_r" not in rows:
        rows = rows.assign(a_r=rows["test_accuracy"], e_f=1.0 - rows["test_accuracy_forgotten"])
    return rows


def _lambdas(rows: pd.DataFrame) -> list[str]:
    return [re.sub(r'.*"lambda1": ?([^,}]*).*"lambda2": ?([^,}]*).*', r"\1 \2", text) for text in rows["hparams"]]


def _letters(lines: Sequence[str]) -> list[str]:
    return [chr(ord("A") + index) for index in range(len(lines))]


def _cutoff(value: Any) -> str:
    return "none" if value is None else f"{value:g}"
