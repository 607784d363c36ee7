"""Linear heads fitted with a random linear term b, which samples leave step by step while a budget lasts.

Guo et al. 2020 (arXiv:1911.03030), Algorithms 1 and 2, on the fixed rows of ``raybench.mechanisms.newton_removal``;
``model`` is only who the products are counted for. Shapes as there: ``x`` [n, d], ``y`` [n, K], weights and b [d, K].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybench.mechanisms.newton_removal import fit_heads, gradient, removal_flops, remove, worst_case_bound
from raybench.passes import count_products


@dataclass(frozen=True)
class Heads:
    """Heads after a fit or after removals, and what is known of the gradient of L_b over the rows that are left."""

    weights: Tensor
    """[d, K], float64."""
    bounds: Tensor
    """[K]: the gradient norm of each head is at most this (measured at first, then plus the steps' bounds)."""
    worst_case: float
    """Theorem 1's bound on the norm over all heads, which takes the rows for the worst of norm 1."""
    rows: int
    """The first so many rows are still in."""


def fit_perturbed(
    model: nn.Module, x: Tensor, y: Tensor, l2: float, sigma: float, rounds: int, generator: torch.Generator
) -> tuple[Tensor, Heads]:
    """b ~ N(0, sigma^2 I) and the heads that minimise L_b with it, the gradient that the fit left as their bounds."""
    shape = (x.shape[1], y.shape[1])
    b = sigma * torch.randn(shape, generator=generator, device=x.device, dtype=torch.float64)
    fitted = fit_heads(x, y, l2, b, rounds)
    count_products(model, 4.0 * fitted.evaluations * x.numel() * y.shape[1])
    norms = fitted.gradient_norms
    return b, Heads(fitted.weights, norms, float(norms.norm()), len(x))


def remove_within(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    kept: int,
    weights: Tensor,
    b: Tensor,
    l2: float,
    budget: float,
    together: int,
    after_step: Callable[[int, Tensor], None],
) -> Heads:
    """Newton steps that take out the rows after the first ``kept``, from the last one on, ``together`` at a time.

    A step after which the norm of the bounds would exceed ``budget`` is not taken and ends it: then more than ``kept``
    rows are left. ``after_step(step, weights)`` counts from 1. The spectral norm in the bounds is that of the exact
    Gram matrix, down-dated once per step. Cost: K Hessians of 2 n d^2 operations and K solutions per step.

    Theorem 1 takes ||lambda w|| <= C from the minimum without b. Here lambda n w = g - b - sum of the loss's gradients
    with a gradient g that is left, so that it is at most C + (||b|| + ||g||) / n: C grows by half of what is added.
    """
    heads, size = y.shape[1], x.shape[1]
    gram, end, step = x.T @ x, len(x), 0
    bounds = gradient(x, y, weights, l2, b).norm(dim=0)
    count_products(model, 2.0 * len(x) * size * (size + 2 * heads))
    worst, linear = bounds.clone(), b.norm(dim=0)
    while end > kept:
        start = max(kept, end - together)
        gone_x, gone_y = x[start:end], y[start:end]
        gram = gram - gone_x.T @ gone_x
        found = remove(x[:start], y[:start], gone_x, gone_y, weights, l2, gram)
        count_products(model, removal_flops(start, size, heads, end - start) + 2.0 * (end - start) * size**2)
        if float((bounds + found.bounds).norm()) > budget:
            break
        slope = 1.0 + (linear + bounds) / (2.0 * end)
        worst += worst_case_bound(end, l2, end - start) * slope.square()
        weights, bounds, end, step = found.weights, bounds + found.bounds, start, step + 1
        after_step(step, weights)
    return Heads(weights, bounds, float(worst.norm()), end)
