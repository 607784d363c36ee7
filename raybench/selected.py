"""The leaderboard of another selection rule: what the rule selects among the settings that a results folder tried.

Works from rows alone, without the data and without the plan: selecting is separate from running.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from raybench.errors import UserError, unknown
from raybench.folder import open_folder
from raybench.leaderboard.cells import mask
from raybench.leaderboard.gathered import Standing, problem_identity
from raybench.leaderboard.query import Wanted, build_leaderboard, frame_of, load_table
from raybench.leaderboard.schema import LINE, SEARCHES_SCHEMA
from raybench.leaderboard.statistics import MIN_TRAIN_SEEDS
from raybench.leaderboard.store import ResultStore
from raybench.rules import OBJECTIVES, PAPER, RULES, Tried, averaged, choose
from raybench.seeding import canonical, to_json
from raybench.spec_file import SPEC, SpecFile, decode_spec, parse_spec

Key = tuple[str, ...]
NO_FINALS = "the selected setting has no finals"
NO_SEARCH = "the folder has no search of it"
NO_DEFAULT = "the method's default is not among the settings tried"


@dataclass(frozen=True)
class Missing:
    """A line that the rule cannot show: the setting it selects (null where it selects none), and why."""

    line: Key
    point: Mapping[str, Any] | None
    reason: str

    def __str__(self) -> str:
        name = " / ".join(filter(None, self.line))
        return f"{name}: {self.reason}" + ("" if self.point is None else f" ({to_json(self.point)})")


@dataclass(frozen=True)
class Selected:
    """The leaderboard of a rule, the lines that it lacks, and the command that runs what they lack."""

    leaderboard: pd.DataFrame
    missing: list[Missing]
    command: str | None


def select(directory: str | os.PathLike[str], rule: str, forced: bool = False) -> Selected:
    """The leaderboard of a results folder with the settings that ``rule`` selects.

    Each search (a line without the selection rule in its variant) has one line, of the final rows with the setting
    that the rule selects among those tried, whatever rule they were run for; lines without a search stand as they are.
    ``paper`` selects the setting whose searched fields have the method's defaults. Ranks and front are made anew;
    ``forced`` ranks fewer than three train seeds too.

    Raises ``UserError`` for an unknown rule and a folder without rows.
    """
    if rule not in RULES:
        raise unknown("selection rule", rule, RULES)
    folder = _Folder(os.fspath(directory))
    standing = folder.standing
    unsearched = mask(standing.lines[key]["selected_by"] is None for key in _keys(standing.rows))
    rows = [standing.rows[unsearched]]
    tuning: dict[Key, float] = {key: line["tuning_s"] for key, line in standing.lines.items()}
    missing: list[Missing] = []
    for key, line in folder.searched.items():
        tuning[key] = line["tuning_s"]
        settings = folder.settings_of(line)
        if not settings:
            missing.append(Missing(key, None, NO_SEARCH))
            continue
        chosen, note = _choose(settings, rule, folder.floor(line, settings), key[3])
        if chosen is None:
            missing.append(Missing(key, None, NO_DEFAULT))
            continue
        found = folder.finals_of(key, folder.setting_of[chosen.trial_ids[0]])
        if len(found):
            rows.append(found.assign(variant=key[-1], selected_by=note))
        else:
            missing.append(Missing(key, chosen.point, NO_FINALS))
    joined = pd.DataFrame(
        [record for part in rows for record in part.to_dict("records")], columns=folder.finals.columns
    )
    searches = SEARCHES_SCHEMA.empty_table().to_pandas()
    wanted = Wanted(frozenset(joined["trial_id"]), tuning)
    frame = frame_of(build_leaderboard(joined, searches, standing.metrics, forced=forced, wanted=wanted))
    if forced:
        frame["rank_forced"] = frame["rank_group"].notna() & (frame["n"] < MIN_TRAIN_SEEDS)
    reasons = {item.reason for item in missing}
    # A spec that asks for paper is refused as a whole where one of its searches lacks the default.
    runnable = NO_FINALS in reasons and NO_DEFAULT not in reasons
    return Selected(frame, missing, folder.command(rule) if runnable else None)


def explain(found: Selected, rule: str) -> list[str]:
    """What the leaderboard of a rule lacks and how to get it, a line each; empty where it lacks nothing."""
    if not found.missing:
        return []
    shown = len(found.leaderboard[found.leaderboard["selected_by"].notna()])
    count = f"{len(found.missing)} of {len(found.missing) + shown} searched lines"
    lines = [f"not shown for --select {rule}: {count}", *(f"  {item}" for item in found.missing)]
    if found.command is not None:
        lines.append(f"their finals are run by (with the --data and --store of the run): {found.command}")
    if any(item.reason == NO_DEFAULT for item in found.missing):
        lines.append("a search tries the defaults where its sampler is tpe or random and its ranges hold them")
    return lines


def _choose(settings: Sequence[Tried], rule: str, floor: float, method: str) -> tuple[Tried | None, str]:
    if rule != PAPER:
        return choose(settings, rule, floor)
    from raybench.registry import METHODS  # the only rule that needs the methods, and so torch

    defaults = {f.name: f.default for f in dataclasses.fields(METHODS[method].hparams)}
    for setting in settings:
        if all(canonical(defaults.get(name)) == value for name, value in setting.point.items()):
            return setting, rule
    return None, rule


class _Folder:
    """A results folder as the selection needs it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.standing = Standing(directory, load_table(directory))
        self.trials = ResultStore(directory).trials()
        if not len(self.trials):
            raise UserError(f"--select needs the rows in trials/, got {directory} with its leaderboard alone")
        self.searches = ResultStore(directory).searches()
        self._tried: dict[str, list[tuple[int, list[Tried], set[str]]]] = {}

    @cached_property
    def spec(self) -> SpecFile | None:
        """The spec as it ran, where the folder has it."""
        try:
            with open_folder(self.directory).open(SPEC) as file:
                return parse_spec(decode_spec(file.read(), f"{self.directory}/{SPEC}"))
        except FileNotFoundError:
            return None

    @cached_property
    def setting_of(self) -> dict[str, str]:
        """Trial id -> what a trial shares with all of one setting: its spec without seeds, phase, variant and part."""
        return dict(zip(self.trials["trial_id"], map(_setting, self.trials["spec"]), strict=True))

    @cached_property
    def finals(self) -> pd.DataFrame:
        """All final rows."""
        return self.trials[self.trials["phase"] == "final"]

    @cached_property
    def searched(self) -> dict[Key, dict[str, Any]]:
        """Line without the rule in its variant -> a line of it, of the lines whose setting was searched."""
        found: dict[Key, dict[str, Any]] = {}
        for key, line in self.standing.lines.items():
            if line["selected_by"] is not None:
                found.setdefault((*key[:-1], _without_rule(key[-1], line["selected_by"])), line)
        return found

    def settings_of(self, line: Mapping[str, Any]) -> list[Tried]:
        """The settings, in index order, of the newest search that has tried the line's setting, up to its budget."""
        mine = self._line_settings[tuple(line[name] for name in LINE)]
        metric = next(name for name, on in OBJECTIVES.values() if on == line["selected_on"])
        if metric not in self._tried:
            self._tried[metric] = self._searches(metric)
        tried = [(age, found) for age, found, keys in self._tried[metric] if mine & keys]
        return max(tried, key=lambda item: item[0])[1] if tried else []

    def floor(self, line: Mapping[str, Any], settings: Sequence[Tried]) -> float:
        """Mean distance between two retrained models of the problem of a search; 0 where its objective used none."""
        if line["selected_on"] != "retrained":
            return 0.0
        problem = problem_identity(self._known[settings[0].trial_ids[0]]["spec"])
        values = [value for identity, value in self._golds if identity == problem]
        return math.fsum(values) / len(values) if values else 0.0

    @cached_property
    def _golds(self) -> list[tuple[dict[str, Any], float]]:
        """Problem and distance of every retrained model beside the reference."""
        metric = OBJECTIVES["distance"][0]
        golds = self.trials[(self.trials["phase"] == "reference") & (self.trials["method"] == "retrain")]
        golds = golds[(golds["unlearn_seed"] >= 1) & (golds["status"] == "ok") & golds[metric].notna()]
        return [(problem_identity(row["spec"]), row[metric]) for row in golds.to_dict("records")]

    @cached_property
    def _known(self) -> dict[str, dict[Any, Any]]:
        return {str(row["trial_id"]): row for row in self.trials.to_dict("records")}  # in the order they were written

    @cached_property
    def _line_settings(self) -> dict[Key, set[str]]:
        """Line -> the setting of its rows."""
        rows = self.standing.rows
        found: dict[Key, set[str]] = {}
        for key, trial_id in zip(_keys(rows), rows["trial_id"], strict=True):
            found.setdefault(key, set()).add(self.setting_of[trial_id])
        return found

    def _searches(self, metric: str) -> list[tuple[int, list[Tried], set[str]]]:
        """Age of its newest row, settings tried and what their trials share, of every search."""
        age = {trial_id: position for position, trial_id in enumerate(self._known)}
        budget = self.spec.search.trials if self.spec else None
        found = []
        for _, search in self.searches.groupby("search_id", sort=True):
            settings = _settings(search, self._known, metric, budget)
            ids = [trial_id for setting in settings for trial_id in setting.trial_ids]
            if ids:
                found.append((max(age[i] for i in ids), settings, {self.setting_of[i] for i in ids}))
        return found

    @cached_property
    def _finals(self) -> dict[tuple[Key, str], list[int]]:
        """(line without the rule in its variant, setting) -> positions of its rows in ``finals``."""
        found: dict[tuple[Key, str], list[int]] = {}
        for position, row in enumerate(self.finals.to_dict("records")):
            if isinstance(row["selected_by"], str):
                variant = _without_rule(row["variant"], row["selected_by"])
                key = (*(str(row[name]) for name in LINE[:-1]), variant)
                found.setdefault((key, self.setting_of[row["trial_id"]]), []).append(position)
        return found

    def finals_of(self, key: Key, setting: str) -> pd.DataFrame:
        """The final rows of a line with a setting, whatever rule they were run for."""
        return self.finals.iloc[self._finals.get((key, setting), [])]

    def command(self, rule: str) -> str | None:
        """What runs the finals of a rule; the lines of a single rule stay without its name."""
        if self.spec is None:
            return None
        given = self.spec.search.select
        rules = rule if len(given) == 1 else f"[{', '.join(dict.fromkeys([*given, rule]))}]"
        words = ["raybench", "run", f"{self.directory.rstrip('/')}/{SPEC}", "--results", self.directory]
        return shlex.join([*words, "--set", f"search.select={rules}"])


