"""One step at a time against torch's own optimiser."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from raybench.mechanisms.stepping import Stepper, frozen_copy
from raybench.training import Recipe, cross_entropy


def test_steps_are_those_of_one_optimiser() -> None:
    draw = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 3)
    plain = copy.deepcopy(model)
    stepper = Stepper(model, Recipe(optimiser="sgd", lr=1.0, momentum=0.9, weight_decay=0.01))
    optimiser = torch.optim.SGD(plain.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    for step, lr in enumerate((0.1, 0.05, 0.2)):
        x, y = torch.randn(5, 4, generator=draw), torch.tensor([0, 1, 2, 0, 1])
        sign, clip = (-1.0, 0.5) if step == 1 else (1.0, None)

        def halve_bias() -> None:
            assert model.bias.grad is not None
            model.bias.grad *= 0.5

        objective = lambda losses, sign=sign: sign * losses.mean()  # noqa: E731
        stepper.step((x, y), cross_entropy, lr=lr, objective=objective, after_backward=halve_bias, clip_norm=clip)
        optimiser.param_groups[0]["lr"] = lr
        optimiser.zero_grad()
        (sign * F.cross_entropy(plain(x), y)).backward()
        assert plain.bias.grad is not None
        plain.bias.grad *= 0.5
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), clip)
        optimiser.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_that_are_frozen_stay() -> None:
    model = nn.Linear(4, 3)
    model.bias.requires_grad_(False)
    before = model.bias.detach().clone()
    Stepper(model, Recipe(weight_decay=0.1)).step((torch.ones(2, 4), torch.tensor([0, 1])), cross_entropy, lr=0.1)
    assert torch.equal(model.bias, before)


def test_frozen_copy_is_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()
    teacher = frozen_copy(model)
    assert not teacher.training
    assert model.training
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert not torch.equal(teacher[0].weight, model[0].weight)  # type: ignore[index]
