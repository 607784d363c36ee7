"""Cosine logits, the margin, and codes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from raybench.mechanisms.cosine import CosineHead, low_resolution_codes, margin_softmax, with_cosine_head
from raybench.passes import PassCounter
from raybench.registry import MODELS


def test_without_margin_and_scale_it_is_cross_entropy_on_cosines() -> None:
    features, head = torch.randn(5, 7), CosineHead(7, 3, scale=1.0)
    cosines = torch.stack([torch.cosine_similarity(features, w[None], dim=1) for w in head.weight], dim=1)
    torch.testing.assert_close(head(features), cosines)
    labels = torch.tensor([0, 1, 2, 2, 0])
    expected = F.cross_entropy(cosines, labels, reduction="none")
    torch.testing.assert_close(margin_softmax(head(features), labels, 1.0, 0.0), expected)


def test_margin_by_hand() -> None:
    """-log( e^{s (a - m)} / (e^{s (a - m)} + sum of e^{s b}) )."""
    cosines = torch.tensor([[0.9, 0.2, -0.5]], dtype=torch.float64)
    own = torch.tensor(30 * (0.2 - 0.35), dtype=torch.float64).exp()
    expected = -(own / (own + (30 * cosines[0, [0, 2]]).exp().sum())).log()
    found = margin_softmax(30 * cosines, torch.tensor([1]), 30.0, 0.35)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_the_head_replaces_the_linear_one() -> None:
    model = with_cosine_head(MODELS["lenet5"].fn(10, (1, 28, 28)), 30.0)
    x = torch.randn(4, 1, 28, 28)
    logits = model(x).detach()
    assert logits.shape == (4, 10)
    assert float(logits.abs().max()) <= 30.0
    torch.testing.assert_close(model.head(model.features(x)).detach(), logits)
    assert "head.bias" not in model.state_dict()


def test_passes_through_the_new_head_are_counted_where_those_of_the_old_one_were() -> None:
    model = MODELS["mlp"].fn(10, (1, 28, 28), hidden=())
    counter = PassCounter(model, (1, 28, 28))
    with_cosine_head(counter.track(model), 30.0)(torch.randn(5, 1, 28, 28)).sum().backward()
    assert counter.forward == pytest.approx(5.0)
    assert counter.backward == pytest.approx(5.0)


def test_codes_come_again_from_their_seed_and_are_coarse() -> None:
    first, again = (low_resolution_codes(3, (2, 30, 28), torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (3, 2, 30, 28)
    assert len(first[0, 0].unique()) == 8 * 7
    assert torch.equal(first[:, :, :, 0], first[:, :, :, 3])
    assert 0.0 <= float(first.min()) < float(first.max()) < 1.0
