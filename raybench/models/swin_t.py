"""Swin-T (Liu et al. 2021), from torchvision's parts."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from raybench.adapted import Mean
from raybench.contract import Classifier, check_problem, check_width
from raybench.errors import UserError
from raybench.models.convnext_t import LARGE, patches
from raybench.options import checked_options
from raybench.registry import MODELS
from raybench.window_attention import window_attention

DEPTHS = (2, 2, 6, 2)
HEAD_WIDTH = 32  # channels of an attention head
WINDOW, SMALL_WINDOW = 7, 4
DROP = 0.2  # stochastic depth of the last block, as published


@MODELS.register("swin_t", label="Swin-T", paper="arXiv:2103.14030", published="swin_t")
@checked_options
def swin_t(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    patch: int | None = None,
    window: int | None = None,
    width: int = 96,
    depths: list[int] | tuple[int, ...] = DEPTHS,
    drop: float = DROP,
) -> Classifier:
    """Five stages: patches, then 2, 2, 6, 2 blocks with 1, 2, 4, 8 times ``width`` channels [n, h, w, d], each but the
    first after a merging of 2x2 tokens; no batch norm.

    ``patch`` and ``window``: 4 pixels and 7 tokens from 64 pixels on, else 2 and 4. ``width``: a multiple of 32, one
    head for each. ``drop``: stochastic depth, in training. 28 288 354 parameters for 3x224x224 and 1000 classes.
    Raises ``UserError`` for images of less than 8 patches a side.
    """
    from torchvision.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock

    _, *sides = check_problem("swin_t", num_classes, input_shape)
    base = check_width("swin_t", "width", width)
    counts = [check_width("swin_t", "depths", depth) for depth in depths]
    if len(counts) < 2:
        raise UserError(f"depths of model swin_t must be at least 2 numbers, got {depths!r}; write them as a list")
    if base % HEAD_WIDTH:
        raise UserError(f"width of model swin_t must be a multiple of {HEAD_WIDTH}, got {width}; change it")
    if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < 1:
        raise UserError(f"drop of model swin_t must be from 0 to below 1, got {drop!r}; change it")
    large = min(sides) >= LARGE
    p = check_width("swin_t", "patch", patch if patch is not None else 4 if large else 2)
    w = check_width("swin_t", "window", window if window is not None else WINDOW if large else SMALL_WINDOW)
    channels, _, _ = check_problem("swin_t", num_classes, input_shape, p * 2 ** (len(counts) - 1))
    options: dict[str, Any] = {
        "block": functools.partial(SwinTransformerBlock, attn_layer=window_attention()),
        "downsample_layer": PatchMerging,
        "stochastic_depth_prob": drop,
        "num_classes": num_classes,
    }
    heads = [base * 2**i // HEAD_WIDTH for i in range(len(counts))]
    network = SwinTransformer([p, p], base, counts, heads, [w, w], **options)
    if channels != 3:
        network.features[0][0] = patches(channels, base, p)
    layers = list(network.features)
    stages = [layers[0], layers[1]]
    stages += [nn.Sequential(*layers[i : i + 2]) for i in range(2, len(layers), 2)]
    neck = nn.Sequential(network.norm, network.permute, Mean())  # strides that adaptive pooling cannot map over
    return Classifier(stages, neck, network.head)
