"""K-FAC factors against Hessians and per-sample gradients of autograd in float64; Eq. 14 of AFIM against pinv."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.data import Batch, Pixels, Split
from raybench.mechanisms.curvature import (
    KfacInverse,
    activation_preconditioner,
    factored_layers,
    gradient_matrix,
    input_moments,
    kfac_factors,
    matrix,
    parameters_of,
    relative_step,
    split_matrix,
)
from raybench.passes import PassCounter
from raybench.seeding import seeded_globals

CLASSES = 3


def data(n: int, seed: int = 0) -> Split:
    """n images of 1x4x4 in float64."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    unit = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return Split(images, labels, torch.arange(n), Pixels(0.5 * unit, 0.3 * unit))


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def build(make: Callable[[], nn.Module]) -> nn.Module:
    with seeded_globals(0):
        return make().double()


def softmax_regression(bias: bool = True) -> nn.Module:
    return build(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES, bias=bias)))


def convnet() -> nn.Module:
    """Strides, padding, and a layer without bias."""
    return build(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(2, 3, 2, bias=False),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(3, CLASSES),
        )
    )


def fisher_block(model: nn.Module, name: str, split: Split) -> Tensor:
    """The exact Fisher of a layer over vec([weight, bias]) (rows of W one after the other): the mean over samples and,
    by the model's probabilities, over labels of gradient outer products. Plain autograd, sample by sample."""
    layer = factored_layers(model)[name]
    total = torch.zeros(matrix(layer).numel(), matrix(layer).numel(), dtype=torch.float64)
    for image, _ in zip(*split.tensors(), strict=True):
        shares = model(image[None]).softmax(1)[0].detach()
        for k in range(CLASSES):
            model.zero_grad()
            F.cross_entropy(model(image[None]), torch.tensor([k])).backward()
            g = gradient_matrix(layer).flatten()
            total += shares[k] * torch.outer(g, g)
    model.zero_grad()
    return total / len(split)


def kron(factors: dict[str, Tensor], name: str) -> Tensor:
    """G (x) A, the block over the rows of W."""
    return torch.kron(factors[f"{name}/G"], factors[f"{name}/A"])


# --- factors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_softmax_regression_on_one_sample_is_exact_and_equals_the_hessian(bias: bool) -> None:
    model, one = softmax_regression(bias), data(1)
    images, labels = one.tensors()
    factors = kfac_factors(model, one, cross_entropy, labels="exact")
    rows = torch.cat([images.flatten(1), torch.ones(1, 1)], 1) if bias else images.flatten(1)

    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(rows @ w.view(CLASSES, -1).T, labels)

    hessian = torch.autograd.functional.hessian(loss, matrix(factored_layers(model)["1"]).flatten())
    assert torch.allclose(kron(factors, "1"), hessian, atol=1e-12)
    assert torch.allclose(fisher_block(model, "1", one), hessian, atol=1e-12)


def test_every_block_is_exact_for_one_sample_and_one_position() -> None:
    """The last two layers of the network see one position each; the first sees four and is an approximation."""
    model, one = convnet(), data(1)
    factors = kfac_factors(model, one, cross_entropy, labels="exact")
    for name in ("2", "5"):
        assert torch.allclose(kron(factors, name), fisher_block(model, name, one), atol=1e-12), name
    assert not torch.allclose(kron(factors, "0"), fisher_block(model, "0", one), rtol=1e-3)


def test_factors_follow_their_definition_over_samples_and_positions() -> None:
    """A = E[sum_t a a^T] and G = E[mean_t g g^T], sample by sample and position by position."""
    model, split = convnet(), data(5)
    factors = kfac_factors(model, split, cross_entropy, labels="data", batch_size=2)
    images, labels = split.tensors()
    a_sum, g_sum = torch.zeros(10, 10, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for image, label in zip(images, labels, strict=True):
        padded = F.pad(image, (1, 1, 1, 1))[0]
        hidden = model[0](image[None]).detach().requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(model[1:](hidden), label[None]), hidden)
        for row in range(2):
            for column in range(2):
                patch = padded[2 * row : 2 * row + 3, 2 * column : 2 * column + 3].flatten()
                patch = torch.cat([patch, torch.ones(1, dtype=torch.float64)])
                a_sum += torch.outer(patch, patch)
                g_sum += torch.outer(g[0, :, row, column], g[0, :, row, column]) / 4
    assert torch.allclose(factors["0/A"], a_sum / 5, atol=1e-12)
    assert torch.allclose(factors["0/G"], g_sum / 5, atol=1e-12)
    assert set(factors) == {f"{name}/{factor}" for name in ("0", "2", "5") for factor in "AG"}


