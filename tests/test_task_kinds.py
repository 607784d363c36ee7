"""Kinds of task: the loss and outputs of a denoiser, and how metrics and gates take a model without classes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from raybench.data import Pixels, Split
from raybench.diffusion import denoising_losses
from raybench.errors import MetricUnavailable, UserError
from raybench.evaluation import measure, outputs_of, pack, unpack
from raybench.experiment import make_experiment
from raybench.gates import Evidence, judge_gates
from raybench.metrics.distance import distance_terms
from raybench.outputs import MetricContext, Outputs, SplitOutputs
from raybench.registry import DENOISING, METHODS
from raybench.seeding import torch_generator
from raybench.task_kinds import EVALUATED_STEPS, TASK_KINDS

SPLITS = ("retain", "forget", "validation", "validation_forgotten", "test", "test_forgotten")
CONTEXT = MetricContext(10, task=DENOISING, forget_classes=(0,))


def half(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * x


def split(n: int = 6) -> Split:
    images = torch.randint(256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(n)).to(torch.uint8)
    one = torch.ones(1, 1, 1, 1)
    return Split(images, torch.arange(n) % 3, torch.arange(n), Pixels(0.1 * one, 0.3 * one))


def denoised(values: dict[str, float], n: int = 30) -> Outputs:
    """Losses around the given means."""
    spread = torch.linspace(-0.02, 0.02, n)
    labels = torch.zeros(n, dtype=torch.int64)
    return Outputs({name: SplitOutputs(torch.empty(n, 0), labels, mean + spread) for name, mean in values.items()})


def all_at(mean: float, **changes: float) -> Outputs:
    return denoised({**dict.fromkeys(SPLITS, mean), **changes})


def test_outputs_are_the_mean_loss_at_fixed_steps_and_noise() -> None:
    kind, data = TASK_KINDS[DENOISING], split()
    found = outputs_of(half, {"test": data}, ["test"], kind)["test"]
    images, labels = data.tensors()
    draw, total = torch_generator("denoising", 0, device=images.device), torch.zeros(6)
    for step in EVALUATED_STEPS:
        total += denoising_losses(half, images, torch.full((6,), step), torch.randn(images.shape, generator=draw))
    torch.testing.assert_close(found.losses.float(), total / 4)
    assert torch.equal(found.labels, labels)
    again = outputs_of(half, {"test": data}, ["test"], kind)["test"]
    assert torch.equal(found.said, again.said)
    assert list(EVALUATED_STEPS) == [125, 375, 625, 875]


def test_an_empty_split_has_outputs_too() -> None:
    empty = split().subset(torch.empty(0, dtype=torch.int64))
    outputs = outputs_of(half, {"validation": empty}, ["validation"], TASK_KINDS[DENOISING])
    assert not outputs.has("validation")


def test_the_loss_draws_from_its_generator() -> None:
    data, loss = split().tensors(), TASK_KINDS[DENOISING].loss
    first, other = (loss(torch.Generator().manual_seed(seed))(half, data) for seed in (1, 2))  # type: ignore[arg-type]
    again = loss(torch.Generator().manual_seed(1))
    assert torch.equal(first, again(half, data))  # type: ignore[arg-type]
    assert not torch.equal(first, again(half, data))  # type: ignore[arg-type]
    assert not torch.equal(first, other)


def test_packed_and_unpacked() -> None:
    there = all_at(0.2)
    back = unpack(pack(there))
    assert all(torch.equal(back[name].said, there[name].said) for name in SPLITS)
    assert back["test"].sample_losses is not None
    classes = Outputs({"test": SplitOutputs(torch.randn(3, 2), torch.zeros(3, dtype=torch.int64))})
    assert unpack(pack(classes))["test"].sample_losses is None


def test_a_part_keeps_its_losses() -> None:
    part = all_at(0.2)["test"].at(torch.tensor([5, 2]))
    assert torch.equal(part.losses, all_at(0.2)["test"].losses[[5, 2]])
    assert (len(part), part.said.shape) == (2, (2, 1))


@pytest.mark.parametrize("name", ["correct", "log_probabilities", "probabilities", "phi", "confidences"])
def test_what_needs_classes_has_a_reason(name: str) -> None:
    with pytest.raises(MetricUnavailable, match="needs classes"):
        getattr(all_at(0.2)["test"], name)


def test_losses_that_are_not_finite_are_a_reason() -> None:
    broken = all_at(0.2)
    assert broken["test"].sample_losses is not None
    broken["test"].sample_losses[3] = torch.nan
    assert not broken["test"].finite
    with pytest.raises(MetricUnavailable, match="NaN or infinite"):
        broken.usable("test")


def test_metrics_are_measured_or_left_out_with_a_reason() -> None:
    names = ["retain_accuracy", "js_divergence", "forget_loss", "loss_attack_auc", "distance", "distance_validation"]
    ours, theirs = all_at(0.2, forget=0.1), all_at(0.2, forget=0.4)
    columns, missing = measure(names, ours, theirs, CONTEXT)
    assert {name for name in names if columns[name] is None} == {"retain_accuracy", "js_divergence"} == set(missing)
    assert "trained for denoising" in missing["retain_accuracy"]
    assert columns["forget_loss_gap"] == pytest.approx(-0.3)
    assert columns["loss_attack_auc"] == 1.0  # every forget loss is below every unseen one


def test_distance_by_hand() -> None:
    ours, theirs = all_at(0.2, forget=0.1, test=0.3), all_at(0.25, forget=0.4, test=0.3)
    terms = distance_terms(ours, theirs, CONTEXT, "test")
    assert terms == {
        "retain_loss": pytest.approx(0.2),
        "forget_loss": pytest.approx(0.75),
        "held_out_loss": pytest.approx(0.0, abs=1e-6),
        "loss_attack_auc": pytest.approx(1.0),
    }
    assert set(distance_terms(ours, ours, CONTEXT, "test").values()) == {0.0}


def test_gates_ask_for_less_than_the_loss_of_predicting_nothing() -> None:
    def gates(outputs: Outputs, original: Outputs, retrained: Outputs) -> dict[str, bool | None]:
        return judge_gates(Evidence(outputs, original, retrained, 10, acts=True, weights_changed=True))

    good, other = all_at(0.2), all_at(0.25)
    assert set(gates(all_at(0.3), good, other).values()) == {True}
    assert gates(all_at(0.95), good, other)["retain_above_chance"] is False
    assert gates(all_at(1.5), good, other)["validation_above_chance"] is False
    assert gates(good, all_at(0.999), other)["original_above_chance"] is False  # within two standard errors of 1
    assert gates(good, good, all_at(0.31))["retrained_not_worse"] is False
    assert gates(good, good, other)["outputs_changed"] is False


def spec(**changes: Any) -> dict[str, Any]:
    problem = {"dataset": "digits", "models": ["ddpm_unet"], "scenarios": [{"class": {"classes": [0]}}]}
    problem |= {key: changes.pop(key) for key in ("scenarios", "train_workers") if key in changes}
    return {"name": "x", "problems": [problem], "methods": ["finetune"], **changes}


SERVING = {"original", "retrain", "finetune", "gradient_ascent", "task_vector", "rewind", "deepclean"}


def test_methods_that_take_the_loss_from_the_task_are_planned() -> None:
    assert {entry.name for entry in METHODS if DENOISING in entry.tasks} == SERVING
    assert make_experiment(spec(methods=sorted(SERVING))).cells[0].model.name == "ddpm_unet"


@pytest.mark.parametrize("name", [entry.name for entry in METHODS if DENOISING not in entry.tasks])
def test_other_methods_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError) as refused:
        make_experiment(spec(methods=[name]))
    assert f"got {name}, which is for classification; use deepclean, finetune" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scenarios": [{"label_noise": {"fraction": 0.2}}]}, "leave labels and images as they are"),
        ({"train_workers": 2}, "train_workers must be 1 for model ddpm_unet, got 2"),
        ({"search": {"objective": "retrained_free"}}, "search.objective must be distance for model ddpm_unet"),
        (
            {"methods": [{"name": "finetune", "stop": {"unlearning_accuracy": 0.5}}]},
            "a stopping rule needs a classifier",
        ),
    ],
)
def test_settings_that_need_classes_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_experiment(spec(**changes))
    assert json.dumps(spec(**changes))  # plain values, as a file has them
