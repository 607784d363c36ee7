"""The same rows with 1 slot, 2 slots and without Ray; failures become rows."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
import types
from types import SimpleNamespace

import pandas as pd
import pytest
import ray
import torch

from raybench.cluster.aggregator import NAME as AGGREGATOR
from raybench.cluster.pool import Place, Pool
from raybench.errors import UserError


def test_same_rows_with_one_slot_two_slots_and_serial(drive, serial, on, capped, spec):
    expected = drive(spec(), serial, results="serial")
    assert len(expected.ids(phase="search")) == 12
    for slots in (1, 2):
        found = drive(spec(), on(capped(slots)), results=f"slots{slots}")
        assert found.ids() == expected.ids()
        pd.testing.assert_frame_equal(found.table(), expected.table(), check_exact=True)
        assert sorted(row["trial_id"] for row in found.told) == found.ids()
        searches = [driven.store.searches() for driven in (found, expected)]
        pd.testing.assert_frame_equal(*searches)


def test_the_oracle_pool_and_what_is_measured_from_it(drive, serial, on, capped, spec):
    """Models of the pool, unlearning runs on them and measurements are work for the pool of actors like any other."""
    changes = {"methods": ["gradient_ascent"], "search": {"trials": 1}, "oracles": 6, "gold_seeds": 2}
    raw = spec(**changes, metrics=["forget_accuracy", "ulira_auc", "lira_auc", "rmia_auc"])
    expected = drive(raw, serial, results="serial")
    found = drive(raw, on(capped(2)), results="ray")
    assert found.ids() == expected.ids()
    pd.testing.assert_frame_equal(found.table(), expected.table(), check_exact=True)
    rows = found.store.trials().set_index("phase")
    assert rows.loc[["final", "reference"], ["ulira_auc", "lira_auc", "rmia_auc"]].notna().all(axis=None)
    assert len(rows.loc["oracle"]) == 6 + 5 + 6


def test_killed_aggregator_and_worker_cost_nothing(drive, serial, on, capped, spec, capfd):
    """In the middle of the search the aggregator is killed, and then a worker process."""
    expected = drive(spec(), serial, results="serial")
    session, killed = capped(2), []

    def kill(row):
        if row["phase"] != "search":
            return
        if not killed:
            killed.append("aggregator")
            ray.kill(ray.get_actor(AGGREGATOR, namespace=session.namespace), no_restart=False)
        elif len(killed) < 3:
            killed.append(row["pid"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(row["pid"], signal.SIGKILL)

    found = drive(spec(), on(session), told=kill)
    assert len(killed) == 3
    assert found.ids() == expected.ids()
    pd.testing.assert_frame_equal(found.table(), expected.table(), check_exact=True)
    assert len({row["pid"] for row in found.told if row["phase"] == "search"}) > 2
    time.sleep(1)  # Ray's own listener
    assert capfd.readouterr() == ("", "")


def test_a_worker_killed_in_its_trial_is_replaced(drive, on, capped, spec, tmp_path):
    """The method kills its process the first time: in the search (Tune) and in the finals (pool)."""
    searched = {"name": "killer", "variant": "searched", "hparams": {"flag": str(tmp_path / "a")}}
    fixed = {"name": "killer", "variant": "fixed", "hparams": {"flag": str(tmp_path / "b"), "strength": 0.5}}
    found = drive(spec(methods=[searched, fixed], search={"trials": 2, "round_size": 2}), on(capped(1)))
    rows = found.store.trials(attempts=True)
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()
    assert list(rows["status"]) == ["ok"] * len(rows)
    assert rows["phase"].value_counts().to_dict() == {"search": 2, "final": 2, "reference": 2}


def test_trials_that_raise_or_always_kill_their_worker_are_failed_rows(drive, on, capped, spec):
    methods = ["raiser", "killer", {"name": "sleeper", "hparams": {"seconds": 0.01}}]
    found = drive(spec(methods=methods, search={"trials": 1, "round_size": 1}), on(capped(1)))
    rows = found.store.trials()
    for method in ("raiser", "killer"):
        failed = rows[rows["method"] == method]
        assert sorted(failed["phase"]) == ["final", "search"]
        assert set(failed["status"]) == {"failed"}
        if method == "killer":
            assert set(failed["reason"]) == {"worker died in 3 of 3 tries"}
        else:
            assert failed["reason"].str.startswith("ZeroDivisionError: a bug in a method (cluster_fakes.py:").all()
    assert list(rows[rows["method"] == "sleeper"]["status"]) == ["ok"]


def test_out_of_memory_is_tried_once_more_alone_and_then_a_failed_row(drive, on, capped, spec, tmp_path):
    """In the search (Tune) and in the finals (pool), beside trials that have enough."""
    (tmp_path / "seen").mkdir()
    saved = {"name": "hungry", "variant": "saved", "hparams": {"folder": str(tmp_path / "seen")}}
    starved = {"name": "hungry", "variant": "starved"}
    sleepers = {"name": "sleeper", "sweep": {"seconds": [0.3, 0.4]}}
    found = drive(spec(methods=[saved, starved, sleepers], search={"trials": 2, "round_size": 2}), on(capped(2)))
    rows = found.store.trials(attempts=True)
    assert not rows["trial_id"].duplicated().any()  # what was handed back has left no row
    hungry = rows[rows["method"] == "hungry"]
    ended_well = hungry["hparams"].str.contains("seen")
    assert hungry.loc[ended_well, ["phase", "status", "attempt", "exclusive"]].to_numpy().tolist() == [
        ["search", "ok", 1, True], ["search", "ok", 1, True], ["final", "ok", 0, False]]  # fmt: skip
    failed = hungry[~ended_well]
    assert sorted(failed["phase"]) == ["final", "search", "search"]
    assert set(failed["status"]) == {"failed"}
    assert set(failed["attempt"]) == {1}
    assert failed["reason"].str.startswith("out of memory: ").all()
    others = rows[rows["method"] != "hungry"]
    assert set(others["status"]) == {"ok"}
    assert set(others["attempt"]) == {0}
    ends = rows["started_at"] + pd.to_timedelta(rows["wall_s"], unit="s")
    for index, row in rows[rows["attempt"] == 1].iterrows():
        beside = (rows["started_at"] < ends[index]) & (ends > row["started_at"])
        assert beside.sum() == 1  # itself


def test_eight_quarter_gpu_trials_run_at_once_four_on_each_of_two(drive, on, capped, spec, tmp_path):
    """Of sixteen trials the first eight wait until eight have begun."""
    (tmp_path / "running").mkdir()
    hparams = {"folder": str(tmp_path / "running"), "gather": 8}
    sleepers = {"name": "sleeper", "hparams": hparams, "sweep": {"seconds": [0.5 + i / 100 for i in range(16)]}}
    found = drive(spec(methods=[sleepers]), on(capped(), resources={"cpu": 1, "gpu": 0.25}))
    rows = found.store.trials()
    rows = rows[rows["method"] == "sleeper"]
    assert len(rows) == 16
    assert list(rows["reason"].dropna()) == []
    assert set(rows["device_type"]) == {"cpu"}
    starts = rows["started_at"]
    ends = starts + pd.to_timedelta(rows["wall_s"], unit="s")
    at_once = [rows[(starts <= moment) & (ends > moment)] for moment in starts]
    fullest = max(at_once, key=len)
    assert fullest["device_ids"].value_counts().to_dict() == {"0": 4, "1": 4}
    assert all(now["device_ids"].value_counts().max() <= 4 for now in at_once)


def test_a_plug_in_that_workers_lack_stops_the_run_in_one_line(drive, on, capped, spec, monkeypatch):
    def lacking(prepared, store):
        settings = dataclasses.replace(prepared.settings, plugins=("nowhere_to_be_found",))
        return on(capped(2))(dataclasses.replace(prepared, settings=settings), store)

    with pytest.raises(UserError, match="nowhere_to_be_found"):
        drive(spec(), lacking)


def test_a_failing_results_folder_stops_a_search_in_one_line(drive, on, capped, spec):
    """An error in the middle of Tune comes out as itself, and Tune's actors are gone."""
    session = capped(1)

    def break_store(row):
        if row["phase"] == "search":
            raise UserError("the disk is full; free it")

    with pytest.raises(UserError, match="the disk is full"):
        drive(spec(), on(session), told=break_store)
    deadline = time.time() + 30
    while ray.available_resources().get("CPU") != 8 and time.time() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 8


