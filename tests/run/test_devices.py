"""``devices: each``: one spec on CPU and on CUDA side by side, here a CPU that passes for the second one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from raybench import run as driver
from raybench import trial
from raybench.errors import UserError
from raybench.experiment import make_experiment
from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.leaderboard.response import responses
from raybench.workshop import Workshop
from tests.run.tables import state

MIB = 2**20


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``devices("cuda", "cpu")``: what this machine has from now on."""
    monkeypatch.setattr(Workshop, "device", lambda self, device_type: torch.device("cpu"))
    monkeypatch.setattr(trial, "begin", lambda: None)
    monkeypatch.setattr(trial, "most_reserved", lambda: MIB)
    monkeypatch.setattr(trial, "context_bytes", lambda: MIB)
    return lambda *found: monkeypatch.setattr(driver, "resolve_devices", lambda experiment: found)


@pytest.fixture
def spec(make_spec: Any) -> dict[str, Any]:
    made: dict[str, Any] = make_spec(devices="each")
    return made


def test_both_have_references_searches_and_lines_of_their_own(
    go: Any, spec: Any, devices: Any, cli: Any, tmp_path: Path
) -> None:
    devices("cuda", "cpu")
    outcome = go(spec=spec, store=str(tmp_path / "store"))
    assert (outcome.exit_code, outcome.ran, outcome.trained) == (0, 22, 6)
    rows = load_trials(tmp_path / "out")
    assert rows.groupby("device_type")["phase"].value_counts().to_dict() == {
        (device, phase): count
        for device in ("cpu", "cuda")
        for phase, count in (("reference", 3), ("search", 6), ("final", 2))
    }
    standing = rows[rows["phase"] != "search"]
    assert (standing["variant"] == standing["device_type"]).all()
    lines = load_leaderboard(tmp_path / "out")
    assert sorted(lines["method"]) == sorted(2 * ["finetune", "gradient_ascent", "original", "retrain"])
    assert (lines["variant"] == lines["device_type"]).all()
    assert set(rows.loc[rows["footprint"].notna(), "device_type"]) == {"cuda"}
    own_clock(rows, lines)
    planned = lines.set_index(["method", "variant"])["tuning_s"]
    (tmp_path / "out" / "leaderboard.parquet").unlink()
    from_rows = load_leaderboard(tmp_path / "out").set_index(["method", "variant"])["tuning_s"]
    pd.testing.assert_series_equal(planned, from_rows)
    before = state(tmp_path / "out")
    assert go(spec=spec, store=str(tmp_path / "store")).ran == 0
    assert {path: found for path, found in state(tmp_path / "out").items() if path in before} == before
    shown = cli("leaderboard", "out")
    assert (shown.code, "cuda" in shown.out) == (0, True)
    assert cli("report", "out").code == 0
    forced = cli("leaderboard", "out", "--force-rank")
    assert (forced.code, forced.err) == (0, "")
    names = {found.method for found in responses(rows, {"finetune": ["lr"], "gradient_ascent": ["lr"]})}
    assert names == {f"{method} ({device})" for method in ("finetune", "gradient_ascent") for device in ("cpu", "cuda")}


def own_clock(rows: pd.DataFrame, lines: pd.DataFrame) -> None:
    """Seconds of retraining, and what tuning cost, are those of the line's own device type."""
    golds = rows[(rows["method"] == "retrain") & (rows["unlearn_seed"] == 0)].set_index("device_type")["unlearn_s"]
    assert golds["cpu"] != golds["cuda"]
    for line in lines[lines["kind"] == "method"].to_dict("records"):
        device = line["device_type"]
        assert line["retrain_s"] == golds[device]
        assert line["speedup"] == pytest.approx(golds[device] / line["unlearn_s"])
        tried = rows[(rows["phase"] == "search") & (rows["method"] == line["method"])]
        tried = tried[tried["device_type"] == device]
        assert line["tuning_s"] == pytest.approx(tried["unlearn_s"].sum() + golds[device])


