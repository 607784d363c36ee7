"""The plan: identities of trials, what is skipped and why, what waits for a search, equal budgets."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import pytest

from raybench.board import Board
from raybench.ledger import Ledger
from raybench.plan import Plan
from raybench.rounds import ask_optuna
from raybench.seeding import content_hash
from raybench.spec import REFERENCE, SEARCH, TrialSpec


def fixed(**item: Any) -> list[dict[str, Any]]:
    """A method with nothing to search: its finals are known at once."""
    return [{"name": "finetune", "hparams": {"lr": 0.01, "epochs": 1}, **item}]


def ids(plan: Plan) -> set[str]:
    return {r.spec.trial_id for r in (*plan.references(), *plan.finals(Ledger()))}


@pytest.fixture
def make(make_spec: Any, plan_of: Any) -> Any:
    def build(data: dict[str, Any] | None = None, **changes: Any) -> Plan:
        plan: Plan = plan_of(make_spec(**{"methods": fixed(), **changes}), **(data or {}))
        return plan

    return build


PROBLEM = {
    "dataset": {"name": "digits", "train_size": 300},
    "models": [{"name": "mlp", "hidden": [8]}],
    "scenarios": [{"name": "class", "classes": [0]}],
}

IDENTITY: dict[str, dict[str, Any]] = {
    "dataset": {"problems": [PROBLEM | {"dataset": "mnist"}]},
    "checksum of the data": {"data": {"checksum": "c1"}},
    "model": {"problems": [PROBLEM | {"models": [{"name": "mlp", "hidden": [9]}]}]},
    "scenario": {"problems": [PROBLEM | {"scenarios": [{"name": "class", "classes": [1]}]}]},
    "recipe": {"recipe": {"epochs": 4}},
    "recipe of the problem": {"problems": [PROBLEM | {"recipe": {"lr": 0.01}}]},
    "train seed": {"seeds": {"train": [1]}},
    "split seed": {"seeds": {"train": [0], "split": 1}},
    "draw seed": {"seeds": {"train": [0], "draw": 1}},
    "validation": {"validation": 0.2},
    "threads": {"threads": 2},
    "device type": {"data": {"device_types": ["cuda"]}},
}
ONLY_FINALS: dict[str, dict[str, Any]] = {
    "unlearn seed": {"seeds": {"train": [0], "unlearn": [1]}},
    "hyperparameter": {"methods": fixed(hparams={"lr": 0.02, "epochs": 1})},
    "hyperparameter that is not searched": {"methods": fixed(hparams={"lr": 0.01, "epochs": 1, "momentum": 0.5})},
    "method": {"methods": [{"name": "gradient_ascent", "hparams": {"lr": 0.01, "epochs": 1}}]},
}
NO_IDENTITY: dict[str, dict[str, Any]] = {
    "name": {"name": "other"},
    "how the same data came": {"problems": [PROBLEM | {"dataset": {"name": "digits", "train_size": 310}}]},
    "description": {"description": "words"},
    "metrics": {"metrics": ["retain_accuracy"]},
    "resources": {"resources": {"cpu": 2}},
    "evaluate seed": {"seeds": {"train": [0], "evaluate": 3}},
    "time limit": {"time_limit": 5},
    "timing": {"timing": "exclusive"},
    "keep": {"keep": ["weights"]},
    "search": {"search": {"trials": 11, "sampler": "random"}},
    "a default said aloud": {"recipe": {"epochs": 3, "momentum": 0.9}, "seeds": {"train": [0], "unlearn": [0]}},
    "an int for a float": {"methods": fixed(hparams={"lr": "1e-2", "epochs": 1.0})},
}


@pytest.mark.parametrize("field", IDENTITY)
def test_every_trial_id_moves_with(make: Any, field: str) -> None:
    plain, changed = ids(make()), ids(make(**IDENTITY[field]))
    assert len(plain) == len(changed) == 4
    assert not plain & changed


@pytest.mark.parametrize("field", ONLY_FINALS)
def test_only_final_ids_move_with(make: Any, field: str) -> None:
    plain, changed = make(), make(**ONLY_FINALS[field])
    assert {r.spec.trial_id for r in plain.references()} == {r.spec.trial_id for r in changed.references()}
    assert len(ids(plain) & ids(changed)) == 3


@pytest.mark.parametrize("field", NO_IDENTITY)
def test_no_trial_id_moves_with(make: Any, field: str) -> None:
    assert ids(make()) == ids(make(**NO_IDENTITY[field]))


def test_phase_and_version_are_part_of_a_trial(make: Any) -> None:
    spec = make().finals(Ledger())[0].spec
    moved = [{"phase": SEARCH}, {"method_version": 2}, {"protocol": "x"}, {"variant": "v"}]
    assert len({spec.trial_id, *(dataclasses.replace(spec, **change).trial_id for change in moved)}) == 5


def test_references_per_problem(make: Any) -> None:
    plan = make(
        seeds={"train": [0, 1, 2]},
        gold_seeds=2,
        problems=[PROBLEM | {"scenarios": [{"class": {"classes": [0]}}, {"random": {"fraction": 0.1}}]}],
    )
    found = plan.references()
    assert Counter(r.spec.method for r in found) == {"original": 6, "retrain": 12}
    assert {r.spec.phase for r in found} == {REFERENCE}
    assert len({r.spec.trial_id for r in found}) == 18


def test_own_training_adds_its_originals_once(make: Any) -> None:
    item = {"name": "mnemonic", "hparams": {"lambda1": 1.0, "lambda2": 1.0}}
    plan = make(methods=[*fixed(), item, item | {"variant": "again"}])
    kinds = [(r.spec.method, r.spec.training.kind) for r in plan.references()]
    assert Counter(kinds) == {("original", "standard"): 1, ("original", "mnemonic"): 1, ("retrain", "standard"): 2}
    own = {"training": [{"t_mix": 0.5}, {"t_mix": 0.9}]}
    plan = make(methods=[item | own])
    originals = [r for r in plan.references() if r.spec.training.kind == "mnemonic"]
    assert [r.spec.training.hparams["t_mix"] for r in originals] == [0.5, 0.9]
    assert len({line.candidate.variant for line in plan.lines}) == 2


def test_a_standard_original_that_nobody_starts_from_is_not_trained(make: Any) -> None:
    own = {"name": "mnemonic", "hparams": {"lambda1": 1.0, "lambda2": 1.0}}

    def kinds(*methods: Any) -> set[str]:
        found = make(methods=list(methods)).references()
        return {r.spec.training.kind for r in found if r.spec.method == "original"}

    assert kinds(own) == {"mnemonic"}
    assert kinds(own, "original") == kinds(own, "finetune") == {"mnemonic", "standard"}
    assert kinds("retrain") == {"standard"}


def test_skipped_lines_need_no_own_original(make: Any) -> None:
    plan = make(methods=["mnemonic"], problems=[PROBLEM | {"scenarios": [{"random": {"fraction": 0.1}}]}])
    assert all(r.spec.training.kind == "standard" for r in plan.references())


def test_skipped_line_is_a_row_with_its_reason_and_no_search(make: Any) -> None:
    plan = make(
        methods=["gkt", *fixed()],
        seeds={"train": [0, 1]},
        problems=[PROBLEM | {"scenarios": [{"label_noise": {"fraction": 0.2}}]}],
    )
    assert plan.searches() == []
    skipped = [r for r in plan.finals(Ledger()) if r.spec.method == "gkt"]
    assert len(skipped) == 2
    assert {r.context["skip"] for r in skipped} == {"GKT forgets class requests, this scenario is a sample request"}
    assert all("skip" not in r.context for r in plan.finals(Ledger()) if r.spec.method != "gkt")
    assert plan.count_finals() == 4


def run_searches(plan: Plan, ledger: Ledger, fake_row: Any, status: str = "ok") -> None:
    board = Board(plan, ledger, ask_optuna, lambda records: None)
    while (request := board.next()) is not None:
        board.finished(fake_row(request, status))


def test_finals_wait_for_their_search_only(make: Any, fake_row: Any) -> None:
    plan = make(methods=[*fixed(), "gradient_ascent"], seeds={"train": [0, 1]})
    ledger = Ledger()
    assert {r.spec.method for r in plan.finals(ledger)} == {"finetune"}
    run_searches(plan, ledger, fake_row)
    finals = plan.finals(ledger)
    assert Counter(r.spec.method for r in finals) == {"finetune": 2, "gradient_ascent": 2}
    assert plan.count_finals() == len(finals) == 4
    tuned = {(r.spec.method, r.spec.problem.train_seed): r.context["tuned_here"] for r in finals}
    assert tuned == {
        ("finetune", 0): False, ("finetune", 1): False, ("gradient_ascent", 0): True, ("gradient_ascent", 1): False,
    }  # fmt: skip
    found = next(r for r in finals if r.spec.method == "gradient_ascent")
    assert found.context["selected_on"] == "retrained"
    assert found.context["selected_by"] == "distance"
    assert found.context["tuning_s"] == 3 * 1.0 + 10.0


def test_finals_wait_until_the_last_row_of_a_search(make: Any, fake_row: Any) -> None:
    plan, ledger = make(methods=["gradient_ascent"]), Ledger()
    run_searches(plan, ledger, fake_row)
    ledger.rows.popitem()
    assert plan.finals(ledger) == []


def test_finals_run_the_selected_setting(make: Any, fake_row: Any) -> None:
    plan, ledger = make(methods=["gradient_ascent"], search={"trials": 6, "round_size": 3}), Ledger()
    run_searches(plan, ledger, fake_row)
    best = min(ledger.rows.values(), key=lambda row: row["distance_validation"])
    search_spec = next(
        r.spec for point in ledger.table.values() for r in plan.search_requests(plan.searches()[0], point[1])
        if r.spec.trial_id == best["trial_id"]
    )  # fmt: skip
    assert [r.spec.hparams for r in plan.finals(ledger)] == [search_spec.hparams]


def test_search_without_a_usable_setting_still_has_finals(make: Any, fake_row: Any) -> None:
    plan, ledger = make(methods=["gradient_ascent"]), Ledger()
    run_searches(plan, ledger, fake_row, "diverged")
    (final,) = plan.finals(ledger)
    assert "no setting was usable" in final.context["selected_by"]


def test_several_rules_are_lines_of_their_own(make: Any, fake_row: Any) -> None:
    plan = make(methods=["gradient_ascent"], search={"trials": 3, "round_size": 3, "select": ["distance", "knee"]})
    ledger = Ledger()
    run_searches(plan, ledger, fake_row)
    finals = plan.finals(ledger)
    assert [r.spec.variant for r in finals] == ["distance", "knee"]
    assert len({r.spec.trial_id for r in finals}) == plan.count_finals() == 2


def test_sweep_points_are_searches_of_their_own(make: Any) -> None:
    plan = make(methods=[{"name": "deepclean", "sweep": {"gamma": [1, 5.0]}}])
    assert [line.candidate.variant for line in plan.lines] == ["gamma=1", "gamma=5"]
    searches = plan.searches()
    assert len({search.id for search in searches}) == 2
    assert all(set(search.space) == {"lr", "epochs"} for search in searches)
    for search, gamma in zip(searches, (1.0, 5.0), strict=True):
        (request,) = plan.search_requests(search, {"lr": 1e-3, "epochs": 1})
        assert request.spec.hparams["gamma"] == gamma


def test_variants_that_resolve_alike_keep_rows_of_their_own(make: Any) -> None:
    plan = make(methods=[*fixed(variant="a"), *fixed(variant="b")])
    finals = plan.finals(Ledger())
    assert [r.spec.variant for r in finals] == ["a", "b"]
    assert len({r.spec.trial_id for r in finals}) == 2


def test_equal_budget_per_method(make: Any) -> None:
    plan = make(
        methods=["finetune", "gradient_ascent", "deepclean", "gkt"],
        seeds={"train": [0, 1]},
        search={"trials": 5, "round_size": 2, "train_seeds": "all"},
    )
    assert {s.candidate.method for s in plan.searches()} == {"finetune", "gradient_ascent", "deepclean", "gkt"}
    assert {s.plan.trials * len(s.plan.seeds) for s in plan.searches()} == {10}


def test_search_trials_are_on_the_search_seeds_and_the_first_unlearn_seed(make: Any) -> None:
    plan = make(methods=["finetune"], seeds={"train": [3, 4, 5], "unlearn": [7, 8]}, search={"train_seeds": [5, 3]})
    requests = plan.search_requests(plan.searches()[0], {"lr": 0.1, "epochs": 1})
    assert [r.spec.problem.train_seed for r in requests] == [5, 3]
    assert {r.spec.unlearn_seed for r in requests} == {7}
    assert {r.spec.phase for r in requests} == {SEARCH}


def test_lines_of_a_spec_do_not_move_each_other(make: Any) -> None:
    """Adding a method, a seed or a problem leaves the trials that were there."""
    plain = make()
    for more in (
        {"methods": [*fixed(), *fixed(variant="b")]},
        {"seeds": {"train": [0, 1]}},
        {"seeds": {"train": [0], "unlearn": [0, 1]}},
        {"gold_seeds": 3},
        {"problems": [PROBLEM, PROBLEM | {"scenarios": [{"random": {"count": 5}}]}]},
    ):
        assert ids(plain) < ids(make(**more))


def test_an_id_is_the_hash_of_the_whole_spec(make: Any) -> None:
    """It is put together from pieces that are made once per problem; here it is made in one."""
    stop = {"metric": "forget_accuracy", "below": 0.1}
    for request in make().references():
        for spec in (
            request.spec,
            dataclasses.replace(request.spec, stop=stop, samples=64, hparams={"b": -0.0, "a": [1, 2.5]}),
        ):
            whole = spec.to_dict() | {"problem": spec.problem.identity}
            assert spec.trial_id == content_hash(whole)
            assert TrialSpec.from_dict(json.loads(json.dumps(spec.to_dict()))).trial_id == spec.trial_id


def test_each_device_type_has_problems_references_and_lines_of_its_own(make: Any, make_spec: Any) -> None:
    methods = [*fixed(), {"name": "scrub", "sweep": {"alpha": [0.5, 1.0]}}, "mnemonic"]
    changes = {"methods": methods, "search": {"trials": 2, "select": ["distance", "knee"]}, "gold_seeds": 2}
    alone = {device: make({"device_types": [device]}, **changes) for device in ("cuda", "cpu")}
    both = make({"device_types": ["cuda", "cpu"]}, devices="each", **changes)
    assert [p.device_type for p in both.problems] == ["cuda", "cpu"]
    for plan in alone.values():
        mine = {r.spec.trial_id for r in plan.references()}
        assert mine <= {r.spec.trial_id for r in both.references()}  # the same models, so the same trials
        assert {s.id for s in plan.searches()} <= {s.id for s in both.searches()}
    assert len(both.references()) == sum(len(plan.references()) for plan in alone.values())
    assert {r.context["variant"] for r in both.references()} == {"cuda", "cpu", "cuda, mnemonic", "cpu, mnemonic"}
    named = {(r.spec.method, r.spec.variant, r.spec.problem.device_type) for r in both.finals(Ledger())}
    assert named == {("finetune", device, device) for device in ("cuda", "cpu")}
    tuned = {key[3:] for key in both.wanted(Ledger()).tuning_s}
    sweeps = [f"{device}, alpha={alpha}, {rule}" for device in ("cuda", "cpu") for alpha in ("0.5", "1")
              for rule in ("distance", "knee")]  # fmt: skip
    assert {("scrub", sweep) for sweep in sweeps} <= tuned
    assert both.count_finals() == 2 * alone["cpu"].count_finals()


def test_one_device_type_of_each_is_named_too(make: Any) -> None:
    """So that the rows of a machine without a GPU are still right when one comes."""
    few, many = (make({"device_types": types}, devices="each") for types in (["cpu"], ["cuda", "cpu"]))
    assert ids(few) < ids(many)
    assert {r.spec.variant for r in few.finals(Ledger())} == {"cpu"}
