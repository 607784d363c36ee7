"""A network whose head is linear, without bias, on features scaled to norm 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.data import Split

ROWS_A_PASS = 512


class UnitFeatures(nn.Module):
    """``body`` (a classifier, see ``raybench.contract``) less its head: logits = W f(x) / ||f(x)||.

    The norm of a row is at most 1 also where all features are zero. The new head starts at zero.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        head = body.head
        assert isinstance(head, nn.Linear)
        self.head = nn.Linear(head.in_features, head.out_features, bias=False)
        nn.init.zeros_(self.head.weight)
        body.head = nn.Identity()
        self.body = body

    def stages(self) -> list[nn.Module]:
        """The feature blocks of the body."""
        return list(self.body.stages())  # type: ignore[operator]

    def features(self, x: Tensor) -> Tensor:
        """Normalised images [n, C, H, W] to the unit vectors [n, d] that the head reads."""
        return F.normalize(self.body.features(x))  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [n, C, H, W] to logits [n, K]."""
        logits: Tensor = self.head(self.features(x))
        return logits


def one_against_rest(labels: Tensor, num_classes: int) -> Tensor:
    """int64 labels [n] to float64 targets [n, K]: +1 in the column of the label, -1 elsewhere."""
    targets = torch.full((len(labels), num_classes), -1.0, dtype=torch.float64, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1.0)


@torch.no_grad()
def unit_rows(model: nn.Module, split: Split) -> Tensor:
    """The features of a split, float64 [n, d], not augmented, in evaluation mode. Cost: n forward passes."""
    model.eval()
    found = [model.features(images) for images, _ in split.batches(ROWS_A_PASS)]  # type: ignore[operator]
    return torch.cat(found).double()


@torch.no_grad()
def set_head(model: nn.Module, weights: Tensor) -> None:
    """Give the head the ``weights`` [d, K], rounded to its own precision."""
    model.head.weight.copy_(weights.T)  # type: ignore[union-attr,operator]
