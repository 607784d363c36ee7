"""PVTv2-B0: a small pyramid vision transformer (Wang et al. 2022), through timm."""

from __future__ import annotations

from raybench.contract import Classifier, check_problem
from raybench.models.timm import built
from raybench.options import checked_options
from raybench.registry import MODELS

SMALLEST = 32  # strides of 4, 2, 2, 2 leave one token


@MODELS.register("pvt_v2_b0", label="PVTv2-B0", paper="arXiv:2106.13797")
@checked_options
def pvt_v2_b0(num_classes: int, input_shape: tuple[int, int, int], *, drop: float = 0.0) -> Classifier:
    """Five stages: overlapping patches, then four of two blocks of attention whose keys and values are at lower
    resolution, with 32, 64, 160, 256 channels; no batch norm.

    ``drop``: stochastic depth, in training. 3 666 760 parameters for 3x224x224 and 1000 classes. Raises ``UserError``
    without the package timm (extra ``timm``), and for sides below 32 pixels.
    """
    shape = check_problem("pvt_v2_b0", num_classes, input_shape, SMALLEST)
    return built("pvt_v2_b0", "pvt_v2_b0", num_classes, shape, {"drop_path_rate": drop})
