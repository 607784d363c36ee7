"""Noise by curvature: the worked numbers of the specification, and which tensors are the head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raybench.mechanisms.fisher_noise import add_noise, head_parameters, scrubbing_variance
from raybench.testing import make_bench


def test_head_has_its_own_cap_and_the_boost() -> None:
    fisher = {"weight": torch.tensor([[0.890782], [0.739346], [0.327700]])}
    variance = scrubbing_variance(fisher, ["weight"], 1e-6, average=False)["weight"]
    assert variance.sqrt().flatten().tolist() == pytest.approx([0.003351, 0.003678, 0.005524], abs=1e-6)


def test_variances_are_means_over_inputs() -> None:
    fisher = {"weight": torch.tensor([[1e-4, 1e-2, 1.0], [10.0, 1e-6, 1e-3]])}
    variance = scrubbing_variance(fisher, [], 1e-6)["weight"]
    assert variance.shape == (2, 3)
    assert variance[:, 0].tolist() == pytest.approx([3.670e-4, 6.667e-4], rel=1e-4)
    assert torch.equal(variance, variance[:, :1].expand(2, 3))


def test_caps_powers_and_the_boost() -> None:
    zero = {"conv": torch.zeros(2, 2), "head": torch.zeros(2, 2), "bias": torch.zeros(2)}
    found = scrubbing_variance(zero, ["head"], 1.0)
    assert [float(found[name].max()) for name in ("conv", "head", "bias")] == pytest.approx([1e3, 1e3, 1e4])
    found = scrubbing_variance(zero, ["head"], 1.0, power="1/2", boost=1.0)
    assert [float(found[name].max()) for name in ("conv", "head", "bias")] == pytest.approx([1e3**0.5, 1e1, 1e3**0.5])


def test_rows_of_forgotten_classes_start_from_zero() -> None:
    model = nn.Linear(400, 3)
    before = model.weight.detach().clone()
    fisher = {"weight": torch.ones(3, 400), "bias": torch.ones(3)}
    variance = scrubbing_variance(fisher, ["weight", "bias"], 0.0, rows=[1])
    assert variance["bias"].tolist() == pytest.approx([0.0, 1e-3, 0.0])
    add_noise(model, variance, torch.Generator().manual_seed(0), ["weight", "bias"], rows=[1])
    assert torch.equal(model.weight[[0, 2]], before[[0, 2]])
    assert float(model.weight[1].std().detach()) == pytest.approx(1e-3**0.5, rel=0.1)
    assert abs(float(model.weight[1].mean().detach())) < 4 * 1e-3**0.5 / 20


def test_noise_has_the_variance_and_comes_from_the_generator() -> None:
    def draw(seed: int) -> Tensor:
        model = nn.Linear(300, 300, bias=False)
        nn.init.zeros_(model.weight)
        variance = {"weight": torch.full((300, 300), 0.25)}
        add_noise(model, variance, torch.Generator().manual_seed(seed))
        return model.weight.detach()

    assert float(draw(0).std()) == pytest.approx(0.5, rel=0.01)
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_the_head_is_known_by_identity_not_by_its_shape() -> None:
    model = make_bench("mlp", samples=60, model_options=(("hidden", (10,)),)).original.model
    assert [len(p) for p in model.parameters()] == [10, 10, 10, 10]  # every tensor has K rows
    assert head_parameters(model) == ["head.weight", "head.bias"]
