"""Methods ranked over problems: who is best in general, where there are problems enough to say so."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raybench.errors import unknown
from raybench.leaderboard.cells import gates_hold
from raybench.leaderboard.lines import REFERENCES
from raybench.leaderboard.query import DISTANCE, PROBLEM
from raybench.leaderboard.rank_statistics import MIN_PROBLEMS, MeanRanks, mean_ranks
from raybench.leaderboard.render import FORMATS
from raybench.leaderboard.tables import as_latex, as_markdown, as_plain

ALPHA = 0.05
COLUMNS = ("rank", "method", "variant", "mean_rank", "groups", "last", "problems")
Line = tuple[str, str]  # method, variant


@dataclass(frozen=True)
class Overall:
    """The answer over problems. ``ranks`` is null where there are too few; ``usable`` says how many there are."""

    ranks: MeanRanks | None
    lines: Mapping[str, Line]  # name -> line, of the methods compared
    last: Mapping[str, int]  # name -> problems on which it failed or broke a gate, and so shares the last rank
    usable: int  # problems on which all of the methods compared have a result
    dropped: Mapping[str, int]  # name -> problems with a result, of the methods that have too few to be compared

    @property
    def missing(self) -> int:
        """How many problems there are still to run."""
        return max(0, MIN_PROBLEMS - self.usable)


def overall(leaderboard: pd.DataFrame, alpha: float = ALPHA) -> Overall:
    """Friedman's test and Nemenyi's critical difference over the problems (dataset x model x scenario).

    The rules, so that no method gains by what it leaves out:

    - A problem counts where at least one line is ranked: not where it is ``unresolved``, has fewer than 3 train seeds,
      or its retrained model fails its gate.
    - On such a problem a ranked line counts with its distance. A line that is failed, diverged or timed out on some
      seed, or that breaks a sanity gate, was tried and did not do it: it shares the last rank.
    - A line that is skipped (the method does not apply), absent, or ok but not ranked has no result there.
    - Compared are the methods that have a result on the same 10 problems or more. While there are fewer such problems,
      the methods with the fewest results are left out, all that have equally few at once; they are named with their
      number of problems. Where less than two would be left, ``ranks`` is None.
    """
    results = _results(leaderboard)
    names = {method for by in results.values() for method in by}
    counts = {name: sum(name in by for by in results.values()) for name in names}
    compared, most, at_most = set(names), 0, set(names)
    while len(compared) >= 2:
        common = [problem for problem, by in results.items() if compared <= by.keys()]
        if len(common) > most:
            most, at_most = len(common), set(compared)
        if len(common) >= MIN_PROBLEMS:
            break
        fewest = min(counts[name] for name in compared)
        compared -= {name for name in compared if counts[name] == fewest}
    compared = at_most if len(at_most) >= 2 else set()
    common = [problem for problem, by in results.items() if compared and compared <= by.keys()]
    table = {problem: _ranked_last(results[problem], compared) for problem in common}
    ranks = mean_ranks(table, alpha) if len(common) >= MIN_PROBLEMS else None
    return Overall(
        ranks=ranks,
        lines={name: _line_of(name) for name in sorted(compared)},
        last={name: sum(math.isinf(results[problem][name]) for problem in common) for name in sorted(compared)},
        usable=len(common),
        dropped={name: counts[name] for name in sorted(names - compared)},
    )


def _results(leaderboard: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Problem -> line -> distance, infinite where the line was tried and has no rank because it failed."""
    found: dict[str, dict[str, float]] = {}
    for key, lines in leaderboard.groupby(list(PROBLEM), sort=True):
        if not lines["rank_group"].notna().any():
            continue
        by: dict[str, float] = {}
        for line in lines.to_dict("records"):
            if line["method"] in REFERENCES or line["status"] == "skipped":
                continue
            if not pd.isna(line["rank_group"]):
                by[_name(line["method"], line["variant"])] = float(line[DISTANCE])
            elif line["status"] != "ok" or not gates_hold(line["gates"]):
                by[_name(line["method"], line["variant"])] = math.inf
        found[" / ".join(map(str, key))] = by
    return found


