"""Results and store in a bucket, through the command line: run, resume, read, and what goes wrong there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import yaml

import raybench
from raybench import trial
from raybench.bucket import Bucket
from raybench.leaderboard.schema import comparable
from raybench.leaderboard.store import ResultStore
from tests.s3 import SECRET

METHODS = [{"name": "finetune", "hparams": {"lr": 0.01}, "space": {"epochs": {"low": 1, "high": 2}}}]
PLACES = ("--serial", "--quiet", "--results", "s3://bench/run", "--store", "s3://bench/store")


@pytest.fixture
def spec(make_spec: Any) -> dict[str, Any]:
    changes: dict[str, Any] = make_spec(methods=METHODS, gold_seeds=1, search={"trials": 2, "round_size": 2})
    return changes


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Have something happen after so many trials of the next run, once."""

    def happen(count: int, what: Callable[[], None]) -> None:
        real, left = trial._identity, [count]

        def counted(*arguments: Any) -> dict[str, Any]:
            left[0] -= 1
            if left[0] == -1:
                what()
            return real(*arguments)

        monkeypatch.setattr(trial, "_identity", counted)

    return happen


def refused(said: Any, *words: str) -> None:
    """Exit code 2 and one line, without a traceback and without a secret."""
    assert said.code == 2, said
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith("raybench: ")
    for word in words:
        assert word in said.err
    assert SECRET not in said.out + said.err


def rows_of(where: str) -> dict[str, Any]:
    """Trial id -> all that its rows say."""
    frame = ResultStore(where).trials(attempts=True)
    assert frame["trial_id"].is_unique
    rows = frame.set_index("trial_id", drop=False)
    return {str(trial_id): row.to_json(default_handler=str) for trial_id, row in rows.iterrows()}


def test_run_resume_read_plan_retry_and_figures(s3: Any, cli: Any, spec: dict[str, Any], tmp_path: Any) -> None:
    done = cli("run", "{spec}", *PLACES, spec=spec)
    assert (done.code, done.err) == (0, "")
    assert "leaderboard: s3://bench/run/leaderboard.parquet" in done.out
    left = s3.objects("bench")
    kinds = {key.split("/")[1] for key in left if key.startswith("run/")}
    assert kinds == {"trials", "searches", "series", "artifacts", "spec.yaml", "facts.json", "leaderboard.parquet"}
    assert {key.split("/")[1] for key in left if key.startswith("store/")} == {"references", "outputs"}
    assert list(tmp_path.iterdir()) == [tmp_path / "spec.yaml"]  # nothing on the disk
    assert yaml.safe_load(left["run/spec.yaml"]) == spec

    # The same spec on a disk shares every column that two runs share.
    on_disk = cli("run", "{spec}", "--serial", "--quiet", "--results", "here", "--store", "there")
    assert on_disk.code == 0
    ours, theirs = raybench.load_trials("s3://bench/run"), raybench.load_trials(tmp_path / "here")
    columns = ["trial_id", *comparable(ResultStore("here").schema())]
    pd.testing.assert_frame_equal(
        *(frame.sort_values("trial_id", ignore_index=True)[columns] for frame in (ours, theirs))
    )

    again = cli("run", "{spec}", *PLACES)
    assert (again.code, again.err) == (0, "")
    assert "0 trials run now (0 reference models trained)" in again.out
    assert s3.objects("bench") == left

    lines = raybench.load_leaderboard("s3://bench/run")
    assert set(lines["method"]) == {"finetune", "original", "retrain"}
    assert "finetune" in cli("leaderboard", "s3://bench/run", "--gated").out
    plan = cli("plan", "{spec}", *PLACES[2:])
    assert "nothing to run" in plan.out
    assert "s3://bench/run" in plan.out
    retried = cli("retry", "--failed", "s3://bench/run", "--serial", *PLACES[4:])
    assert (retried.code, "0 trials run now" in retried.out) == (0, True), retried
    drawn = cli("figures", "s3://bench/run")
    assert drawn.code == 0
    pictures = [line.removeprefix("s3://bench/") for line in drawn.out.splitlines() if line.endswith(".png")]
    assert drawn.out.startswith("s3://") or "skipped" in drawn.out
    assert set(pictures) <= set(s3.objects("bench"))

    more = cli("run", "{spec}", *PLACES, spec=spec | {"seeds": {"train": [0, 1]}})
    assert (more.code, more.err) == (0, "")
    assert set(ours["trial_id"]) < set(rows_of("s3://bench/run"))


