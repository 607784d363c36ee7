"""What the harness sets for a method, and what it leaves in the row."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raybench.registry import (
    TRAININGS,
    TrainingEntry,
)
from raybench.spec import REFERENCE, SEARCH, Training
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob
from raybench.trial import run_trial
from raybench.workshop import Placement, Workshop
from tests.trial.parts import Amount, Register, checked, problem_of, shop_at, trial_of


def test_threads_are_the_specs_on_every_path(shop: Workshop, method: Register) -> None:
    seen: list[int] = []

    def look(task: UnlearningTask, hp: Amount) -> nn.Module:
        seen.append(torch.get_num_threads())
        return task.model

    name = method(look)
    try:
        for threads in (2, 1):
            row = checked(run_trial(trial_of(name, problem=problem_of(threads=threads)), {}, shop))
            assert row["threads"] == threads
    finally:
        torch.set_num_threads(1)
    assert seen == [2, 1]


def test_dropout_and_initialisers_draw_from_the_seed(shop: Workshop, method: Register) -> None:
    drawn: list[list[float]] = []

    def draw(task: UnlearningTask, hp: Amount) -> nn.Module:
        drawn.append(torch.rand(2).tolist() + torch.rand(2, generator=task.generator).tolist())
        return task.model

    name = method(draw)
    for position, seed in enumerate((0, 0, 1)):
        torch.manual_seed(position)
        state = torch.get_rng_state()
        run_trial(trial_of(name, unlearn_seed=seed), {}, shop)
        assert torch.equal(torch.get_rng_state(), state)
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def test_a_method_hidden_in_once_looks_as_slow_on_a_hit(shop: Workshop, method: Register) -> None:
    def hidden(task: UnlearningTask, hp: Amount) -> nn.Module:
        def compute(generator: torch.Generator) -> Tensor:
            end = time.perf_counter() + 0.3
            while time.perf_counter() < end:
                task.model(task.forget.tensors()[0])
            return torch.ones(1)

        value = task.once("all of it", compute)["value"]
        with torch.no_grad():
            task.model.head.bias.add_(value * hp.amount)  # type: ignore[union-attr, operator, arg-type]
        return task.model

    name = method(hidden)
    rows = [
        run_trial(trial_of(name, SEARCH, hparams={"amount": a}, unlearn_seed=s), {}, shop)
        for a, s in ((0.1, 0), (0.2, 0), (0.3, 1))
    ]
    assert all(row["status"] == "ok" for row in rows)
    assert rows[0]["unlearn_s"] > 0.3
    assert max(r["unlearn_s"] for r in rows) < 1.2 * min(r["unlearn_s"] for r in rows)
    assert len({r["shared_s"] for r in rows}) == 1
    assert len({r["forward_passes"] for r in rows}) == 1
    assert rows[0]["forward_passes"] > 0
    finals = [run_trial(trial_of(name, hparams={"amount": a}), {}, shop) for a in (0.1, 0.2)]
    assert finals[0]["shared_s"] == finals[1]["shared_s"] != rows[0]["shared_s"]  # measured anew for the finals


def test_own_training_artefacts_reach_the_method_and_the_row(
    shop: Workshop, method: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(job: TrainingJob) -> Trained:
        model = job.new_model()
        job.fit(model)
        return Trained(model, {"codes": torch.full((10, 2), 3.0)})

    def use(task: UnlearningTask, hp: Amount) -> nn.Module:
        assert task.facts.original_kind == "coded"
        task.report({"code": float(task.artefacts["codes"].mean())})
        task.artefacts["codes"].zero_()
        return task.model

    monkeypatch.setitem(TRAININGS._entries, "coded", TrainingEntry("coded", train))
    name, training = method(use, training="coded"), Training("coded")
    for _ in range(2):
        row = checked(run_trial(trial_of(name, training=training), {}, shop))
        assert row["status"] == "ok", row["reason"]
        assert json.loads(row["reported"]) == {"code": 3.0}
        assert (row["artefact_bytes"], row["original_kind"]) == (80, "coded")
        assert row["original_train_s"] > 0
    plain = checked(run_trial(trial_of("finetune", hparams={"epochs": 1}), {}, shop))
    assert row["retrain_s"] == plain["retrain_s"]  # gaps and ratios are to the standard recipe


def test_placement_is_in_the_row(warm: Path) -> None:
    settings = shop_at(warm).settings
    placed = Workshop(settings, placement=Placement("3", "9.9", False, "node7"))
    row = checked(run_trial(trial_of("original", REFERENCE), {"variant": "v"}, placed))
    assert (row["device_ids"], row["ray_version"], row["exclusive"], row["node"]) == ("3", "9.9", False, "node7")
    assert row["variant"] == "v"
