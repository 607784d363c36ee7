"""Weight noise: how much lands where, and the repair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from raybench.errors import UserError
from raybench.methods.weight_noise import WeightNoiseHparams, class_weights
from raybench.space import resolve
from raybench.task import UnlearningTask
from raybench.testing import make_task, run_method

ALONE = {"epochs": 0}


def change(**options: object) -> dict[str, torch.Tensor]:
    task = make_task("weight_noise", **options.pop("task", {}))
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    return {key: value - before[key] for key, value in run_method("weight_noise", task, **options).state_dict().items()}


def test_mean_squared_change_is_the_variance() -> None:
    moved = change(
        task={"model": "mlp", "model_options": (("hidden", 2000),)}, variant="isotropic", noise=0.03, **ALONE
    )
    flat = torch.cat([value.flatten() for value in moved.values()])
    assert flat.numel() > 1e5
    assert float(flat.square().mean()) == pytest.approx(0.03**2, rel=0.01)
    assert float(flat.mean()) == pytest.approx(0.0, abs=4 * 0.03 / flat.numel() ** 0.5)


@pytest.mark.parametrize("variant", ["vision_confuser", "isotropic", "layer_relative"])
def test_no_noise_is_the_identity(variant: str) -> None:
    assert all(not value.any() for value in change(variant=variant, noise=0.0, **ALONE).values())


def test_layer_relative_is_in_units_of_the_tensor() -> None:
    spread = {key: float(value.std()) for key, value in make_task("weight_noise").model.state_dict().items()}
    moved = change(variant="layer_relative", noise=0.1, **ALONE)
    for key, value in moved.items():
        if value.numel() > 2000:
            assert float(value.std()) == pytest.approx(0.1 * spread[key], rel=0.06), key
    assert len({round(value, 3) for value in spread.values()}) > 3


@pytest.mark.parametrize(("convolutions", "expected"), [("first", 1), ("all", 2)])
def test_the_confuser_moves_kernels_only(convolutions: str, expected: int) -> None:
    moved = change(convolutions=convolutions, **ALONE)  # the published noise of 0.6
    keys = [key for key, value in moved.items() if value.any()]
    assert keys == ["blocks.0.0.weight", "blocks.1.0.weight"][:expected]
    assert float(moved["blocks.0.0.weight"].std()) == pytest.approx(0.6, rel=0.2)


def test_more_noise_comes_before_the_last_epoch_and_after_the_checkpoint() -> None:
    """Without learning, the weights change between the checkpoints of the last two epochs, and only there."""
    task = make_task("weight_noise")
    seen: list[torch.Tensor] = []
    task._on_checkpoint = lambda model, step, scalars: seen.append(model.state_dict()["blocks.0.0.weight"].clone())
    run_method("weight_noise", task, lr=0.0, epochs=3, final_noise=0.05)
    assert torch.equal(seen[0], seen[1])
    assert float((seen[2] - seen[1]).std()) == pytest.approx(0.05, rel=0.2)


def test_class_weights_are_scikit_learns() -> None:
    task = make_task("weight_noise")  # class 0 is forgotten
    labels = task.retain.targets.numpy()
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    np.testing.assert_allclose(class_weights(task.retain, task.num_classes), [0.0, *expected], rtol=1e-6)


def test_the_repair_minimises_the_weighted_loss() -> None:
    task = make_task("weight_noise", model="mlp")
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    images, labels = task.retain.tensors()
    weights = class_weights(task.retain, task.num_classes)
    value = F.cross_entropy(task.model(images), labels, weight=weights)  # torch divides by the sum of weights, here n
    grads = dict(zip(before, torch.autograd.grad(value, list(task.model.parameters())), strict=True))
    model = run_method("weight_noise", task, epochs=1, lr=0.05, weight_decay=0.0, batch_size=len(labels))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.05 * grads[name], rtol=1e-4, atol=1e-6)


def accuracy(task: UnlearningTask, model: nn.Module) -> list[float]:
    found = []
    for part in ("retain", "forget"):
        images, labels = task._splits[part].tensors()
        with torch.no_grad():
            found.append(float((model(images).argmax(1) == labels).float().mean()))
    return found


def test_forgets_the_class_and_keeps_the_rest() -> None:
    task = make_task("weight_noise")
    model = run_method("weight_noise", task, lr=0.03, epochs=4, batch_size=16)
    kept, forgotten = accuracy(task, model)
    assert kept > 0.95
    assert forgotten < 0.5
    assert task._passes.backward == pytest.approx(4 * len(task.retain))


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="must not be negative"):
        resolve(WeightNoiseHparams, {"noise": -0.1}, "weight_noise")
