"""Squared maximum mean discrepancy with the cubic kernel, unbiased: the number behind KID."""

from __future__ import annotations

import torch
from torch import Tensor


def unbiased_mmd(x: Tensor, y: Tensor) -> float:
    """MMD^2 of samples ``x`` [m, d] and ``y`` [n, d] with k(a, b) = (a.b / d + 1)^3, computed in float64.

    Gretton et al. 2012, eq. 3 (the U-statistic: no sample meets itself), with the kernel of Binkowski et al. 2018
    (arXiv:1801.01401, section 4). Its expectation is zero for equal distributions, so values below zero happen. Raises
    ``ValueError`` for fewer than two samples on a side or vectors of other lengths.
    """
    if min(len(x), len(y)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"two samples or more of one length are needed, got {list(x.shape)} and {list(y.shape)}")
    x, y = x.double(), y.double()
    within = [(_kernel(a, a).sum() - _kernel_of_itself(a).sum()) / (len(a) * (len(a) - 1)) for a in (x, y)]
    return float(within[0] + within[1] - 2.0 * _kernel(x, y).mean())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def _kernel_of_itself(a: Tensor) -> Tensor:
    found: Tensor = (a.square().sum(dim=1) / a.shape[1] + 1.0) ** 3
    return torch.as_tensor(found)
