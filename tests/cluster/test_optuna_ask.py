"""Tune's OptunaSearch asks exactly what Optuna itself is asked without Ray."""

from __future__ import annotations

import pytest

from raybench.cluster.optuna_ask import ask_optuna_search
from raybench.experiment import make_experiment
from raybench.plan import DataFacts, Plan
from raybench.rounds import Told, ask_optuna, points_of_round

MIXED = {
    "name": "finetune",
    "space": {
        "lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "epochs": {"low": 1, "high": 9},
        "momentum": {"low": 0.0, "high": 0.9, "step": 0.1},
        "schedule": ["none", "cosine"],
    },
}


def searches(**search):
    raw = {
        "name": "asks",
        "problems": [{"dataset": "digits", "models": ["mlp"], "scenarios": [{"name": "class", "classes": [0, 1]}]}],
        "methods": [MIXED, "gradient_ascent", "deepclean"],
        "search": {"trials": 12, "round_size": 4, **search},
    }
    plan = Plan(make_experiment(raw), {"digits": DataFacts("0", 10, (1, 28, 28))}, ["cpu"])
    assert len(plan.searches()) == 3
    return plan.searches()


def all_rounds(search, ask):
    """Three rounds, each told made-up objectives (and failures) of the ones before."""
    told, asked = [], []
    for number in range(3):
        points = points_of_round(search, number, told, ask)
        assert len(points) == 4
        asked += points
        for index, point in enumerate(points):
            values = None if (number, index) == (0, 2) else (point["lr"] * (1 + index), float(number + index % 3))
            told.append(Told(point, values))
    return asked


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "qmc"])
def test_same_settings_as_optuna_itself(sampler):
    for search in searches(sampler=sampler):
        with_tune, alone = all_rounds(search, ask_optuna_search), all_rounds(search, ask_optuna)
        assert with_tune == alone
        assert [list(map(type, p.values())) for p in with_tune] == [list(map(type, p.values())) for p in alone]
        assert len({str(p) for p in alone}) > 4  # the rounds differ, so equality says something


def test_the_default_comes_first_and_rounds_depend_on_rows():
    search = searches()[1]
    first = points_of_round(search, 0, [], ask_optuna_search)
    hparams = search.hparams_type()
    assert first[0] == {name: getattr(hparams, name) for name in search.space}
    good = [Told(p, (0.1, 1.0)) for p in first]
    bad = [Told(p, (float(-i), 1.0)) for i, p in enumerate(first)]
    assert points_of_round(search, 1, good, ask_optuna_search) != points_of_round(search, 1, bad, ask_optuna_search)
