"""A YAML spec -> a validated ``Experiment``: cells, methods, seeds, search, resources.

Names are looked up, parameters resolved and ranges checked here, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raybench.errors import UserError, unknown
from raybench.files import file_digest, find_file
from raybench.options import check_options
from raybench.registry import DATASETS, METHODS, METRICS, MODELS, SCENARIOS, TRAININGS, load_plugins
from raybench.resources import is_measured, resources_of
from raybench.rules import OBJECTIVES, PAPER, RULES
from raybench.seeding import canonical
from raybench.space import DEFAULT_FIRST, SAMPLERS, SCIENTIFIC, default_point, resolve, search_space, searched
from raybench.spec import FILE, STANDARD, Choice, Training
from raybench.spec_file import MethodItem, SpecFile, apply_settings, parse_spec, read_spec
from raybench.stopping import check_stop
from raybench.task_rules import check_task
from raybench.training import Recipe, make_recipe
from raybench.weights import OPTION as WEIGHTS
from raybench.weights import without_weights


@dataclass(frozen=True)
class Cell:
    """dataset x model x scenario, with the recipe that trains it and how many processes share a training."""

    dataset: Choice
    model: Choice
    scenario: Choice
    recipe: Recipe
    train_workers: int = 1


@dataclass(frozen=True)
class Candidate:
    """A method as a spec asks for it. ``variant`` is empty unless the spec has several of the same method."""

    method: str
    variant: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    ranges: Mapping[str, Any] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    stop: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SearchPlan:
    """One search per line: ``trials`` settings in rounds of ``round_size``, on ``seeds``, chosen by ``select``.
    ``samples``: how many of each split its trials are evaluated on; None: all."""

    trials: int = 8
    round_size: int = 4
    sampler: str = "tpe"
    seeds: tuple[int, ...] = (0,)
    objective: str = "distance"
    select: tuple[str, ...] = ("distance",)
    samples: int | None = None

    @property
    def metric(self) -> str:
        """The metric that the search minimises beside sample passes."""
        return OBJECTIVES[self.objective][0]

    @property
    def selected_on(self) -> str:
        """What the search's objective uses: ``retrained`` or ``validation``."""
        return OBJECTIVES[self.objective][1]


@dataclass(frozen=True)
class Experiment:
    """A validated spec. Everything that a run does is a function of it (and of the data)."""

    name: str
    description: str
    cells: tuple[Cell, ...]
    candidates: tuple[Candidate, ...]
    train_seeds: tuple[int, ...]
    unlearn_seeds: tuple[int, ...]
    evaluate_seed: int
    split_seed: int
    draw_seed: int
    gold_seeds: int  # retrained models with rows of their own: the reference and those that give the floor
    oracles: int  # models a world of the oracle pool, for every problem and train seed
    shadows: int  # models of random halves of the data in it
    search: SearchPlan
    validation: float
    metrics: tuple[str, ...]
    resources: Mapping[str, float]
    measured: bool  # what share of a GPU a trial takes is measured; resources has a whole one for the first of a kind
    device: str
    each_device: bool  # every problem once per device type, with references and lines of its own there
    threads: int
    time_limit_s: float | None
    exclusive: bool
    keep: tuple[str, ...]
    curves: bool
    plugins: tuple[str, ...]
    raw: Mapping[str, Any]


def load_experiment(name: str, settings: Sequence[str] = ()) -> Experiment:
    """Read, override and validate a spec; every problem with it is a one-line ``UserError``."""
    return make_experiment(apply_settings(read_spec(name), settings))


