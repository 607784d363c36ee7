"""Rows of every phase, and specs: comparable columns are equal to the bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import raybench
from raybench.data import RawData
from raybench.metrics import DEFAULT_METRICS
from raybench.registry import (
    DATASETS,
    METRICS,
    DatasetEntry,
)
from raybench.spec import FINAL, REFERENCE, SEARCH, Choice, Training, TrialSpec, with_seed
from raybench.trial import run_trial
from raybench.workshop import Workshop
from tests.trial.parts import COLUMNS, RECIPE, checked, problem_of, shop_at, trial_of


@pytest.mark.parametrize("scenario", ["class", "random"])
@pytest.mark.parametrize(
    ("name", "phase"),
    [("original", REFERENCE), ("retrain", REFERENCE), ("finetune", FINAL), ("finetune", SEARCH)],
)
def test_rows_fit_the_schema(shop: Workshop, name: str, phase: str, scenario: str) -> None:
    hparams = {"epochs": 1} if name == "finetune" else {}
    spec = trial_of(name, phase, problem_of(scenario), hparams=hparams)
    row = checked(run_trial(spec, {"selected_on": "retrained", "tuned_here": False}, shop))
    assert (row["status"], row["reason"]) == ("ok", None)
    assert row["trial_id"] == spec.trial_id
    assert TrialSpec.from_dict(json.loads(row["spec"])) == spec
    assert row["forget_size"] == len(shop.problem(spec.problem).splits["forget"])
    assert (row["method"], row["phase"], row["threads"], row["device_type"]) == (name, phase, 1, "cpu")
    assert (row["raybench_version"], row["torch_version"]) == (raybench.__version__, torch.__version__)
    assert (row["peak_memory"], row["cuda_version"]) == (None, None)
    assert row["retrain_s"] > 0
    assert (row["selected_on"], row["tuned_here"], row["experiment"]) == ("retrained", False, "test")
    assert row["retain_accuracy"] > 0.15
    assert row["retain_accuracy_gap"] == row["retain_accuracy"] - row["retain_accuracy_retrained"]


def test_costs_of_doing_nothing_and_of_retraining(shop: Workshop) -> None:
    row = checked(run_trial(trial_of("original", REFERENCE), {}, shop))
    assert (row["unlearn_s"], row["forward_passes"], row["retrain_share"], row["speedup"]) == (0.0, 0.0, 0.0, None)
    assert row["cached"]
    gold = checked(run_trial(trial_of("retrain", REFERENCE), {}, shop))
    assert gold["unlearn_s"] == gold["retrain_s"]
    assert (gold["speedup"], gold["retrain_share"]) == (1.0, 1.0)
    assert gold["distance"] == 0.0
    samples = len(shop.problem(problem_of()).splits["retain"]) * RECIPE["epochs"]
    assert gold["forward_passes"] == pytest.approx(samples)
    second = checked(run_trial(trial_of("retrain", REFERENCE, unlearn_seed=1), {}, shop))
    assert second["retrain_s"] == gold["retrain_s"]  # ratios are to the reference
    assert second["unlearn_s"] != gold["unlearn_s"]
    assert second["distance"] > 0.0


def test_a_model_that_this_process_trained_is_not_cached_whoever_needed_it_first(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    rows = [run_trial(trial_of(name, REFERENCE), {}, shop) for name in ("original", "retrain")]
    assert [row["cached"] for row in rows] == [False, False]
    again = shop_at(tmp_path)
    assert [run_trial(trial_of(name, REFERENCE), {}, again)["cached"] for name in ("original", "retrain")] == [True] * 2


def test_costs_of_a_method(shop: Workshop) -> None:
    row = checked(run_trial(trial_of("finetune", hparams={"epochs": 2}), {}, shop))
    samples = 2 * len(shop.problem(problem_of()).splits["retain"])
    assert row["forward_passes"] == pytest.approx(samples)
    assert row["backward_passes"] == pytest.approx(samples)
    assert row["retrain_share"] == pytest.approx(2 / RECIPE["epochs"])
    assert row["speedup"] == pytest.approx(row["retrain_s"] / row["unlearn_s"])
    assert 0 < row["unlearn_s"] < row["wall_s"]
    assert row["shared_s"] == 0.0


def test_search_rows_never_hold_the_test_set(shop: Workshop) -> None:
    spec = trial_of("finetune", SEARCH, hparams={"epochs": 1})
    row = checked(run_trial(spec, {}, shop))
    tested = [name for name in row if "test" in name.split("_")]
    assert len(tested) >= 3
    assert {row[name] for name in tested} == {None}
    left_out = [m for m in DEFAULT_METRICS if METRICS[m].final_only or METRICS[m].fits]
    assert set(left_out) <= set(json.loads(row["missing"]))
    assert {row[m] for m in left_out} == {None}
    assert row["distance_validation"] is not None
    assert not (Path(shop.settings.artifacts or "") / spec.trial_id).exists()


def test_search_rows_do_not_depend_on_the_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle that needs no list of names: another test set, the same row."""
    digits = DATASETS["digits"].fn

    def garbled(root: Path | None, download: bool, *, garble: bool) -> RawData:
        raw: RawData = digits(None, False, train_size=200, test_size=60)
        return dataclasses.replace(raw, x_test=255 - raw.x_test, y_test=raw.y_test[::-1].copy()) if garble else raw

    monkeypatch.setitem(DATASETS._entries, "garbled", DatasetEntry("garbled", garbled))
    rows = []
    for garble in (False, True):
        problem = problem_of(dataset=Choice("garbled", {"garble": garble}))
        spec = trial_of("gradient_ascent", SEARCH, problem, hparams={"lr": 1e-2})
        rows.append(checked(run_trial(spec, {}, shop_at(tmp_path))))
    assert rows[0]["dataset_checksum"] != rows[1]["dataset_checksum"]
    assert rows[0]["status"] == "ok"
    for column in (*(f"{m}{part}" for m in DEFAULT_METRICS for part in ("", "_retrained", "_gap")), "gates", "missing"):
        assert rows[0][column] == rows[1][column], column


