"""How far the images that a generative model draws are from the data that it should have kept."""

from __future__ import annotations

import torch

from raybench.mechanisms.kernel_distance import unbiased_mmd
from raybench.metrics._samples import drawn_images
from raybench.outputs import MetricContext
from raybench.probe import Probe
from raybench.registry import DENOISING, LOWER, METRICS

LOOKED_AT = 1000


@METRICS.register(
    "kid",
    label="KID (classifier features)",
    unit="squared distance",
    range=(None, None),
    direction=LOWER,
    paper="arXiv:1801.01401",
    probe=True,
    tasks={DENOISING},
)
def kid(probe: Probe, context: MetricContext) -> float:
    """Kernel distance between 1000 drawn images and at most 1000 images of D_r: unbiased MMD^2 with the cubic kernel.

    Binkowski et al. 2018, on the 84 features that the last layer of the LeNet-5 of ``forgotten_share`` reads. This is
    *not* Inception KID: its unit is that of these features, so only values of one dataset compare. Zero where nothing
    tells the two apart, and slightly below by chance. A model that still draws the forgotten classes pays for it here.
    """
    retain = probe.splits["retain"]
    order = torch.randperm(len(retain), generator=probe.generator("kid"), device=probe.device)
    kept, _ = retain.subset(order[:LOOKED_AT]).tensors()
    judge = probe.judge()
    return unbiased_mmd(judge.features(drawn_images(probe)), judge.features(retain.pixels.denormalise(kept)))
