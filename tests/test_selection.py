"""The settings of a search read back from rows, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest

from raybench.ledger import Ledger
from raybench.selection import distance_floor, settings_of, tuning_cost


@pytest.fixture
def searched(make_spec: Any, plan_of: Any, fake_row: Any) -> Any:
    """A search of 4 settings on two seeds: plan, search, and a ledger with all its rows."""
    spec = make_spec(
        methods=["finetune"],
        seeds={"train": [0, 1]},
        gold_seeds=3,
        search={"trials": 4, "round_size": 4, "train_seeds": "all"},
    )
    plan = plan_of(spec)
    search, ledger = plan.searches()[0], Ledger()
    for index in range(4):
        point = {"lr": 0.01 * (index + 1), "epochs": index + 1}
        for request in plan.search_requests(search, point):
            ledger.rows[request.spec.trial_id] = fake_row(request)
            key = (search.id, 0, index, request.spec.problem.train_seed)
            ledger.table[key] = (request.spec.trial_id, point)
    return plan, search, ledger


def test_settings_are_averaged_over_seeds(searched: Any) -> None:
    _, search, ledger = searched
    first, second = (ledger.table[search.id, 0, 1, seed][0] for seed in (0, 1))
    ledger.rows[first] |= {"distance_validation": 0.25, "retrain_share": 0.5}
    ledger.rows[second] |= {"distance_validation": 0.75, "retrain_share": 1.5}
    found = list(settings_of(search, ledger))
    assert [setting.index for setting in found] == [0, 1, 2, 3]
    assert found[1].values == (0.5, 1.0)
    assert found[1].trial_ids == (first, second)


@pytest.mark.parametrize(
    "broken",
    [
        {"status": "diverged"},
        {"status": "failed"},
        {"status": "timeout"},
        {"distance_validation": None},
        {"distance_validation": float("nan")},
        {"retrain_share": float("inf")},
    ],
)
def test_one_bad_seed_makes_a_setting_unusable(searched: Any, broken: dict[str, Any]) -> None:
    _, search, ledger = searched
    ledger.rows[ledger.table[search.id, 0, 2, 1][0]] |= broken
    found = list(settings_of(search, ledger))
    assert [setting.values is None for setting in found] == [False, False, True, False]
    assert all(setting.complete for setting in found)


def test_a_setting_without_all_its_rows_is_not_complete(searched: Any) -> None:
    _, search, ledger = searched
    del ledger.rows[ledger.table[search.id, 0, 2, 1][0]]
    found = list(settings_of(search, ledger))
    assert [setting.complete for setting in found] == [True, True, False, True]
    assert found[2].values is None


def test_settings_stop_where_the_table_does(searched: Any) -> None:
    _, search, ledger = searched
    del ledger.table[search.id, 0, 2, 1]
    assert [setting.index for setting in settings_of(search, ledger)] == [0, 1]


def test_floor_is_the_mean_over_the_gold_models_of_this_plan(searched: Any, fake_row: Any) -> None:
    plan, _, ledger = searched
    golds = [r for r in plan.references() if r.spec.method == "retrain" and r.spec.unlearn_seed > 0]
    assert len(golds) == 4
    for value, request in enumerate(golds):
        ledger.rows[request.spec.trial_id] = fake_row(request) | {"distance_validation": value / 10}
    ids = [request.spec.trial_id for request in golds]
    assert distance_floor(ids, ledger) == pytest.approx(0.15)
    ledger.rows["gold of another recipe"] = ledger.rows[ids[0]] | {"distance_validation": 0.9}
    assert distance_floor(ids, ledger) == pytest.approx(0.15)
    ledger.rows[ids[3]] |= {"status": "failed"}
    assert distance_floor(ids, ledger) == pytest.approx(0.1)
    ledger.rows[ids[2]] |= {"distance_validation": None}
    assert distance_floor(ids, ledger) == pytest.approx(0.05)
    assert distance_floor([], ledger) == 0.0


def test_tuning_cost_is_all_trials_and_one_retraining_per_seed(searched: Any) -> None:
    _, search, ledger = searched
    assert tuning_cost(search, ledger) == 8 * 1.0 + 2 * 10.0
    ledger.rows[ledger.table[search.id, 0, 2, 1][0]] |= {"status": "failed", "unlearn_s": None, "retrain_s": None}
    assert tuning_cost(search, ledger) == 7 * 1.0 + 2 * 10.0
    # A setting that came twice is one trial.
    ledger.table[search.id, 0, 3, 0] = ledger.table[search.id, 0, 0, 0]
    assert tuning_cost(search, ledger) == 6 * 1.0 + 2 * 10.0


def test_a_retrained_free_search_looks_at_its_own_objective_alone(make_spec: Any, plan_of: Any, fake_row: Any) -> None:
    """The distances and the retrained models' spread say the opposite, and are not asked; retraining is not charged."""
    search_item = {"trials": 3, "round_size": 3, "objective": "retrained_free"}
    plan = plan_of(make_spec(methods=["finetune"], gold_seeds=2, search=search_item))
    search, ledger = plan.searches()[0], Ledger()
    for index in range(3):
        point = {"lr": 0.01 * (index + 1), "epochs": 3 - index}
        (request,) = plan.search_requests(search, point)
        assert request.context["selected_on"] == "validation"
        values = {"retrained_free": 0.1 * (index + 1), "distance_validation": 0.1 * (3 - index)}
        ledger.rows[request.spec.trial_id] = fake_row(request) | values
        ledger.table[search.id, 0, index, 0] = (request.spec.trial_id, point)
    for request in plan.references():
        ledger.rows[request.spec.trial_id] = fake_row(request) | {"distance_validation": 1.0}
    assert [found.values[0] for found in settings_of(search, ledger) if found.values] == [0.1, 0.2, 0.1 * 3]
    (final,) = plan.finals(ledger)
    assert final.spec.hparams["lr"] == 0.01
    assert (final.context["selected_on"], final.context["selected_by"]) == ("validation", "distance")
    assert final.context["tuning_s"] == tuning_cost(search, ledger) == 3 * 1.0
    assert plan.wanted(ledger).tuning_s[("digits(train_size=300)", "mlp(hidden=8)", "class(0)", "finetune", "")] == 3.0


def test_the_objective_is_part_of_a_search(make_spec: Any, plan_of: Any) -> None:
    one, other = (
        plan_of(make_spec(search={"trials": 3, "round_size": 2, "objective": objective}))
        for objective in ("distance", "retrained_free")
    )
    assert [s.id for s in one.searches()] != [s.id for s in other.searches()]
    assert one.experiment.metrics[-1] == "distance_validation"
    assert other.experiment.metrics[-1] == "retrained_free"
    golds = [[r.spec.trial_id for r in plan.references() if r.spec.method == "retrain"] for plan in (one, other)]
    assert golds[0] == golds[1] != []  # the leaderboard's gaps still come from retrained models
