"""ResNeXt-50, 32x4d: ResNet-50 with grouped convolutions (Xie, Girshick, Dollar, Tu, He 2017)."""

from __future__ import annotations

from raybench.contract import Classifier, check_problem, check_width
from raybench.models.resnet18 import SMALLEST, Bottleneck, choose_stem, residual
from raybench.models.resnet50 import DEPTHS
from raybench.options import checked_options
from raybench.registry import MODELS

GROUPS, GROUP_WIDTH = 32, 4


class GroupedBottleneck(Bottleneck):
    """A bottleneck block whose 3x3 convolution has 32 groups, of 4 channels at 64 filters."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__(channels, filters, stride, GROUPS, GROUP_WIDTH)


@MODELS.register("resnext50", label="ResNeXt-50 32x4d", paper="arXiv:1611.05431", published="resnext50_32x4d")
@checked_options
def resnext50(
    num_classes: int, input_shape: tuple[int, int, int], *, width: int = 64, stem: str = "auto"
) -> Classifier:
    """Five stages: stem, then 3, 4, 6, 3 grouped bottleneck blocks with 1, 2, 4, 8 times ``width`` filters.

    ``stem``: small, imagenet, or auto, as in resnet18. 25 028 904 parameters for 3x224x224 and 1000 classes. Raises
    ``UserError`` for sides below 8 pixels.
    """
    channels, *sides = check_problem("resnext50", num_classes, input_shape, SMALLEST)
    base = check_width("resnext50", "width", width)
    imagenet = choose_stem("resnext50", stem, min(sides))
    filters = [base, 2 * base, 4 * base, 8 * base]
    return residual(channels, num_classes, filters, DEPTHS, block=GroupedBottleneck, imagenet=imagenet)
