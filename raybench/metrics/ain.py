"""AIN, the anamnesis index: relearning time relative to the retrained model's."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from raybench.data import Batch, Split
from raybench.errors import MetricUnavailable
from raybench.mechanisms.relearning import accuracy_on, relearning
from raybench.outputs import MetricContext
from raybench.probe import Probe
from raybench.registry import METRICS

ALPHA = 0.05
LR = 0.001
BATCH_SIZE = 256
EPOCHS = 10
LEAST_CAP = 200  # mini-batches: ten epochs of a small dataset are too few to judge
LOOKED_AT = 1000  # samples of D_f: the accuracy is taken after every mini-batch


@METRICS.register("ain", label="AIN", unit="ratio", range=(0.0, None), paper="arXiv:2201.05629", probe=True)
def ain(probe: Probe, context: MetricContext) -> float:
    """rt(unlearned) / rt(retrained), rt = mini-batches until the accuracy on D_f is within 5 % of the original's.

    The retrained model has 1 and the original 0; far below 1 the knowledge is still there, far above 1 is
    over-erased. Chundawat et al. 2023 and their code: Adam with learning rate 0.001 on batches of 256 of the whole
    training set (D_f and D_r), a look after every batch, at least 0.95 times the original's accuracy, at most 10
    epochs (here: or 200 batches, if that is more). Each rt starts from its own model's weights (a public framework
    takes both on the unlearned model, which gives 1 for anything) and meets the same batches. Set here: a first look
    before the first batch, no augmentation, no short batches, accuracies on at most 1000 samples of D_f, the same
    for all. A count beyond the cap is censored and the index missing; so it is where the retrained model needs 0
    batches, which is no denominator. It stops at an accuracy, so labels hidden behind a huge bias can take as long
    as learning them: see ``relearn_time`` too.
    """
    theirs = probe.remember("ain/batches", lambda: _batches(probe, copy.deepcopy(probe.retrained), "retrained"))
    if theirs == 0:
        raise MetricUnavailable(
            "the retrained model is within 5 % of the original's accuracy on the forget set before it relearns "
            "anything, so AIN has no denominator"
        )
    return _batches(probe, probe.model, "unlearned") / theirs


def _batches(probe: Probe, model: nn.Module, whose: str) -> float:
    """Mini-batches that ``model`` (trained in place) needs; raises when it needs more than the cap."""
    forget = probe.splits["forget"]
    order = torch.randperm(len(forget), generator=probe.generator("ain", "looked at"), device=probe.device)
    shown = forget.subset(order[:LOOKED_AT])
    target = (1.0 - ALPHA) * accuracy_on(probe.original, shown)
    if not target > 0.0:
        raise MetricUnavailable("the original gets nothing of the forget set right, so there is nothing to relearn")
    if accuracy_on(model, shown) >= target:
        return 0.0
    train = probe.splits["train"]
    cap = max(LEAST_CAP, EPOCHS * (len(train) // _batch_size(train)))
    stream = _passes(train.bound(probe.generator("ain", "batches")))
    for step in relearning(probe, model, lambda: next(stream), lr=LR, optimiser="adam"):
        if accuracy_on(model, shown) >= target:
            return float(step)
        if step >= cap:
            break
    raise MetricUnavailable(f"censored: the {whose} model did not relearn within {cap} mini-batches")


def _batch_size(split: Split) -> int:
    return min(BATCH_SIZE, len(split))


def _passes(split: Split) -> Iterator[Batch]:
    """Shuffled passes without end. A short last batch is left out: batch norm may not take it."""
    while True:
        yield from split.batches(_batch_size(split), shuffle=True, drop_last=True)
