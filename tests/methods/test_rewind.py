"""Rewind (InvWNN) with the predictors that come with the package."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch.nn import functional as F

from raybench.mechanisms.rewinding import HISTORY, KINDS, load_predictors
from raybench.predictor_training import exponential_windows, judge
from raybench.task import UndeclaredAccess
from raybench.testing import make_task, run_method
from raybench.version import PACKAGE

RESOURCES = PACKAGE / "resources" / "rewind"


@pytest.fixture(scope="module")
def predictors():
    return load_predictors(RESOURCES / "predictors.safetensors")


def test_shipped_file_is_small_and_says_how_it_was_made() -> None:
    assert (RESOURCES / "predictors.safetensors").stat().st_size < 1_000_000
    made = yaml.safe_load((RESOURCES / "predictors.yaml").read_text())
    assert set(made) >= {"spec", "validation", "versions", "histories"}
    assert set(made["validation"]) == set(KINDS)
    models = {family["model"]["name"] for family in made["spec"]["families"]}
    datasets = {family["dataset"]["name"] for family in made["spec"]["families"]}
    assert not models & {"resnet8", "resnet18"}  # what rewind is evaluated on is not what it was trained on
    assert datasets == {"mnist"}
    for kind in KINDS:
        held_out = made["validation"][kind]["held_out"]
        assert held_out["mae"] < min(held_out[f"mae_{of}"] for of in ("coefficient", "step", "extrapolation", "still"))


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_predictors_beat_the_best_single_coefficient_on_exponential_histories(predictors, kind) -> None:
    """Self-check (b) of a trained predictor, on draws that its training never saw, of the family that a quarter of it
    was: rho uniform in [0.5, 0.99], distance log-uniform in [1e-3, 1e-1], limit normal with deviation 0.1. The
    coefficients are fitted to these very draws."""
    windows = exponential_windows(20_000, torch.Generator().manual_seed(123))
    said = judge(predictors[kind], windows)
    print({name: f"{value:.5f}" for name, value in said.items()})
    assert said["mae"] < 0.1 * said["mae_coefficient"]
    assert said["mae"] < 0.2 * min(said["mae_step"], said["mae_extrapolation"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_stands_still_hardly_moves(predictors, kind) -> None:
    weights = 0.1 * torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    assert float(predictors[kind](weights.expand(HISTORY, -1)).abs().mean()) < 3e-5


def test_forgets_what_was_learnt_by_heart() -> None:
    task = make_task("rewind", kind="sample")
    images, labels = task.forget.tensors()

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(task.model(images), labels))

    before = loss()
    run_method("rewind", task, rewinds=3)
    assert loss() > 2 * before
    assert task.reported.scalars["moved"] > 0
    assert task.reported.scalars["rewinds"] == 3


def test_cost_and_data() -> None:
    task = make_task("rewind", model="mlp")
    weights = sum(p.numel() for p in task.model.parameters())
    run_method("rewind", task, rewinds=2, warmup_epochs=2)
    assert task._passes.backward == pytest.approx(2 * 16 * len(task.forget))
    predictor = 2 * sum(
        p.numel()
        for n, p in load_predictors(RESOURCES / "predictors.safetensors")["fc"].named_parameters()
        if n.endswith("weight")
    )
    extra = (task._passes.forward - 2 * 16 * len(task.forget)) * task._passes.unit_forward
    assert extra == pytest.approx(2 * weights * predictor, rel=1e-6)
    with pytest.raises(UndeclaredAccess):
        _ = task.retain