def _ranked_last(by: Mapping[str, float], compared: set[str]) -> dict[str, float]:
    """Finite numbers with the same order: what failed shares the place behind the others."""
    behind = 1.0 + max((value for value in by.values() if math.isfinite(value)), default=0.0)
    return {name: value if math.isfinite(value) else behind for name, value in by.items() if name in compared}


def _name(method: str, variant: str) -> str:
    return f"{method}\n{variant}"  # a name that no method and variant share with others


def _line_of(name: str) -> Line:
    method, _, variant = name.partition("\n")
    return method, variant


def _shown(name: str) -> str:
    method, variant = _line_of(name)
    return f"{method} ({variant})" if variant else method


def records(found: Overall) -> list[dict[str, Any]]:
    """One record per method compared, best first, with the columns of ``COLUMNS``; empty where nothing is ranked.

    ``groups`` are letters: methods that share one differ by less than the critical difference.
    """
    if found.ranks is None:
        return []
    letters = dict.fromkeys(found.ranks.ranks, "")
    for index, group in enumerate(found.ranks.groups):
        for name in group:
            letters[name] += _letter(index)
    return [
        {
            "rank": index,
            "method": found.lines[name][0],
            "variant": found.lines[name][1],
            "mean_rank": mean,
            "groups": letters[name],
            "last": found.last[name],
            "problems": found.usable,
        }
        for index, (name, mean) in enumerate(found.ranks.ranks.items(), start=1)
    ]


def _letter(index: int) -> str:
    turn, place = divmod(index, 26)
    return string.ascii_lowercase[place] + (str(turn) if turn else "")


def sentence(found: Overall) -> str:
    """The test in one line, or how many problems are missing."""
    if len(found.lines) < 2:
        return "no ranks over problems: they need two methods or more with a result on the same problem"
    if found.ranks is None:
        return (
            f"no ranks over problems: they need {MIN_PROBLEMS} problems (dataset x model x scenario) with a result of "
            f"all methods compared, got {found.usable}; {found.missing} more to run"
        )
    ranks = found.ranks
    judged = "methods that share a letter cannot be told apart"
    if ranks.p >= ALPHA:
        judged = "no difference between methods is found"
    return (
        f"mean ranks over {ranks.problems} problems: Friedman chi-squared {ranks.statistic:.3g}, p = {ranks.p:.2g}; "
        f"Nemenyi critical difference {ranks.critical_difference:.3g}; {judged}"
    )


def render_overall(found: Overall, format: str = "table") -> str:
    """The ranks over problems as text: table, csv, markdown, latex or json."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    listed = records(found)
    if format == "csv":
        return pd.DataFrame(listed, columns=list(COLUMNS)).to_csv(index=False, lineterminator="\n")
    if format == "json":
        return json.dumps(_plain(found, listed), indent=2, allow_nan=False)
    header = [name.replace("_", " ") for name in COLUMNS]
    rows = [[_cell(record[name]) for name in COLUMNS] for record in listed]
    notes = [sentence(found)]
    if found.ranks is not None and found.dropped:
        fewer = ", ".join(f"{_shown(name)} ({count})" for name, count in found.dropped.items())
        notes.append(f"not compared, too few problems with a result: {fewer}")
    if any(record["last"] for record in listed):
        notes.append("last: problems on which a method failed or broke a sanity gate, and so shares the last rank")
    if not rows:
        return ("% " if format == "latex" else "") + "\n".join(notes) + "\n"
    write = {"table": as_plain, "markdown": as_markdown, "latex": as_latex}[format]
    return write(header, rows, notes)


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _plain(found: Overall, listed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    plain: dict[str, Any] = {"problems": found.usable, "missing": found.missing, "ranks": list(listed)}
    if found.ranks is not None:
        plain |= {"statistic": found.ranks.statistic, "p": found.ranks.p}
        plain |= {"critical_difference": found.ranks.critical_difference, "alpha": ALPHA}
    plain["not_compared"] = [
        dict(zip(("method", "variant", "problems"), (*_line_of(name), count), strict=True))
        for name, count in found.dropped.items()
    ]
    return plain
