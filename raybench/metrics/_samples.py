"""Images drawn from a denoising model, the same noise for every model of a problem, looked at by several metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from raybench.diffusion import ddim_sample
from raybench.errors import MetricUnavailable
from raybench.probe import Probe

SAMPLES = 1000
SAMPLING_STEPS = 30
SHOWN = 64


def drawn_images(probe: Probe) -> Tensor:
    """1000 images as [0, 1] pixels [n, C, H, W], 30 DDIM steps with eta 0; the first 64 are shown as a grid."""

    def draw() -> Tensor:
        split = probe.splits["retain"]
        shape = split.images.shape[1:]
        noise = torch.randn((SAMPLES, *shape), generator=probe.generator("samples"), device=probe.device)
        pixels = split.pixels
        low, high = (pixels.normalise(torch.full((1, shape[0], 1, 1), v, device=probe.device)) for v in (0.0, 1.0))
        images = pixels.denormalise(ddim_sample(probe.model, noise, SAMPLING_STEPS, low, high)).clamp(0.0, 1.0)
        if not bool(torch.isfinite(images).all()):
            raise MetricUnavailable("the model draws images that are not finite")
        return images

    images = probe.keep("samples", draw)
    probe.show("samples", images[:SHOWN])
    return images
