"""Rank-one Hessians from two gradients, Newton steps with them, and the noise of Sekhari et al.

Mehta et al. 2022 (L-CODEC), Section 4 and their code: H = (dg dg^T) / ||dw||_1 for two points that are dw apart. A sum
of such terms plus lambda I is solved exactly in O(d), so that no matrix of d x d is ever made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankOne:
    """``weight`` * vector vector^T."""

    vector: Tensor
    weight: float

    def scaled(self, factor: float) -> RankOne:
        """``factor`` times it."""
        return RankOne(self.vector, self.weight * factor)


def secant(gradients: tuple[Tensor, Tensor], points: tuple[Tensor, Tensor]) -> RankOne:
    """(dg dg^T) / ||dw||_1 from the gradients [d] at two points [d]; nothing where the points are the same."""
    distance = float((points[0] - points[1]).abs().sum())
    return RankOne(gradients[0] - gradients[1], 1.0 / distance if distance > 0.0 else 0.0)


def solve(terms: list[RankOne], l2: float, right: Tensor) -> Tensor:
    """(sum of ``terms`` + l2 I)^-1 right, by the identity of Woodbury.

    ``LinAlgError`` where that matrix is singular (a negative weight that just cancels l2).
    """
    vectors = torch.stack([term.vector for term in terms])  # [r, d]
    weights = torch.tensor([term.weight for term in terms], dtype=right.dtype, device=right.device)
    inner = (vectors[:, None, :] * vectors[None, :, :]).sum(2)
    small = l2 * torch.eye(len(terms), dtype=right.dtype, device=right.device) + weights[:, None] * inner
    share = torch.linalg.solve(small, weights * (vectors * right).sum(1))
    found: Tensor = (right - (share[:, None] * vectors).sum(0)) / l2
    return found


def removal_noise(n: int, l2: float, epsilon: float, delta: float, removed: int = 1) -> float:
    """Standard deviation s = (gamma / epsilon) sqrt(2 ln(1.25 / delta)), gamma = 2 M L^2 m^2 / (n^2 lambda^3).

    Sekhari et al. 2021 (arXiv:2103.03279) for a strongly convex loss, with M = 0.25 and L = 1 as in L-CODEC's code.
    """
    gamma = 2.0 * 0.25 * removed**2 / (n**2 * l2**3)
    return gamma / epsilon * math.sqrt(2.0 * math.log(1.25 / delta))
