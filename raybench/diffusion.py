"""Denoising diffusion as functions of tensors: the noise schedule, the forward process, the data loss, the sampler.

Ho, Jain and Abbeel 2020 (arXiv:2006.11239, DDPM) and Song, Meng and Ermon 2021 (arXiv:2010.02502, DDIM). Steps are
counted from 0: x_t is what t + 1 steps of noise leave of an image x_0, and x_{-1} is the image itself. A network
``model(x_t, t)`` predicts the noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 1000
FIRST_BETA, LAST_BETA = 1e-4, 0.02
NoiseModel = Callable[[Tensor, Tensor], Tensor]  # noisy images [n, C, H, W], int64 steps [n] -> noise [n, C, H, W]


def betas(steps: int = STEPS) -> Tensor:
    """Variances of the forward process, float64 [steps]: a straight line from 1e-4 to 0.02 (DDPM, section 4)."""
    return torch.linspace(FIRST_BETA, LAST_BETA, steps, dtype=torch.float64)


def alpha_bars(steps: int = STEPS) -> Tensor:
    """Share of an image's variance that is left in x_t, float64 [steps]: the products of 1 - beta (DDPM, eq. 4)."""
    return torch.cumprod(1.0 - betas(steps), dim=0)


ALPHA_BARS = alpha_bars()


def q_sample(x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (DDPM, eq. 4), in the dtype of ``x0``.

    ``x0`` and standard normal ``noise`` [n, C, H, W], ``t`` int64 [n].
    """
    kept = _at(t, x0)
    return kept.sqrt() * x0 + (1.0 - kept).sqrt() * noise


def denoising_losses(model: NoiseModel, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise per sample, [n] (DDPM, eq. 14); predicting none costs 1 on average."""
    return (model(q_sample(x0, t, noise), t) - noise).square().flatten(1).mean(1)


def drawn_losses(model: NoiseModel, x0: Tensor, generator: torch.Generator) -> Tensor:
    """``denoising_losses`` [n] at steps and noise drawn from ``generator``: the training loss."""
    t = torch.randint(STEPS, (len(x0),), generator=generator, device=x0.device)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    return denoising_losses(model, x0, t, noise)


def ddim_step(
    x: Tensor, x0: Tensor, t: Tensor, before: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """From x_t to x_s for an earlier step s = ``before`` (-1: the image), given the image x_0 (DDIM, eq. 12 and 16).

    ``eta`` 0 is deterministic; 1 with s = t - 1 is the posterior q(x_s | x_t, x_0) of DDPM, and needs ``noise``.
    """
    now, then = _at(t, x), _at(before, x)
    predicted = (x - now.sqrt() * x0) / (1.0 - now).sqrt()
    sigma = eta * ((1.0 - then) / (1.0 - now) * (1.0 - now / then)).sqrt()
    found = then.sqrt() * x0 + (1.0 - then - sigma.square()).clamp(min=0.0).sqrt() * predicted
    return found if noise is None else found + sigma * noise


@torch.no_grad()
def ddim_sample(
    model: NoiseModel,
    noise: Tensor,
    steps: int,
    low: Tensor | float,
    high: Tensor | float,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 250,
) -> Tensor:
    """Images [n, C, H, W] from ``noise`` of that shape by ``steps`` DDIM steps, evenly spread.

    The predicted image is clamped to what pixels can be, ``low`` to ``high``, at each step. With ``eta`` 0 the noise
    decides alone; above, each step draws more from ``generator``.
    """
    times = torch.linspace(STEPS - 1, 0, steps, device=noise.device).round().long().tolist()
    images = []
    for x in noise.split(batch_size):
        for now, then in zip(times, [*times[1:], -1], strict=True):
            t, before = (torch.full((len(x),), step, device=x.device) for step in (now, then))
            kept = _at(t, x)
            x0 = ((x - (1.0 - kept).sqrt() * model(x, t)) / kept.sqrt()).clamp(low, high)
            more = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype) if eta else None
            x = ddim_step(x, x0, t, before, eta, more)
        images.append(x)
    return torch.cat(images)


def _at(t: Tensor, like: Tensor) -> Tensor:
    """abar of the steps ``t`` [n] (1 at -1), in the dtype of ``like`` and fit to multiply it: [n, 1, 1, 1]."""
    padded = torch.cat([ALPHA_BARS, ALPHA_BARS.new_ones(1)]).to(like.device)
    return padded[t].to(like.dtype).view(-1, *(1,) * (like.ndim - 1))
