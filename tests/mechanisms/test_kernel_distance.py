"""The unbiased kernel distance against a direct double loop in float64, and on samples of one distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raybench.mechanisms.kernel_distance import unbiased_mmd


def double_loop(x: Tensor, y: Tensor) -> float:
    def k(a: list[float], b: list[float]) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1.0) ** 3

    x_rows, y_rows = x.tolist(), y.tolist()
    m, n = len(x_rows), len(y_rows)
    total = sum(k(x_rows[i], x_rows[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    total += sum(k(y_rows[i], y_rows[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return total - 2.0 * sum(k(a, b) for a in x_rows for b in y_rows) / (m * n)


@pytest.mark.parametrize(("m", "n", "d"), [(2, 2, 1), (5, 9, 3), (14, 6, 11)])
def test_against_a_double_loop(m: int, n: int, d: int) -> None:
    draw = torch.Generator().manual_seed(m)
    x = torch.randn(m, d, generator=draw, dtype=torch.float64)
    y = 1.7 * torch.randn(n, d, generator=draw, dtype=torch.float64) + 0.4
    assert unbiased_mmd(x, y) == pytest.approx(double_loop(x, y), rel=1e-11)
    assert unbiased_mmd(x, y) == pytest.approx(unbiased_mmd(y, x), rel=1e-12)


def test_float32_features_lose_nothing() -> None:
    x, y = (torch.rand(7, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert unbiased_mmd(x, y) == pytest.approx(double_loop(x.double(), y.double()), rel=1e-10)


def test_no_bias_where_nothing_differs() -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.tensor([unbiased_mmd(*torch.randn(2, 20, 4, generator=draw)) for _ in range(400)])
    error = float(values.std()) / 20.0
    assert abs(float(values.mean())) < 4 * error
    assert float(values.min()) < 0.0  # an unbiased estimate of zero is below it half of the time


def test_what_has_no_distance() -> None:
    for x, y in ((torch.zeros(1, 3), torch.zeros(4, 3)), (torch.zeros(4, 2), torch.zeros(4, 3))):
        with pytest.raises(ValueError, match="two samples or more of one length"):
            unbiased_mmd(x, y)
