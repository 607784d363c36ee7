"""ResNet-9: the short residual network that trains on CIFAR-10 in minutes (Page 2018, DAWNBench)."""

from __future__ import annotations

from torch import Tensor, nn

from raybench.contract import Classifier, check_problem, check_width
from raybench.options import checked_options
from raybench.pooling import HalvingMaxPool
from raybench.registry import MODELS

SMALLEST = 16  # three poolings by 2 and a last one over what is left, at least 2x2 pixels


class Carried(nn.Module):
    """Two convolutions whose input is added after the last activation, as in the original."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(filters, filters), convolution(filters, filters))

    def forward(self, x: Tensor) -> Tensor:
        """[n, filters, h, w] to the same shape."""
        out: Tensor = x + self.body(x)
        return out


def convolution(channels: int, filters: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    layer = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(filters), nn.ReLU())


@MODELS.register("resnet9", label="ResNet-9", paper="Page 2018, How to Train Your ResNet")
@checked_options
def resnet9(num_classes: int, input_shape: tuple[int, int, int], *, width: int = 64) -> Classifier:
    """Four stages with 1, 2, 4, 8 times ``width`` filters (64 to 512): convolution; then three of convolution and 2x2
    max pooling, the first and the last followed by a residual pair; the neck is the global maximum.

    Deviation: logits are not multiplied by 0.125, and the head has a bias. 6 573 130 parameters for 3x32x32 and
    10 classes. Raises ``UserError`` for sides below 16 pixels.
    """
    channels, _, _ = check_problem("resnet9", num_classes, input_shape, SMALLEST)
    base = check_width("resnet9", "width", width)
    stages: list[nn.Module] = [convolution(channels, base)]
    for position, (size, filters) in enumerate([(base, 2 * base), (2 * base, 4 * base), (4 * base, 8 * base)]):
        pair = [] if position == 1 else [Carried(filters)]
        stages.append(nn.Sequential(convolution(size, filters), HalvingMaxPool(), *pair))
    neck = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    return Classifier(stages, neck, nn.Linear(8 * base, num_classes))
