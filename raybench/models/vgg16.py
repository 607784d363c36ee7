"""VGG-16 with batch norm (Simonyan, Zisserman 2015; Ioffe, Szegedy 2015)."""

from __future__ import annotations

from torch import nn

from raybench.contract import Classifier, check_problem, check_width
from raybench.errors import UserError
from raybench.models.resnet18 import LARGE
from raybench.options import checked_options
from raybench.pooling import HalvingMaxPool
from raybench.registry import MODELS

LAYOUT = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # filters in units of width, and convolutions, of the five blocks
SMALLEST = 32  # five poolings leave one pixel
HIDDEN, GRID, DROPOUT = 4096, 7, 0.5  # of the dense layers for ImageNet


@MODELS.register(
    "vgg16", label="VGG-16", paper="arXiv:1409.1556, configuration D, with batch norm", published="vgg16_bn"
)
@checked_options
def vgg16(
    num_classes: int, input_shape: tuple[int, int, int], *, width: int = 64, dense: bool | None = None
) -> Classifier:
    """Five stages of 2, 2, 3, 3, 3 convolutions (3x3 with batch norm and ReLU) and 2x2 max pooling, with 1, 2, 4, 8, 8
    times ``width`` filters.

    ``dense``: whether the neck has the two hidden layers of 4 096 units with dropout over 7x7 pixels, as on ImageNet,
    or is the global mean, as on CIFAR; by default it has them from 128 pixels on. 138 365 992 parameters for
    3x224x224 and 1000 classes, 14 728 266 for 3x32x32 and 10. Images below 32 pixels are padded with zeros on all
    sides to 32. Raises ``UserError`` for sides below 8 pixels.
    """
    channels, *sides = check_problem("vgg16", num_classes, input_shape, 8)
    base = check_width("vgg16", "width", width)
    if dense is not None and not isinstance(dense, bool):
        raise UserError(f"dense of model vgg16 must be true, false or null, got {dense!r}; change it")
    missing = [max(0, SMALLEST - side) for side in sides]
    stages: list[nn.Module] = []
    for multiple, convolutions in LAYOUT:
        layers: list[nn.Module] = []
        if not stages and any(missing):
            top, left = missing[0] // 2, missing[1] // 2
            layers.append(nn.ZeroPad2d((left, missing[1] - left, top, missing[0] - top)))
        for _ in range(convolutions):
            filters = multiple * base
            layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
            channels = filters
        stages.append(nn.Sequential(*layers, HalvingMaxPool()))
    if dense if dense is not None else min(sides) >= LARGE:
        first = nn.Linear(channels * GRID * GRID, HIDDEN)
        hidden = [first, nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT)]
        neck = nn.Sequential(nn.AdaptiveAvgPool2d(GRID), nn.Flatten(), *hidden)
        return Classifier(stages, neck, nn.Linear(HIDDEN, num_classes))
    return Classifier(stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(channels, num_classes))
