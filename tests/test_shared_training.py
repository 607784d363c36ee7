"""``train_workers`` without Ray: the same rows by processes of this machine, also where one of them dies."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from raybench import shared_training
from raybench.content_store import ContentStore
from raybench.errors import UserError
from raybench.problem import load_data, make_problem
from raybench.reference_training import ORDERS, Order, train_order
from raybench.references import KIND, References, no_lease
from raybench.shared_training import train_here
from raybench.spec import Choice, ProblemSpec, Training, TrialSpec
from raybench.workshop import Settings
from tests.conftest import Cli, MakeSpec

DIGITS = Choice("digits", {"train_size": 200, "test_size": 60})


def order_of(workers: int, training: Training | None = None, **changes: Any) -> Order:
    raw, checksum = load_data(DIGITS, None, False)
    recipe = {"epochs": 2, "batch_size": 32}
    spec = ProblemSpec(DIGITS, checksum, Choice("mlp"), Choice("class", {"classes": [0]}), recipe, 0)
    spec = dataclasses.replace(spec, train_workers=workers)
    problem = dataclasses.replace(
        make_problem(spec, raw, torch.device("cpu")), spec=dataclasses.replace(spec, **changes)
    )
    return ORDERS["original"](problem, 0, training)


def test_a_serial_run_shares_its_trainings(cli: Cli, make_spec: MakeSpec, tmp_path: Path) -> None:
    """The rows are those of one process but for rounding; a second run trains nothing."""
    spec = make_spec(methods=["original"], gold_seeds=1)
    shared = {**spec, "problems": [{**spec["problems"][0], "train_workers": 2}]}
    assert cli("run", "{spec}", "--serial", "--results", "one", spec=spec).code == 0
    assert cli("run", "{spec}", "--serial", "--results", "two", spec=shared).code == 0
    one, two = (pd.read_parquet(tmp_path / name / "trials") for name in ("one", "two"))
    assert set(two["status"]) == {"ok"}
    assert not set(one["trial_id"]) & set(two["trial_id"])
    order = ["phase", "method"]
    for column in ("retain_accuracy", "forget_accuracy", "test_accuracy", "forward_passes"):
        values = [frame.sort_values(order)[column].astype(float).to_numpy() for frame in (one, two)]
        assert values[0] == pytest.approx(values[1], abs=0.02)
    again = cli("run", "{spec}", "--serial", "--results", "two", spec=shared)
    assert again.code == 0
    assert len(pd.read_parquet(tmp_path / "two" / "trials")) == len(two)


def test_a_process_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def spawn(body: Any, arguments: Any, nprocs: int) -> None:
        starts.append(nprocs)
        raise ProcessExitedException("killed", 0, os.getpid(), -signal.SIGKILL, "SIGKILL")

    monkeypatch.setattr(shared_training, "spawn", spawn)
    with pytest.raises(RuntimeError, match="died in 3 of 3 tries"):
        train_here(Settings("tiny", str(tmp_path), ()), order_of(2))
    assert starts == [2, 2, 2]


def test_more_workers_than_gpus_are_one_line(tmp_path: Path) -> None:
    workers = torch.cuda.device_count() + 1
    with pytest.raises(UserError, match=f"must not exceed the GPUs of this machine with --serial, got {workers} and"):
        train_here(Settings("tiny", str(tmp_path), ()), order_of(workers, device_type="cuda"))


def test_only_shared_trainings_have_another_identity() -> None:
    one, two = order_of(1), order_of(2)
    assert "train_workers" not in one.problem.spec.to_dict()
    assert one.key != two.key
    assert one.problem.spec.id != two.problem.spec.id
    spec = TrialSpec(two.problem.spec, "finetune", 1, {}, 0, "final")
    assert TrialSpec.from_dict(spec.to_dict()) == spec
    own = Training("mnemonic", 1, {})
    assert order_of(2, own).workers == 1  # code of its own, in one process
    assert order_of(2, own).key == order_of(1, own).key


def test_a_worker_of_a_cluster_does_not_start_others(tmp_path: Path) -> None:
    order = order_of(2)
    references = References(ContentStore(tmp_path), no_lease)
    with pytest.raises(RuntimeError, match=r"\(train_workers: 2\) is not in the store; raybench retry --failed"):
        references.original(order.problem, Training())
    ContentStore(tmp_path).put(KIND, order.key, *train_order(order_of(1)))
    assert references.original(order.problem, Training()).cached


def test_train_workers_need_a_sample_each(cli: Cli, make_spec: MakeSpec) -> None:
    spec = make_spec(recipe={"epochs": 1, "batch_size": 2})
    spec["problems"][0]["train_workers"] = 3
    said = cli("run", "{spec}", "--serial", spec=spec)
    assert said.code == 2
    assert "train_workers must be at most the recipe's batch_size 2" in said.err
