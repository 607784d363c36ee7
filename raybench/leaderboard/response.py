"""How the search's objective answered to a hyperparameter: settings of the search rows, binned where there are many."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raybench.leaderboard.figure_data import line_name
from raybench.leaderboard.query import PROBLEM
from raybench.rules import OBJECTIVES

MEASURED = {selected_on: metric for metric, selected_on in OBJECTIVES.values()}  # which column a search minimised
SEARCHED = (*PROBLEM, "method", "device_type")  # what one search is of
MOST_POINTS = 60  # more settings are drawn as bins
BINS = 24
LEAST_VALUES = 3  # of a hyperparameter, for a response to be seen
KNOWN = ("gamma", "lambda1", "lambda2", "entropy_cutoff")  # shown where nobody says which ones matter


@dataclass(frozen=True)
class Response:
    """Of one method on one problem (and device type, which its name says where there are several).

    ``settings`` has a column per hyperparameter and ``y``, the mean objective over the search's seeds; ``selected`` are
    the values that the finals took.
    """

    problem: tuple[str, ...]
    method: str
    objective: str  # the metric that the search minimised
    names: tuple[str, ...]
    settings: pd.DataFrame
    selected: Mapping[str, tuple[float, ...]]


def responses(trials: pd.DataFrame, scientific: Mapping[str, Sequence[str]]) -> Iterator[Response]:
    """The responses that search rows allow. ``scientific``: method -> the hyperparameters that its idea turns on."""
    rows = trials[(trials["phase"] == "search") & (trials["status"] == "ok")]
    finals = trials[(trials["phase"] == "final") & (trials["status"] == "ok")]
    chosen = {key: group["hparams"].unique() for key, group in finals.groupby(list(SEARCHED))}
    several = rows["device_type"].nunique() > 1
    for key, group in rows.groupby(list(SEARCHED), sort=True):
        *problem, method, device = map(str, key)
        wanted = scientific.get(method, KNOWN)
        objective = MEASURED.get(str(group["selected_on"].iloc[-1]), "distance_validation")
        if objective not in group or not group[objective].notna().any():
            continue
        means = group.dropna(subset=[objective]).groupby("hparams")[objective].mean()
        table = _values([json.loads(text) for text in means.index], wanted)
        names = tuple(name for name in table.columns if table[name].nunique() >= LEAST_VALUES)
        if not names:
            continue
        picked = _values([json.loads(text) for text in chosen.get(key, ())], names)
        selected = {n: tuple(sorted(set(picked[n].dropna()))) if n in picked else () for n in names}
        settings = table[list(names)].assign(y=means.to_numpy())
        name = line_name(method, device if several else "")
        yield Response(tuple(problem), name, objective, names, settings, selected)


def _values(settings: Sequence[Mapping[str, Any]], names: Sequence[str]) -> pd.DataFrame:
    """Numbers alone: a switch, a word or null is NaN."""
    columns: dict[str, list[float]] = {}
    for name in names:
        found = [s.get(name) for s in settings]
        plain = [float(v) if isinstance(v, int | float) and not isinstance(v, bool) else np.nan for v in found]
        columns[name] = plain
    return pd.DataFrame(columns, index=range(len(settings)))


def logarithmic(values: pd.Series[float]) -> bool:
    """Whether an axis of these values should be logarithmic: all positive, over more than a factor of 20."""
    known = values.dropna()
    return bool(len(known) and known.min() > 0 and known.max() > 20 * known.min())


def edges(values: pd.Series[float], bins: int = BINS) -> NDArray[np.float64]:
    """Bin edges over the span of the values, even on the axis that ``logarithmic`` chooses."""
    known = values.dropna()
    low, high = float(known.min()), float(known.max())
    make = np.geomspace if logarithmic(values) else np.linspace
    return np.asarray(make(low, high, bins + 1), dtype=np.float64)


def binned(settings: pd.DataFrame, name: str, bins: int = BINS) -> pd.DataFrame:
    """Per bin of ``name`` that holds a setting: x (the middle), median, lo and hi (10 and 90 %), best, count."""
    cuts = edges(settings[name], bins)
    at = np.clip(np.searchsorted(cuts, settings[name], side="right") - 1, 0, bins - 1)
    middle = np.sqrt(cuts[:-1] * cuts[1:]) if logarithmic(settings[name]) else (cuts[:-1] + cuts[1:]) / 2
    known = settings[settings[name].notna()]
    groups = known["y"].groupby(at[settings[name].notna().to_numpy()])
    table = groups.agg(["median", "min", "count"]).rename(columns={"min": "best"})
    return table.assign(x=middle[table.index], lo=groups.quantile(0.1), hi=groups.quantile(0.9)).reset_index(drop=True)


def grid(settings: pd.DataFrame, x: str, y: str, bins: int = 12) -> tuple[NDArray[np.float64], ...]:
    """Edges of x, edges of y, and the mean objective per cell [y, x] (NaN where no setting fell)."""
    known = settings.dropna(subset=[x, y])
    ex, ey = edges(known[x], bins), edges(known[y], bins)
    columns = np.clip(np.searchsorted(ex, known[x], side="right") - 1, 0, bins - 1)
    rows = np.clip(np.searchsorted(ey, known[y], side="right") - 1, 0, bins - 1)
    total, count = np.zeros((bins, bins)), np.zeros((bins, bins))
    np.add.at(total, (rows, columns), known["y"].to_numpy())
    np.add.at(count, (rows, columns), 1.0)
    return ex, ey, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
