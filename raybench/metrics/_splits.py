"""Access to outputs with the checks that every metric needs: not empty, not NaN, same samples in a pair."""

from __future__ import annotations

import torch

from raybench.outputs import MetricContext, Outputs, SplitOutputs, with_softmax


def usable(outputs: Outputs, split: str) -> SplitOutputs:
    """``outputs.usable(split)``: of one split, with a softmax, or ``MetricUnavailable``."""
    return outputs.usable(split)


def unseen(outputs: Outputs, context: MetricContext) -> SplitOutputs:
    """``context.unseen(outputs)`` with the checks of ``usable``."""
    return with_softmax(context.unseen(outputs), "unseen")


def paired(outputs: Outputs, retrained: Outputs, split: str) -> tuple[SplitOutputs, SplitOutputs]:
    """The same split of the unlearned and of the retrained model, sample by sample.

    Raises ``ValueError`` when the two were not computed on the same samples: that is a bug, not a missing value.
    """
    ours, theirs = usable(outputs, split), usable(retrained, split)
    if ours.logits.shape != theirs.logits.shape or not torch.equal(ours.labels, theirs.labels):
        raise ValueError(f"the {split} outputs of the two models must be of the same samples in the same order")
    return ours, theirs


def accuracy(outputs: Outputs, split: str) -> float:
    """Share of correct predictions over all samples of a split; a count, so no batch can weigh wrongly."""
    correct = usable(outputs, split).correct
    return int(correct.sum()) / correct.numel()
