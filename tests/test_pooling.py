"""Max pooling by twos is torch's to the bit: values, ties, not-a-number, gradients, mapped over samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from raybench.pooling import WORTH, HalvingMaxPool


def images(*shape: int) -> torch.Tensor:
    """With many equal pixels, zeros and negative ones."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).round()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 7, 9), (1, 1, 2, 3), (3, 4, 6)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_values(shape: tuple[int, ...], channels_last: bool) -> None:
    x = images(*shape)
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(HalvingMaxPool()(x), nn.MaxPool2d(2)(x))


def test_not_a_number_and_infinities() -> None:
    x = images(2, 3, 8, 8)
    x[0, 0, 0, 0], x[0, 1, 3, 3], x[1, 2, 4, 5], x[1, 0] = torch.nan, torch.nan, torch.inf, -torch.inf
    torch.testing.assert_close(HalvingMaxPool()(x), nn.MaxPool2d(2)(x), rtol=0, atol=0, equal_nan=True)


def test_gradients_of_ties_go_where_torchs_go() -> None:
    x, weights = images(2, 3, 8, 8), images(2, 3, 4, 4)
    found = []
    for pool in (HalvingMaxPool(), nn.MaxPool2d(2)):
        y = x.clone().requires_grad_()
        (pool(y) * weights).sum().backward()
        found.append(y.grad)
        mapped = vmap(grad(lambda image, pool=pool: (pool(image[None]) * weights[0]).sum()))
        with torch.no_grad():
            found.append(mapped(x))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert int((found[1] != 0).sum()) < weights[0].numel() * 2 + 1  # one pixel of each four at most


@pytest.mark.parametrize("shape", [(16, 6, 28, 28), (16, 6, 27, 29), (6, 28 * 16, 28)])
def test_gradients_of_many_pixels(shape: tuple[int, ...]) -> None:
    """Enough of them for the vectorised way; second derivatives too, which some methods take."""
    x = images(*shape).relu()
    assert x.numel() >= WORTH
    found = []
    for pool in (HalvingMaxPool(), nn.MaxPool2d(2)):
        y = x.clone().requires_grad_()
        out = pool(y)
        (first,) = torch.autograd.grad(out.square().sum(), y, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(3).sum(), y)
        found.append((out, first, second))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)
