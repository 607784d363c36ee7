"""AllCNN: a network of convolutions only (Springenberg, Dosovitskiy, Brox, Riedmiller 2015)."""

from __future__ import annotations

from torch import nn

from raybench.contract import Classifier, check_problem, check_width
from raybench.options import checked_options
from raybench.registry import MODELS

SMALLEST = 8  # two strides of 2 leave 2x2 pixels to pool over


@MODELS.register("allcnn", label="AllCNN", paper="arXiv:1412.6806, All-CNN-C of table 2, with batch normalisation")
@checked_options
def allcnn(num_classes: int, input_shape: tuple[int, int, int], *, width: int = 96) -> Classifier:
    """Eight stages of convolution, batch norm, ReLU: 3 of ``width`` filters, 5 of twice as many (96 and 192).

    The third and sixth have stride 2, the eighth is 1x1, the rest 3x3. As in the zero-shot unlearning paper,
    batch norm instead of dropout. The paper's last 1x1 convolution to K maps and the global mean commute, so
    here the mean comes first (neck) and a linear head follows; the ReLU on the K maps is left out, since logits
    need a sign, and all 3x3 convolutions are padded. Raises ``UserError`` for sides below 8 pixels.
    """
    channels, _, _ = check_problem("allcnn", num_classes, input_shape, SMALLEST)
    narrow = check_width("allcnn", "width", width)
    wide = 2 * narrow
    #        filters, kernel, stride
    layout = [(narrow, 3, 1), (narrow, 3, 1), (narrow, 3, 2), (wide, 3, 1), (wide, 3, 1), (wide, 3, 2)]
    layout += [(wide, 3, 1), (wide, 1, 1)]
    stages = []
    for filters, kernel, stride in layout:
        convolution = nn.Conv2d(channels, filters, kernel, stride, padding=kernel // 2, bias=False)
        stages.append(nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU()))
        channels = filters
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(stages, neck, nn.Linear(channels, num_classes))
