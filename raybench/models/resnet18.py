"""ResNet-18 for small images (He, Zhang, Ren, Sun 2016), and the residual network it is one case of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from raybench.contract import Classifier, check_problem, check_width
from raybench.options import checked_options
from raybench.registry import MODELS

SMALLEST = 8  # three strides of 2 leave one pixel


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is carried (He et al. 2016, figure 2 and equation 2).

    Where the shape changes, the shortcut is a 1x1 convolution with batch norm (option B of the paper).
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.act2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != filters:
            projection = nn.Conv2d(channels, filters, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(filters))

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] to [n, filters, h / stride, w / stride]."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.act2(y + self.shortcut(x))
        return out


def residual(channels: int, num_classes: int, filters: Sequence[int], depth: int) -> Classifier:
    """A 3x3 stem of ``filters[0]``, then one stage of ``depth`` blocks per entry of ``filters``, each but the
    first halving the sides; global mean, linear head."""
    stem = nn.Conv2d(channels, filters[0], 3, padding=1, bias=False)
    stages: list[nn.Module] = [nn.Sequential(stem, nn.BatchNorm2d(filters[0]), nn.ReLU())]
    size = filters[0]
    for position, width in enumerate(filters):
        first = BasicBlock(size, width, stride=1 if position == 0 else 2)
        stages.append(nn.Sequential(first, *(BasicBlock(width, width, stride=1) for _ in range(depth - 1))))
        size = width
    return Classifier(stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(size, num_classes))


@MODELS.register("resnet18", label="ResNet-18", paper="arXiv:1512.03385")
@checked_options
def resnet18(num_classes: int, input_shape: tuple[int, int, int], *, width: int = 64) -> Classifier:
    """Five stages: stem, then four of two blocks with 1, 2, 4, 8 times ``width`` filters.

    The stem is that of small images (3x3, stride 1, no pooling) in place of ImageNet's 7x7 with stride 2, as
    throughout the unlearning literature on CIFAR. 11 173 962 parameters for 3x32x32 and 10 classes.
    Raises ``UserError`` for sides below 8 pixels.
    """
    channels, _, _ = check_problem("resnet18", num_classes, input_shape, SMALLEST)
    base = check_width("resnet18", "width", width)
    return residual(channels, num_classes, [base, 2 * base, 4 * base, 8 * base], depth=2)