def test_the_same_trial_twice_is_equal_to_the_bit(warm: Path, tmp_path: Path) -> None:
    """In a warm process, in a fresh one on the same store, on an empty store, and without shared values."""
    specs = [
        trial_of("finetune", hparams={"epochs": 1}),
        trial_of("deepclean", hparams={"epochs": 1, "fisher_samples": 40}),  # draws in ``once``
        trial_of("deepclean", SEARCH, hparams={"epochs": 1, "fisher_samples": 40}),
    ]
    for spec in specs:
        first = shop_at(warm)
        shops = [first, first, shop_at(warm), shop_at(tmp_path / "empty"), shop_at(warm, use_once=False)]
        rows = []
        for number, shop in enumerate(shops):
            torch.manual_seed(number)  # nothing may hang on the global state
            rows.append(checked(run_trial(spec, {}, shop)))
        assert rows[0]["status"] == "ok"
        for row in rows[1:]:
            assert [(c, row[c]) for c in COLUMNS if row[c] != rows[0][c]] == []
        (tmp_path / "empty").rename(tmp_path / spec.trial_id)


def test_seeds_and_hyperparameters_matter(shop: Workshop) -> None:
    base = trial_of("finetune", hparams={"epochs": 1, "lr": 0.01})
    others = [
        dataclasses.replace(base, unlearn_seed=1),
        dataclasses.replace(base, hparams={"epochs": 1, "lr": 0.02}),
        dataclasses.replace(base, problem=with_seed(base.problem, 1)),
    ]
    losses = [run_trial(spec, {}, shop)["retain_loss"] for spec in (base, *others)]
    assert len(set(losses)) == 4
    assert len({spec.trial_id for spec in (base, *others)}) == 4


def test_specs_survive_json_with_their_id() -> None:
    spec = trial_of("finetune", hparams={"epochs": 2, "lr": 1.0}, training=Training("coded", 2, {"a": [1, 2]}))
    back = TrialSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert back.trial_id == spec.trial_id
    assert back.problem.id == spec.problem.id
    assert TrialSpec.from_dict(back.to_dict()) == back


def test_whatever_decides_a_result_is_in_the_id() -> None:
    base = trial_of("finetune")
    problem = base.problem
    changes: list[TrialSpec] = [
        dataclasses.replace(base, **{k: v})  # type: ignore[arg-type]
        for k, v in {
            "method": "gradient_ascent",
            "method_version": 2,
            "hparams": {"epochs": 1},
            "unlearn_seed": 1,
            "phase": SEARCH,
            "training": Training("coded"),
            "protocol": "0",
        }.items()
    ]
    changes += [
        dataclasses.replace(base, problem=dataclasses.replace(problem, **{k: v}))  # type: ignore[arg-type]
        for k, v in {
            "checksum": "x",
            "model": Choice("lenet5"),
            "scenario": Choice("class", {"classes": [1]}),
            "recipe": {"epochs": 1},
            "train_seed": 1,
            "split_seed": 1,
            "draw_seed": 1,
            "validation": 0.2,
            "threads": 2,
            "device_type": "cuda",
        }.items()
    ]
    assert len({base.trial_id, *(spec.trial_id for spec in changes)}) == len(changes) + 1
