"""ResNet-50 (He, Zhang, Ren, Sun 2016)."""

from __future__ import annotations

from raybench.contract import Classifier, check_problem, check_width
from raybench.models.resnet18 import SMALLEST, Bottleneck, choose_stem, residual
from raybench.options import checked_options
from raybench.registry import MODELS

DEPTHS = (3, 4, 6, 3)


@MODELS.register("resnet50", label="ResNet-50", paper="arXiv:1512.03385", published="resnet50")
@checked_options
def resnet50(num_classes: int, input_shape: tuple[int, int, int], *, width: int = 64, stem: str = "auto") -> Classifier:
    """Five stages: stem, then 3, 4, 6, 3 bottleneck blocks with 1, 2, 4, 8 times ``width`` filters, times four where
    they end.

    ``stem``: small, imagenet, or auto, as in resnet18. 25 557 032 parameters for 3x224x224 and 1000 classes,
    23 520 842 for 3x32x32 and 10. Raises ``UserError`` for sides below 8 pixels.
    """
    channels, *sides = check_problem("resnet50", num_classes, input_shape, SMALLEST)
    base = check_width("resnet50", "width", width)
    imagenet = choose_stem("resnet50", stem, min(sides))
    filters = [base, 2 * base, 4 * base, 8 * base]
    return residual(channels, num_classes, filters, DEPTHS, block=Bottleneck, imagenet=imagenet)
