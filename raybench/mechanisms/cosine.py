"""Cosine logits and the additive-margin softmax on them (Wang et al. 2018, arXiv:1801.05599)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.passes import track_in_place_of


class CosineHead(nn.Linear):
    """A head without bias whose logits are ``scale`` times the cosine of features [n, d] and class weights [K, d]."""

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Logits [n, K] in [-scale, scale]."""
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


def with_cosine_head(model: nn.Module, scale: float) -> nn.Module:
    """``model`` with a new cosine head in place of its linear one (weights from the global generator)."""
    old = model.head
    assert isinstance(old, nn.Linear)
    new = CosineHead(old.in_features, old.out_features, scale).to(old.weight.device)
    model.head = track_in_place_of(old, new)
    return model


def margin_softmax(logits: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Per-sample losses [n]: cross-entropy after the label's cosine has lost ``margin``, from logits scale * cosine."""
    handicap = torch.zeros_like(logits).scatter_(1, labels[:, None], scale * margin)
    return F.cross_entropy(logits - handicap, labels, reduction="none")


def low_resolution_codes(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Random patterns [count, C, H, W] in [0, 1): uniform noise at a quarter of the resolution, nearest neighbour."""
    channels, height, width = shape
    coarse = (count, channels, -(-height // 4), -(-width // 4))
    noise = torch.rand(coarse, generator=generator, device=generator.device)
    return F.interpolate(noise, size=(height, width), mode="nearest")
