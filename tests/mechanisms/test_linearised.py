"""The linearised network: kernel and products against autograd, ridge regression in closed form, the step's stretch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raybench.mechanisms.linearised import dual, kernel, pullback, residuals, trapezium
from raybench.passes import PassCounter


def small() -> tuple[nn.Module, Tensor]:
    draw = torch.Generator().manual_seed(0)
    model = (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double().eval()
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    return model, torch.randn(5, 1, 4, 4, generator=draw).double()


def jacobian(model: nn.Module, images: Tensor, names: list[str]) -> Tensor:
    """The oracle: ``torch.func`` on the whole batch at once."""
    values = {name: p.detach() for name, p in model.named_parameters()}
    parts = torch.func.jacrev(lambda v: torch.func.functional_call(model, v, (images,)))(values)
    return torch.cat([parts[name].flatten(2) for name in names], 2).flatten(0, 1)


def test_kernel_and_pullback() -> None:
    model, images = small()
    for names in ([name for name, _ in model.named_parameters()], ["4.weight", "4.bias"]):
        found = jacobian(model, images, names)
        torch.testing.assert_close(kernel(model, images, names), found @ found.T)
        c = torch.randn(15, generator=torch.Generator().manual_seed(1)).double()
        torch.testing.assert_close(pullback(model, images, c, names), found.T @ c)


def ridge(x: Tensor, y: Tensor, decay: float) -> Tensor:
    found: Tensor = torch.linalg.solve(x.T @ x + len(x) * decay * torch.eye(x.shape[1]).double(), x.T @ y)
    return found


def test_a_linear_model_with_squared_loss_is_ridge_regression() -> None:
    """From w = 0 the residuals are -y; and the step between two sets leads from one solution to the other."""
    draw = torch.Generator().manual_seed(2)
    x, y = torch.randn(12, 4, generator=draw).double(), torch.randn(12, generator=draw).double()
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    found = {}
    for part in (12, 9):
        rows, wanted = x[:part], y[:part]
        gram = kernel(model, rows, ["weight"])
        found[part] = -pullback(model, rows, dual(gram, -wanted, part, 0.1), ["weight"])
        torch.testing.assert_close(found[part], ridge(rows, wanted, 0.1), rtol=1e-12, atol=1e-13)
    moved = ridge(x, y, 0.1) + found[9] - found[12]
    torch.testing.assert_close(moved, ridge(x[:9], y[:9], 0.1), rtol=1e-12, atol=1e-13)


def test_residuals_are_the_gradient_at_the_logits() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0])
    value = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(residuals(logits, labels), torch.autograd.grad(value, logits)[0].double())


def test_trapezium_repeats_the_published_numbers() -> None:
    """|dw| = 0.018188, c = -0.10559 and a predicted norm of 0.42819 make s = 23.543."""
    missed = (0.42819 - 0.018188) / (2 * math.sin(math.acos(-0.10559) - math.pi / 2))
    step = torch.tensor([0.018188, 0.0]).double()
    error = missed * torch.tensor([-0.10559, math.sqrt(1 - 0.10559**2)]).double()
    assert trapezium(step, error) == pytest.approx(23.543, rel=1e-3)
    assert trapezium(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx((2 + 2 * 0.6 * 5) / 2)
    assert trapezium(torch.zeros(2), torch.ones(2)) == 1.0


def test_passes_agree_with_the_flop_counter() -> None:
    model, images = small()
    passes = PassCounter(model, (1, 4, 4))
    passes.track(model)
    names = [name for name, _ in model.named_parameters()]
    with FlopCounterMode(display=False) as flops:
        kernel(model, images, names)
    assert passes.forward == pytest.approx(5)
    assert flops.get_total_flops() == pytest.approx(passes.forward_flops + passes.backward_flops, rel=0.05)
