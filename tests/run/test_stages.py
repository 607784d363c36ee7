"""A run from spec to leaderboard, in this process: resume, extension, exit codes, one driver."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from threadpoolctl import threadpool_info, threadpool_limits

from raybench import trial
from raybench.errors import UserError
from raybench.experiment import make_experiment
from raybench.leaderboard.lock import DriverLock
from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.leaderboard.store import ResultStore
from raybench.ledger import read_ledger
from raybench.run import resolve_devices
from tests.run.tables import ids, shared_columns, state


def test_every_stage_leaves_its_rows(go: Any, tmp_path: Path) -> None:
    outcome = go()
    assert outcome.exit_code == 0
    assert outcome.ran == 3 + 6 + 2
    rows = load_trials(tmp_path / "out")
    assert rows.groupby("phase").size().to_dict() == {"reference": 3, "search": 6, "final": 2}
    assert set(rows["status"]) == {"ok"}
    lines = load_leaderboard(tmp_path / "out")
    assert sorted(lines["method"]) == ["finetune", "gradient_ascent", "original", "retrain"]
    assert pd.read_parquet(tmp_path / "out" / "leaderboard.parquet").shape[0] == 4


def test_models_trained_are_counted_and_rows_say_which_were_cached(go: Any, tmp_path: Path) -> None:
    store = str(tmp_path / "own-store")
    assert go("a", store=store).trained == 3
    assert go("b", store=store).trained == 0
    for name, cached in (("a", False), ("b", True)):
        rows = load_trials(tmp_path / name)
        assert set(rows.loc[rows["phase"] == "reference", "cached"]) == {cached}


def test_an_original_that_two_scenarios_share_is_trained_once(go: Any, make_spec: Any, tmp_path: Path) -> None:
    spec = make_spec(methods=["retrain"], gold_seeds=1)
    spec["problems"][0]["scenarios"] = [{"class": {"classes": [1]}}, {"class": {"classes": [2]}}]
    assert go(spec=spec, store=str(tmp_path / "own-store")).trained == 1 + 2
    rows = load_trials(tmp_path / "out")
    assert sorted(rows.loc[rows["method"] == "original", "cached"]) == [False, True]


def test_second_run_does_nothing(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go()
    before = state(tmp_path / "out")
    lines = load_leaderboard(tmp_path / "out")
    monkeypatch.setattr("raybench.serial.run_trial", lambda *_: pytest.fail("a trial runs"))
    monkeypatch.setattr("raybench.serial.Workshop", lambda *_, **__: pytest.fail("an executor is started"))
    outcome = go()
    assert (outcome.ran, outcome.trained, outcome.exit_code) == (0, 0, 0)
    assert state(tmp_path / "out") == before
    pd.testing.assert_frame_equal(load_leaderboard(tmp_path / "out"), lines)


def test_the_table_is_of_this_spec_and_not_of_one_before(go: Any, make_spec: Any, tmp_path: Path) -> None:
    """A folder may hold the rows of an earlier recipe under the same names; each run's table shows its own."""
    go()
    first = load_leaderboard(tmp_path / "out")
    assert go(spec=make_spec(recipe={"epochs": 1})).ran > 0
    other = load_leaderboard(tmp_path / "out")
    assert len(other) == len(first)
    assert not other["retain_accuracy"].equals(first["retain_accuracy"])
    assert go().ran == 0
    pd.testing.assert_frame_equal(load_leaderboard(tmp_path / "out"), first)


def test_another_selection_rule_pays_for_the_search_too(go: Any, make_spec: Any, tmp_path: Path) -> None:
    go()
    tuning = load_leaderboard(tmp_path / "out").set_index("method")["tuning_s"]
    spec = make_spec()
    spec["search"]["select"] = ["distance", "knee"]
    go(spec=spec)
    lines = load_leaderboard(tmp_path / "out").query("kind == 'method'")
    assert set(lines["variant"]) == {"distance", "knee"}
    for method, group in lines.groupby("method"):
        assert group["tuning_s"].tolist() == pytest.approx([tuning[method]] * 2)


def test_another_unlearn_seed_is_another_search(go: Any, make_spec: Any) -> None:
    first = go()
    again = go(spec=make_spec(seeds={"train": [0], "unlearn": [1]}))
    assert again.ran == first.ran - 3  # all but the reference rows