def make_experiment(raw: Mapping[str, Any]) -> Experiment:
    """Validate a spec given as plain values."""
    spec = parse_spec(raw)
    load_plugins(tuple(spec.plugins))
    candidates = tuple(itertools.chain.from_iterable(_candidates(m) for m in spec.methods))
    counts = Counter((c.method, c.variant) for c in candidates)
    for line, count in counts.items():
        if count > 1:
            raise UserError(f"methods must be told apart by variant, got {line[0]!r} twice; give each its own variant")
    metrics = tuple(spec.metrics) if spec.metrics is not None else _default_metrics()
    for metric in metrics:
        METRICS[metric]  # unknown names raise here
    needed = ("distance", "distance_validation", OBJECTIVES[spec.search.objective][0])
    if spec.search.sampler not in SAMPLERS:
        raise unknown("search.sampler", spec.search.sampler, SAMPLERS)
    rules = tuple(spec.search.select)
    for rule in rules:
        if rule not in RULES:
            raise unknown("search.select", rule, RULES)
    if PAPER in rules:
        _check_defaults(candidates, spec.search.sampler)
    for label, given in (
        ("seeds.train", spec.seeds.train),
        ("seeds.unlearn", spec.seeds.unlearn),
        ("search.train_seeds", spec.search.train_seeds),
        ("search.select", rules),
    ):
        if len(set(given)) < len(given) and not isinstance(given, str):
            raise UserError(f"{label} must not repeat itself, got {list(given)}; name each once")
    cells = _cells(spec)
    for cell in cells:
        corrupts = SCENARIOS[cell.scenario.name].corrupts(_params(cell.scenario))
        check_task(
            cell.model.name,
            (c.method for c in candidates),
            objective=OBJECTIVES[spec.search.objective][0],
            stops=any(c.stop is not None for c in candidates),
            corrupts=corrupts,
            train_workers=cell.train_workers,
        )
    return Experiment(
        name=spec.name,
        description=spec.description,
        cells=cells,
        candidates=candidates,
        train_seeds=tuple(spec.seeds.train),
        unlearn_seeds=tuple(spec.seeds.unlearn),
        evaluate_seed=spec.seeds.evaluate,
        split_seed=spec.seeds.split,
        draw_seed=spec.seeds.draw,
        gold_seeds=spec.gold_seeds,
        oracles=spec.oracles,
        shadows=spec.shadows,
        search=SearchPlan(
            spec.search.trials,
            spec.search.round_size,
            spec.search.sampler,
            _search_seeds(spec),
            spec.search.objective,
            rules,
            spec.search.samples,
        ),
        validation=spec.validation,
        metrics=tuple(dict.fromkeys((*metrics, *needed))),
        resources=resources_of(spec),
        measured=is_measured(spec),
        device=spec.device,
        each_device=spec.devices == "each",
        threads=spec.threads,
        time_limit_s=spec.time_limit,
        exclusive=spec.timing == "exclusive",
        keep=tuple(spec.keep),
        curves=spec.curves,
        plugins=tuple(spec.plugins),
        raw=canonical(raw),
    )


def _check_defaults(candidates: Sequence[Candidate], sampler: str) -> None:
    """The rule ``paper`` needs the default among the settings that a search tries."""
    for candidate in candidates:
        hparams = METHODS[candidate.method].hparams
        space = search_space(hparams, candidate.fixed, candidate.ranges, candidate.method)
        if space and sampler not in DEFAULT_FIRST:
            raise UserError(
                f"search.select: paper needs a sampler that starts at the defaults, got {sampler}; "
                f"use {' or '.join(DEFAULT_FIRST)}"
            )
        if space and default_point(hparams, space) is None:
            raise UserError(
                f"search.select: paper needs the defaults inside the searched ranges, got {candidate.method} with one "
                "outside; widen its space or leave paper out"
            )


def _default_metrics() -> tuple[str, ...]:
    from raybench.metrics import DEFAULT_METRICS

    return tuple(DEFAULT_METRICS)


def with_files(experiment: Experiment, root: str | None) -> tuple[Experiment, dict[str, str]]:
    """The experiment with the files of its models and scenarios by absolute path (a relative one is looked for in
    ``root`` first), and their digests by the label of the model or scenario."""
    digests: dict[str, str] = {}

    def found(choice: Choice, option: str) -> Choice:
        if option not in choice.options:
            return choice
        path = find_file(choice.options[option], root, f"{option} of {choice.name}")
        choice = Choice(choice.name, {**choice.options, option: str(path)})
        digests[choice.label] = file_digest(path)
        return choice

    cells = [
        dataclasses.replace(cell, model=found(cell.model, WEIGHTS), scenario=found(cell.scenario, FILE))
        for cell in experiment.cells
    ]
    return dataclasses.replace(experiment, cells=tuple(cells)), digests


def _search_seeds(spec: SpecFile) -> tuple[int, ...]:
    given = spec.search.train_seeds
    if given == "first":
        return (spec.seeds.train[0],)
    if given == "all":
        return tuple(spec.seeds.train)
    assert isinstance(given, list)
    for seed in given:
        if seed not in spec.seeds.train:
            raise UserError(
                f"search.train_seeds must be among seeds.train {spec.seeds.train}, got {seed}; add it there"
            )
    if not given:
        raise UserError("search.train_seeds must name at least one seed, got []; use first, all or a list")
    return tuple(given)


