"""Noise by curvature: large where the retained data do not mind, small where they do (SFDN, Fisher forgetting).

Golatkar, Achille and Soatto 2020 (arXiv:1911.04933), by the rules of its released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Power = Literal["1/2", "1"]
FLOOR = 1e-8  # added to F before it is inverted
CAP, HEAD_CAP = 1e3, 1e2  # of 1 / F, in general and in the head
BOOST = 10.0  # of the variance in the head and in tensors of one dimension
SURE = 1e-4  # variance of the forgotten classes' rows of the head, before the boost


def scrubbing_variance(
    fisher: Mapping[str, Tensor],
    head: Sequence[str],
    alpha: float,
    *,
    power: Power = "1",
    average: bool = True,
    boost: float = BOOST,
    rows: Sequence[int] = (),
) -> dict[str, Tensor]:
    """Variance of the noise of every entry: parameter name -> tensor of the shape of ``fisher[name]``.

    v = alpha min(1 / (F + 1e-8), cap), to the ``power`` 1 / 2 as alpha min(..)^(1/2), with cap 1e3, or 1e2 in the
    tensors named by ``head``; then its mean over the second dimension (``average``, tensors of two dimensions or
    more); 1e-4 in ``rows`` of the head's tensors; then times ``boost`` in the head and in tensors of one dimension.
    """
    found = {}
    for name, value in fisher.items():
        inverse = (1.0 / (value + FLOOR)).clamp(max=HEAD_CAP if name in head else CAP)
        variance = alpha * (inverse if power == "1" else inverse.sqrt())
        if average and variance.ndim > 1:
            variance = variance.mean(dim=1, keepdim=True).expand_as(variance).clone()
        if name in head and len(rows):
            variance[list(rows)] = SURE
        if name in head or variance.ndim == 1:
            variance = variance * boost
        found[name] = variance
    return found


@torch.no_grad()
def add_noise(
    model: nn.Module,
    variance: Mapping[str, Tensor],
    generator: torch.Generator,
    head: Sequence[str] = (),
    rows: Sequence[int] = (),
) -> None:
    """w <- mu + sqrt(v) N(0, 1) with mu = w, but 0 in ``rows`` of the tensors named by ``head``. In parameter order."""
    for name, p in model.named_parameters():
        if name in head and len(rows):
            p[list(rows)] = 0.0
        noise = torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
        p.add_(variance[name].sqrt() * noise)


def head_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of ``model.head``, the last linear layer; by identity, whatever shapes others have."""
    own = {id(p) for p in model.head.parameters()}  # type: ignore[union-attr]
    return [name for name, p in model.named_parameters() if id(p) in own]
