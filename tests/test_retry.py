"""``raybench retry --failed``: another attempt, later rounds asked again, nothing touched that is not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench.leaderboard.lock import DriverLock
from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.leaderboard.store import ResultStore


@pytest.fixture
def spec(make_spec: Any) -> dict[str, Any]:
    """flaky is searched in three rounds of two; finetune has nothing to search."""
    found: dict[str, Any] = make_spec(
        plugins=["flaky_plugin"],
        methods=["flaky", {"name": "finetune", "hparams": {"lr": 0.01, "epochs": 1}}],
        search={"trials": 6, "round_size": 2},
    )
    return found


def table(folder: Path) -> pd.DataFrame:
    return ResultStore(folder).searches().drop(columns="line")


RUN = ("run", "{spec}", "--serial", "--quiet", "--results")
RETRY = ("retry", "--failed", "--serial")


def test_a_trial_that_failed_once(cli: Any, spec: dict[str, Any], tmp_path: Path, flaky: Any) -> None:
    """The first setting fails, then works: after the retry the search is the one of a run in which it never failed."""
    assert cli(*RUN, "never-failed", spec=spec).code == 0
    flaky("default")
    assert cli(*RUN, "out").code == 1
    out = tmp_path / "out"
    rows = load_trials(out)
    (failed,) = rows.loc[rows["status"] == "failed"].to_dict("records")
    assert failed["phase"] == "search"
    before = table(out)
    assert not before.equals(table(tmp_path / "never-failed")), "the failure must have changed what was asked later"

    flaky("never")
    said = cli(*RETRY, "out")
    assert said.code == 0, said
    attempts = load_trials(out, attempts=True)
    again = attempts[attempts["trial_id"] == failed["trial_id"]].sort_values("attempt")
    assert list(zip(again["attempt"], again["status"], strict=True)) == [(0, "failed"), (1, "ok")]
    assert attempts.loc[attempts["trial_id"] != failed["trial_id"], "attempt"].max() == 0
    after = table(out)
    pd.testing.assert_frame_equal(after, table(tmp_path / "never-failed"))
    assert after[after["round"] == 0].equals(before[before["round"] == 0])
    assert set(rows["trial_id"]) <= set(load_trials(out)["trial_id"]), "rows stay"

    lines = [load_leaderboard(folder).set_index("method")["distance"] for folder in (out, tmp_path / "never-failed")]
    pd.testing.assert_series_equal(*lines)
    assert cli(*RUN, "out").code == 0
    assert "0 trials run now" in cli(*RETRY, "out").out


def test_a_trial_that_fails_again(cli: Any, spec: dict[str, Any], tmp_path: Path, flaky: Any) -> None:
    flaky("always")
    assert cli(*RUN, "out", spec=spec).code == 1
    before = load_trials(tmp_path / "out")
    said = cli(*RETRY, "out")
    assert said.code == 1
    after = load_trials(tmp_path / "out")
    assert set(after["trial_id"]) == set(before["trial_id"])
    assert set(after.loc[after["method"] == "flaky", "attempt"]) == {1}
    assert cli(*RETRY, "out").code == 1
    assert set(load_trials(tmp_path / "out").query("method == 'flaky'")["attempt"]) == {2}


def test_nothing_failed(cli: Any, spec: dict[str, Any], tmp_path: Path, flaky: Any) -> None:
    assert cli(*RUN, "out", spec=spec).code == 0
    before = table(tmp_path / "out")
    said = cli(*RETRY, "out")
    assert said.code == 0
    assert "0 trials run now" in said.out
    assert table(tmp_path / "out").equals(before)


def test_retry_touches_nothing_while_another_driver_holds_the_folder(
    cli: Any, spec: dict[str, Any], tmp_path: Path, flaky: Any
) -> None:
    flaky("default")
    assert cli(*RUN, "out", spec=spec).code == 1
    before = table(tmp_path / "out")
    with DriverLock(tmp_path / "out", command="another driver"):
        said = cli(*RETRY, "out")
    assert said.code == 2
    assert "another driver" in said.err
    assert table(tmp_path / "out").equals(before)


def test_retry_of_a_spec_that_is_no_longer_valid_touches_nothing(
    cli: Any, spec: dict[str, Any], tmp_path: Path, flaky: Any
) -> None:
    flaky("default")
    assert cli(*RUN, "out", spec=spec).code == 1
    before = table(tmp_path / "out")
    path = tmp_path / "out" / "spec.yaml"
    path.write_text(path.read_text().replace("name: flaky", "name: flakey").replace("- flaky", "- flakey"))
    said = cli(*RETRY, "out")
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert table(tmp_path / "out").equals(before)


def test_a_plain_run_after_a_retry_that_died(
    cli: Any, spec: dict[str, Any], tmp_path: Path, flaky: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rounds are dropped but the trial did not run: the failed row counts as before, nothing is lost."""

    class Killed(BaseException):
        pass

    def dying(*_: Any, **__: Any) -> None:
        raise Killed

    flaky("default")
    assert cli(*RUN, "out", spec=spec).code == 1
    before, rows = table(tmp_path / "out"), set(load_trials(tmp_path / "out")["trial_id"])
    with monkeypatch.context() as patch:
        patch.setattr("raybench.serial.run_trial", dying)
        with pytest.raises(Killed):
            cli(*RETRY, "out")
    assert len(table(tmp_path / "out")) == 2
    said = cli(*RUN, "out")
    assert said.code == 1
    assert "0 trials run now" in said.out
    assert table(tmp_path / "out").equals(before)
    assert set(load_trials(tmp_path / "out")["trial_id"]) == rows
