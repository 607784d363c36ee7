"""How the harness runs metrics that probe models: where, on what, at whose cost."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raybench.errors import MetricUnavailable
from raybench.evaluation import measure
from raybench.leaderboard.schema import MetricInfo, check_row, comparable, trial_schema
from raybench.outputs import MetricContext, Outputs, SplitOutputs
from raybench.probe import Probe
from raybench.problem import load_data
from raybench.registry import FORGET, LOWER, METHODS, METRICS, RETAIN, MethodEntry, MetricEntry
from raybench.spec import FINAL, PROTOCOL, REFERENCE, SEARCH, Choice, ProblemSpec, TrialSpec
from raybench.trial import run_trial
from raybench.workshop import Settings, Workshop

DIGITS = Choice("digits", {"train_size": 200, "test_size": 60})
Fn = Callable[[Probe, MetricContext], float]


def problem() -> ProblemSpec:
    recipe = {"epochs": 3, "batch_size": 32, "augment": False}
    scenario, model = Choice("class", {"classes": [0]}), Choice("mlp", {"hidden": [16]})
    return ProblemSpec(DIGITS, load_data(DIGITS, None, False)[1], model, scenario, recipe, 0)


def trial(method: str, phase: str = FINAL, seed: int = 0, **hparams: Any) -> TrialSpec:
    return TrialSpec(problem(), method, METHODS[method].version, hparams, seed, phase)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def shop(store: Path) -> Callable[..., Workshop]:
    def make(*metrics: str, **changes: Any) -> Workshop:
        return Workshop(Settings(**{"experiment": "test", "store": str(store), "metrics": metrics} | changes))

    return make


@pytest.fixture
def metric(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Registers a probe for this test only."""
    METRICS.names()

    def register(fn: Fn, name: str = "t_probe", **options: Any) -> str:
        entry = MetricEntry(name=name, fn=fn, range=(None, None), probe=True, **options)
        monkeypatch.setitem(METRICS._entries, name, entry)
        return name

    return register


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    METHODS.names()

    def register(fn: Callable[..., Any], **options: Any) -> str:
        entry = MethodEntry("toy", fn, "toy", needs=frozenset({FORGET, RETAIN}), **options)
        monkeypatch.setitem(METHODS._entries, "toy", entry)
        return "toy"

    return register


def weight_sum(model: nn.Module) -> float:
    return sum(float(p.detach().double().abs().sum()) for p in model.parameters())


def test_value_retrained_and_gap_in_finals_and_references(shop, metric) -> None:
    workshop = shop(metric(lambda probe, context: weight_sum(probe.model)))
    rows = [
        run_trial(spec, {}, workshop)
        for spec in (trial("original", REFERENCE), trial("retrain", REFERENCE), trial("finetune", epochs=1))
    ]
    for row in rows:
        assert row["status"] == "ok", row.get("reason")
        assert row["t_probe_gap"] == row["t_probe"] - row["t_probe_retrained"]
    original, retrained = (getattr(workshop.references, kind) for kind in ("original", "retrained"))
    of_problem = workshop.problem(problem())
    gold = weight_sum(retrained(of_problem, 0).model)
    assert [row["t_probe_retrained"] for row in rows] == [gold] * 3
    assert rows[0]["t_probe"] == weight_sum(original(of_problem, trial("original").training).model) != gold
    assert rows[1]["t_probe_gap"] == 0.0
    assert rows[2]["t_probe"] not in {rows[0]["t_probe"], gold}


def test_searches_never_probe_and_rows_without_probes_have_no_seconds(shop, metric) -> None:
    def never(probe: Probe, context: MetricContext) -> float:
        raise AssertionError("a search ran a probe")

    row = run_trial(trial("finetune", SEARCH, epochs=1), {}, shop(metric(never), "forget_accuracy"))
    assert row["status"] == "ok", row.get("reason")
    assert row["t_probe"] is None
    assert json.loads(row["missing"])["t_probe"] == "probes the models, which only finals and references do"
    assert row["metrics_s"] is None
    assert run_trial(trial("finetune", epochs=1), {}, shop("forget_accuracy"))["metrics_s"] is None


def test_probes_are_off_the_clock_and_timed_apart(shop, metric) -> None:
    def slow(probe: Probe, context: MetricContext) -> float:
        time.sleep(0.5)
        probe.model(torch.zeros(1, 1, 28, 28))  # passes are not charged either
        return 1.0

    plain = run_trial(trial("finetune", epochs=1), {}, shop())
    row = run_trial(trial("finetune", epochs=1), {}, shop(metric(slow)))
    assert row["metrics_s"] >= 1.0  # of the unlearned and of the retrained model
    assert row["metrics_s"] < row["wall_s"] - row["unlearn_s"]
    assert (row["forward_passes"], row["backward_passes"]) == (plain["forward_passes"], plain["backward_passes"])
    schema = trial_schema([MetricInfo("t_probe")], PROTOCOL)
    assert check_row({k: v for k, v in row.items() if k != "series"}, schema)["metrics_s"] == row["metrics_s"]
    assert "metrics_s" not in comparable(schema)


