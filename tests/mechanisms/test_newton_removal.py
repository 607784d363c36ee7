"""Newton removal from linear heads: closed forms, the section's self-check, bounds."""

from __future__ import annotations

import pytest
import torch

from raybench.mechanisms.newton_removal import (
    LOGISTIC,
    SQUARED,
    fit_heads,
    gradient,
    gradient_budget,
    noise_factor,
    remove,
    worst_case_bound,
)

N, D, L2 = 200, 5, 1e-2


def draw(n=N, d=D, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True)
    truth = torch.randn(d, heads, generator=generator, dtype=torch.float64)
    y = torch.sign(x @ truth + 0.3 * torch.randn(n, heads, generator=generator, dtype=torch.float64))
    return x, y, generator


def ridge(x, y, l2, b):
    return torch.linalg.solve(x.T @ x + l2 * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y - b)


@pytest.mark.parametrize("gone", [1, 7])
def test_squared_loss_removal_is_exact_ridge_leave_out(gone):
    """Section 17's self-check, n = 50, d = 5 (there 5.6e-17), with b; the bound is zero and so is what is left."""
    x, _, generator = draw(50)
    y, b = (torch.randn(size, 2, generator=generator, dtype=torch.float64) for size in (50, D))
    found = remove(x[gone:], y[gone:], x[:gone], y[:gone], ridge(x, y, L2, b), L2, loss=SQUARED)
    exact = ridge(x[gone:], y[gone:], L2, b)
    torch.testing.assert_close(found.weights, exact, rtol=0, atol=1e-13)
    assert float(found.bounds.max()) == 0.0
    assert float(gradient(x[gone:], y[gone:], found.weights, L2, b, SQUARED).norm()) < 1e-12


def test_fit_finds_the_minimum():
    x, y, generator = draw()
    b = torch.randn(D, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    fitted = fit_heads(x, targets, L2, b, loss=SQUARED)
    torch.testing.assert_close(fitted.weights, ridge(x, targets, L2, b), rtol=0, atol=1e-6)
    fitted = fit_heads(x, y, L2, b)
    weights = fitted.weights.clone().requires_grad_(True)
    value = LOGISTIC.value(x @ weights, y).sum() + L2 * N / 2 * weights.square().sum() + (b * weights).sum()
    (by_autograd,) = torch.autograd.grad(value, weights)
    torch.testing.assert_close(by_autograd.norm(dim=0), fitted.gradient_norms, rtol=1e-3, atol=1e-12)
    assert float(fitted.gradient_norms.max()) < 1e-5
    assert fitted.evaluations > 5


def test_derivatives_of_the_losses_are_those_of_autograd_and_gamma_bounds_the_third():
    z = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    for loss in (LOGISTIC, SQUARED):
        for sign in (1.0, -1.0):
            y = torch.full_like(z, sign).detach()
            (first,) = torch.autograd.grad(loss.value(z, y).sum(), z, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), z)
            torch.testing.assert_close(first.detach(), loss.first(z, y).detach(), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(second, loss.second(z, y).detach(), rtol=1e-9, atol=1e-9)
            third = second.detach().diff() / 0.12
            assert float(third.abs().max()) <= loss.curvature + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_after_is_below_the_bound_and_that_below_the_worst_case(seed):
    """Section 17: n = 200, d = 5, lambda = 1e-2; and the head is as near to the exact one as strong convexity says."""
    x, y, generator = draw(seed=seed)
    b = torch.randn(D, 2, generator=generator, dtype=torch.float64)
    fitted = fit_heads(x, y, L2, b)
    found = remove(x[1:], y[1:], x[:1], y[:1], fitted.weights, L2)
    before = gradient(x[1:], y[1:], fitted.weights, L2, b).norm(dim=0)
    after = gradient(x[1:], y[1:], found.weights, L2, b).norm(dim=0)
    assert bool((after < before / 20).all())
    assert bool((after <= found.bounds + fitted.gradient_norms).all())
    assert bool((found.bounds <= worst_case_bound(N, L2)).all())
    exact = fit_heads(x[1:], y[1:], L2, b)
    distance = (found.weights - exact.weights).norm(dim=0)
    assert bool((distance <= (found.bounds + fitted.gradient_norms) / (L2 * (N - 1)) + 1e-6).all())


def test_steps_stay_within_the_sum_of_their_bounds_and_one_step_for_all_grows_with_the_square():
    """Twenty copies of one sample: the worst kind of request."""
    x, y, _ = draw()
    x[:20], y[:20] = x[20], y[20]
    fitted = fit_heads(x, y, L2, torch.zeros(D, 2, dtype=torch.float64))
    weights, bound = fitted.weights, fitted.gradient_norms
    for i in range(20):
        found = remove(x[i + 1 :], y[i + 1 :], x[i : i + 1], y[i : i + 1], weights, L2)
        weights, bound = found.weights, bound + found.bounds
    assert bool((gradient(x[20:], y[20:], weights, L2).norm(dim=0) <= bound).all())
    at_once = remove(x[20:], y[20:], x[:20], y[:20], fitted.weights, L2)
    assert bool((gradient(x[20:], y[20:], at_once.weights, L2).norm(dim=0) <= at_once.bounds + 1e-6).all())
    assert bool((at_once.bounds > 5 * bound).all())


def test_gram_changes_nothing():
    x, y, _ = draw()
    weights = torch.ones(D, 2, dtype=torch.float64)
    plain = remove(x[3:], y[3:], x[:3], y[:3], weights, L2)
    given = remove(x[3:], y[3:], x[:3], y[:3], weights, L2, x.T @ x - x[:3].T @ x[:3])
    torch.testing.assert_close(plain.bounds, given.bounds)


def test_numbers_of_the_section():
    assert worst_case_bound(200, 1e-2) == pytest.approx(50.25, abs=0.05)
    assert noise_factor(1e-4) == pytest.approx(4.3854, abs=1e-4)
    assert gradient_budget(10.0, 1.0, 1e-4) == pytest.approx(2.2803, abs=1e-4)
    assert worst_case_bound(200, 1e-2, gone=4) > 16 * worst_case_bound(200, 1e-2)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-4, 1e-2, 0.1])
def test_the_budget_keeps_the_delta_that_it_promises(epsilon, delta):
    """Exact delta of a Gaussian shifted by a of its deviations: ndtr(a/2 - eps/a) - e^eps ndtr(-a/2 - eps/a)."""
    a = torch.tensor(gradient_budget(10.0, epsilon, delta) / 10.0, dtype=torch.float64)
    left = torch.special.log_ndtr(a / 2 - epsilon / a).exp()
    right = (epsilon + torch.special.log_ndtr(-a / 2 - epsilon / a)).exp()
    assert 0.0 < float(left - right) <= delta
    if epsilon <= 1.0:
        assert float(a) == pytest.approx(epsilon / noise_factor(delta))
