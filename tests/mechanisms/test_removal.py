"""Influence directions against closed forms in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.data import Batch, Pixels, Split
from raybench.mechanisms.curvature import kfac_factors
from raybench.mechanisms.removal import diagonal_solve, kfac_solve, removal_gradient, woodfisher
from raybench.testing import make_task


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def linear(seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    return model, torch.randn(6, 3, generator=draw).double(), torch.randint(2, (6,), generator=draw)


def test_removal_gradient_is_what_the_mean_loss_loses() -> None:
    """v = gradient of (mean loss on D - mean loss on D_r), whatever the batch size."""
    task = make_task(model="mlp")
    model = task.model

    def gradient(*parts: str) -> list[Tensor]:
        batches = [task._splits[part].tensors() for part in parts]
        images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
        value = F.cross_entropy(model(images), labels)
        return list(torch.autograd.grad(value, list(model.parameters())))

    expected = [a - b for a, b in zip(gradient("forget", "retain"), gradient("retain"), strict=True)]
    found = removal_gradient(model, task.forget, task.retain, task.loss, 50)
    for value, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("repeats", [0, 1, 7])
def test_woodfisher_of_equal_gradients_is_the_damped_inverse(repeats: int) -> None:
    """Of one gradient seen 1 + m times the recursion is exactly (I + m / N' g g^T)^{-1} v."""
    model, x, y = linear()
    g = torch.cat(
        [
            part.flatten()
            for part in torch.autograd.grad(cross_entropy(model, (x[:1], y[:1])).sum(), list(model.parameters()))
        ]
    )
    v = torch.randn(len(g), generator=torch.Generator().manual_seed(1)).double()
    parts = dict(zip(("weight", "bias"), (v[:6].view(2, 3), v[6:]), strict=True))
    found = woodfisher(model, parts, [(x[:1], y[:1])] * (repeats + 1), cross_entropy, prior=5.0)
    expected = torch.linalg.solve(torch.eye(len(g)).double() + repeats / 5.0 * torch.outer(g, g), v)
    torch.testing.assert_close(torch.cat([part.flatten() for part in found.values()]), expected)


def test_woodfisher_of_two_gradients() -> None:
    model, x, y = linear()
    g = [
        torch.cat(
            [
                p.flatten()
                for p in torch.autograd.grad(
                    cross_entropy(model, (x[i : i + 1], y[i : i + 1])).sum(), list(model.parameters())
                )
            ]
        )
        for i in (0, 1, 2)
    ]
    v = {"weight": torch.ones(2, 3).double(), "bias": torch.ones(2).double()}
    found = woodfisher(model, v, [(x[i : i + 1], y[i : i + 1]) for i in (0, 1)], cross_entropy, prior=2.0)
    expected = torch.ones(8).double() - g[1].sum() / (2.0 + g[0] @ g[1]) * g[0]
    torch.testing.assert_close(torch.cat([part.flatten() for part in found.values()]), expected)


def test_diagonal() -> None:
    v, fisher = (
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])},
        {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([1.0])},
    )
    found = diagonal_solve(v, fisher, 0.5)  # mean(F) = 2
    assert found["a"].tolist() == pytest.approx([0.5, 0.4])
    assert found["b"].tolist() == pytest.approx([1.5])
    assert float(diagonal_solve(v, {n: torch.zeros_like(f) for n, f in fisher.items()}, 0.5)["a"].abs().max()) == 0.0


def test_kfac_is_the_dense_kronecker_solve() -> None:
    draw = torch.Generator().manual_seed(3)
    images, labels = torch.randint(256, (9, 1, 2, 2), generator=draw).byte(), torch.randint(3, (9,), generator=draw)
    unit = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    split = Split(images, labels, torch.arange(9), Pixels(0.5 * unit, 0.3 * unit))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    factors = kfac_factors(model, split, cross_entropy, labels="data")
    v = {name: torch.randn(p.shape, generator=draw).double() for name, p in model.named_parameters()}
    found = kfac_solve(model, v, factors, 0.09)
    a, g = factors["1/A"], factors["1/G"]
    left = g + 0.3 * g.diagonal().mean() * torch.eye(3)
    right = a + 0.3 * a.diagonal().mean() * torch.eye(5)
    wide = torch.cat([v["1.weight"], v["1.bias"][:, None]], 1)
    expected = torch.linalg.solve(torch.kron(left, right), wide.flatten()).view_as(wide)
    torch.testing.assert_close(found["1.weight"], expected[:, :-1])
    torch.testing.assert_close(found["1.bias"], expected[:, -1])
    assert float(found["2.weight"].abs().max()) == 0.0
