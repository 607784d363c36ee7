"""The plan: cells minus rows. Pure: what to run is a function of the experiment and of the rows that exist.

The same plan drives ``--serial``, the cluster, ``raybench plan`` and resume.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from raybench.experiment import Candidate, Cell, Experiment, SearchPlan
from raybench.leaderboard.query import Wanted
from raybench.ledger import MEASURE, Ledger, Request
from raybench.registry import METHODS, METRICS, MODELS, SCENARIOS, WHOLE_WORLDS, MethodEntry
from raybench.rounds import Search
from raybench.rules import choose
from raybench.seeding import canonical, to_json
from raybench.selection import distance_floor, settings_of, tuning_cost
from raybench.space import resolve, search_space
from raybench.spec import (
    CLEAN,
    FILE,
    FINAL,
    ORACLE,
    REFERENCE,
    SEARCH,
    SHADOW,
    STANDARD,
    ProblemSpec,
    Training,
    TrialSpec,
    with_seed,
)
from raybench.task import Facts
from raybench.weights import OPTION as WEIGHTS
from raybench.weights import without_weights


@dataclass(frozen=True)
class Line:
    """A line of the leaderboard to be: a cell and a candidate, the reason it is skipped, its search (if any)."""

    cell: ProblemSpec
    candidate: Candidate
    entry: MethodEntry
    skip: str | None
    search: Search | None


@dataclass(frozen=True)
class DataFacts:
    """What the plan must know of a dataset."""

    checksum: str
    num_classes: int
    input_shape: tuple[int, int, int]


class Plan:
    """The experiment bound to its data (by checksum) and to device types."""

    def __init__(
        self,
        experiment: Experiment,
        data: Mapping[str, DataFacts],
        device_types: Sequence[str],
        digests: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """``data``: facts by the dataset's label; ``device_types``: cpu or cuda, resolved by the caller, or both, and
        then each problem is there once for each; ``digests``: of the files that models and scenarios name, by the label
        of the model or scenario."""
        self.experiment = experiment
        self.device_types = tuple(device_types)
        self.data = data
        self.digests = digests
        self.problems = [self._problem(cell, device) for device in self.device_types for cell in experiment.cells]
        candidates = [c for c in experiment.candidates if not _is_reference(c)]
        self._of_problem = [[self._line(problem, c) for c in candidates] for problem in self.problems]
        self.lines = [line for lines in self._of_problem for line in lines]
        self._searched = {line.search.id: line for line in reversed(self.lines) if line.search is not None}
        self._seeded: dict[tuple[int, int], ProblemSpec] = {}

    def references(self) -> list[Request]:
        """Rows of the originals that a method starts from and of every retrained model.

        The standard original is left out where every method of the problem starts from an own training and the spec
        does not list ``original``: nobody would look at it, and on a large model it costs as much as all the rest.
        """
        requests = []
        listed = any(c.method == "original" for c in self.experiment.candidates)
        for problem, lines in zip(self.problems, self._of_problem, strict=True):
            used = [line.candidate.training for line in lines if line.skip is None]
            trainings = {to_json(t): t for t in ([Training()] if listed or not used else []) + used}
            for seed in self.experiment.train_seeds:
                at = self._at(problem, seed)
                for training in trainings.values():
                    requests.append(self._reference(at, "original", 0, training))
                for index in range(self.experiment.gold_seeds):
                    requests.append(self._reference(at, "retrain", index))
                if SCENARIOS[problem.scenario.name].corrupts(_params(problem)):
                    requests.append(self._reference(at, "retrain", 0, variant=CLEAN))
        return requests

    def oracles(self, ledger: Ledger) -> list[Request]:
        """The oracle pool: models first, then every line's unlearning of each original in it (``raybench.appraisal``).

        Originals and unlearned worlds only where a metric needs them, and only of lines whose finals are ok.
        """
        experiment = self.experiment
        indices = range(1, experiment.oracles + 1)
        worlds = self._whole_worlds
        lines = [r.spec for r in self.finals(ledger) if ledger.ok(r.spec.trial_id)] if worlds else []
        models, unlearned = [], [Request(spec.in_world(index)) for spec in lines for index in indices]
        of_problem: dict[str, list[Training]] = {}
        for spec in lines:
            of_problem.setdefault(spec.problem.id, []).append(spec.training)
        for at in (self._at(problem, seed) for problem in self.problems for seed in experiment.train_seeds):
            models += [_oracle(at, "retrain", index) for index in indices if index >= experiment.gold_seeds]
            models += [_oracle(at, "retrain", i, variant=SHADOW) for i in range(1, experiment.shadows + 1)]
            mine = [Training()] if worlds else []
            mine += of_problem.get(at.id, [])
            for training in {to_json(t): t for t in mine}.values():
                models += [_oracle(at, "original", index, training) for index in indices]
        return [*models, *unlearned]

    def measurements(self, ledger: Ledger, done: Callable[[str, str], bool]) -> list[Request]:
        """Final and reference rows that are ok and lack a metric of the spec: one that needs the oracle pool, or one
        that was not in the spec when they ran. ``done(trial id, metric)``: whether that was measured already."""
        requests = []
        for request in {r.spec.trial_id: r for r in (*self.references(), *self.finals(ledger))}.values():
            trial_id = request.spec.trial_id
            if ledger.ok(trial_id):
                names = [name for name in self.experiment.metrics if not done(trial_id, name)]
                attempt = ledger.rows[trial_id].get("attempt") or 0
                if names:
                    requests.append(Request(request.spec, {MEASURE: names, "attempt": int(attempt)}))
        return requests

    def searches(self) -> list[Search]:
        """All searches, in the order of the lines."""
        return [line.search for line in self.lines if line.search is not None]

    def finals(self, ledger: Ledger) -> list[Request]:
        """Final trials of every line whose setting is known by now (skipped lines leave skipped rows)."""
        requests: list[Request] = []
        for line in self.lines:
            for rule, values, context in self._selected(line, ledger):
                variant = line_variant(line.candidate, rule, self.experiment.search)
                for train_seed in self.experiment.train_seeds:
                    tuned = line.search is not None and train_seed in line.search.plan.seeds
                    for unlearn_seed in self.experiment.unlearn_seeds:
                        spec = self._trial(line, train_seed, unlearn_seed, FINAL, values, variant)
                        requests.append(Request(spec, {**context, "tuned_here": tuned}))
        return requests

    def wanted(self, ledger: Ledger) -> Wanted:
        """The trials that make this plan's leaderboard, and what tuning each line cost."""
        requests = [*self.references(), *self.finals(ledger)]
        tuning: dict[tuple[str, ...], float] = {}
        for line in self.lines:
            if line.search is not None:
                cell = (line.cell.dataset.label, line.cell.model.label, line.cell.scenario.label, line.entry.name)
                for rule in line.search.plan.select:
                    variant = line_variant(line.candidate, rule, line.search.plan)
                    tuning[(*cell, variant)] = tuning_cost(line.search, ledger)
        return Wanted(frozenset(request.spec.trial_id for request in requests), tuning)

    def count_finals(self) -> int:
        """How many final trials there will be."""
        seeds = len(self.experiment.train_seeds) * len(self.experiment.unlearn_seeds)
        rules = len(self.experiment.search.select)
        return sum(seeds * (rules if line.search is not None else 1) for line in self.lines)

    def count_oracles(self) -> int:
        """How many models and unlearning runs the oracle pool will have, if every line has ok finals."""
        experiment = self.experiment
        at = len(self.problems) * len(experiment.train_seeds)
        total = at * (max(0, experiment.oracles + 1 - max(1, experiment.gold_seeds)) + experiment.shadows)
        if not self._whole_worlds:
            return total
        running = [line for line in self.lines if line.skip is None]
        trainings = {(line.cell.id, to_json(line.candidate.training)) for line in running}
        trainings |= {(problem.id, to_json(Training())) for problem in self.problems}
        lines = sum(len(line.search.plan.select) if line.search is not None else 1 for line in running)
        return total + len(experiment.train_seeds) * experiment.oracles * (len(trainings) + lines)

    @property
    def _whole_worlds(self) -> bool:
        return any(METRICS[name].pool in WHOLE_WORLDS for name in self.experiment.metrics)

    def search_requests(self, search: Search, point: Mapping[str, Any]) -> list[Request]:
        """The trials of one setting: one per search seed, at the first unlearn seed."""
        line = self._searched[search.id]
        unlearn_seed = self.experiment.unlearn_seeds[0]
        context = {"selected_on": search.plan.selected_on, "tuned_here": True}
        return [Request(self._trial(line, s, unlearn_seed, SEARCH, point), context) for s in search.plan.seeds]

    def _selected(self, line: Line, ledger: Ledger) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
        """(rule, searched values, context) per selection rule; nothing while a search runs."""
        if line.search is None:
            context: dict[str, Any] = {"skip": line.skip} if line.skip else {}
            yield "", {}, context
            return
        settings = list(settings_of(line.search, ledger))
        if len(settings) < line.search.plan.trials or any(s.values is None and not s.complete for s in settings):
            return
        rules = line.search.plan.select
        golds = self._golds(line.cell) if line.search.plan.selected_on == "retrained" else []
        floor = distance_floor(golds, ledger)
        for rule in rules:
            chosen, note = choose(settings, rule, floor)
            cost = tuning_cost(line.search, ledger)
            context = {"selected_on": line.search.plan.selected_on, "selected_by": note, "tuning_s": cost}
            yield rule, chosen.point, context

    def _golds(self, cell: ProblemSpec) -> list[str]:
        """Trial ids of the retrained models of a cell beside the reference ones."""
        return [
            self._reference(self._at(cell, seed), "retrain", index).spec.trial_id
            for seed in self.experiment.train_seeds
            for index in range(1, self.experiment.gold_seeds)
        ]

    def _at(self, problem: ProblemSpec, train_seed: int) -> ProblemSpec:
        """The problem at a train seed, one object for all its trials: it remembers its identity."""
        key = (id(problem), train_seed)  # one of ``self.problems``, which live as long as the plan
        if key not in self._seeded:
            self._seeded[key] = with_seed(problem, train_seed)
        return self._seeded[key]

    def _device(self, problem: ProblemSpec) -> str:
        """The part of a variant that tells a problem's lines from those on another device type."""
        return problem.device_type if self.experiment.each_device else ""

    def _named(self, problem: ProblemSpec, candidate: Candidate) -> Candidate:
        return dataclasses.replace(candidate, variant=_joined(self._device(problem), candidate.variant))

    def _reference(
        self, at: ProblemSpec, method: str, index: int, training: Training | None = None, variant: str = ""
    ) -> Request:
        """The row's variant is for people, the spec's is part of the identity: a reference model has the same one
        whatever else a spec asks for."""
        training = training or Training()
        spec = TrialSpec(at, method, METHODS[method].version, {}, index, REFERENCE, training, variant)
        named = _joined(self._device(at), variant or ("" if training.kind == STANDARD else training.kind))
        return Request(spec, {"variant": named} if named != variant else {})

    def _problem(self, cell: Cell, device_type: str) -> ProblemSpec:
        experiment = self.experiment
        versions: dict[str, int | str] = {"model": MODELS[cell.model.name].version}
        versions["scenario"] = SCENARIOS[cell.scenario.name].version
        for option, label in ((WEIGHTS, cell.model.label), (FILE, cell.scenario.label)):
            if label in self.digests:
                versions[option] = self.digests[label]
        return ProblemSpec(
            dataset=cell.dataset,
            checksum=self.data[cell.dataset.label].checksum,
            model=cell.model,
            scenario=cell.scenario,
            recipe=canonical(dataclasses.asdict(cell.recipe)),
            train_seed=experiment.train_seeds[0],
            split_seed=experiment.split_seed,
            draw_seed=experiment.draw_seed,
            validation=experiment.validation,
            threads=experiment.threads,
            device_type=device_type,
            train_workers=cell.train_workers,
            versions=versions,
        )

    def _line(self, cell: ProblemSpec, candidate: Candidate) -> Line:
        candidate = self._named(cell, candidate)
        entry = METHODS[candidate.method]
        skip = self._skip(cell, candidate, entry)
        space = search_space(entry.hparams, candidate.fixed, candidate.ranges, entry.name)
        search = None
        if skip is None and space:
            hparams: Any = resolve(entry.hparams, candidate.fixed, entry.name)
            fixed = {k: v for k, v in canonical(dataclasses.asdict(hparams)).items() if k not in space}
            seed = self.experiment.unlearn_seeds[0]
            search = Search(cell, candidate, entry.version, entry.hparams, space, self.experiment.search, fixed, seed)
        return Line(cell, candidate, entry, skip, search)

    def _skip(self, cell: ProblemSpec, candidate: Candidate, entry: MethodEntry) -> str | None:
        kind = SCENARIOS[cell.scenario.name].kind
        if kind not in entry.scope:
            return (
                f"{entry.label} forgets {' or '.join(sorted(entry.scope))} requests, this scenario is a {kind} request"
            )
        if (entry.predictor or entry.training) and SCENARIOS[cell.scenario.name].in_turn(_params(cell)):
            return f"{entry.label} works on the original of its own training, later requests start from another model"
        if entry.skip is None:
            return None
        data = self.data[cell.dataset.label]
        classes = tuple(cell.scenario.options.get("classes", ())) if kind == "class" else ()
        facts = Facts(
            cell.dataset.label,
            cell.model.label,
            data.num_classes,
            data.input_shape,
            classes,
            kind,
            candidate.training.kind,
            without_weights(cell.model.options),
        )
        return entry.skip(facts, resolve(entry.hparams, candidate.fixed, entry.name))

    def _trial(
        self, line: Line, train_seed: int, unlearn_seed: int, phase: str, values: Mapping[str, Any], variant: str = ""
    ) -> TrialSpec:
        hparams: Any = resolve(line.entry.hparams, {**line.candidate.fixed, **values}, line.entry.name)
        return TrialSpec(
            problem=self._at(line.cell, train_seed),
            method=line.entry.name,
            method_version=line.entry.version,
            hparams=canonical(dataclasses.asdict(hparams)),
            unlearn_seed=unlearn_seed,
            phase=phase,
            training=line.candidate.training,
            variant=variant,
            stop=line.candidate.stop,
            samples=self.experiment.search.samples if phase == SEARCH else None,
        )


def line_variant(candidate: Candidate, rule: str, plan: SearchPlan) -> str:
    """The variant of a final: the candidate's, and the selection rule where a spec lists several."""
    return _joined(candidate.variant, rule if len(plan.select) > 1 else "")


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _params(problem: ProblemSpec) -> Any:
    entry = SCENARIOS[problem.scenario.name]
    return resolve(entry.params, problem.scenario.options, f"scenario {problem.scenario.name}")


def _is_reference(candidate: Candidate) -> bool:
    return METHODS[candidate.method].reference


def _oracle(
    problem: ProblemSpec, method: str, index: int, training: Training | None = None, variant: str = ""
) -> Request:
    version = METHODS[method].version
    return Request(TrialSpec(problem, method, version, {}, index, ORACLE, training or Training(), variant))
