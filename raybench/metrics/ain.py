"""AIN, the anamnesis index: relearning time relative to the retrained model's."""

from __future__ import annotations

import copy

import torch
from torch import nn

from raybench.errors import MetricUnavailable
from raybench.mechanisms.relearning import accuracy_on, drawn, relearning
from raybench.outputs import MetricContext
from raybench.probe import Probe
from raybench.registry import METRICS

ALPHA = 0.05
LR = 0.001
MOMENTUM = 0.9
BATCH_SIZE = 64
MAX_BATCHES = 200
LOOKED_AT = 1000  # samples of D_f: the accuracy is taken after every mini-batch


@METRICS.register(
    "ain", label="AIN", unit="ratio", range=(0.0, None), paper="doi:10.1109/TIFS.2023.3265506", probe=True
)
def ain(probe: Probe, context: MetricContext) -> float:
    """rt(unlearned) / rt(retrained), rt = mini-batches of D_f until its accuracy is within 5 % of the original's.

    The retrained model has 1 and the original 0; far below 1 the knowledge is still there, far above 1 is
    over-erased. Chundawat et al. 2023. Each rt starts from its own model's weights (a public framework takes both
    on the unlearned model, which gives 1 for anything) and meets the same batches. Set here: SGD with learning rate
    0.001 and momentum 0.9, batches of 64 drawn with replacement; "within 5 %" is at least 0.95 times the original's
    accuracy; accuracies on at most 1000 samples of D_f, the same for all; at 200 batches the count is censored and
    the index missing. Missing too where the retrained model is there before the first batch: 0 is no denominator.
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
    generator = probe.generator("ain", "batches")
    for step in relearning(probe, model, lambda: drawn(forget, BATCH_SIZE, generator), lr=LR, momentum=MOMENTUM):
        if accuracy_on(model, shown) >= target:
            return float(step)
        if step >= MAX_BATCHES:
            break
    raise MetricUnavailable(f"censored: the {whose} model did not relearn within {MAX_BATCHES} mini-batches")
