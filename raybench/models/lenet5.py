"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998) as it is used today."""

from __future__ import annotations

from torch import nn

from raybench.contract import Classifier, check_problem
from raybench.options import checked_options
from raybench.pooling import HalvingMaxPool
from raybench.registry import MODELS

FULL_SIDE = 32  # the images of the paper; smaller ones are padded by PADDING, as MNIST was
PADDING = 2
SMALLEST = 12  # (12 / 2 - 4) / 2 = 1 pixel left for the dense layers


@MODELS.register("lenet5", label="LeNet-5", paper="LeCun et al. 1998, doi:10.1109/5.726791")
@checked_options
def lenet5(num_classes: int, input_shape: tuple[int, int, int]) -> Classifier:
    """Two stages of 5x5 convolution, activation and 2x2 pooling (6 and 16 maps); the neck is 120 and 84 units.

    Deviations from the paper, all usual: ReLU for the scaled tanh, max pooling for trained subsampling, every
    map of the second layer sees every map of the first, a linear head for radial basis functions. 61 706
    parameters for 1x28x28 and 10 classes, 62 006 for 3x32x32. Raises ``UserError`` for sides below 12 pixels.
    """
    channels, height, width = check_problem("lenet5", num_classes, input_shape, SMALLEST)
    padding = PADDING if min(height, width) < FULL_SIDE else 0

    def after(side: int) -> int:
        return ((side + 2 * padding - 4) // 2 - 4) // 2

    stages = [
        nn.Sequential(nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), HalvingMaxPool()),
        nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), HalvingMaxPool()),
    ]
    dense = [nn.Linear(16 * after(height) * after(width), 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return Classifier(stages, nn.Sequential(nn.Flatten(), *dense), nn.Linear(84, num_classes))
