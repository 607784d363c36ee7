"""ResNet-20: a CIFAR residual network, 6 n + 2 layers with n = 3 (He et al. 2016, section 4.2)."""

from __future__ import annotations

from raybench.contract import Classifier, check_problem, check_width
from raybench.models.resnet18 import residual
from raybench.options import checked_options
from raybench.registry import MODELS

SMALLEST = 8  # two strides of 2 leave 2x2 pixels to pool over


@MODELS.register("resnet20", label="ResNet-20", paper="arXiv:1512.03385, section 4.2 with n = 3")
@checked_options
def resnet20(num_classes: int, input_shape: tuple[int, int, int], *, width: int = 16) -> Classifier:
    """Four stages: stem, then three of three blocks with 1, 2, 4 times ``width`` filters (16, 32, 64).

    Deviation: shortcuts that change shape are 1x1 convolutions with batch norm (option B), not padding with
    zeros. 272 474 parameters for 3x32x32 and 10 classes. Raises ``UserError`` for sides below 8 pixels.
    """
    channels, _, _ = check_problem("resnet20", num_classes, input_shape, SMALLEST)
    base = check_width("resnet20", "width", width)
    return residual(channels, num_classes, [base, 2 * base, 4 * base], depth=3)
