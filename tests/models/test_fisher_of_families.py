"""Fisher diagonals of attention, layer norm and depthwise convolutions against float64 gradients of single samples."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raybench.fisher import fisher_diag
from raybench.passes import PassCounter
from raybench.registry import MODELS
from raybench.seeding import seeded_globals

SHAPE = (1, 28, 28)
SMALL = {
    "vit_tiny": {"width": 8, "depth": 2, "heads": 2, "patch": 7},
    "convnext_t": {"width": 4, "depths": [1, 1], "patch": 4},
    "swin_t": {"width": 32, "depths": [2, 1], "patch": 4, "window": 3},
    "resnext50": {"width": 2},
}


def built(name: str) -> nn.Module:
    with seeded_globals(1):
        model = MODELS[name].fn(4, SHAPE, **SMALL[name]).eval()
        with torch.no_grad():  # layer scales begin near 0, where everything would look right
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("name", SMALL)
def test_squared_gradients_of_single_samples(name):
    model, n = built(name), 3
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randn(n, *SHAPE, generator=draw), torch.arange(n)
    double = copy.deepcopy(model).double()
    expected = {key: torch.zeros_like(p) for key, p in double.named_parameters()}
    for x, y in zip(images.double(), labels, strict=True):
        grads = torch.autograd.grad(F.cross_entropy(double(x[None]), y[None]), list(double.parameters()))
        for key, g in zip(expected, grads, strict=True):
            expected[key] += g.square() / n
    found = fisher_diag(model, images, labels, batch_size=2)
    assert list(found) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key].double(), value, rtol=2e-3, atol=1e-5 * float(value.max()), msg=key)


@pytest.mark.parametrize("name", SMALL)
def test_one_sample_is_one_pass(name):
    """Whatever the mathematics beside the counted layers, a sample through the model itself is one pass each way."""
    model = built(name)
    passes = PassCounter(model, SHAPE)
    tracked = passes.track(copy.deepcopy(model))
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(tracked(x), torch.arange(5) % 4).backward()
    assert passes.forward == pytest.approx(5)
    assert passes.backward == pytest.approx(5, rel=1e-6)
