"""ResNet-18 (He, Zhang, Ren, Sun 2016), and the residual network it is one case of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from raybench.contract import Classifier, check_problem, check_width
from raybench.errors import UserError
from raybench.options import checked_options
from raybench.registry import MODELS

SMALLEST = 8  # three strides of 2 leave one pixel
SMALLEST_IMAGENET = 32  # as do five
LARGE = 128  # sides from which stem: auto means ImageNet's
STEMS = ("auto", "small", "imagenet")


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


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around which the input is carried (He et al. 2016, figure 5); the stride is in the
    3x3 one, as in every library today. ``groups`` of ``group_width`` channels at 64 filters make it a block of
    ResNeXt (Xie et al. 2017, figure 3c)."""

    expansion = 4

    def __init__(self, channels: int, filters: int, stride: int, groups: int = 1, group_width: int = 64) -> None:
        super().__init__()
        inner = max(1, filters * group_width // 64) * groups
        outer = self.expansion * filters
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outer)
        self.act3 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != outer:
            projection = nn.Conv2d(channels, outer, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] to [n, 4 filters, h / stride, w / stride]."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.act3(y + self.shortcut(x))
        return out


def choose_stem(model: str, stem: str, side: int) -> bool:
    """Whether ``model`` gets ImageNet's stem on images of ``side`` pixels. ``UserError`` for an unknown ``stem``, and
    for ImageNet's on images below ``SMALLEST_IMAGENET``."""
    if stem not in list(STEMS):
        raise UserError(
            f"stem of model {model} must be {', '.join(STEMS[:-1])} or {STEMS[-1]}, got {stem!r}; change it"
        )
    if stem == "imagenet" and side < SMALLEST_IMAGENET:
        raise UserError(
            f"stem imagenet of model {model} must get images of at least {SMALLEST_IMAGENET} pixels, got {side}; "
            "use stem: small"
        )
    return stem == "imagenet" or (stem == "auto" and side >= LARGE)


def residual(
    channels: int,
    num_classes: int,
    filters: Sequence[int],
    depth: int | Sequence[int],
    *,
    block: Callable[..., nn.Module] = BasicBlock,
    imagenet: bool = False,
) -> Classifier:
    """A stem of ``filters[0]``, then one stage of ``depth`` blocks (one number, or one a stage) per entry of
    ``filters``, each but the first halving the sides; global mean, linear head.

    The stem is a 3x3 convolution, or ``imagenet``'s 7x7 one with stride 2 and 3x3 max pooling with stride 2.
    """
    if imagenet:
        stem = [nn.Conv2d(channels, filters[0], 7, 2, padding=3, bias=False), nn.BatchNorm2d(filters[0]), nn.ReLU()]
        stem.append(nn.MaxPool2d(3, 2, padding=1))
    else:
        stem = [nn.Conv2d(channels, filters[0], 3, padding=1, bias=False), nn.BatchNorm2d(filters[0]), nn.ReLU()]
    stages: list[nn.Module] = [nn.Sequential(*stem)]
    size = filters[0]
    depths = [depth] * len(filters) if isinstance(depth, int) else depth
    for position, (width, blocks) in enumerate(zip(filters, depths, strict=True)):
        outer = width * getattr(block, "expansion", 1)
        first = block(size, width, stride=1 if position == 0 else 2)
        stages.append(nn.Sequential(first, *(block(outer, width, stride=1) for _ in range(blocks - 1))))
        size = outer
    return Classifier(stages, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(size, num_classes))


@MODELS.register("resnet18", label="ResNet-18", paper="arXiv:1512.03385", published="resnet18")
@checked_options
def resnet18(num_classes: int, input_shape: tuple[int, int, int], *, width: int = 64, stem: str = "auto") -> Classifier:
    """Five stages: stem, then four of two blocks with 1, 2, 4, 8 times ``width`` filters.

    ``stem``: ``small`` (3x3, stride 1, no pooling), as throughout the unlearning literature on CIFAR, ``imagenet``
    (7x7 with stride 2, then max pooling), or ``auto``: ImageNet's from 128 pixels on. 11 173 962 parameters for
    3x32x32 and 10 classes, 11 689 512 for 3x224x224 and 1000. Raises ``UserError`` for sides below 8 pixels.
    """
    channels, *sides = check_problem("resnet18", num_classes, input_shape, SMALLEST)
    base = check_width("resnet18", "width", width)
    imagenet = choose_stem("resnet18", stem, min(sides))
    return residual(channels, num_classes, [base, 2 * base, 4 * base, 8 * base], depth=2, imagenet=imagenet)
