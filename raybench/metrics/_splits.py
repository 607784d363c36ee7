"""Access to outputs with the checks that every metric needs: not empty, not NaN, same samples in a pair."""

from __future__ import annotations

import torch

from raybench.errors import MetricUnavailable
from raybench.outputs import MetricContext, Outputs, SplitOutputs


def usable(outputs: Outputs, split: str) -> SplitOutputs:
    """The outputs of one split. Raises ``MetricUnavailable`` when absent, empty, or without a softmax.

    A class switched off by a logit of minus infinity is legal: accuracies, attacks and divergences still exist.
    """
    found = outputs[split]
    # The row maximum is finite exactly when a row has no NaN, no +inf and not only -inf.
    if not torch.isfinite(found.logits.amax(dim=1)).all():
        raise MetricUnavailable(f"the {split} outputs contain NaN or infinite logits")
    return found


def unseen(outputs: Outputs, context: MetricContext) -> SplitOutputs:
    """``context.unseen(outputs)`` with the checks of ``usable``."""
    split = f"{context.held_out}_forgotten" if context.forget_classes else context.held_out
    usable(outputs, split)
    return context.unseen(outputs)


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
