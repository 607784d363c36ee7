"""Denoising diffusion against closed forms, in float64: forward process, posterior, sampler, loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raybench.diffusion import ALPHA_BARS, STEPS, alpha_bars, betas, ddim_sample, ddim_step, denoising_losses, q_sample
from raybench.diffusion import drawn_losses as drawn


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(step: int, n: int = 1) -> Tensor:
    return torch.full((n,), step)


def test_the_schedule_is_the_papers() -> None:
    assert STEPS == 1000
    assert (float(betas()[0]), float(betas()[-1])) == (pytest.approx(1e-4), pytest.approx(0.02))
    expected = 1.0
    for step, beta in enumerate(betas().tolist()):
        expected *= 1.0 - beta
        assert float(alpha_bars()[step]) == pytest.approx(expected, rel=1e-12)
    assert expected < 1e-4  # nothing of the image is left at the end


@pytest.mark.parametrize("step", [0, 10, 400, 999])
def test_unit_variance_is_preserved(step: int) -> None:
    # Coefficients: abar + (1 - abar) = 1, read off by feeding ones and zeros.
    one, zero = torch.ones(1, 1, 2, 2, dtype=torch.float64), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    image, noise = q_sample(one, at(step), zero), q_sample(zero, at(step), one)
    torch.testing.assert_close(image.square() + noise.square(), one, rtol=0, atol=1e-15)
    x = q_sample(normal(20_000, 1, 1, 1), at(step, 20_000), normal(20_000, 1, 1, 1, seed=1))
    assert float(x.var()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("step", [0, 1, 57, 300])
def test_one_jump_is_what_single_steps_add_up_to(step: int) -> None:
    # x_t is linear in x_0 and in the noise of each step: mean and variance follow by recursion, without sampling.
    mean, variance = 1.0, 0.0
    for beta in betas()[: step + 1].tolist():
        mean, variance = math.sqrt(1.0 - beta) * mean, (1.0 - beta) * variance + beta
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    assert float(q_sample(one, at(step), zero)) == pytest.approx(mean, rel=1e-12)
    assert float(q_sample(zero, at(step), one)) ** 2 == pytest.approx(variance, rel=1e-10)


def test_one_jump_has_the_distribution_of_single_steps() -> None:
    n, step = 40_000, 300
    x = torch.full((n,), 1.5, dtype=torch.float64)
    for k, beta in enumerate(betas()[: step + 1].tolist()):
        x = math.sqrt(1.0 - beta) * x + math.sqrt(beta) * normal(n, seed=k)
    jump = q_sample(torch.full((n, 1, 1, 1), 1.5, dtype=torch.float64), at(step, n), normal(n, 1, 1, 1, seed=9999))
    # Means differ by less than five standard errors, as do variances.
    assert abs(float(x.mean() - jump.mean())) < 5 * math.sqrt(2 * float(jump.var()) / n)
    assert abs(float(x.var() - jump.var())) < 5 * float(jump.var()) * math.sqrt(4 / n)


@pytest.mark.parametrize("step", [1, 2, 100, 999])
def test_a_step_with_eta_1_is_the_posterior_when_the_image_is_known(step: int) -> None:
    # Bayes by precisions: q(x_{t-1} | x_0) = N(sqrt(abar') x_0, 1 - abar'), q(x_t | x_{t-1}) = N(sqrt(1 - b) x, b).
    x0, x_t = 0.7, -1.3
    beta, before = float(betas()[step]), float(alpha_bars()[step - 1])
    precision = 1.0 / (1.0 - before) + (1.0 - beta) / beta
    mean = (math.sqrt(before) * x0 / (1.0 - before) + math.sqrt(1.0 - beta) * x_t / beta) / precision
    image, noisy = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (x0, x_t))
    centre = ddim_step(noisy, image, at(step), at(step - 1), eta=1.0, noise=torch.zeros_like(image))
    shifted = ddim_step(noisy, image, at(step), at(step - 1), eta=1.0, noise=torch.ones_like(image))
    assert float(centre) == pytest.approx(mean, rel=1e-8)
    assert float(shifted - centre) ** 2 == pytest.approx(1.0 / precision, rel=1e-8)


def test_the_last_step_gives_the_image() -> None:
    x0, noisy = normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1)
    for eta in (0.0, 1.0):
        torch.testing.assert_close(ddim_step(noisy, x0, at(5, 2), at(-1, 2), eta, normal(2, 1, 3, 3, seed=2)), x0)


def test_ddim_ends_where_the_noise_model_of_one_image_points() -> None:
    x0 = normal(1, 1, 4, 4).clamp(-1, 1)

    def model(x: Tensor, t: Tensor) -> Tensor:  # exact for data that are this one image
        kept = ALPHA_BARS[t].view(-1, 1, 1, 1)
        return (x - kept.sqrt() * x0) / (1.0 - kept).sqrt()

    for steps in (1, 3, 20):
        images = ddim_sample(model, normal(5, 1, 4, 4, seed=3), steps, -1.0, 1.0)
        torch.testing.assert_close(images, x0.expand(5, -1, -1, -1), rtol=0, atol=1e-9)


def test_ddim_draws_nothing_and_clamps() -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) * (t.view(-1, 1, 1, 1) / STEPS)

    noise = normal(5, 1, 4, 4)
    before = torch.get_rng_state()
    first = ddim_sample(model, noise, 7, -0.5, 0.5, batch_size=2)
    torch.testing.assert_close(first, ddim_sample(model, noise, 7, -0.5, 0.5), rtol=0, atol=1e-12)
    assert torch.equal(first, ddim_sample(model, noise, 7, -0.5, 0.5, batch_size=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert float(first.abs().max()) <= 0.5


def test_the_loss_by_hand_and_of_predicting_nothing() -> None:
    x0, noise, t = normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1), torch.tensor([0, 500, 999])

    def half(x: Tensor, steps: Tensor) -> Tensor:
        return 0.5 * x

    kept = alpha_bars()[t].view(3, 1, 1, 1)
    expected = (0.5 * (kept.sqrt() * x0 + (1 - kept).sqrt() * noise) - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(denoising_losses(half, x0, t, noise), expected)
    many = drawn(lambda x, steps: torch.zeros_like(x), normal(500, 1, 8, 8), torch.Generator().manual_seed(0))
    assert float(many.mean()) == pytest.approx(1.0, abs=0.03)  # 32,000 squares of variance 2: sigma 0.008


def test_drawn_losses_draw_from_their_generator_alone() -> None:
    x0, state = normal(4, 1, 4, 4), torch.get_rng_state()

    def model(x: Tensor, t: Tensor) -> Tensor:
        return 0.1 * x

    one, same, other = (drawn(model, x0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