def test_a_bucket_that_may_only_be_read(s3: Any, cli: Any, spec: dict[str, Any]) -> None:
    assert cli("run", "{spec}", *PLACES, spec=spec).code == 0
    left, reader = s3.objects("bench"), s3.reader("bench")
    s3.check_keys(True)
    s3.use(*reader)
    refused(cli("run", "{spec}", *PLACES), "results folder must be writable", "s3://bench/run", "Access Denied")
    refused(cli("retry", "--failed", "s3://bench/run", "--serial"), "s3://bench/run", "Access Denied")
    assert "finetune" in cli("leaderboard", "s3://bench/run", "--gated").out  # reading needs no more
    assert "nothing to run" in cli("plan", "{spec}", *PLACES[2:]).out
    s3.check_keys(False)
    assert s3.objects("bench") == left


def test_a_wrong_key(s3: Any, cli: Any, spec: dict[str, Any]) -> None:
    assert cli("run", "{spec}", *PLACES, spec=spec).code == 0
    left = s3.objects("bench")
    s3.check_keys(True)
    s3.use("AKIAWRONG", SECRET)
    for command in (
        ("run", "{spec}", *PLACES),
        ("plan", "{spec}", *PLACES[2:]),
        ("leaderboard", "s3://bench/run"),
        ("figures", "s3://bench/run"),
        ("retry", "--failed", "s3://bench/run"),
    ):
        refused(cli(*command), "s3://bench/run", "credentials")
    s3.check_keys(False)
    assert s3.objects("bench") == left


@pytest.mark.parametrize("gone", ["results", "store"])
def test_a_bucket_that_vanishes_during_a_run(s3: Any, cli: Any, spec: dict[str, Any], after: Any, gone: str) -> None:
    """Whatever was acknowledged is there again with the bucket, and the same command goes on."""
    s3.client.create_bucket(Bucket="results")
    s3.client.create_bucket(Bucket="store")
    places = ("--serial", "--quiet", "--results", "s3://results/run", "--store", "s3://store/models")
    saved: dict[str, bytes] = {}

    def vanish() -> None:
        saved.update(s3.objects(gone))
        s3.remove(gone)

    after(3, vanish)
    refused(cli("run", "{spec}", *places, spec=spec), f"s3://{gone}/", "bucket does not exist")
    s3.client.create_bucket(Bucket=gone)
    for key, data in saved.items():
        if not key.endswith("driver.lock"):
            s3.client.put_object(Bucket=gone, Key=key, Body=data)
    before = rows_of("s3://results/run")
    assert len(before) >= 3
    done = cli("run", "{spec}", *places)
    assert (done.code, done.err) == (0, "")
    now = rows_of("s3://results/run")
    assert {trial_id: now[trial_id] for trial_id in before} == before  # kept, not run again
    assert set(raybench.load_leaderboard("s3://results/run")["method"]) == {"finetune", "original", "retrain"}
    assert set(raybench.load_trials("s3://results/run")["status"]) == {"ok"}


def test_writes_that_are_refused_in_the_middle_lose_no_row(
    s3: Any, cli: Any, spec: dict[str, Any], after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = s3.reader("bench")

    def revoke() -> None:
        s3.check_keys(True)
        s3.use(*reader)

    after(3, revoke)
    put = Bucket.put  # with the keys of the moment: rights are taken away on the server, while the client lives on
    monkeypatch.setattr(Bucket, "put", lambda self, name, data: put(Bucket(self.url), name, data))
    refused(cli("run", "{spec}", *PLACES, spec=spec), "s3://bench/", "Access Denied")
    monkeypatch.setattr(Bucket, "put", put)
    s3.check_keys(False)
    before = rows_of("s3://bench/run")
    assert len(before) == 3
    # The lock names this process, which a command line's would not outlive.
    s3.client.delete_object(Bucket="bench", Key="run/driver.lock")
    assert cli("run", "{spec}", *PLACES).code == 0
    now = rows_of("s3://bench/run")
    assert {trial_id: now[trial_id] for trial_id in before} == before


def test_a_part_cut_short_in_the_bucket_is_named(s3: Any, cli: Any, spec: dict[str, Any]) -> None:
    assert cli("run", "{spec}", *PLACES, spec=spec).code == 0
    (key,) = [key for key in s3.objects("bench") if key.startswith("run/trials/")]
    whole = s3.objects("bench")[key]
    s3.client.put_object(Bucket="bench", Key=key, Body=whole[: len(whole) // 2])
    refused(cli("run", "{spec}", *PLACES), f"s3://bench/{key} is damaged", "move it out")
    s3.client.put_object(Bucket="bench", Key=key, Body=whole)
    assert "0 trials run now" in cli("run", "{spec}", *PLACES).out
    assert len(rows_of("s3://bench/run")) >= 4
