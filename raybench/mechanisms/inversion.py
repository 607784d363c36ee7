"""Images inverted from a trained network: inputs that it recognises as given classes, made without data.

DeepInversion (Yin et al., CVPR 2020, arXiv:1912.08795): cross-entropy on the wanted label, smoothness, and, where
the network has batch norm, agreement of the batch statistics with the stored ones (equations 1 to 4).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.mechanisms.laid_out import laid_out
from raybench.task import Facts, UnlearningTask

Penalty = Callable[[Tensor, Tensor], Tensor]  # (images as shown to the model, its logits) -> zero dimensional
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Inversion:
    """How to invert; the defaults follow the paper's CIFAR-10 setting, with fewer steps."""

    steps: int = 200
    """Adam steps on the pixels (the paper takes 2 000)."""
    lr: float = 0.1
    """Step size on normalised pixels."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    warmup: int = 0
    """Steps over which the step size rises linearly."""
    cosine: bool = False
    """Let the step size fall to zero along half a cosine, after the warm-up."""
    total_variation: float = 1e-3
    """Weight of ``total_variation``."""
    total_variation_l1: float = 0.0
    """Weight of ``total_variation_l1``."""
    l2: float = 0.0
    """Weight of the mean norm of an image."""
    statistics: float = 10.0
    """Weight of ``statistics_distance``; without batch norm it plays no part."""
    first_multiplier: float = 1.0
    """Factor of the first batch norm in ``statistics_distance``."""
    jitter: int = 2
    """Largest roll, in pixels, of the batch before each step."""
    flip: bool = False
    """Mirror the batch, left to right, before every other step on average."""
    keep_best: bool = False
    """Give back the images of the step with the lowest loss rather than the last ones."""

    def lr_at(self, step: int) -> float:
        """Step size of step ``step`` (from 0)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if not self.cosine:
            return self.lr
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


def total_variation(images: Tensor) -> Tensor:
    """Sum of the norms of four shifted differences of the whole batch [n, c, h, w]: right, down, both diagonals."""
    return torch.stack([_norm(d) for d in _differences(images)]).sum()


def total_variation_l1(images: Tensor) -> Tensor:
    """Sum of the mean absolute values of the same differences."""
    return torch.stack([d.abs().mean() for d in _differences(images)]).sum()


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
    penalty: Penalty | None = None,
) -> Tensor:
    """Images [n, *input_shape] that ``model`` takes for ``labels`` [n].

    Starts from N(0, 1) drawn from ``generator``. ``bounds`` (lowest and highest normalised values, broadcastable)
    keep the pixels in the range of images; ``penalty`` is one more term of the loss. The model is used in evaluation
    mode with its weights frozen and is handed back as it was.
    """
    images = torch.randn(len(labels), *input_shape, generator=generator, device=labels.device).requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=settings.lr, betas=settings.betas)
    best, lowest = images.detach().clone(), math.inf
    with frozen(model):
        for step in range(settings.steps):
            shown = _moved(images, generator, settings)
            loss = _inversion_loss(model, shown, labels, settings, penalty)
            (images.grad,) = torch.autograd.grad(loss, [images])
            if settings.keep_best and loss.item() < lowest:
                best, lowest = images.detach().clone(), loss.item()
            for group in optimiser.param_groups:
                group["lr"] = settings.lr_at(step)
            optimiser.step()
            if bounds is not None:
                with torch.no_grad():
                    images.clamp_(*bounds)
    if settings.keep_best and bounds is not None:
        best.clamp_(*bounds)  # the first images, drawn without bounds, may have been the best
    return best if settings.keep_best else images.detach()


def pixel_bounds(task: UnlearningTask) -> tuple[Tensor, Tensor]:
    """The normalised values of black and of white, [1, c, 1, 1] each: ``bounds`` of ``invert``."""
    shape = (1, task.input_shape[0], 1, 1)
    black, white = (task.from_pixels(torch.full(shape, value, device=task.device)) for value in (0.0, 1.0))
    return black, white


def has_batch_norm(model: nn.Module) -> bool:
    """Whether some batch norm of ``model`` keeps running statistics."""
    return any(isinstance(m, NORMS) and m.running_mean is not None for m in model.modules())


def no_statistics(facts: Facts) -> str | None:
    """Why batch statistics cannot be matched on this problem's model, or None: the ``skip`` of methods that do.

    The registered model is built without memory to see. A model that is not registered (somebody's own) passes.
    """
    model = laid_out(facts)
    return (
        None if model is None or has_batch_norm(model) else f"{facts.model} has no batch norm with statistics to match"
    )


def _moved(images: Tensor, generator: torch.Generator, settings: Inversion) -> Tensor:
    """The batch rolled and mirrored at random."""
    reach = settings.jitter
    rolls = torch.randint(-reach, reach + 1, (2,), generator=generator, device=generator.device).tolist()
    shown = images.roll(rolls, dims=(2, 3))
    if settings.flip and float(torch.rand((), generator=generator, device=generator.device)) < 0.5:
        shown = shown.flip(3)
    return shown


def _inversion_loss(
    model: nn.Module, shown: Tensor, labels: Tensor, settings: Inversion, penalty: Penalty | None
) -> Tensor:
    with recorded_norm_inputs(model) as met:
        logits = model(shown)
    loss = F.cross_entropy(logits, labels) + settings.total_variation * total_variation(shown)
    if settings.total_variation_l1:
        loss = loss + settings.total_variation_l1 * total_variation_l1(shown)
    if settings.l2:
        loss = loss + settings.l2 * shown.flatten(1).norm(dim=1).mean()
    if settings.statistics and met:
        loss = loss + settings.statistics * statistics_distance(met, settings.first_multiplier)
    return loss if penalty is None else loss + penalty(shown, logits)


def _differences(images: Tensor) -> tuple[Tensor, ...]:
    return (
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1, :] - images[:, :, 1:, :],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
    )


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` is in evaluation mode and its weights need no gradient; then all is as it was."""
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
