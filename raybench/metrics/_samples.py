"""Images drawn from a denoising model, the same noise for every model of a problem, looked at by several metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from raybench.diffusion import ddim_sample
from raybench.errors import MetricUnavailable
from raybench.probe import Probe

SAMPLES = 1000
SAMPLING_STEPS = 20
ETA = 1.0  # on small networks nearer to the data than 0, at the same number of steps
SHOWN = 64


def drawn_images(probe: Probe) -> Tensor:
    """1000 images as [0, 1] pixels [n, C, H, W], 20 DDIM steps with eta 1; the first 64 are shown as a grid."""

    def draw() -> Tensor:
        split = probe.splits["retain"]
        shape = split.images.shape[1:]
        generator = probe.generator("samples")
        noise = torch.randn((SAMPLES, *shape), generator=generator, device=probe.device)
        pixels = split.pixels
        low, high = (pixels.normalise(torch.full((1, shape[0], 1, 1), v, device=probe.device)) for v in (0.0, 1.0))
        found = ddim_sample(probe.model, noise, SAMPLING_STEPS, low, high, eta=ETA, generator=generator)
        images = pixels.denormalise(found).clamp(0.0, 1.0)
        if not bool(torch.isfinite(images).all()):
            raise MetricUnavailable("the model draws images that are not finite")
        return images

    images = probe.keep("samples", draw)
    probe.show("samples", images[:SHOWN])
    return images
