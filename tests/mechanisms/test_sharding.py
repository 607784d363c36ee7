"""Shards, slices, and what an ensemble answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raybench.mechanisms.sharding import Ensemble, assign, slice_epochs


class Fixed(nn.Module):
    """Says the same log-probabilities of every image."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log() + 3.0)  # any shift: members are softmaxed

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


PROBABILITIES = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.4, 0.35, 0.25]]


def test_mean_of_probabilities_by_hand() -> None:
    ensemble = Ensemble([Fixed(p) for p in PROBABILITIES], "mean")
    out = ensemble(torch.zeros(2, 1, 1, 1)).exp()
    torch.testing.assert_close(out[1], torch.tensor([1.2 / 3, 1.35 / 3, 0.45 / 3]))
    ensemble.weight.copy_(torch.tensor([2.0, 1.0, 0.0]))
    torch.testing.assert_close(ensemble(torch.zeros(1, 1, 1, 1))[0].exp(), torch.tensor([1.4, 1.3, 0.3]) / 3)


def test_vote_by_hand_and_its_tie() -> None:
    ensemble = Ensemble([Fixed(p) for p in PROBABILITIES], "vote")
    out = ensemble(torch.zeros(1, 1, 1, 1))[0]
    expected = torch.tensor([2 / 3 + 0.004, 1 / 3 + 0.0045, 0.0015]) / 1.01
    torch.testing.assert_close(out.exp(), expected)
    assert int(out.argmax()) == 0  # the mean would say 1
    tie = Ensemble([Fixed(p) for p in PROBABILITIES[:2]], "vote")(torch.zeros(1, 1, 1, 1))[0]
    assert int(tie.argmax()) == 1  # the surer of the two
    assert bool(torch.isfinite(tie).all())


def test_shards_and_slices_are_disjoint_and_even() -> None:
    shard, slice_ = assign(53, 4, 3, torch.Generator().manual_seed(0))
    counts = torch.zeros(4, 3)
    for s, r in zip(shard.tolist(), slice_.tolist(), strict=True):
        counts[s, r] += 1
    assert set(counts.sum(dim=1).tolist()) == {13.0, 14.0}
    assert set(counts.flatten().tolist()) == {4.0, 5.0}
    again, other = (assign(53, 4, 3, torch.Generator().manual_seed(seed))[0] for seed in (0, 1))
    assert torch.equal(shard, again)
    assert not torch.equal(shard, other)
    with pytest.raises(ValueError, match="need at least 12 samples, got 11"):
        assign(11, 4, 3, torch.Generator())


def test_epochs_of_slices() -> None:
    assert slice_epochs(10, 5) == [3, 3, 4, 3, 3]
    assert slice_epochs(7, 1) == [7]
    assert slice_epochs(15, 5) == [5] * 5
    assert sum(slice_epochs(1, 4)) == 1