def test_rows_of_another_protocol_are_refused(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go()
    monkeypatch.setattr("raybench.admission.PROTOCOL", "2")
    with pytest.raises(UserError, match=r"rows of one protocol version, got 1 in .* and this is 2; .*--results"):
        go()


def test_plan_says_so_beforehand(cli: Any, make_spec: Any, tmp_path: Path) -> None:
    def to_run() -> list[int]:
        said = cli("plan", "{spec}", "--results", "out", "--format", "json", spec=make_spec())
        return [stage["to_run"] for stage in json.loads(said.out)["stages"].values()]

    assert to_run() == [3, 6, 2, 0]
    assert not (tmp_path / "out").exists()
    assert cli("run", "{spec}", "--serial", "--results", "out", spec=make_spec()).code == 0
    before = state(tmp_path / "out")
    assert to_run() == [0, 0, 0, 0]
    assert state(tmp_path / "out") == before


def test_same_spec_elsewhere_shares_what_it_must(go: Any, tmp_path: Path) -> None:
    go("a")
    go("b", store=str(tmp_path / "another-store"))
    pd.testing.assert_frame_equal(shared_columns(tmp_path / "a"), shared_columns(tmp_path / "b"))


def test_no_once_changes_no_number(go: Any, make_spec: Any, tmp_path: Path) -> None:
    item = {"name": "deepclean", "space": {"epochs": {"low": 1, "high": 2}}}
    spec = make_spec(methods=[item], search={"trials": 2, "round_size": 2})
    go("a", spec)
    go("b", spec, use_once=False)
    pd.testing.assert_frame_equal(shared_columns(tmp_path / "a"), shared_columns(tmp_path / "b"))


# Extension


FIXED = [{"name": "finetune", "hparams": {"epochs": 1, "lr": 0.01}}]


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"seeds": {"train": [0, 1]}}, 3 + 2),
        ({"seeds": {"train": [0], "unlearn": [0, 1]}}, 2),
        ({"gold_seeds": 3}, 1),
        ({"methods": [*FIXED, {"name": "deepclean", "hparams": {"epochs": 1, "lr": 0.01, "gamma": 2}}]}, 1),
    ],
    ids=["train seed", "unlearn seed", "gold model", "method"],
)  # fmt: skip
def test_extension_runs_only_the_difference(
    go: Any, make_spec: Any, tmp_path: Path, change: dict[str, Any], more: int
) -> None:
    base = {"methods": FIXED} if "methods" in change else {}
    go(spec=make_spec(**base))
    before = ids(tmp_path / "out")
    outcome = go(spec=make_spec(**change))
    assert outcome.ran == more
    assert before < ids(tmp_path / "out")
    go("fresh", make_spec(**change))
    assert ids(tmp_path / "out") == ids(tmp_path / "fresh")


def test_longer_search_runs_only_the_difference(go: Any, make_spec: Any, tmp_path: Path) -> None:
    """A round of two that was cut short is completed; the final is run again where another setting is chosen."""
    go(spec=make_spec(search={"trials": 3, "round_size": 2}))
    before = ids(tmp_path / "out")
    longer = make_spec(search={"trials": 5, "round_size": 2})
    outcome = go(spec=longer)
    go("fresh", longer)
    fresh, now = ids(tmp_path / "fresh"), ids(tmp_path / "out")
    assert 4 <= outcome.ran <= 6
    assert outcome.ran == len(now - before)
    assert fresh <= now
    rows = load_trials(tmp_path / "out").set_index("trial_id")
    assert set(rows.loc[sorted(now - fresh), "phase"]) <= {"final"}


# What counts as an error


def test_a_trial_that_raises_is_a_row_and_the_run_goes_on(go: Any, make_spec: Any, tmp_path: Path, flaky: Any) -> None:
    flaky("always")
    spec = make_spec(plugins=["flaky_plugin"], methods=["flaky", "finetune"])
    outcome = go(spec=spec)
    assert outcome.exit_code == 1
    rows = load_trials(tmp_path / "out")
    failed = rows[rows["method"] == "flaky"]
    assert set(failed["status"]) == {"failed"}
    assert set(rows.loc[rows["method"] == "finetune", "status"]) == {"ok"}
    assert len(failed) == 3 + 1
    assert all(reason.startswith("RuntimeError: no luck today (flaky_plugin.py:") for reason in failed["reason"])
    assert len(outcome.bad) == 4
    assert all("flaky seed 0" in line and "no luck today" in line and "\n" not in line for line in outcome.bad)
    assert outcome.counted == {"ok": 3 + 3 + 1, "failed": 4}
    again = go(spec=spec)  # failed counts as done
    assert (again.ran, again.exit_code) == (0, 1)
    # Rows that the spec does not ask for any more are no errors of it.
    assert go(spec=make_spec(methods=["finetune"])).exit_code == 0


def test_failed_trials_through_the_command_line(cli: Any, make_spec: Any, flaky: Any) -> None:
    flaky("always")
    spec = make_spec(plugins=["flaky_plugin"], methods=["flaky"])
    said = cli("run", "{spec}", "--serial", "--quiet", "--results", "out", spec=spec)
    assert said.code == 1
    assert len(said.err.splitlines()) == 4
    assert "raybench retry --failed" in said.out
    assert "4 failed" in said.out


