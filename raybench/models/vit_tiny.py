"""ViT-Tiny (Touvron et al. 2021), and the vision transformer it is one case of (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raybench.contract import Classifier, check_problem, check_width
from raybench.errors import UserError
from raybench.models.resnet18 import LARGE
from raybench.options import checked_options
from raybench.registry import MODELS

EPS = 1e-6  # of layer norm, as in the published code
SPREAD = 0.02  # standard deviation of the class token and the positions at the start


class Positions(nn.Module):
    """Adds a learned vector to each of ``count`` tokens [n, count, d]."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(1, count, size) * SPREAD)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return tokens + self.vectors


class Tokens(nn.Module):
    """Images [n, C, h, w] to tokens [n, 1 + patches, d]: a learned class token, then a linear map of each patch, and
    to each a learned vector for its position."""

    def __init__(self, channels: int, patch: int, count: int, size: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, size) * SPREAD)
        self.patches = nn.Conv2d(channels, size, patch, patch)
        self.positions = Positions(count, size)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens: Tensor = self.positions(torch.cat([self.token.expand(len(patches), -1, -1), patches], dim=1))
        return tokens


class Attention(nn.Module):
    """Self-attention with ``heads`` heads, in plain matrix products: they can be differentiated twice and mapped over
    samples, which fused kernels cannot."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(size, 3 * size)
        self.softmax = nn.Softmax(dim=-1)
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, d] to the same shape."""
        n, tokens, size = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = self.softmax(q @ k.transpose(-2, -1) * (size // self.heads) ** -0.5)
        out: Tensor = self.out((weights @ v).transpose(1, 2).reshape(n, tokens, size))
        return out


class Block(nn.Module):
    """Attention, then two dense layers, each after layer norm and around which the input is carried."""

    def __init__(self, size: int, heads: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=EPS)
        self.attention = Attention(size, heads)
        self.norm2 = nn.LayerNorm(size, eps=EPS)
        self.dense1 = nn.Linear(size, ratio * size)
        self.act = nn.GELU()
        self.dense2 = nn.Linear(ratio * size, size)

    def forward(self, x: Tensor) -> Tensor:
        """[n, tokens, d] to the same shape."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.dense2(self.act(self.dense1(self.norm2(x))))
        return out


class First(nn.Module):
    """The class token's vector: [n, tokens, d] to [n, d]."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x[:, 0]


def transformer(
    model: str,
    num_classes: int,
    input_shape: tuple[int, int, int],
    patch: int | None,
    size: int,
    depth: int,
    heads: int,
) -> Classifier:
    """A stage that makes tokens, then one per block; the neck is layer norm and the class token.

    ``patch``: side of a patch, which must divide the sides of the images (None: 16 from 128 pixels on, else 4).
    ``UserError`` where it does not, and for widths that the heads do not divide.
    """
    channels, *sides = check_problem(model, num_classes, input_shape, 8)
    p = check_width(model, "patch", patch if patch is not None else 16 if min(sides) >= LARGE else 4)
    size, depth, heads = (
        check_width(model, option, value) for option, value in (("width", size), ("depth", depth), ("heads", heads))
    )
    if any(side % p for side in sides):
        raise UserError(
            f"patch of model {model} must divide the sides of the images, got {p} for {sides[0]}x{sides[1]}; change it"
        )
    if size % heads:
        raise UserError(f"width of model {model} must be a multiple of its {heads} heads, got {size}; change it")
    tokens = sides[0] // p * (sides[1] // p) + 1
    first = Tokens(channels, p, tokens, size)
    neck = nn.Sequential(nn.LayerNorm(size, eps=EPS), First())
    return Classifier([first, *(Block(size, heads) for _ in range(depth))], neck, nn.Linear(size, num_classes))


@MODELS.register("vit_tiny", label="ViT-Tiny", paper="arXiv:2012.12877 (DeiT-Ti), arXiv:2010.11929")
@checked_options
def vit_tiny(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    patch: int | None = None,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
) -> Classifier:
    """A vision transformer of 12 blocks on tokens of 192 numbers, 3 heads.

    No batch norm, no convolution but that of the patches.

    ``patch``: 16 pixels from 128 pixels on, else 4. No dropout. 5 717 416 parameters for 3x224x224 and 1000 classes.
    Raises ``UserError`` for sides that ``patch`` does not divide, and below 8 pixels.
    """
    return transformer("vit_tiny", num_classes, input_shape, patch, width, depth, heads)
