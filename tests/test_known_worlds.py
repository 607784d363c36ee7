"""Known answers on real models: the original and a retrained model are told apart, two retrained models are not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from raybench.leaderboard.query import load_trials
from raybench.leaderboard.rank_statistics import compare_metrics
from raybench.mechanisms.likelihood_ratio import ulira
from raybench.mechanisms.worlds import over_models
from raybench.metrics import DEFAULT_METRICS
from raybench.reference_training import RETRAINED
from raybench.run import Options, run
from raybench.spec import ProblemSpec, TrialSpec
from raybench.workshop import Settings, Workshop

DATA = os.environ.get("RAYBENCH_DATA")
RECIPE = {"augment": False, "weight_decay": 0.0}
ULIRA = ["forget_accuracy", "ulira_auc", "ulira_worst"]


def rows_of(tmp_path: Path, spec: dict[str, Any], data: str | None = None) -> pd.DataFrame:
    """Reference rows of a run, by method and unlearn seed."""
    options = Options(results=str(tmp_path / "out"), store=str(tmp_path / "store"), serial=True, quiet=True, data=data)
    assert run({"name": "known", "methods": ["original"], **spec}, options=options).exit_code == 0
    trials = load_trials(tmp_path / "out")
    return trials[trials["phase"] == "reference"].set_index(["method", "unlearn_seed"]).sort_index()


def test_two_retrained_models_are_a_tie_on_every_metric_and_the_original_is_not(tmp_path: Path) -> None:
    problem = {
        "dataset": "digits",
        "models": [{"name": "mlp", "hidden": [64]}],
        "scenarios": [{"label_noise": {"fraction": 0.2}}],
    }
    spec = {"problems": [problem], "recipe": {"epochs": 25}, "seeds": {"train": [0, 1, 2, 3, 4]}, "gold_seeds": 3}
    rows = rows_of(tmp_path, spec)
    metrics = [m for m in DEFAULT_METRICS if rows.loc["retrain", m].notna().all()]
    assert {"distance", "loss_attack_auc", "js_divergence", "tow"} <= set(metrics)

    def by_seed(method: str, index: int) -> dict[str, dict[int, float]]:
        found = rows.loc[(method, index)].set_index("train_seed")
        return {metric: found[metric].astype(float).to_dict() for metric in metrics}

    first, second, original = by_seed("retrain", 1), by_seed("retrain", 2), by_seed("original", 0)
    told = compare_metrics(first, second)
    assert all(item.test for item in told.values())
    assert not any(item.apart for item in told.values())
    apart = {metric for metric, item in compare_metrics(original, first).items() if item.apart}
    assert {"forget_accuracy", "distance", "loss_attack_auc", "average_gap"} <= apart


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not DATA, reason="RAYBENCH_DATA names no folder with CIFAR-10 and MNIST")
@pytest.mark.parametrize(
    ("dataset", "scenario", "recipe"),
    [
        pytest.param(
            {"name": "npz", "path": "CIFAR10/cifar10_subset.npz", "train_size": 1000, "test_size": 1000},
            {"random": {"fraction": 0.5}},
            {"epochs": 60, "batch_size": 32, "lr": 0.02},
            id="1000-cifar10",
        ),
        pytest.param(
            {"name": "mnist", "train_size": 1000},
            {"label_noise": {"fraction": 0.2}},
            {"epochs": 60, "batch_size": 32, "lr": 0.02},
            id="1000-mnist-20-percent-wrong",
        ),
    ],
)
def test_ulira_tells_the_original_from_retrained_models(
    tmp_path: Path, dataset: dict[str, Any], scenario: dict[str, Any], recipe: dict[str, Any]
) -> None:
    """LeNet-5 and worlds of 8: AUC of the original is high, that of gold against gold 0.5 within 3 standard errors."""
    problem = {"dataset": dataset, "models": ["lenet5"], "scenarios": [scenario], "recipe": RECIPE | recipe}
    rows = rows_of(tmp_path, {"problems": [problem], "seeds": {"train": [0]}, "oracles": 8, "metrics": ULIRA}, DATA)
    assert rows.loc[("original", 0), "ulira_auc"] >= 0.8
    spec = TrialSpec.from_dict(json.loads(rows.loc[("retrain", 1), "spec"]))
    gold = gold_world(spec.problem, tmp_path / "store", 8)
    estimate = over_models(ulira(gold[:4], gold[4:]).auc, seed=0)
    error = (estimate.hi - estimate.lo) / (2 * 1.96)
    assert 0 < error < 0.1
    assert rows.loc[("retrain", 1), "ulira_auc"] == pytest.approx(0.5, abs=3 * error)
    assert estimate.value == pytest.approx(0.5, abs=3 * error)


def gold_world(problem: ProblemSpec, store: Path, count: int) -> torch.Tensor:
    """phi of D_f under the retrained models of the pool, [count, n]."""
    shop = Workshop(Settings("known", str(store), (), data_root=DATA))
    made = shop.problem(problem)
    outputs = [shop.references.pool_outputs(made, RETRAINED, index) for index in range(1, count + 1)]
    return torch.stack([found["forget"].phi for found in outputs])
