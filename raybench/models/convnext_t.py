"""ConvNeXt-T (Liu, Mao, Wu, Feichtenhofer, Darrell, Xie 2022), from torchvision's parts."""

from __future__ import annotations

from torch import Tensor, nn

from raybench.contract import Classifier, check_problem, check_width
from raybench.errors import UserError
from raybench.options import checked_options
from raybench.registry import MODELS

DEPTHS = (3, 3, 9, 3)
DROP = 0.1  # stochastic depth of the last block, as published
LARGE = 64  # sides from which patches have 4 pixels


@MODELS.register("convnext_t", label="ConvNeXt-T", paper="arXiv:2201.03545", published="convnext_tiny")
@checked_options
def convnext_t(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    patch: int | None = None,
    width: int = 96,
    depths: list[int] | tuple[int, ...] = DEPTHS,
    drop: float = DROP,
) -> Classifier:
    """Five stages: patches, then 3, 3, 9, 3 blocks with 1, 2, 4, 8 times ``width`` channels, each but the first after
    layer norm and a convolution that halves the sides; no batch norm.

    ``patch``: side of the first convolution, 4 pixels from 64 pixels on, else 2. ``drop``: stochastic depth, in
    training. 28 589 128 parameters for 3x224x224 and 1000 classes. Raises ``UserError`` for images of less than 8
    patches a side.
    """
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt  # slow to import, so only where it is used

    _, *sides = check_problem("convnext_t", num_classes, input_shape)
    base = check_width("convnext_t", "width", width)
    counts = [check_width("convnext_t", "depths", depth) for depth in depths]
    if len(counts) < 2:
        raise UserError(f"depths of model convnext_t must be at least 2 numbers, got {depths!r}; write them as a list")
    if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < 1:
        raise UserError(f"drop of model convnext_t must be from 0 to below 1, got {drop!r}; change it")
    p = check_width("convnext_t", "patch", patch if patch is not None else 4 if min(sides) >= LARGE else 2)
    channels, _, _ = check_problem("convnext_t", num_classes, input_shape, p * 2 ** (len(counts) - 1))
    sizes = [base * 2**i for i in range(len(counts))]
    ends = [*sizes[1:], None]
    settings = [CNBlockConfig(size, end, n) for size, end, n in zip(sizes, ends, counts, strict=True)]
    network = ConvNeXt(settings, stochastic_depth_prob=drop, num_classes=num_classes)
    if (p, channels) != (4, 3):
        network.features[0][0] = patches(channels, base, p)
    layers = list(network.features)
    stages = [layers[0], layers[1]]
    stages += [nn.Sequential(*layers[i : i + 2]) for i in range(2, len(layers), 2)]
    norm, flatten, head = network.classifier
    return Classifier(stages, nn.Sequential(Mean(), norm, flatten), head)


class Mean(nn.Module):
    """[n, c, h, w] to [n, c, 1, 1]. As adaptive pooling, which torch.func cannot map over samples of these strides."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.mean(dim=(-1, -2), keepdim=True)


def patches(channels: int, size: int, side: int) -> nn.Conv2d:
    """A convolution that makes [n, size, h / side, w / side] of images, its weights as those of torchvision's."""
    layer = nn.Conv2d(channels, size, side, side)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
