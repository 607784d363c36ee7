"""Rounds: the settings of a search are a function of the spec and of what earlier rounds told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest

from raybench.rounds import Search, Told, ask_optuna, open_round, points_of_round
from raybench.seeding import to_json

SAMPLERS = ("tpe", "random", "grid", "qmc")


@pytest.fixture
def make_search(make_spec: Any, plan_of: Any) -> Any:
    """The search of finetune (lr, epochs), or of another ``methods`` item."""

    def make(item: dict[str, Any] | None = None, **search: Any) -> Search:
        spec = make_spec(methods=[item or {"name": "finetune"}], search={"trials": 8, "round_size": 4, **search})
        found: Search = plan_of(spec).searches()[0]
        return found

    return make


def tell(points: Sequence[dict[str, Any]], failed: Sequence[int] = ()) -> list[Told]:
    return [
        Told(p, None if i in failed else (abs(p["lr"] - 0.02), p.get("epochs", 1) / 30)) for i, p in enumerate(points)
    ]


def settings(search: Search, failed: Sequence[int] = ()) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number in range(search.rounds):
        found += points_of_round(search, number, tell(found, failed), ask_optuna)[: search.size_of(number)]
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_first_setting_is_the_papers_default(make_search: Any, sampler: str) -> None:
    assert settings(make_search(sampler=sampler))[0] == {"lr": 0.01, "epochs": 10}
    narrowed = make_search({"name": "finetune", "space": {"lr": {"low": 0.005, "high": 0.05}}}, sampler=sampler)
    assert settings(narrowed)[0] == {"lr": 0.01, "epochs": 10}


def test_an_overridden_field_is_not_searched(make_search: Any) -> None:
    found = settings(make_search({"name": "finetune", "hparams": {"epochs": 2}}))
    assert found[0] == {"lr": 0.01}
    assert all(set(point) == {"lr"} for point in found)


def test_default_outside_the_range_is_not_tried(make_search: Any) -> None:
    found = settings(make_search({"name": "finetune", "space": {"epochs": {"low": 1, "high": 3}}}))
    assert len(found) == 8
    assert all(1 <= point["epochs"] <= 3 for point in found)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_settings_whatever_the_global_random_state(make_search: Any, sampler: str) -> None:
    first = settings(make_search(sampler=sampler))
    random.seed(7)
    np.random.seed(7)
    assert to_json(settings(make_search(sampler=sampler))) == to_json(first)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_settings_are_inside_the_space_and_plain(make_search: Any, sampler: str) -> None:
    search = make_search(sampler=sampler)
    for point in settings(search):
        assert type(point["lr"]) is float
        assert type(point["epochs"]) is int
        for name, distribution in search.space.items():
            assert distribution.low <= point[name] <= distribution.high


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
@pytest.mark.parametrize("short", [4, 6])
def test_longer_search_keeps_the_first_settings(make_search: Any, sampler: str, short: int) -> None:
    few, many = make_search(sampler=sampler, trials=short), make_search(sampler=sampler, trials=8)
    assert few.id == many.id
    assert settings(many)[:short] == settings(few)


def test_grid_covers_the_space_and_belongs_to_its_budget(make_search: Any) -> None:
    few, many = make_search(sampler="grid", trials=4), make_search(sampler="grid", trials=9)
    assert few.id != many.id
    assert len({to_json(point) for point in settings(many)}) == 9
    assert {point["epochs"] for point in settings(few)} == {1, 10}


def test_tpe_learns_from_what_it_is_told(make_search: Any) -> None:
    search = make_search(trials=16)
    tried = settings(make_search(sampler="random", trials=12))
    small = [Told(point, (point["lr"], 0.1)) for point in tried]
    large = [Told(point, (1 - point["lr"], 0.1)) for point in tried]
    after_small, after_large = (points_of_round(search, 3, told, ask_optuna) for told in (small, large))
    assert np.mean([p["lr"] for p in after_small]) < np.mean([p["lr"] for p in after_large])


def test_failed_settings_are_told_as_failed(make_search: Any) -> None:
    search = make_search()
    study = open_round(search, 1, tell(settings(search)[:4], failed=[1, 3])).study
    complete, fail = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL
    assert [trial.state for trial in study.trials] == [complete, fail, complete, fail]
    assert [trial.values is None for trial in study.trials] == [False, True, False, True]


def test_every_setting_failed(make_search: Any) -> None:
    assert len(settings(make_search(), failed=range(8))) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"round_size": 2},
        {"sampler": "random"},
        {"item": {"name": "finetune", "hparams": {"momentum": 0.5}}},
        {"item": {"name": "finetune", "space": {"lr": {"low": 1e-3, "high": 1e-1}}}},
        {"item": {"name": "gradient_ascent"}},
    ],
)
def test_search_id_and_settings_move_with_what_decides_them(make_search: Any, change: dict[str, Any]) -> None:
    plain, changed = make_search(), make_search(**change)
    assert plain.id != changed.id
    assert settings(plain) != settings(changed)


def test_rounds_are_seeded_apart(make_search: Any) -> None:
    found = settings(make_search(sampler="random", trials=12))
    assert len({to_json(point) for point in found}) == 12


def test_sizes_of_rounds(make_search: Any) -> None:
    search = make_search(trials=10)
    assert search.rounds == 3
    assert [search.size_of(number) for number in range(3)] == [4, 4, 2]


def test_optuna_says_nothing_and_keeps_its_verbosity(make_search: Any, capfd: pytest.CaptureFixture[str]) -> None:
    level = optuna.logging.get_verbosity()
    settings(make_search())
    assert optuna.logging.get_verbosity() == level
    assert capfd.readouterr().err == ""