def test_exclusive_runs_one_trial_per_node(drive, on, capped, spec):
    sleepers = {"name": "sleeper", "sweep": {"seconds": [0.1, 0.2]}}
    found = drive(spec(methods=[sleepers]), on(capped(4), exclusive=True))
    rows = found.store.trials().sort_values("started_at")
    assert rows["exclusive"].all()
    ends = rows["started_at"] + pd.to_timedelta(rows["wall_s"], unit="s")
    assert (rows["started_at"].iloc[1:].to_numpy() >= ends.iloc[:-1].to_numpy()).all()


def test_a_device_that_no_worker_has_ends_in_failed_rows(drive, on, capped, spec):
    """A plan pinned to CUDA on workers without it: every trial is handed back, a few times."""
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    methods = [{"name": "sleeper", "hparams": {"seconds": 0.01}}]
    found = drive(spec(methods=methods), on(capped(1)), device_types=["cuda"], store=None)
    rows = found.store.trials()
    assert sorted(rows["method"]) == ["original", "retrain", "sleeper"]
    assert set(rows["status"]) == {"failed"}
    assert rows["reason"].str.endswith("has no CUDA device").all()


def test_a_worker_that_cannot_load_the_code_stops_the_run_in_one_line(local_ray, monkeypatch):
    absent = types.ModuleType("only_the_driver_has_this")
    exec("class Kit: pass", absent.__dict__)
    monkeypatch.setitem(sys.modules, "only_the_driver_has_this", absent)
    pool = Pool(absent.Kit(), [Place(1.0, 0.0)])
    with pytest.raises(UserError, match="workers must be able to import raybench") as caught:
        pool.run([SimpleNamespace(to_dict=dict)], finished=None, fail=None)
    assert "only_the_driver_has_this" in str(caught.value)
    pool.close()


def test_trials_may_ask_for_nodes_of_a_kind(drive, on, capped, spec):
    """Every head has one ``node:__internal_head__``: a quarter of it each, in the pool and in the search."""
    kind = {"cpu": 1.0, "gpu": 0.0, "node:__internal_head__": 0.25}
    assert capped().fit(kind).slots == 4  # of eight CPUs
    held = []

    def look(row):
        left = ray.available_resources()
        held.append(1.0 - left.get("node:__internal_head__", 0.0))

    driven = drive(spec(search={"trials": 4, "round_size": 4}), on(capped(2), resources=kind), told=look)
    assert set(driven.store.trials()["status"]) == {"ok"}
    assert max(held) == pytest.approx(0.5)
