"""ViT-B/16 (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from raybench.contract import Classifier
from raybench.models.vit_tiny import transformer
from raybench.options import checked_options
from raybench.registry import MODELS


@MODELS.register("vit_b16", label="ViT-B/16", paper="arXiv:2010.11929", published="vit_b_16")
@checked_options
def vit_b16(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    patch: int | None = None,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
) -> Classifier:
    """A vision transformer of 12 blocks on tokens of 768 numbers, 12 heads.

    ``patch``: 16 pixels from 128 pixels on, else 4. No dropout. 86 567 656 parameters for 3x224x224 and 1000 classes.
    Raises ``UserError`` for sides that ``patch`` does not divide, and below 8 pixels.
    """
    return transformer("vit_b16", num_classes, input_shape, patch, width, depth, heads)
