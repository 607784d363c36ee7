"""RMIA of a row: the definition sample by sample, the pool it needs, and what it says of models that remember."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score

from raybench.errors import MetricUnavailable
from raybench.ledger import MEASURE
from raybench.measuring import measure_trial
from raybench.metrics.rmia_auc import A, rmia_auc, rmia_tpr
from raybench.outputs import MetricContext, Outputs
from raybench.problem import load_data
from raybench.registry import METHODS
from raybench.spec import REFERENCE, Choice, ProblemSpec, TrialSpec
from raybench.trial import run_trial
from raybench.workshop import Settings, Workshop

DATA = os.environ.get("RAYBENCH_DATA")


@pytest.mark.parametrize("forget_class", [False, True])
def test_scores_by_the_definition(
    random_outputs: Callable[..., Outputs], context: Callable[..., MetricContext], forget_class: bool
) -> None:
    ours, where = random_outputs(1, forget_class), context(forget_class)
    pool = where.oracles()

    def ratios(split: str) -> list[float]:
        found = []
        for i in range(len(ours[split])):
            outside = sum(float(oracle[split].confidences[i]) for oracle in pool) / len(pool)
            found.append(float(ours[split].confidences[i]) / (((1 + A) * outside + 1 - A) / 2))
        return found

    population = ratios("validation") + (ratios("validation_forgotten") if forget_class else [])
    scores = [
        [sum(r >= z for z in population) / len(population) for r in ratios(split)]
        for split in ("forget", "test_forgotten" if forget_class else "test")
    ]
    truth = [1] * len(scores[0]) + [0] * len(scores[1])
    assert rmia_auc(ours, where) == pytest.approx(roc_auc_score(truth, scores[0] + scores[1]), abs=1e-12)
    accused = sorted(scores[1], reverse=True)[int(0.01 * len(scores[1]))]
    assert rmia_tpr(ours, where) == pytest.approx(sum(s > accused for s in scores[0]) / len(scores[0]))


def test_without_oracles_there_is_a_reason(
    random_outputs: Callable[..., Outputs], context: Callable[..., MetricContext]
) -> None:
    with pytest.raises(MetricUnavailable, match="set oracles in the spec"):
        rmia_auc(random_outputs(1), context(oracles=tuple))


def trial(problem: ProblemSpec, method: str, index: int = 0, **hparams: Any) -> TrialSpec:
    return TrialSpec(problem, method, METHODS[method].version, hparams, index, REFERENCE)


def later(spec: TrialSpec, shop: Workshop) -> dict[str, dict[str, Any]]:
    """What the stage after the finals measures of a row, by metric."""
    records = measure_trial(spec, {MEASURE: list(shop.settings.metrics)}, shop)
    return {record["metric"]: record for record in records}


def make_problem(dataset: Choice, root: str | None, model: Choice, fraction: float, **recipe: Any) -> ProblemSpec:
    checksum, scenario = load_data(dataset, root, False)[1], Choice("random", {"fraction": fraction})
    return ProblemSpec(dataset, checksum, model, scenario, {"augment": False, "weight_decay": 0.0, **recipe}, 0)


def test_rows_have_it_and_a_retrained_model_is_not_its_own_oracle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits, asked = Choice("digits", {"train_size": 1200, "test_size": 200}), []
    problem = make_problem(digits, None, Choice("mlp", {"hidden": [16]}), 0.2, epochs=3, batch_size=32)
    shop = Workshop(Settings("test", str(tmp_path), ("rmia_auc", "forget_accuracy"), oracles=2))
    outputs = shop.references.pool_outputs
    monkeypatch.setattr(
        shop.references, "pool_outputs", lambda p, kind, i, *more: asked.append((kind, i)) or outputs(p, kind, i, *more)
    )
    specs = [trial(problem, *key) for key in (("original", 0), ("retrain", 0), ("retrain", 2))]
    for spec in specs:
        assert "after the finals" in json.loads(run_trial(spec, {}, shop)["missing"])["rmia_auc"]
    rows = [later(spec, shop)["rmia_auc"] for spec in specs]
    assert all(0.3 < row["value"] < 0.8 and row["reason"] is None for row in rows)
    assert rows[1]["gap"] == 0.0
    asked.clear()
    later(specs[2], shop)
    # Its own outputs once, as what is judged; of the pool the other model only, for it and for the reference.
    assert sorted(index for kind, index in asked if kind == "retrained" and index) == [1, 1, 2]


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="RAYBENCH_DATA names no folder with CIFAR-10")
def test_a_model_that_learnt_its_images_by_heart_is_found_out(tmp_path: Path) -> None:
    """LeNet-5, 1,000 CIFAR-10 images, eight models that never saw the half to forget."""
    images = Choice("npz", {"path": "CIFAR10/cifar10_subset.npz", "train_size": 1000, "test_size": 1000})
    problem = make_problem(images, DATA, Choice("lenet5"), 0.5, epochs=60, batch_size=32, lr=0.02)
    shop = Workshop(Settings("test", str(tmp_path), ("rmia_auc", "loss_attack_auc"), data_root=DATA, oracles=8))
    original, retrained = (later(trial(problem, name), shop)["rmia_auc"] for name in ("original", "retrain"))
    assert original["value"] >= 0.85
    # 450 members and 1,000 others: the standard error of a blind AUC is 0.0165
    assert retrained["value"] == pytest.approx(0.5, abs=3 * 0.0165)
    assert original["gap"] == pytest.approx(original["value"] - retrained["value"])
