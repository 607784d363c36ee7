"""VGG-8: the small VGG of the MNIST and CIFAR literature, five convolutions and one linear layer."""

from __future__ import annotations

from torch import nn

from raybench.contract import Classifier, check_problem, check_width
from raybench.errors import UserError
from raybench.options import checked_options
from raybench.pooling import HalvingMaxPool
from raybench.registry import MODELS

MULTIPLES = (1, 2, 4, 8, 8)  # filters of the five blocks, in units of width
POOLED_BLOCKS = 3
SMALLEST = 4  # one pooling leaves 2x2 pixels, so that batch norm has statistics even for a batch of one


@MODELS.register("vgg8", label="VGG-8", paper="arXiv:1409.1556 (VGG) with one convolution a block, as arXiv:1910.10699")
@checked_options
def vgg8(
    num_classes: int, input_shape: tuple[int, int, int], *, width: int = 64, batch_norm: bool = True
) -> Classifier:
    """Five stages of 3x3 convolution, batch norm, ReLU with 1, 2, 4, 8, 8 times ``width`` filters (64 to 512).

    The first three end in 2x2 max pooling, left out where less than 4 pixels come in; the neck is the global mean
    (28x28 and 32x32 images: 3x3 and 4x4 pixels), as in the distillation literature that made this size common,
    instead of VGG's hidden dense layers. Without ``batch_norm`` the convolutions have biases. 3 916 234 parameters
    for 1x28x28 and 10 classes. Raises ``UserError`` for sides below 4 pixels.
    """
    channels, height, breadth = check_problem("vgg8", num_classes, input_shape, SMALLEST)
    base = check_width("vgg8", "width", width)
    if not isinstance(batch_norm, bool):
        raise UserError(f"batch_norm of model vgg8 must be true or false, got {batch_norm!r}; change it")
    side = min(height, breadth)
    stages = []
    for block, multiple in enumerate(MULTIPLES):
        filters = multiple * base
        layers: list[nn.Module] = [nn.Conv2d(channels, filters, 3, padding=1, bias=not batch_norm)]
        layers += [nn.BatchNorm2d(filters)] if batch_norm else []
        layers.append(nn.ReLU())
        if block < POOLED_BLOCKS and side >= 4:
            layers.append(HalvingMaxPool())
            side //= 2
        stages.append(nn.Sequential(*layers))
        channels = filters
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(stages, neck, nn.Linear(channels, num_classes))