def test_the_factors_multiply_exactly_where_inputs_and_gradients_are_independent() -> None:
    """A Gaussian (squared) loss with residuals that do not depend on the sample: E[aa^T (x) gg^T] factorises."""
    model = build(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)))
    split, residual = data(6), torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)

    def squared(network: nn.Module, batch: Batch) -> Tensor:
        out = network(batch[0])
        return 0.5 * (out - (out.detach() - residual)).square().sum(1)

    factors = kfac_factors(model, split, squared, labels="data")
    layer, total = factored_layers(model)["1"], torch.zeros(51, 51, dtype=torch.float64)
    for image, label in zip(*split.tensors(), strict=True):
        model.zero_grad()
        squared(model, (image[None], label[None])).sum().backward()
        g = gradient_matrix(layer).flatten()
        total += torch.outer(g, g) / 6
    assert torch.allclose(kron(factors, "1"), total, atol=1e-12)


def test_drawn_labels_converge_to_the_exact_ones_and_batches_do_not_matter() -> None:
    model, split = softmax_regression(), data(12)
    exact = kfac_factors(model, split, cross_entropy, labels="exact")
    again = kfac_factors(model, split, cross_entropy, labels="exact", batch_size=5)
    assert all(torch.allclose(exact[key], again[key], atol=1e-12) for key in exact)
    generator = torch.Generator().manual_seed(0)
    drawn = [kfac_factors(model, split, cross_entropy, generator=generator)["1/G"] for _ in range(400)]
    assert torch.allclose(torch.stack(drawn).mean(0), exact["1/G"], atol=0.02)
    assert not torch.allclose(drawn[0], exact["1/G"], atol=0.02)
    assert float((kfac_factors(model, split, cross_entropy, labels="data")["1/G"] - exact["1/G"]).abs().max()) > 0.02


def test_subsample_is_a_mean_over_fewer() -> None:
    model, split = softmax_regression(), data(40)
    generator = torch.Generator().manual_seed(3)
    position = torch.randperm(40, generator=torch.Generator().manual_seed(3))[:10]
    some = kfac_factors(model, split, cross_entropy, labels="data", samples=10, generator=generator)
    wanted = kfac_factors(model, split.subset(position), cross_entropy, labels="data")
    assert all(torch.equal(some[key], wanted[key]) for key in wanted)


def test_nothing_is_left_behind() -> None:
    model = build(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, CLASSES)))
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    factors = kfac_factors(model, data(4), cross_entropy, labels="exact")
    assert set(factors) == {"0/A", "0/G", "3/A", "3/G"}  # batch norm is no matrix
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_what_is_refused() -> None:
    model, split = softmax_regression(), data(4)
    with pytest.raises(ValueError, match="generator"):
        kfac_factors(model, split, cross_entropy)
    with pytest.raises(ValueError, match="generator"):
        kfac_factors(model, split, cross_entropy, labels="data", samples=2)
    with pytest.raises(ValueError, match="at least one sample"):
        kfac_factors(model, split.subset(torch.tensor([], dtype=torch.int64)), cross_entropy, labels="data")
    with pytest.raises(ValueError, match="got neither"):
        factored_layers(nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.BatchNorm2d(2)))


# --- solving -----------------------------------------------------------------------------------------------------


