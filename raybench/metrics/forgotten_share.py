"""Does a generative model still draw what it was to forget? Counted by a classifier of the same dataset."""

from __future__ import annotations

import torch

from raybench.errors import MetricUnavailable
from raybench.metrics._samples import drawn_images
from raybench.outputs import MetricContext
from raybench.probe import Probe
from raybench.registry import DENOISING, METRICS


@METRICS.register("forgotten_share", label="Samples of the forgotten classes", probe=True, tasks={DENOISING})
def forgotten_share(probe: Probe, context: MetricContext) -> float:
    """Share of 1000 images drawn from the model that a classifier calls one of the forgotten classes.

    The classifier is a LeNet-5 trained on the whole training set (``judge_accuracy`` says how good it is). It has to
    call every image something, so a model that draws noise has a share too: read it beside ``kid``. Class scenarios
    only.
    """
    if not context.forget_classes:
        raise MetricUnavailable("counts samples of forgotten classes, and this scenario forgets none")
    called = probe.judge().classes(drawn_images(probe))
    gone = torch.tensor(context.forget_classes, device=called.device)
    return float(torch.isin(called, gone).double().mean())
