"""The cheap epsilons against scipy, brute force and the full score at many models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm

from raybench.errors import MetricUnavailable
from raybench.mechanisms.challenge import epsilon, epsilons
from raybench.mechanisms.challenge_estimate import certified_epsilons, gaussian_epsilons, upper_bounds


def normal(seed: int, *shape: int, mean: float = 0.0, sd: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, sd, shape))


def exactly(models: int, mean: float, sd: float) -> torch.Tensor:
    """[models, 1] with this sample mean and sample standard deviation."""
    values = normal(0, models, 1)
    return (values - values.mean()) / values.std() * sd + mean


def test_upper_bounds_equal_scipy() -> None:
    expected = [binomtest(k, 40).proportion_ci(0.95, method="exact").high for k in range(41)]
    np.testing.assert_allclose(upper_bounds(40), expected, rtol=1e-9)


def test_no_error_among_256_models_certifies_4_23() -> None:
    bound = upper_bounds(256)[0]
    assert bound.item() == pytest.approx(0.0143, abs=5e-5)
    assert epsilon(bound, bound).item() == pytest.approx(4.23, abs=5e-3)
    worlds = normal(1, 256, 1) + 100, normal(2, 256, 1)
    assert epsilons(*worlds).item() == 50.0
    assert certified_epsilons(*worlds).item() == pytest.approx(4.2326, abs=5e-5)


def test_certified_is_below_the_truth() -> None:
    """Two unit normals 1 apart and the best threshold at delta = 0 limited to rates of 1/1000; never above it, though
    one bound in 40 may fail and many are tried."""
    found = certified_epsilons(normal(3, 64, 300, mean=1.0), normal(4, 64, 300))
    cuts = np.linspace(-3, 4, 2000)
    fpr, fnr = norm.sf(cuts), norm.cdf(cuts - 1)
    keep = (fpr > 1e-3) & (fnr > 1e-3)
    truth = max(np.log((1 - fpr) / fnr)[keep].max(), np.log((1 - fnr) / fpr)[keep].max())
    assert (found <= truth).double().mean() > 0.97
    assert 0.3 < found.mean() < truth
    assert certified_epsilons(normal(5, 64, 300), normal(6, 64, 300)).mean() < 0.1


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (1.0, 1.0), (3.0, 1.0), (0.5, 0.4), (0.0, 2.5)])
def test_gaussian_form_equals_a_search_with_scipy(mean: float, sd: float) -> None:
    cuts = np.linspace(-30, 30, 60001)
    pairs = [(norm.sf(cuts), norm.cdf(cuts, mean, sd))]  # gold above the cut, unlearned below it
    narrow, wide = ((mean, sd), (0.0, 1.0)) if sd <= 1 else ((0.0, 1.0), (mean, sd))
    half = cuts[cuts >= 0]

    def inside(world: tuple[float, float]) -> np.ndarray:
        return norm.cdf(narrow[0] + half, *world) - norm.cdf(narrow[0] - half, *world)

    pairs.append((inside(wide), 1 - inside(narrow)))
    expected = 0.0
    for fpr, fnr in pairs:
        fpr, fnr = np.clip(fpr, 1 / 512, 511 / 512), np.clip(fnr, 1 / 512, 511 / 512)
        for one, other in ((fpr, fnr), (fnr, fpr)):
            expected = max(expected, float(np.log((1 - 1e-5 - one) / other).max()))
    found = gaussian_epsilons(exactly(32, mean, sd), exactly(48, 0.0, 1.0)).item()
    assert found == pytest.approx(expected, abs=0.02)
    assert found <= math.log(511) + 1e-9


def test_gaussian_form_at_64_models_foretells_the_full_score_at_512() -> None:
    cheap = gaussian_epsilons(normal(7, 64, 200, mean=2.0), normal(8, 64, 200)).mean().item()
    few = epsilons(normal(7, 64, 200, mean=2.0), normal(8, 64, 200)).mean().item()
    full = epsilons(normal(9, 512, 12, mean=2.0), normal(10, 512, 12)).mean().item()
    assert abs(cheap - full) < 0.3
    assert abs(few - full) > 3 * abs(cheap - full)


def test_degenerate_and_bad_input() -> None:
    still, world = torch.full((10, 1), 2.0), normal(11, 10, 1)
    found = gaussian_epsilons(torch.cat([still, world], dim=1), torch.cat([still, world], dim=1))
    assert found.tolist() == pytest.approx([0.0, 0.0], abs=0.02)
    assert gaussian_epsilons(torch.cat([still, world], 1), torch.cat([still + 1, world], 1))[0] > 6.2
    for form in (gaussian_epsilons, certified_epsilons):
        with pytest.raises(MetricUnavailable, match="at least 8 retrained models, got 5"):
            form(world, world[:5])
        with pytest.raises(MetricUnavailable, match="NaN"):
            form(world * math.nan, world)
        with pytest.raises(MetricUnavailable, match="constant"):
            form(still, still)
        order, columns = torch.randperm(16), torch.randperm(30)
        unlearned, gold = normal(12, 16, 30, mean=1.0), normal(13, 16, 30)
        torch.testing.assert_close(form(unlearned[order][:, columns], gold[:, columns]), form(unlearned, gold)[columns])
