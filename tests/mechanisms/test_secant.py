"""Rank-one Newton steps against dense solutions; the noise of the section."""

from __future__ import annotations

import pytest
import torch

from raybench.mechanisms.secant import RankOne, removal_noise, secant, solve


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("weights", [(2.0, 0.5), (2.0, -0.001), (0.0, 0.0)])
def test_solve_is_the_dense_solution(weights):
    vectors, right = draw(2, 7), draw(7, seed=1)
    terms = [RankOne(vector, weight) for vector, weight in zip(vectors, weights, strict=True)]
    dense = sum(w * torch.outer(v, v) for v, w in zip(vectors, weights, strict=True)) + 0.01 * torch.eye(
        7, dtype=torch.float64
    )
    torch.testing.assert_close(solve(terms, 0.01, right), torch.linalg.solve(dense, right), rtol=1e-9, atol=1e-9)


def test_secant_is_the_outer_product_over_the_l1_distance():
    a, b, c, d = draw(4, 5)
    found = secant((a, b), (c, d))
    dense = torch.outer(a - b, a - b) / (c - d).abs().sum()
    torch.testing.assert_close(found.weight * torch.outer(found.vector, found.vector), dense)
    assert found.scaled(3.0).weight == pytest.approx(3.0 * found.weight)
    assert secant((a, b), (c, c)).weight == 0.0


def test_secant_along_one_axis_is_the_second_derivative():
    """l = h w^2 / 2: dg = h dw, so that (dg)^2 / |dw| = h^2 |dw|, and not h: the published form."""
    h, w, v = 3.0, torch.tensor([2.0]), torch.tensor([1.5])
    assert float(secant((h * w, h * v), (w, v)).weight) * float((h * (w - v)).square()) == pytest.approx(h**2 * 0.5)


def test_noise_of_the_section():
    assert removal_noise(50_000, 0.01, 0.1, 0.01) == pytest.approx(6.215e-3, rel=1e-3)
    assert removal_noise(50_000, 0.01, 0.1, 0.01, removed=3) == pytest.approx(9 * 6.215e-3, rel=1e-3)