def _keys(rows: pd.DataFrame) -> list[Key]:
    return [tuple(row[name] for name in LINE) for row in rows[list(LINE)].to_dict("records")]


def _without_rule(variant: str, selected_by: str) -> str:
    """The variant that the spec gave: a spec of several rules adds the rule to it."""
    rule = selected_by.split(" ")[0]
    return "" if variant == rule else variant.removesuffix(f", {rule}")


def _setting(spec: str) -> str:
    plain = json.loads(spec)
    del plain["problem"]["train_seed"], plain["unlearn_seed"], plain["phase"], plain["variant"]
    plain.pop("samples", None)  # only search trials are evaluated on a part
    return to_json(plain)


def _settings(
    search: pd.DataFrame, known: Mapping[str, Mapping[Any, Any]], metric: str, budget: int | None
) -> list[Tried]:
    """The settings of one search that have all their rows, in index order, up to the first that lacks one."""
    tried: dict[tuple[int, int], list[Mapping[Any, Any]]] = {}
    for record in search.sort_values(["round", "index", "train_seed"]).to_dict("records"):
        tried.setdefault((record["round"], record["index"]), []).append(record)
    found: list[Tried] = []
    seeds = search["train_seed"].nunique()
    for (number, index), records in tried.items():
        ids = tuple(str(record["trial_id"]) for record in records)
        if len(ids) < seeds or any(trial_id not in known for trial_id in ids) or len(found) == budget:
            break
        values = averaged([known[trial_id] for trial_id in ids], metric)
        found.append(Tried(number, index, json.loads(records[0]["hparams"]), values, True, ids))
    return found
