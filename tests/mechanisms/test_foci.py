"""Rank coefficients against loops and closed cases; forward selection."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from raybench.mechanisms.foci import conditional_dependence, dependence, foci, rank_counts


def uniform(n, q, seed=0):
    return torch.rand(n, q, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(z, y, x=None):
    """The formulas of section 20, sample by sample, neighbours by scikit-learn."""

    def neighbour(rows):
        found = NearestNeighbors(n_neighbors=2).fit(rows.numpy()).kneighbors(rows.numpy(), return_distance=False)
        return [int(b) if int(a) == i else int(a) for i, (a, b) in enumerate(found)]

    n = len(y)
    r = [1 + sum(float(other) < float(value) for other in y) for value in y]
    if x is None:
        m = neighbour(z)
        up = sum(n * min(r[i], r[m[i]]) - (n + 1 - r[i]) ** 2 for i in range(n))
        return up / sum((n + 1 - r[i]) * (n - (n + 1 - r[i])) for i in range(n))
    m, known = neighbour(torch.cat([x, z], 1)), neighbour(x)
    up = sum(min(r[i], r[m[i]]) - min(r[i], r[known[i]]) for i in range(n))
    return up / sum(r[i] - min(r[i], r[known[i]]) for i in range(n))


def test_coefficients_are_those_of_the_formulas():
    z = uniform(60, 3)
    y = (z[:, 0] + 0.3 * z[:, 1]).square()
    assert dependence(z[:, 0], y) == pytest.approx(by_loops(z[:, :1], y), abs=1e-12)
    assert dependence(z, y) == pytest.approx(by_loops(z, y), abs=1e-12)
    found = conditional_dependence(z[:, 1:], y, z[:, 0])
    assert found == pytest.approx(by_loops(z[:, 1:], y, z[:, :1]), abs=1e-12)


def test_numbers_of_the_section():
    """n = 1000 uniform (x1, x2), y = (x1 + x2) mod 1: each alone says nothing, both say it all."""
    x = uniform(1000, 2)
    y = (x[:, 0] + x[:, 1]) % 1.0
    assert abs(dependence(x[:, 1], y)) < 0.08
    assert dependence(x, y) == pytest.approx(0.89, abs=0.03)
    assert conditional_dependence(x[:, 0], y, x[:, 1]) == pytest.approx(0.89, abs=0.03)
    assert dependence(y, y) == pytest.approx(0.997, abs=0.002)


def test_ties_and_constants():
    r, above = rank_counts(torch.tensor([3.0, 1.0, 3.0, 2.0]))
    assert r.tolist() == [4.0, 1.0, 4.0, 2.0]
    assert above.tolist() == [2.0, 4.0, 2.0, 3.0]
    z = uniform(20, 1)
    assert dependence(z, torch.ones(20)) == 0.0
    assert foci(uniform(20, 3), torch.ones(20))[0] == [0]


def test_selection_finds_what_matters_and_stops():
    x = uniform(400, 6)
    y = x[:, 4] + 0.7 * x[:, 1]
    chosen, values = foci(x, y)
    assert chosen[:2] == [4, 1]
    assert len(chosen) < 6
    assert values[0] == pytest.approx(dependence(x[:, 4], y))
    assert values[1] == pytest.approx(conditional_dependence(x[:, 1], y, x[:, 4]))
    assert all(value > 0.0 for value in values)
    rest = [j for j in range(6) if j not in chosen]
    assert all(conditional_dependence(x[:, j], y, x[:, chosen]) <= 0.0 for j in rest)
    assert foci(x, y, only_first=True)[0] == [4]
