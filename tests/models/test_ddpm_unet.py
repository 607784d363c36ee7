"""The U-Net of the diffusion model: shapes, size, gradients, and that the engine can take it layer by layer."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from raybench.conformance import NotHere, cases
from raybench.errors import UserError
from raybench.fisher import fisher_diag
from raybench.models.ddpm_unet import ddpm_unet, sinusoids
from raybench.seeding import seeded_globals
from raybench.task_kinds import TASK_KINDS

CASES = list(cases("models", "ddpm_unet"))


def tiny(channels: int = 1, side: int = 8, patch: int = 2) -> nn.Module:
    with seeded_globals(0):
        return ddpm_unet(10, (channels, side, side), width=8, patch=patch).double().eval()


def images(n: int, channels: int = 1, side: int = 8) -> Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_conformance(case) -> None:
    try:
        case.run()
    except NotHere as reason:
        pytest.skip(str(reason))


def by_hand(width: int, channels: int, patch: int) -> int:
    def block(inputs: int, outputs: int) -> int:
        skip = inputs * outputs + outputs if inputs != outputs else 0
        return 9 * inputs * outputs + outputs + 9 * outputs**2 + outputs + 4 * width * 2 * outputs + 2 * outputs + skip

    pixels, wide = channels * patch**2, 2 * width
    embed = width * 4 * width + 4 * width + (4 * width) ** 2 + 4 * width
    ends = 9 * pixels * width + width + 9 * width * pixels + pixels
    between = 9 * width * wide + wide + 9 * wide * width + width
    blocks = block(width, width) + 2 * block(wide, wide) + block(2 * wide, wide) + block(2 * width, width)
    return embed + ends + between + blocks


@pytest.mark.parametrize(("width", "shape", "patch"), [(32, (1, 28, 28), 2), (16, (3, 32, 32), 4), (8, (1, 8, 8), 1)])
def test_number_of_parameters(width, shape, patch) -> None:
    model = ddpm_unet(10, shape, width=width, patch=patch)
    assert sum(p.numel() for p in model.parameters()) == by_hand(width, shape[0], patch)


@pytest.mark.parametrize(("shape", "patch"), [((1, 28, 28), 2), ((3, 32, 32), 2), ((1, 9, 15), 3), ((2, 7, 5), 1)])
def test_noise_has_the_shape_of_the_images(shape, patch) -> None:
    model = ddpm_unet(10, shape, width=8, patch=patch)
    x = torch.randn(3, *shape)
    assert model(x, torch.tensor([0, 5, 999])).shape == x.shape
    torch.testing.assert_close(model(x), model(x, torch.zeros(3, dtype=torch.int64)))


def test_gradients_against_finite_differences() -> None:
    model, x, t = tiny(side=4, patch=1), images(1, side=4), torch.tensor([37])
    noise, p = images(1, side=4) * 0.3, dict(model.named_parameters())["up.step.weight"]

    def loss() -> Tensor:
        return (model(x, t) - noise).square().mean()

    loss().backward()
    for row, column in ((0, 0), (3, 7), (9, 20)):
        with torch.no_grad():
            p[row, column] += 1e-6
            above = loss()
            p[row, column] -= 2e-6
            below = loss()
            p[row, column] += 1e-6
        assert p.grad is not None
        torch.testing.assert_close((above - below) / 2e-6, p.grad[row, column], rtol=1e-4, atol=1e-9)


def test_every_weight_is_in_a_layer_that_is_called_once() -> None:
    # What keeps per-sample gradients cheap: no torch.func pass for anything.
    model, calls = tiny(), Counter()
    for layer in model.modules():
        layer.register_forward_hook(lambda layer, *_: calls.update([layer]))
    model(images(2), torch.tensor([1, 2]))
    owners = [layer for layer in model.modules() if any(p is not None for p in layer._parameters.values())]
    assert all(isinstance(layer, nn.Linear | nn.Conv2d) and calls[layer] == 1 for layer in owners)


def test_fisher_diagonal_is_the_mean_of_squared_gradients() -> None:
    model, x, labels = tiny(), images(5), torch.zeros(5, dtype=torch.int64)
    loss = TASK_KINDS["denoising"].loss
    found = fisher_diag(model, x, labels, batch_size=5, loss=loss(torch.Generator().manual_seed(3)))
    losses = loss(torch.Generator().manual_seed(3))(model, (x, labels))
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for value in losses:
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient.square() / 5
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-12)


def test_sinusoids() -> None:
    found = sinusoids(torch.tensor([0, 3]), 4)
    expected = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1411, 0.0300, -0.98999, 0.99955]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"width": 12}, "a multiple of 8, got 12"), ({"patch": 3}, "must divide"), ({"patch": 28}, "into two")],
)
def test_sizes_that_do_not_fit(options, said) -> None:
    with pytest.raises(UserError, match=said):
        ddpm_unet(10, (1, 28, 28), **options)
