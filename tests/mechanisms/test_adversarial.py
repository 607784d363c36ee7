"""Attacks against closed forms of linear classifiers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raybench.mechanisms.adversarial import Logits, nearest_adversarial, other_margin, sign_step


def test_margin_has_the_direction_of_the_cross_entropy() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    labels = torch.tensor([0, 1, 2, 3, 0])
    m = other_margin(logits, labels)
    loss = F.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(loss, F.softplus(m))
    ours, theirs = (torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for v in (m, loss))
    assert torch.allclose(theirs, m.sigmoid()[:, None] * ours)
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)  # where the cross-entropy has no gradient left
    assert float(torch.autograd.grad(other_margin(sure, labels[:1]).sum(), sure)[0].abs().min()) == 1.0


def linear(weight: Tensor, bias: float) -> Logits:
    """Two classes: class 1 where w . x + b > 0."""

    def logits(pixels: Tensor) -> Tensor:
        score = pixels.flatten(1) @ weight + bias
        return torch.stack([torch.zeros_like(score), score], dim=1)

    return logits


def test_sign_step_flips_a_linear_classifier_exactly_within_eps_times_the_one_norm() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(16, dtype=torch.float64, generator=generator)
    pixels = 0.3 + 0.4 * torch.rand(200, 1, 4, 4, dtype=torch.float64, generator=generator)
    logits = linear(weight, -0.5 * float(weight.sum()))
    labels = logits(pixels).argmax(1)
    eps = 0.03
    answers = logits(sign_step(logits, pixels, labels, eps, quantise=False)).argmax(1)
    score = logits(pixels)[:, 1].abs()
    flips = score < eps * float(weight.abs().sum())
    assert 0 < int(flips.sum()) < len(flips)
    assert torch.equal(answers != labels, flips)


def test_sign_step_gives_an_image() -> None:
    pixels = torch.tensor([0.0, 1.0, 0.5, 0.26]).view(1, 1, 2, 2)
    moved = sign_step(linear(torch.tensor([-1.0, 1.0, 1.0, -1.0]), 0.0), pixels, torch.tensor([0]), 0.1)
    assert moved.flatten().tolist() == pytest.approx([0.0, 1.0, 153 / 255, 41 / 255])
    whole = torch.arange(4.0).view(1, 1, 2, 2) / 255
    assert torch.equal(sign_step(linear(torch.ones(4), 0.0), whole, torch.tensor([0]), 0.0), whole)


def test_nearest_crosses_the_plane_and_no_farther_than_a_step_and_a_doubling() -> None:
    """The distance to the plane is |w . x + b| / |w|; the last step is a tenth of the ball."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(16, generator=generator)
    pixels = 0.4 + 0.2 * torch.rand(100, 1, 4, 4, generator=generator)
    logits = linear(weight, -0.5 * float(weight.sum()))
    labels = logits(pixels).argmax(1)
    found = nearest_adversarial(logits, pixels, labels, 0.01)
    assert bool(found.found.all())
    assert not bool((found.answers == labels).any())
    assert torch.equal(logits(found.images).argmax(1), found.answers)
    moved = (found.images - pixels).flatten(1).norm(dim=1)
    distance = logits(pixels)[:, 1].abs() / weight.norm()
    assert bool((moved <= found.radius * 1.0001).all())
    assert bool((moved >= distance * 0.9999).all())
    assert bool((moved <= distance + 0.11 * found.radius).all())
    assert bool((found.radius < 2 * distance.clamp(min=0.01) * 1.01).all())
    assert len(set(found.radius.tolist())) > 3  # 0.01 and its doublings


def test_wrong_answers_stay_where_they_are_and_the_impossible_is_given_up() -> None:
    pixels = torch.full((2, 1, 2, 2), 0.5)
    wrong = nearest_adversarial(linear(torch.ones(4), 1.0), pixels, torch.tensor([0, 0]), 0.01)
    assert torch.equal(wrong.images, pixels)
    assert wrong.answers.tolist() == [1, 1]
    flat = nearest_adversarial(linear(torch.zeros(4), 1.0), pixels, torch.tensor([1, 1]), 0.5)
    assert not bool(flat.found.any())
    assert float(flat.radius.max()) < 2 * 2 * math.sqrt(4)
    empty = nearest_adversarial(linear(torch.ones(4), 0.0), pixels[:0], torch.tensor([], dtype=torch.int64), 0.5)
    assert len(empty.images) == 0