def test_the_retrained_model_is_probed_once_per_process(shop, metric) -> None:
    asked: list[bool] = []

    def fn(probe: Probe, context: MetricContext) -> float:
        same = zip(probe.model.parameters(), probe.retrained.parameters(), strict=True)
        asked.append(all(torch.equal(a, b) for a, b in same))
        if asked[-1]:
            raise MetricUnavailable("no luck")  # a reason is kept like a value
        return 2.0

    workshop = shop(metric(fn))
    rows = [run_trial(trial("finetune", seed=seed, epochs=1), {}, workshop) for seed in (0, 1)]
    rows.append(run_trial(trial("retrain", REFERENCE), {}, workshop))
    assert asked == [False, True, False]
    for row in rows[:2]:
        assert (row["t_probe"], row["t_probe_retrained"], row["t_probe_gap"]) == (2.0, None, None)
        assert json.loads(row["missing"])["t_probe"] == "of the retrained model: no luck"
    assert json.loads(rows[2]["missing"])["t_probe"] == "no luck"
    reseeded = Workshop(dataclasses.replace(workshop.settings, evaluate_seed=1))
    reseeded.probed = workshop.probed
    run_trial(trial("finetune", epochs=1), {}, reseeded)
    assert asked[3:] == [False, True]


def test_what_is_remembered_is_computed_once(shop, metric) -> None:
    calls: list[int] = []

    def fn(probe: Probe, context: MetricContext) -> float:
        return probe.remember("shared", lambda: float(calls.append(1) or 5.0))

    workshop = shop(metric(fn))
    assert run_trial(trial("finetune", epochs=1), {}, workshop)["t_probe"] == 5.0
    assert run_trial(trial("original", REFERENCE), {}, workshop)["t_probe"] == 5.0
    assert len(calls) == 1


def test_models_are_private_and_trainable_and_draws_the_same(shop, metric, method) -> None:
    draws: list[torch.Tensor] = []

    def vandal(probe: Probe, context: MetricContext) -> float:
        draws.append(torch.cat([torch.rand(3, generator=probe.generator("x")), torch.rand(3)]))
        for model in (probe.model, probe.original, probe.retrained):
            assert not model.training
            assert all(p.requires_grad for p in model.parameters())
            with torch.no_grad():
                for p in model.parameters():
                    p.fill_(1.0)
        return 0.0

    def frozen(task: Any, hp: Any) -> nn.Module:
        return task.model.requires_grad_(False)

    method(frozen, identity=True)
    state = torch.get_rng_state()
    workshop = shop(metric(vandal), metric(lambda probe, context: weight_sum(probe.model), "t_sum"))
    plain = shop("t_sum")
    assert run_trial(trial("toy"), {}, workshop)["t_sum"] == run_trial(trial("toy"), {}, plain)["t_sum"]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(draws) == 2
    assert torch.equal(draws[0], draws[1])


def test_a_predictor_without_weights_has_a_reason(shop, metric, method) -> None:
    def as_function(task: Any, hp: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        model = task.model
        return lambda images: model(images)

    method(as_function, predictor=True)
    name = metric(lambda probe, context: 1.0)
    row = run_trial(trial("toy"), {}, shop(name, "forget_accuracy"))
    assert row["status"] == "ok", row.get("reason")
    assert row["forget_accuracy"] is not None
    assert (row["t_probe"], row["t_probe_retrained"]) == (None, None)
    assert "returns a predictor that is no module" in json.loads(row["missing"])["t_probe"]


def test_a_model_that_cannot_be_copied_and_memory_that_runs_out_have_reasons(shop, metric, method) -> None:
    class Clinging(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.kept = next(inner.parameters()) * 2.0  # no leaf: deepcopy refuses

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    method(lambda task, hp: Clinging(task.model), identity=True)
    row = run_trial(trial("toy"), {}, shop(metric(lambda probe, context: 1.0)))
    assert row["status"] == "ok", row.get("reason")
    assert "cannot be copied" in json.loads(row["missing"])["t_probe"]

    def greedy(probe: Probe, context: MetricContext) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    row = run_trial(trial("finetune", epochs=1), {}, shop(metric(greedy)))
    assert row["status"] == "ok"
    assert json.loads(row["missing"])["t_probe"] == "out of memory: CUDA out of memory"


def test_a_bug_in_a_probe_is_no_missing_value(shop, metric) -> None:
    def broken(probe: Probe, context: MetricContext) -> float:
        raise ZeroDivisionError("oops")

    row = run_trial(trial("finetune", epochs=1), {}, shop(metric(broken)))
    assert row["status"] == "failed"
    assert "oops" in row["reason"]


def test_measure_of_pairs_and_of_values_that_are_not_finite(metric) -> None:
    outputs = Outputs({"forget": SplitOutputs(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))})

    class Fixed:
        def value(self, entry: MetricEntry, context: MetricContext) -> float:
            return 3.0

        def of_retrained(self, entry: MetricEntry, context: MetricContext) -> float:
            return float("inf")

    metric(lambda probe, context: 0.0, "t_pair", pair=True, direction=LOWER)
    metric(lambda probe, context: 0.0)
    columns, missing = measure(["t_pair", "t_probe"], outputs, outputs, MetricContext(3), Fixed())
    assert (columns["t_pair"], columns["t_pair_retrained"], columns["t_pair_gap"]) == (3.0, None, None)
    assert (columns["t_probe"], columns["t_probe_gap"]) == (3.0, None)
    assert missing == {"t_probe": "of the retrained model: t_probe came out as inf"}
    assert "only finals" in measure(["t_probe"], outputs, outputs, MetricContext(3))[1]["t_probe"]


def test_metrics_are_told_the_original_models_test_accuracy(shop) -> None:
    row = run_trial(trial("original", REFERENCE), {}, shop("aus", "test_accuracy", "forget_accuracy"))
    assert row["aus"] == pytest.approx(1.0 / (1.0 + row["forget_accuracy"]))  # it lost nothing, and forgot nothing
