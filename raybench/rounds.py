"""Search in rounds: which settings to try, as a pure function of the spec and of the rows so far.

Round k asks ``round_size`` settings from a sampler seeded by (search id, k) that was told exactly the rows of the
rounds before, in index order. So the same settings come with 1 slot or 32, after any kill, and with ``--serial``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json

from raybench.experiment import Candidate, SearchPlan
from raybench.seeding import canonical, content_hash, derive_seed, to_json
from raybench.space import DEFAULT_FIRST, default_point, sampled_point
from raybench.spec import PROTOCOL, ProblemSpec

STUDY = "round"  # one study per round and storage: the name never leaves it


@dataclass(frozen=True)
class Search:
    """One search: a line's searched space, its sampler and its budget. ``cell`` is the problem of the first seed."""

    cell: ProblemSpec
    candidate: Candidate
    method_version: int
    hparams_type: type
    space: Mapping[str, BaseDistribution]
    plan: SearchPlan
    fixed: Mapping[str, Any] = field(default_factory=dict)  # resolved values of the fields that are not searched
    unlearn_seed: int = 0

    @cached_property
    def id(self) -> str:
        """Hash of all that decides which settings are tried (not of how many: a search can be extended)."""
        cell = self.cell.identity
        del cell["train_seed"]
        grid_size = self.plan.trials if self.plan.sampler == "grid" else None
        rule: dict[str, Any] = {} if self.candidate.stop is None else {"stop": self.candidate.stop}
        if self.plan.samples is not None:
            rule["samples"] = self.plan.samples
        return content_hash(
            rule
            | {
                "protocol": PROTOCOL,
                "cell": cell,
                "method": [self.candidate.method, self.method_version],
                "fixed": self.fixed,
                "unlearn_seed": self.unlearn_seed,
                "training": self.candidate.training,
                "space": {name: distribution_to_json(d) for name, d in self.space.items()},
                "sampler": [self.plan.sampler, self.plan.round_size, grid_size],
                "seeds": self.plan.seeds,
                "objective": self.plan.objective,
            }
        )

    @property
    def rounds(self) -> int:
        """How many rounds the budget needs."""
        return -(-self.plan.trials // self.plan.round_size)

    def size_of(self, number: int) -> int:
        """How many settings of round ``number`` are within the budget."""
        return min(self.plan.round_size, self.plan.trials - number * self.plan.round_size)


@dataclass(frozen=True)
class Told:
    """What the sampler learns of one setting: its point, and (distance, passes) or None where it was not ok."""

    point: Mapping[str, Any]
    values: tuple[float, float] | None


@dataclass(frozen=True)
class Round:
    """An Optuna study that holds what earlier rounds told and will be asked for this round's settings."""

    study: optuna.Study
    storage: optuna.storages.InMemoryStorage
    sampler: optuna.samplers.BaseSampler
    space: dict[str, BaseDistribution] = field(default_factory=dict)


Ask = Callable[[Search, Round], list[dict[str, Any]]]


def open_round(search: Search, number: int, told: Sequence[Told]) -> Round:
    """The study of round ``number``. Settings that do not come from the sampler (the defaults at index 0 of round 0;
    all of grid, qmc and random) are enqueued in it, so that whoever asks it gets them."""
    storage = optuna.storages.InMemoryStorage()
    sampler = optuna.samplers.TPESampler(
        seed=derive_seed("round", search.id, number) % 2**32, n_startup_trials=search.plan.round_size
    )
    study = optuna.create_study(storage=storage, sampler=sampler, study_name=STUDY, directions=["minimize", "minimize"])
    space = dict(search.space)
    for setting in told:
        state = optuna.trial.TrialState.COMPLETE if setting.values else optuna.trial.TrialState.FAIL
        values = list(setting.values) if setting.values else None
        study.add_trial(
            optuna.trial.create_trial(state=state, values=values, params=dict(setting.point), distributions=space)
        )
    default = default_point(search.hparams_type, space)
    first = number == 0 and default is not None and search.plan.sampler in DEFAULT_FIRST
    if first:
        study.enqueue_trial(default)
    if search.plan.sampler != "tpe":
        for index in range(int(first), search.plan.round_size):
            whole = number * search.plan.round_size + index
            study.enqueue_trial(sampled_point(search.plan.sampler, space, whole, search.plan.trials, search.id))
    return Round(study, storage, sampler, space)


def ask_optuna(search: Search, opened: Round) -> list[dict[str, Any]]:
    """Ask Optuna itself (``--serial``). On a cluster Ray Tune's OptunaSearch asks the same study."""
    return [dict(opened.study.ask(opened.space).params) for _ in range(search.plan.round_size)]


def points_of_round(search: Search, number: int, told: Sequence[Told], ask: Ask) -> list[dict[str, Any]]:
    """The ``round_size`` settings of a round, in index order."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            points = ask(search, open_round(search, number, told))
    finally:
        optuna.logging.set_verbosity(level)
    return [canonical({name: point[name] for name in search.space}) for point in points]


def describe_space(search: Search) -> str:
    """The searched space in one line, for people."""
    return to_json({name: str(d) for name, d in search.space.items()})