def test_solve_is_the_inverse_of_the_damped_kronecker_product() -> None:
    model, split, damping = convnet(), data(9), 1e-2
    factors = kfac_factors(model, split, cross_entropy, labels="exact")
    inverse = KfacInverse(model, factors, damping)
    for name, layer in factored_layers(model).items():
        a, g = factors[f"{name}/A"], factors[f"{name}/G"]
        wide = a + math.sqrt(damping) * a.diagonal().mean() * torch.eye(len(a), dtype=torch.float64)
        tall = g + math.sqrt(damping) * g.diagonal().mean() * torch.eye(len(g), dtype=torch.float64)
        gradient = torch.randn(matrix(layer).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        wanted = torch.linalg.solve(torch.kron(tall, wide), gradient.flatten()).view_as(gradient)
        assert torch.allclose(inverse.solve(name, gradient), wanted, rtol=1e-8), name


def test_large_damping_leaves_the_direction_of_the_gradient() -> None:
    model, split = convnet(), data(9)
    factors = kfac_factors(model, split, cross_entropy, labels="exact")
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def cosine(damping: float) -> float:
        solved = KfacInverse(model, factors, damping).solve("5", gradient)
        return float((solved / solved.norm() * gradient / gradient.norm()).sum())

    assert cosine(1e12) == pytest.approx(1.0, abs=1e-6)
    assert cosine(1e-2) < 0.99


@pytest.mark.parametrize("scale", [0.0, 1e-36, 1e12])
def test_inverse_survives_any_scale_in_fp32(scale: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    factors = {"0/A": torch.ones(2, 2), "0/G": scale * torch.ones(2, 2)}  # both of rank one or none
    solved = KfacInverse(model, factors, 1e-6).solve("0", torch.tensor([[1.0, 0.5], [0.0, 2.0]]))
    direction = relative_step(solved, torch.ones(2, 2).double(), 1.0)
    assert bool(torch.isfinite(direction).all())
    assert float(direction.norm()) == pytest.approx(2.0, rel=1e-5)


def test_products_are_charged() -> None:
    model = convnet()
    counter = PassCounter(model, (1, 4, 4))
    counter.track(model)
    factors = kfac_factors(model, data(4), cross_entropy, labels="data")
    before = counter.backward_flops
    KfacInverse(model, factors, 1.0).solve("5", torch.ones(3, 4, dtype=torch.float64))
    assert counter.backward_flops - before == 2 * 3 * 4 * (3 + 4)


# --- Eq. 14 of AFIM ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.7, 50.0])
def test_preconditioner_is_the_documents_and_its_closed_form(beta: float) -> None:
    """P = pinv(I)^T (S^T S - beta) pinv(I) = W^T W - (beta / B) A^{-1} for random I of full rank, to 1e-8."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    inputs = torch.randn(6, 25, generator=generator, dtype=torch.float64)
    outputs = w @ inputs
    columns = inputs.shape[1]
    p = activation_preconditioner(inputs @ inputs.T, outputs @ inputs.T, beta, columns, 0.0)
    pinv = torch.linalg.pinv(inputs)
    printed = pinv.T @ (outputs.T @ outputs - beta * torch.eye(columns, dtype=torch.float64)) @ pinv
    closed = w.T @ w - beta * torch.linalg.inv(inputs @ inputs.T)
    assert float((p - printed).abs().max()) < 1e-8
    assert float((p - closed).abs().max()) < 1e-8


def test_preconditioner_exists_for_inputs_of_low_rank() -> None:
    inputs = torch.ones(6, 3, dtype=torch.float64)
    p = activation_preconditioner(inputs @ inputs.T, torch.ones(2, 6), 1.0, 3, 1e-2)
    assert bool(torch.isfinite(p).all())
    assert torch.allclose(p, p.T)


def test_moments_are_those_of_the_columns_and_outputs_are_w_times_inputs() -> None:
    model, split = convnet(), data(7)
    layers = factored_layers(model)
    with input_moments(model, layers) as moments:
        for images, _ in split.batches(3):
            model(images)
    with torch.no_grad():
        hidden = model[1](model[0](split.tensors()[0]))
        patches = F.unfold(hidden, 2).transpose(1, 2).flatten(0, 1)
        out = patches @ matrix(layers["2"]).T
    assert moments["2"].columns == len(patches) == 7
    assert torch.allclose(moments["2"].inputs, patches.T @ patches)
    assert torch.allclose(moments["2"].cross, out.T @ patches)
    assert moments["2"].squares == pytest.approx(float(out.square().sum()))
    assert moments["0"].columns == 7 * 4
    for name, layer in layers.items():  # S = W I, so S I^T = W (I I^T), biases included
        assert torch.allclose(moments[name].cross, matrix(layer) @ moments[name].inputs), name


# --- small parts -------------------------------------------------------------------------------------------------


def test_matrices_go_there_and_back() -> None:
    for layer in factored_layers(convnet()).values():
        w = matrix(layer)
        parts = split_matrix(layer, w)
        assert [p.shape for p in parts] == [p.shape for p in layer.parameters()]
        assert all(torch.equal(part, p) for part, p in zip(parts, layer.parameters(), strict=True))
        assert torch.equal(gradient_matrix(layer), torch.zeros_like(w))
    model = convnet()
    assert {id(p) for p in parameters_of(factored_layers(model))} == {id(p) for p in model.parameters()}


def test_relative_step() -> None:
    g, w = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0, 2.0])
    assert torch.allclose(relative_step(g, w, 0.5), torch.tensor([0.9, 1.2]))
    assert torch.equal(relative_step(0 * g, w, 0.5), torch.zeros(2))
