"""CT: transposed kernels, then fine-tuning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raybench.methods.ct import transpose_kernels
from raybench.task import UndeclaredAccess
from raybench.testing import make_bench, make_task, run_method


def test_kernels_are_transposed_in_the_plane_and_nothing_else_changes() -> None:
    task = make_task("ct", bench=make_bench("allcnn", samples=120, model_options=(("width", 4),)))
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    after = run_method("ct", task, lr=0.0, epochs=0).state_dict()
    for key, value in after.items():
        expected = before[key].transpose(2, 3) if before[key].ndim == 4 else before[key]
        assert torch.equal(value, expected)
        assert value.is_contiguous()
        if value.ndim == 4 and value.shape[-1] > 1:
            assert not torch.equal(value, before[key])


def test_twice_is_the_identity_and_symmetric_or_oblong_kernels_stay() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, (1, 3)), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        last = model[3].weight
        last.copy_((last + last.transpose(2, 3)) / 2.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    transpose_kernels(model)
    once = model.state_dict()
    assert {key for key in before if not torch.equal(before[key], once[key])} == {"0.weight"}
    transpose_kernels(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_transposed_network_sees_transposed_images() -> None:
    """The closed form: a padded convolution by W^T on x^T is the transpose of that by W on x."""
    layer = nn.Conv2d(2, 3, 5, padding=2)
    images = torch.randn(4, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer(images).transpose(2, 3)
        transpose_kernels(layer)
        torch.testing.assert_close(layer(images.transpose(2, 3)), expected)


def test_on_dense_networks_it_is_finetuning_to_the_bit() -> None:
    options = {"epochs": 2, "lr": 0.01, "schedule": "none"}
    one = run_method("ct", make_task("ct", model="mlp", seed=3), **options).state_dict()
    other = run_method("finetune", make_task("finetune", model="mlp", seed=3), **options).state_dict()
    assert all(torch.equal(other[key], value) for key, value in one.items())


def test_forgets_the_class_and_keeps_the_rest() -> None:
    task = make_task("ct")
    found = {}
    steps: list[int] = []
    task._on_checkpoint = lambda model, step, scalars: steps.append(step)
    model = run_method("ct", task, lr=0.03, epochs=6, batch_size=16)
    for part in ("retain", "forget"):
        images, labels = task._splits[part].tensors()
        with torch.no_grad():
            found[part] = float((model(images).argmax(1) == labels).float().mean())
    assert found["retain"] > 0.95
    assert found["forget"] < 0.5
    assert task._passes.backward == pytest.approx(6 * len(task.retain))
    assert steps == [1, 2, 3, 4, 5, 6]
    with pytest.raises(UndeclaredAccess):
        _ = task.forget
