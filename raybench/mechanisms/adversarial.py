"""Adversarial images: small changes of pixels after which a network answers with another class.

Attacks work on [0, 1] pixels. They follow the gradient of  m = logsumexp of the other logits - true logit.  The
cross-entropy is log(1 + exp(m)), so its gradient is sigmoid(m) > 0 times this one: the direction is the same, but it
is not lost in rounding where the network is sure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]  # pixels [n, c, h, w] in [0, 1] -> logits [n, K]
LEVELS = 255.0


def other_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """m per sample, [n], from logits [n, K]; positive where another class has more mass than the true one."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.logsumexp(1) - logits.gather(1, labels[:, None]).squeeze(1)


def sign_step(logits: Logits, pixels: Tensor, labels: Tensor, eps: float, *, quantise: bool = True) -> Tensor:
    """One step of ``eps`` in every pixel along the sign of the gradient, clamped to [0, 1] and, by default, rounded to
    the 256 levels of an image: FGSM (Goodfellow, Shlens, Szegedy 2015, arXiv:1412.6572). Pixels [n, c, h, w]."""
    gradient = _gradient(logits, pixels, labels)[0]
    moved = (pixels + eps * gradient.sign()).clamp(0.0, 1.0)
    return (moved * LEVELS).round() / LEVELS if quantise else moved


@dataclass(frozen=True)
class Nearest:
    """``images`` [n, c, h, w] in [0, 1], the network's ``answers`` [n] there, the ``radius`` [n] of the ball in which
    each was found (Euclidean, in pixels), and whether it was (``found``, bool [n])."""

    images: Tensor
    answers: Tensor
    radius: Tensor
    found: Tensor


def nearest_adversarial(
    logits: Logits, pixels: Tensor, labels: Tensor, radius: float, *, steps: int = 50, step_share: float = 0.1
) -> Nearest:
    """Walk from ``pixels`` until the answer is not ``labels``, in the smallest of the balls radius, 2 radius, ...

    Projected gradient ascent in the Euclidean norm: steps of ``step_share`` of the ball's radius along the normalised
    gradient, back into the ball and into [0, 1]; a sample stops where its answer first differs, at step zero where it
    is wrong already. After ``steps`` steps without success its ball doubles and it walks on. What is not found in a
    ball that holds all images is given up. Cost: a pass forward and backward per sample and step.
    """
    at, answers = pixels.clone(), torch.full_like(labels, -1)
    ball = torch.full_like(labels, radius, dtype=pixels.dtype)
    active = torch.arange(len(labels), device=labels.device)
    largest = math.sqrt(pixels[0].numel()) if len(pixels) else 0.0
    while len(active):
        for _ in range(steps):
            gradient, answer = _gradient(logits, at[active], labels[active])
            answers[active] = answer
            still = answer == labels[active]
            active, gradient = active[still], gradient[still]
            if not len(active):
                break
            size = (step_share * ball[active]).view(-1, 1, 1, 1)
            change = at[active] + size * _unit(gradient) - pixels[active]
            excess = (change.flatten(1).norm(dim=1) / ball[active]).clamp(min=1.0).view(-1, 1, 1, 1)
            at[active] = (pixels[active] + change / excess).clamp(0.0, 1.0)
        if len(active):
            with torch.no_grad():
                answers[active] = logits(at[active]).argmax(1)
            active = active[answers[active] == labels[active]]
            active = active[ball[active] < largest]
            ball[active] *= 2.0
    return Nearest(at, answers, ball, answers != labels)


def _gradient(logits: Logits, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of m by pixels, and the answers [n]."""
    shown = pixels.detach().requires_grad_(True)
    given = logits(shown)
    return torch.autograd.grad(other_margin(given, labels).sum(), shown)[0], given.detach().argmax(1)


def _unit(vectors: Tensor) -> Tensor:
    """Each sample [n, ...] at Euclidean length one; zeros stay zeros."""
    flat = vectors.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    unit: Tensor = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit.view_as(vectors)
