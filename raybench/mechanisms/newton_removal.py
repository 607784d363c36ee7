"""Removal of training samples from L2-regularised linear heads by Newton steps, with bounds on what is left.

Guo, Goldstein, Hannun, van der Maaten 2020 (arXiv:1911.03030). Per head (column) the objective is

    L_b(w) = sum_i l(w.x_i, y_i) + (lambda n / 2) ||w||^2 + b.w

with fixed rows x_i. Shapes: ``x`` [n, d], ``y`` [n, K] (one head a column), weights and ``b`` [d, K]. The bounds are
below float32's rounding, so all tensors here are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS_A_ROUND = 20  # L-BFGS iterations between two looks at the gradient
HISTORY = 20


@dataclass(frozen=True)
class HeadLoss:
    """l(z, y), its derivatives in z, and ``curvature``: the Lipschitz constant of the second one (gamma)."""

    value: Callable[[Tensor, Tensor], Tensor]
    first: Callable[[Tensor, Tensor], Tensor]
    second: Callable[[Tensor, Tensor], Tensor]
    curvature: float


def _logistic_second(z: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(y * z)
    return p * (1.0 - p)


LOGISTIC = HeadLoss(
    lambda z, y: -F.logsigmoid(y * z), lambda z, y: (torch.sigmoid(y * z) - 1.0) * y, _logistic_second, 0.25
)
"""Targets are +1 and -1. The paper's gamma = 1/4 is a safe bound: |l'''| is at most 1 / (6 sqrt(3))."""
SQUARED = HeadLoss(lambda z, y: (z - y).square() / 2, lambda z, y: z - y, lambda z, _: torch.ones_like(z), 0.0)
"""Ridge regression: its Newton step is exact."""


@dataclass(frozen=True)
class Fit:
    """Fitted heads [d, K], the norm of the gradient of L_b left in each [K], and how often L_b was evaluated."""

    weights: Tensor
    gradient_norms: Tensor
    evaluations: int


@dataclass(frozen=True)
class Removal:
    """Heads after one Newton step [d, K] and the bound [K] on what the step adds to each head's gradient of L_b."""

    weights: Tensor
    bounds: Tensor


def gradient(
    x: Tensor, y: Tensor, weights: Tensor, l2: float, b: Tensor | float = 0.0, loss: HeadLoss = LOGISTIC
) -> Tensor:
    """The gradient of L_b [d, K]."""
    return x.T @ loss.first(x @ weights, y) + l2 * len(x) * weights + b


def fit_heads(
    x: Tensor, y: Tensor, l2: float, b: Tensor, rounds: int = 100, tolerance: float = 1e-10, loss: HeadLoss = LOGISTIC
) -> Fit:
    """Minimise L_b from zero weights by L-BFGS with a Wolfe line search, all heads together.

    Ends after ``rounds`` rounds of 20 iterations, once no entry of the gradient of L_b / n is above ``tolerance``, or
    when a round no longer moves the weights. What gradient is left is returned, not assumed away.
    """
    weights = torch.zeros_like(b).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [weights],
        max_iter=STEPS_A_ROUND,
        tolerance_grad=tolerance,
        tolerance_change=1e-16,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )
    evaluations = 0

    @torch.no_grad()
    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        z = x @ weights
        weights.grad = (x.T @ loss.first(z, y) + b) / len(x) + l2 * weights
        return loss.value(z, y).sum() / len(x) + l2 * weights.square().sum() / 2 + (b * weights).sum() / len(x)

    for _ in range(rounds):
        before = weights.detach().clone()
        optimiser.step(closure)
        assert weights.grad is not None
        if float(weights.grad.abs().max()) <= tolerance or torch.equal(before, weights.detach()):
            break
    found = weights.detach()
    return Fit(found, gradient(x, y, found, l2, b, loss).norm(dim=0), evaluations + 1)


def remove(
    x: Tensor,
    y: Tensor,
    gone_x: Tensor,
    gone_y: Tensor,
    weights: Tensor,
    l2: float,
    gram: Tensor | None = None,
    loss: HeadLoss = LOGISTIC,
) -> Removal:
    """One Newton step that takes the m samples ``gone`` out; ``x`` and ``y`` are those that remain.

    w <- w + H^-1 Delta with Delta = m lambda w + sum over gone of the loss's gradient, H over the remaining samples
    (Equation 3; no b in it). The bound is that of Corollaries 1 and 2: gamma ||X|| ||H^-1 Delta|| ||X H^-1 Delta||.
    ``gram`` = x^T x, if it is at hand, gives the exact spectral norm ||X|| (a power iteration comes from below).
    """
    size = x.shape[1]
    delta = gone_x.T @ loss.first(gone_x @ weights, gone_y) + l2 * len(gone_x) * weights
    curvature = loss.second(x @ weights, y)
    ridge = l2 * len(x) * torch.eye(size, dtype=x.dtype, device=x.device)
    hessians = torch.stack([(x * column[:, None]).T @ x + ridge for column in curvature.T])
    step = torch.linalg.solve(hessians, delta.T[:, :, None])[:, :, 0].T
    spectral = torch.linalg.eigvalsh(x.T @ x if gram is None else gram)[-1].clamp_min(0.0).sqrt()
    bounds = loss.curvature * spectral * step.norm(dim=0) * (x @ step).norm(dim=0)
    return Removal(weights + step, bounds)


def removal_flops(n: int, d: int, heads: int, gone: int) -> float:
    """Operations of the matrix products of ``remove`` (``gram`` given), as torch.utils.flop_counter counts them."""
    return 2.0 * n * d * heads * (d + 2) + 4.0 * gone * d * heads


def worst_case_bound(n: int, l2: float, gone: int = 1, curvature: float = 0.25, slope: float = 1.0) -> float:
    """Theorem 1 and its form for m samples: 4 gamma m^2 C^2 / (lambda^2 (n - m)), rows of norm at most 1; ``slope`` is
    the largest |l'| (C)."""
    return 4.0 * curvature * gone**2 * slope**2 / (l2**2 * (n - gone))


def noise_factor(delta: float) -> float:
    """c with delta = 1.5 exp(-c^2 / 2) (Theorem 3)."""
    return math.sqrt(2.0 * math.log(1.5 / delta))


def gradient_budget(sigma: float, epsilon: float, delta: float) -> float:
    """The gradient norm up to which b ~ N(0, sigma^2 I) gives (epsilon, delta)-certified removal: sigma eps / c.

    Theorem 3 rests on the tail of the classical Gaussian mechanism, which is proven for epsilon <= 1; at 10 and delta =
    1e-4 the true delta of sigma eps / c is 2.3e-4, at 100 it is 1. A gradient of norm a sigma shifts b so that the log
    likelihood ratio is N(a^2 / 2, a^2), which exceeds epsilon with a probability of at most delta where
    a <= sqrt(q^2 + 2 epsilon) - q, q the (1 - delta) quantile of N(0, 1); the smaller of the two is taken.
    """
    q = -NormalDist().inv_cdf(delta)
    return sigma * min(epsilon / noise_factor(delta), math.sqrt(q * q + 2.0 * epsilon) - q)
