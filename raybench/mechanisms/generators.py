"""A generator of images from noise, for methods that have no data."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

UPSAMPLED = 4  # two doublings between the first feature map and the image
KERNEL = 3


class NoiseGenerator(nn.Module):
    """z [n, latent_dim] -> images [n, channels, height, width], about zero mean and unit variance per channel.

    Linear to ``width`` maps, then twice (double by nearest neighbour, 3x3 convolution, batch norm, leaky ReLU 0.2),
    then a convolution to the image channels and a batch norm; no squashing. The architecture of zero-shot knowledge
    transfer (Micaelli and Storkey 2019, arXiv:1905.09768) that gated knowledge transfer took over.

    Sides: the maps grow to the next multiple of 8, and the last convolution, padded by 1, has the kernel that cuts
    off what is too much. That gives both published shapes (32x32 from 8x8 with a 3x3 kernel, 28x28 from 8x8 with
    a 7x7 kernel) and extends them to every other size. Weights come from torch's global state: seed it.
    """

    def __init__(self, input_shape: tuple[int, int, int], width: int = 128, latent_dim: int = 128) -> None:
        super().__init__()
        channels, *sides = input_shape
        if width < 2 or latent_dim < 1:
            raise ValueError(f"a generator needs a width of at least 2 and a latent_dim, got {width} and {latent_dim}")
        grown = [8 * math.ceil(side / 8) for side in sides]
        last = (KERNEL + grown[0] - sides[0], KERNEL + grown[1] - sides[1])
        self.latent_dim = latent_dim
        self.start = (width, grown[0] // UPSAMPLED, grown[1] // UPSAMPLED)
        half = width // 2
        self.project = nn.Linear(latent_dim, math.prod(self.start))
        self.draw = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, KERNEL, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, half, KERNEL, padding=1),
            nn.BatchNorm2d(half),
            nn.LeakyReLU(0.2),
            nn.Conv2d(half, channels, last, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Noise to normalised images."""
        images: Tensor = self.draw(self.project(z).view(-1, *self.start))
        return images

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """z [n, latent_dim] from N(0, 1), on the device of ``generator``."""
        return torch.randn(n, self.latent_dim, generator=generator, device=generator.device)
