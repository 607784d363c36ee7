"""MSG: re-initialise where retain and forget gradients cancel, then fine-tune."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raybench.errors import UserError
from raybench.methods.msg import MsgHparams, gradient_difference, smallest
from raybench.space import resolve
from raybench.testing import make_task, run_method

STILL = {"lr": 0.0, "epochs": 1}


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_exactly_the_share_of_each_convolution_changes_and_nothing_else(share: float) -> None:
    task = make_task("msg")
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    model = run_method("msg", task, share=share, **STILL)
    weights = {f"{name}.weight" for name in convolutions(model)}
    counted = 0
    for key, value in model.state_dict().items():
        count = int((value != before[key]).sum())
        assert count == (round(share * value.numel()) if key in weights else 0), key
        counted += count
    assert task.reported.scalars["reset"] == counted / sum(p.numel() for p in model.parameters())


def test_the_changed_are_those_with_the_smallest_gradients_and_kaiming() -> None:
    task = make_task("msg")
    before = {name: m.weight.detach().clone() for name, m in convolutions(task.model).items()}
    generator = torch.Generator().manual_seed(0)
    task._once = lambda name, compute, inputs: compute(generator)
    order = torch.randperm(len(task.retain), generator=torch.Generator().manual_seed(0))[: len(task.forget)]
    expected = {name: torch.zeros_like(weight) for name, weight in before.items()}
    for split, sign in ((task.retain.subset(order), 1.0), (task.forget, -1.0)):
        for images, labels in split.batches(64):
            task.model.zero_grad()
            (sign * F.cross_entropy(task.model(images), labels)).backward()
            for name, module in convolutions(task.model).items():
                expected[name] += module.weight.grad
    task.model.zero_grad()
    for name, module in convolutions(run_method("msg", task, share=0.5, **STILL)).items():
        changed = module.weight != before[name]
        values = expected[name].abs()
        assert float(values[changed].max()) <= float(values[~changed].min()) + 1e-6
        spread = math.sqrt(2.0 / (module.out_channels * module.kernel_size[0] * module.kernel_size[1]))
        assert float(module.weight.detach()[changed].std()) == pytest.approx(spread, rel=0.25)


def test_gradients_of_one_set_against_itself_cancel() -> None:
    task = make_task("msg")
    task._splits["forget"] = task._splits["retain"]
    found = gradient_difference(task, {"blocks.0.0.weight"}, torch.Generator().manual_seed(1))
    full = gradient_difference(make_task("msg"), {"blocks.0.0.weight"}, torch.Generator().manual_seed(1))
    assert float(found["blocks.0.0.weight"].norm()) < 0.5 * float(full["blocks.0.0.weight"].norm())


def test_kept_convolution_weights_learn_a_tenth() -> None:
    """One step on all of D_r: share 0 moves convolutions by a tenth of fine-tuning's step, all else by the whole."""
    size = {"epochs": 1, "batch_size": 10**6, "momentum": 0.0, "weight_decay": 0.0}
    start = {key: value.clone() for key, value in make_task("msg").model.state_dict().items()}
    plain = run_method("finetune", make_task("finetune"), lr=0.1, **size).state_dict()
    model = run_method("msg", make_task("msg"), share=0.0, lr=0.1, schedule="none", warmup=0.0, **size)
    weights = {f"{name}.weight" for name in convolutions(model)}
    for key, value in model.state_dict().items():
        factor = 0.1 if key in weights else 1.0
        torch.testing.assert_close(value - start[key], factor * (plain[key] - start[key]), rtol=1e-3, atol=1e-6)


def test_smallest_counts_exactly_where_values_are_equal() -> None:
    assert int(smallest(torch.zeros(7, 3), 0.5).sum()) == 10  # round(10.5), to even
    assert smallest(torch.tensor([3.0, 1.0, 2.0, 0.0]), 0.5).tolist() == [False, True, False, True]


def test_forgets_the_class_and_keeps_the_rest() -> None:
    task = make_task("msg")
    model = run_method("msg", task, share=0.8, lr=0.05, epochs=5, batch_size=16)
    found = {}
    for part in ("retain", "forget"):
        images, labels = task._splits[part].tensors()
        with torch.no_grad():
            found[part] = float((model(images).argmax(1) == labels).float().mean())
    assert found["retain"] > 0.95
    assert found["forget"] < 0.6


def test_cost_and_bad_settings() -> None:
    task = make_task("msg")
    run_method("msg", task, epochs=3)
    assert task._passes.backward == pytest.approx(2 * len(task.forget) + 3 * len(task.retain))
    with pytest.raises(UserError, match="share must be in"):
        resolve(MsgHparams, {"share": 1.5}, "msg")
