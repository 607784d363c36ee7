"""One-class networks: how far an image lies from the centre of one class (Ruff et al. 2018, Deep SVDD)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raybench.data import Split

QUANTILE = 0.95
NEAREST = 0.1  # of their root mean square: a centre's coordinates stay this far from zero, which is easy to hit
DROPPED = 10.0  # nats by which a dropped class stands below the lowest of the others
BATCH = 1024


class OneClass(nn.Module):
    """``body`` maps images to vectors [n, d]; forward gives squared distances [n] to ``centre`` [d].

    The body has no biases and no affine batch norm (``without_biases``), else it could map everything to the centre.
    ``radius2`` is the 95th percentile of the training samples' squared distances. Both are buffers.
    """

    centre: Tensor
    radius2: Tensor

    def __init__(self, body: nn.Module, size: int) -> None:
        super().__init__()
        self.body = without_biases(body)
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("radius2", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [n, C, H, W] to squared distances [n]."""
        distances: Tensor = (self.body(x) - self.centre).square().sum(dim=1)
        return distances

    @torch.no_grad()
    def set_centre(self, split: Split) -> None:
        """The centre becomes the mean of the body's answers on ``split`` (evaluation mode)."""
        self.eval()
        total = sum(self.body(images).sum(dim=0) for images, _ in split.batches(BATCH))
        mean = total / len(split)
        least = NEAREST * float(mean.square().mean().sqrt())
        self.centre.copy_(torch.where(mean < 0, mean.clamp(max=-least), mean.clamp(min=least)))

    @torch.no_grad()
    def set_radius(self, split: Split) -> None:
        """``radius2`` becomes the 95th percentile of the squared distances of ``split`` (evaluation mode)."""
        self.eval()
        distances = torch.cat([self(images) for images, _ in split.batches(BATCH)])
        self.radius2.copy_(distances.quantile(QUANTILE).clamp(min=torch.finfo(distances.dtype).tiny))


class OneClassEnsemble(nn.Module):
    """One ``OneClass`` network a class: logits [n, K] = - squared distance / radius2, the nearest class wins.

    ``present`` [K] (a buffer, 1 or 0) says which classes still have a network; a dropped one stands 10 nats below the
    lowest of the others.
    """

    present: Tensor

    def __init__(self, members: Sequence[OneClass]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("present", torch.ones(len(members)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images to logits."""
        scores = torch.stack([-member(x) / member.radius2 for member in self.members], dim=1)
        there = self.present.bool()
        floor = scores.masked_fill(~there, torch.inf).amin(dim=1, keepdim=True) - DROPPED
        return torch.where(there, scores, floor)

    def finish(self, c: int, split: Split) -> None:
        """Set the radius of class ``c`` from its samples; without any, drop its network."""
        if len(split):
            member = self.members[c]
            assert isinstance(member, OneClass)
            member.set_radius(split)
        else:
            self.present[c] = 0.0


def without_biases(model: nn.Module) -> nn.Module:
    """``model`` with every bias taken out, and scale and shift of its normalisations."""
    for module in model.modules():
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            module.bias = None  # type: ignore[assignment]
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight, module.affine = None, False  # type: ignore[assignment]
    return model