def test_a_machine_without_cuda_goes_on_alone_and_one_with_it_adds_the_rest(
    go: Any, spec: Any, devices: Any, tmp_path: Path, capsys: Any
) -> None:
    devices("cpu")
    assert go(spec=spec).ran == 11
    assert set(load_leaderboard(tmp_path / "out")["variant"]) == {"cpu"}
    devices("cuda", "cpu")
    assert go(spec=spec).ran == 11
    assert set(load_leaderboard(tmp_path / "out")["variant"]) == {"cpu", "cuda"}
    before = state(tmp_path / "out")
    devices("cpu")
    with pytest.raises(UserError, match=r"got no cuda here and such rows in .*out; go on where they ran"):
        go(spec=spec)
    assert state(tmp_path / "out") == before


def test_a_folder_is_run_with_it_or_without_it(go: Any, make_spec: Any, devices: Any, tmp_path: Path) -> None:
    devices("cpu")
    for first, second in (({}, {"devices": "each"}), ({"devices": "each"}, {})):
        out = f"out{len(first)}"
        go(out, spec=make_spec(**first))
        before = state(tmp_path / out)
        with pytest.raises(UserError, match=r"with devices: each or without it, got .*; give the new run another"):
            go(out, spec=make_spec(**second))
        assert state(tmp_path / out) == before


def test_what_both_folders_have_was_trained_alike(go: Any, spec: Any, devices: Any, cli: Any, tmp_path: Path) -> None:
    seeds = {"seeds": {"train": [0, 1, 2]}, "methods": ["retrain"]}
    devices("cuda", "cpu")
    go("both", spec={**spec, **seeds})
    devices("cpu")
    go("half", spec={**spec, **seeds})
    said = cli("compare", "both", "half")
    assert said.code == 0, said.err
    assert "only in a" in said.out
    assert "trained differently" not in said.out


def test_the_plan_takes_seconds_of_a_device_type_for_its_own(
    go: Any, spec: Any, devices: Any, cli: Any, tmp_path: Path
) -> None:
    devices("cpu")
    go(spec=spec)
    devices("cuda", "cpu")
    said = cli("plan", "{spec}", "--results", "out", spec=spec)
    assert said.code == 0, said.err
    assert "cuda and cpu; timed steps, on this machine's CPU" in said.out


def test_it_is_said_that_there_is_one_device_type_only(
    cli: Any, spec: Any, devices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices("cpu")
    said = cli("run", "{spec}", "--serial", "--results", "out", spec=spec)
    assert (said.code, "devices: each finds no CUDA device" in said.out + said.err) == (0, True)


def test_a_trial_of_either_runs_again(go: Any, spec: Any, devices: Any, cli: Any, tmp_path: Path) -> None:
    devices("cuda", "cpu")
    go(spec=spec)
    rows = load_trials(tmp_path / "out")
    for trial_id in rows.loc[(rows["phase"] == "final") & (rows["method"] == "finetune"), "trial_id"]:
        said = cli("again", trial_id, "--results", "out")
        assert (said.code, "the same to the bit" in said.out) == (0, True)


@pytest.mark.parametrize(("found", "types"), [(True, ("cuda", "cpu")), (False, ("cpu",))])
def test_what_a_machine_has(make_spec: Any, monkeypatch: pytest.MonkeyPatch, found: bool, types: Any) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: found)
    experiment = make_experiment(make_spec(devices="each"))
    assert driver.resolve_devices(experiment) == types
    assert (experiment.measured, experiment.resources["gpu"]) == (True, 1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "cuda"}, "devices: each needs device: auto, got cuda"),
        ({"device": "cpu"}, "devices: each needs device: auto, got cpu"),
        ({"resources": {"gpu": 0}}, r"devices: each needs resources.gpu above 0, got 0; ask for a share"),
        ({"devices": "all"}, "devices"),
    ],
)
def test_what_does_not_go_together(make_spec: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_experiment(make_spec(**{"devices": "each", **changes}))
