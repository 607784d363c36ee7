"""Histories collected on a real Ray: the same as without it, once each, failures named."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
import yaml

from raybench.cluster.histories import collect_histories
from raybench.content_store import ContentStore
from raybench.errors import UserError
from raybench.histories import KIND, plan_histories, train_history
from raybench.problem import load_data

JOB = Path(__file__).parents[2] / "jobs" / "collect_histories.py"
FAMILY = {
    "dataset": {"name": "digits", "train_size": 100},
    "model": {"name": "mlp", "hidden": [8]},
    "runs": 3,
    "epochs": 17,
}


def test_histories_are_trained_once_and_as_without_ray(capped, tmp_path):
    plan, folder, told = plan_histories({"families": [FAMILY]}), str(tmp_path / "histories"), []

    def collect(runs):
        return collect_histories(runs, folder, capped(2), finished=lambda run, key: told.append((run, key)))

    first = collect(plan.runs[:1])
    assert told == [(plan.runs[0], first[0])]
    keys = collect([*plan.runs, plan.runs[0]])
    assert keys == [*dict.fromkeys(keys), first[0]]
    assert {key for _, key in told} == set(keys)
    assert len(told) == 3  # the run that was there, and the one that was asked for twice, not again
    assert collect(plan.runs) == keys[:3]
    assert len(told) == 3

    raw, _ = load_data(plan.runs[2].dataset, None, False)
    stored, record = ContentStore(folder).get(KIND, keys[2])
    expected, accuracy = train_history(plan.runs[2], raw)
    assert all(torch.equal(stored[name], t) for name, t in expected.items())
    assert record["accuracy"] == accuracy


def test_a_run_that_fails_is_named_and_the_others_are_kept(capped, tmp_path):
    impossible = {**FAMILY, "model": {"name": "lenet5", "depth": 9}, "runs": 1}
    runs = plan_histories({"families": [impossible, {**FAMILY, "runs": 1}]}).runs
    told = []
    with pytest.raises(UserError, match=r"1 of 2 were not: lenet5\(depth=9\) at .*depth"):
        collect_histories(runs, str(tmp_path), capped(1), finished=lambda run, key: told.append(key))
    assert len(told) == 1
    assert ContentStore(tmp_path).keys(KIND) == set(told)


def test_the_job_says_what_is_new(local_ray, tmp_path, capsys):
    main = runpy.run_path(str(JOB))["main"]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"name": "small", "families": [{**FAMILY, "runs": 1}]}))
    command = [str(tmp_path / "spec.yaml"), "--results", str(tmp_path / "h"), "--slots", "1"]
    assert main(command) == 0
    assert "1 histories in" in (said := capsys.readouterr().out)
    assert "1 of them new" in said
    assert main(command) == 0
    assert "0 of them new" in capsys.readouterr().out
    (tmp_path / "spec.yaml").write_text("name: small")
    assert main(command) == 2
    assert "a spec of histories must have" in capsys.readouterr().err
