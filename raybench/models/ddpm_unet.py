"""A small U-Net that predicts the noise in an image: the network of a denoising diffusion model (DDPM)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.contract import check_width
from raybench.errors import UserError
from raybench.options import checked_options
from raybench.registry import DENOISING, MODELS

GROUPS = 8
PERIOD = 10_000.0


class ResidualBlock(nn.Module):
    """Norm, activation, convolution, twice; between them the step scales and shifts each channel."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(GROUPS, inputs, affine=False), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.step = nn.Linear(embedding, 2 * outputs)
        self.norm = nn.GroupNorm(GROUPS, outputs, affine=False)
        self.second = nn.Sequential(nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """Maps [n, inputs, H, W] and the embedded step [n, embedding] to [n, outputs, H, W]."""
        scale, shift = self.step(step)[:, :, None, None].chunk(2, dim=1)
        inner = self.norm(self.first(x)) * (1.0 + scale) + shift
        made: Tensor = self.skip(x) + self.second(inner)
        return made


class UNet(nn.Module):
    """Two resolutions with one block down, one in the middle and one up each; see ``ddpm_unet``."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        wide, embedding = 2 * width, 4 * width
        self.width, self.patch = width, patch
        self.embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.stem = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.down = ResidualBlock(width, width, embedding)
        self.shrink = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.down_low = ResidualBlock(wide, wide, embedding)
        self.middle = ResidualBlock(wide, wide, embedding)
        self.up_low = ResidualBlock(2 * wide, wide, embedding)
        self.enlarge = nn.Conv2d(wide, width, 3, padding=1)
        self.up = ResidualBlock(2 * width, width, embedding)
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, width, affine=False), nn.SiLU(), nn.Conv2d(width, channels * patch**2, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Noisy images [n, C, H, W] at steps ``t`` int64 [n] (default: the first) to the noise in them."""
        if t is None:
            t = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        step = self.embed(sinusoids(t, self.width).to(x.dtype))
        high = self.down(self.stem(F.pixel_unshuffle(x, self.patch)), step)
        low = self.down_low(self.shrink(high), step)
        inner = self.up_low(torch.cat([self.middle(low, step), low], dim=1), step)
        larger = F.interpolate(inner, size=high.shape[2:], mode="nearest")
        inner = self.up(torch.cat([self.enlarge(larger), high], dim=1), step)
        return F.pixel_shuffle(self.out(inner), self.patch)


def sinusoids(t: Tensor, size: int) -> Tensor:
    """Steps int64 [n] as sines and cosines of geometric frequencies, float32 [n, size] (Vaswani et al. 2017, 3.5)."""
    half = size // 2
    rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(PERIOD) / half))
    angles = t[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@MODELS.register("ddpm_unet", label="DDPM U-Net", paper="arXiv:2006.11239", task=DENOISING)
@checked_options
def ddpm_unet(num_classes: int, input_shape: tuple[int, int, int], *, width: int = 32, patch: int = 2) -> UNet:
    """Unconditional U-Net for small images: two resolutions of ``width`` and 2 ``width`` maps, 420 k weights at 32.

    ``num_classes`` is not used: nothing is told which class an image is of. The network works on ``patch`` x ``patch``
    pixels as channels, so at patch 2 a 28-pixel image is 14 x 14 to it, a quarter of the cost.

    Deviations from the paper, for CPUs: patches; two resolutions, one residual block each, no attention, no dropout;
    group norm has no weights of its own, the step's embedding scales and shifts instead (as Dhariwal and Nichol 2021
    do), so that every weight is in a linear or convolutional layer that is called once a pass. Raises ``UserError``
    for a width that is no multiple of 8 and for sides that are no multiple of ``patch``.
    """
    channels, height, side = (int(size) for size in input_shape)
    if check_width("ddpm_unet", "width", width) % GROUPS:
        raise UserError(f"width of model ddpm_unet must be a multiple of {GROUPS}, got {width}; change it")
    if height % check_width("ddpm_unet", "patch", patch) or side % patch or min(height, side) < 2 * patch:
        raise UserError(
            f"patch of model ddpm_unet must divide the sides {height}x{side} into two parts or more, got {patch}; "
            "change it"
        )
    return UNet(channels, width, patch)
