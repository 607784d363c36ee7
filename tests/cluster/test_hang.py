"""A method that hangs and never asks for data leaves one row, in the search and in the finals."""

from __future__ import annotations


def test_a_hang_is_one_row_and_one_in_foreign_code_ends_its_worker_only(drive, on, capped, spec):
    """``foreign`` waits in the C library for a lock that never comes free; ``plain`` sleeps in Python."""
    methods = [
        {"name": "hanger", "variant": "foreign", "hparams": {"foreign": True}},
        {"name": "hanger", "variant": "plain"},
        {"name": "sleeper", "hparams": {"seconds": 0.01}},
    ]
    found = drive(spec(methods=methods, search={"trials": 1, "round_size": 1}, time_limit=1), on(capped(1)))
    rows = found.store.trials(attempts=True)
    assert not rows["trial_id"].duplicated().any()
    assert set(rows["attempt"]) == {0}
    hung = rows[rows["method"] == "hanger"]
    assert sorted(zip(hung["phase"], hung["hparams"].str.contains('"foreign": *true'), strict=True)) == [
        ("final", False), ("final", True), ("search", False), ("search", True)]  # fmt: skip
    assert set(hung["status"]) == {"timeout"}
    said = "ran past the time limit of 1 s without asking for data"
    gone = f"{said}, and could not be interrupted: its process was ended"
    foreign = hung["hparams"].str.contains('"foreign": *true')
    assert set(hung.loc[~foreign, "reason"]) == {said}
    assert set(hung.loc[foreign, "reason"]) == {gone}
    assert hung["unlearn_s"].between(1.0, 30.0).all()
    assert hung.loc[foreign, "pid"].nunique() == 2
    assert list(rows.loc[rows["method"] == "sleeper", "status"]) == ["ok"]
    told = {row["trial_id"]: row["status"] for row in found.told}
    assert told == dict(zip(rows["trial_id"], rows["status"], strict=True))  # the driver heard of each
