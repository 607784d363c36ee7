"""Images inverted from a trained network: inputs that it recognises as given classes, made without data.

DeepInversion (Yin et al., CVPR 2020, arXiv:1912.08795): cross-entropy on the wanted label, smoothness, and, where
the network has batch norm, agreement of the batch statistics with the stored ones (equations 1 to 4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Inversion:
    """How to invert; the defaults follow the paper's CIFAR-10 setting, with fewer steps."""

    steps: int = 200
    """Adam steps on the pixels (the paper takes 2 000)."""
    lr: float = 0.1
    """Step size on normalised pixels."""
    total_variation: float = 1e-3
    """Weight of ``total_variation``."""
    l2: float = 0.0
    """Weight of the mean norm of an image."""
    statistics: float = 10.0
    """Weight of ``statistics_distance``; without batch norm it plays no part."""
    first_multiplier: float = 1.0
    """Factor of the first batch norm in ``statistics_distance``."""
    jitter: int = 2
    """Largest roll, in pixels, of the batch before each step."""


def total_variation(images: Tensor) -> Tensor:
    """Sum of the norms of four shifted differences of the whole batch [n, c, h, w]: right, down, both diagonals."""
    differences = (
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1, :] - images[:, :, 1:, :],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
    )
    return torch.stack([_norm(d) for d in differences]).sum()


@contextlib.contextmanager
def recorded_norm_inputs(model: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """The batch norms that forward passes inside the block meet, each with its input, in order of the calls."""
    met: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        met.append((module, inputs[0]))

    handles = [m.register_forward_pre_hook(keep) for m in model.modules() if isinstance(m, NORMS)]
    try:
        yield met
    finally:
        for handle in handles:
            handle.remove()


def statistics_distance(met: list[tuple[nn.Module, Tensor]], first_multiplier: float = 1.0) -> Tensor:
    """R_f = sum over batch norms of |mean - running mean| + |variance - running variance| (DeepInversion, eq. 4).

    Biased variance over samples and positions. Zero dimensional, on the device of the inputs; 0 without batch norms
    (or where they keep no running statistics).
    """
    total = torch.zeros((), device=met[0][1].device if met else None)
    for position, (norm, x) in enumerate(met):
        mean, variance = norm.running_mean, norm.running_var
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            continue
        over = [d for d in range(x.ndim) if d != 1]
        term = _norm(x.mean(over) - mean) + _norm(x.var(over, unbiased=False) - variance)
        total = total + term * (first_multiplier if position == 0 else 1.0)
    return total


def invert(
    model: nn.Module,
    labels: Tensor,
    input_shape: tuple[int, int, int],
    generator: torch.Generator,
    settings: Inversion,
    bounds: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Images [n, *input_shape] that ``model`` takes for ``labels`` [n].

    Starts from N(0, 1) drawn from ``generator``. ``bounds`` (lowest and highest normalised values, broadcastable)
    keep the pixels in the range of images. The model is used in evaluation mode with its weights frozen and is
    handed back as it was.
    """
    images = torch.randn(len(labels), *input_shape, generator=generator, device=labels.device).requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=settings.lr)
    with _frozen(model):
        for _ in range(settings.steps):
            reach = settings.jitter
            rolls = torch.randint(-reach, reach + 1, (2,), generator=generator, device=generator.device).tolist()
            shifted = images.roll(rolls, dims=(2, 3))
            with recorded_norm_inputs(model) as met:
                loss = F.cross_entropy(model(shifted), labels)
            loss = loss + settings.total_variation * total_variation(shifted)
            if settings.l2:
                loss = loss + settings.l2 * shifted.flatten(1).norm(dim=1).mean()
            if settings.statistics and met:
                loss = loss + settings.statistics * statistics_distance(met, settings.first_multiplier)
            (images.grad,) = torch.autograd.grad(loss, [images])
            optimiser.step()
            if bounds is not None:
                with torch.no_grad():
                    images.clamp_(*bounds)
    return images.detach()


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    required = [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in required:
            parameter.requires_grad_(flag)


def _norm(difference: Tensor) -> Tensor:
    """Euclidean norm of all elements, with gradient zero (not NaN) at zero."""
    norm: Tensor = torch.linalg.vector_norm(difference)
    return norm