def _cells(spec: SpecFile) -> tuple[Cell, ...]:
    cells = []
    for problem in spec.problems:
        dataset = _choice(problem.dataset, DATASETS)
        recipe = make_recipe({**DATASETS[dataset.name].recipe, **spec.recipe, **problem.recipe})
        if problem.train_workers > recipe.batch_size:
            raise UserError(
                f"train_workers must be at most the recipe's batch_size {recipe.batch_size}, of which each takes a "
                f"part, got {problem.train_workers}; lower it"
            )
        for model, scenario in itertools.product(problem.models, problem.scenarios):
            cells.append(Cell(dataset, _choice(model, MODELS), _scenario(scenario), recipe, problem.train_workers))
    keys = Counter((c.dataset.label, c.model.label, c.scenario.label) for c in cells)
    for key, count in keys.items():
        if count > 1:
            raise UserError(f"each dataset x model x scenario must appear once, got {' x '.join(key)} twice; drop one")
    return tuple(cells)


def _choice(given: str | Mapping[str, Any], registry: Any) -> Choice:
    """``name``, ``{name: x, option: value}`` or ``{x: {option: value}}``."""
    if isinstance(given, str):
        name, options = given, {}
    elif "name" in given:
        name, options = given["name"], {k: v for k, v in given.items() if k != "name"}
        if not isinstance(name, str):
            raise UserError(f"name of a {registry.kind} must be text, got {name!r}; put it in quotes")
    elif len(given) == 1:
        name, options = next(iter(given.items()))
        options = {} if options is None else options
    else:
        raise UserError(
            f"a {registry.kind} must be a name or {{name: ..., options}}, got {dict(given)!r}; give it a name"
        )
    if not isinstance(options, Mapping):
        raise UserError(
            f"options of {registry.kind} {name} must be a mapping, got {options!r}; "
            f"write {{name: {name}, option: value}}"
        )
    entry = registry[name]  # unknown names raise here
    if registry is MODELS:
        check_options(entry.fn, without_weights(options))
    elif registry is not SCENARIOS:
        check_options(entry.fn, options)
    return Choice(name, canonical(options))


def _scenario(given: str | Mapping[str, Any]) -> Choice:
    choice = _choice(given, SCENARIOS)
    full = canonical(dataclasses.asdict(_params(choice)))
    return Choice(choice.name, {k: v for k, v in full.items() if v is not None})


def _params(scenario: Choice) -> Any:
    return resolve(SCENARIOS[scenario.name].params, scenario.options, f"scenario {scenario.name}")


def _candidates(item: MethodItem) -> list[Candidate]:
    """The lines that one item of ``methods`` asks for: one, or one per training option and sweep point."""
    entry = METHODS[item.name]
    settings = ("variant", "hparams", "space", "sweep", "training", "stop")
    if entry.reference and any(getattr(item, key) not in (None, "", {}, [{}]) for key in settings):
        given = [key for key in settings if key in item.model_fields_set]
        raise UserError(f"method {item.name} must stand alone, it is a reference, got {', '.join(given)}; leave it out")
    stop = check_stop(item.stop, item.name) if item.stop is not None else None
    resolve(entry.hparams, item.hparams, item.name)
    search_space(entry.hparams, item.hparams, item.space, item.name)
    trainings = item.training
    if any(trainings) and entry.training is None:
        raise UserError(
            f"method {item.name} must have no training, it starts from the standard original, got {trainings[0]}; "
            "leave it out"
        )
    known = [f.name for f in dataclasses.fields(entry.hparams)]
    for name, values in item.sweep.items():
        if name not in known:
            raise unknown(f"parameter of {item.name}", name, known)
        if not values:
            raise UserError(f"sweep of {item.name}.{name} must name at least one value, got []; list the values")
        for other in ("hparams", "space"):
            if name in getattr(item, other):
                raise UserError(f"a swept parameter must not be in {other} too, got {item.name}.{name}; drop one")
    points = [dict(zip(item.sweep, values, strict=True)) for values in itertools.product(*item.sweep.values())]
    candidates = []
    for training, point in itertools.product(trainings, points):
        parts = [item.variant] if item.variant else []
        if len(trainings) > 1:
            parts.append(_name(training) or "default training")
        if point:
            parts.append(_name(point))
        fixed = {**item.hparams, **point}
        resolve(entry.hparams, fixed, item.name)
        candidates.append(
            Candidate(item.name, ", ".join(parts), fixed, item.space, _training(entry.training, training), stop)
        )
    return candidates


def _training(kind: str | None, given: Mapping[str, Any]) -> Training:
    if kind is None:
        return Training(STANDARD)
    entry = TRAININGS[kind]
    hparams: Any = resolve(entry.hparams, given, f"training {kind}")
    return Training(kind, entry.version, canonical(hparams))


def _name(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in point.items())


def scientific_fields(hparams: type) -> list[str]:
    """Names of the fields that a sweep of this method would grid."""
    return [name for name, mark in searched(hparams).items() if mark.role == SCIENTIFIC]