def test_diverged_search_trials_are_counted_and_no_errors(go: Any, make_spec: Any, tmp_path: Path) -> None:
    item = {"name": "gradient_ascent", "hparams": {"epochs": 1}, "space": {"lr": [0.001, 1.0e30]}}
    outcome = go(spec=make_spec(methods=[item], search={"trials": 2, "round_size": 2, "sampler": "grid"}))
    rows = load_trials(tmp_path / "out")
    assert sorted(rows.loc[rows["phase"] == "search", "status"]) == ["diverged", "ok"]
    assert outcome.exit_code == 0
    assert outcome.counted["diverged"] == 1


def test_a_diverged_final_is_an_error(go: Any, make_spec: Any) -> None:
    outcome = go(spec=make_spec(methods=[{"name": "gradient_ascent", "hparams": {"lr": 1.0e30, "epochs": 1}}]))
    assert outcome.exit_code == 1
    assert len(outcome.bad) == 1
    assert outcome.bad[0].startswith("diverged: digits(train_size=300)/mlp(hidden=8)/class(0)/gradient_ascent")


def test_skipped_lines_are_rows_and_no_errors(go: Any, make_spec: Any, tmp_path: Path) -> None:
    spec = make_spec(methods=["gkt"])
    spec["problems"][0]["scenarios"] = [{"random": {"fraction": 0.1}}]
    outcome = go(spec=spec)
    assert outcome.exit_code == 0
    lines = load_leaderboard(tmp_path / "out").set_index("method")
    assert lines.loc["gkt", "status"] == "skipped"
    assert "class requests" in lines.loc["gkt", "reason"]


# One driver


def test_second_driver_is_refused_by_name(cli: Any, make_spec: Any, tmp_path: Path) -> None:
    with DriverLock(tmp_path / "out", command="raybench run elsewhere"):
        before = state(tmp_path / "out")
        said = cli("run", "{spec}", "--serial", "--quiet", "--results", "out", spec=make_spec())
        assert said.code == 2
        assert said.err.count("\n") == 1
        assert "raybench run elsewhere" in said.err
        assert str(os.getpid()) in said.err
        assert state(tmp_path / "out") == before
    assert cli("run", "{spec}", "--serial", "--quiet", "--results", "out", spec=make_spec()).code == 0


# Small pieces


def test_trials_use_the_threads_of_the_spec(go: Any, make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch and the BLAS under NumPy alike: else a trial is timed on cores that its row does not tell of."""
    seen: list[int] = []
    reference = trial._reference

    def watched(under_way: Any) -> None:
        seen.append(torch.get_num_threads())
        seen.extend(pool["num_threads"] for pool in threadpool_info())
        reference(under_way)

    monkeypatch.setattr(trial, "_reference", watched)
    with threadpool_limits(2):
        go(spec=make_spec(methods=["retrain"], gold_seeds=1))
    assert seen
    assert set(seen) == {1}


def test_spec_is_kept_as_it_ran(cli: Any, make_spec: Any, tmp_path: Path) -> None:
    spec = make_spec(methods=[{"name": "finetune", "hparams": {"lr": 0.01, "epochs": 1}}])
    said = cli("run", "{spec}", "--serial", "--quiet", "--results", "out", "--set", "recipe.epochs=2", spec=spec)
    assert said.code == 0
    kept = yaml.safe_load((tmp_path / "out" / "spec.yaml").read_text())
    assert kept == {**spec, "recipe": {"epochs": 2}}
    assert not list((tmp_path / "out").glob(".spec*"))


def test_small_numbers_come_back_from_the_searches_table_as_numbers(tmp_path: Path) -> None:
    store = ResultStore.open_for_writing(tmp_path / "out")
    line = json.dumps({"dataset": "d", "model": "m", "scenario": "s", "method": "finetune"})
    point = '{"a":1e-05,"b":null,"c":"1e-05","d":true,"e":3}'
    record = {"search_id": "s", "line": line, "round": 0, "index": 1, "train_seed": 2, "trial_id": "t"}
    store.append_searches([{**record, "hparams": point}])
    found = {"a": 1e-05, "b": None, "c": "1e-05", "d": True, "e": 3}
    assert read_ledger(store).table == {("s", 0, 1, 2): ("t", found)}


def test_cuda_without_a_device(make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_devices(make_experiment(make_spec())) == ("cpu",)
    with pytest.raises(UserError, match=r"device: cuda .* none; use device: auto or cpu"):
        resolve_devices(make_experiment(make_spec(device="cuda")))
