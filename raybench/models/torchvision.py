"""Every torchvision classifier that is laid out as stages, neck and head: ``torchvision:<name>``."""

from __future__ import annotations

from typing import Any

from torch import nn

from raybench.adapted import check_layout, from_torchvision
from raybench.contract import Classifier, check_problem
from raybench.errors import UserError, unknown
from raybench.options import checked_options
from raybench.registry import MODELS


@MODELS.register("torchvision", label="torchvision classifier")
@checked_options
def torchvision(
    num_classes: int,
    input_shape: tuple[int, int, int],
    family: str | None = None,
    *,
    arguments: dict[str, Any] | None = None,
) -> Classifier:
    """``torchvision:<name>``, such as torchvision:mobilenet_v3_small: as torchvision builds it, without weights.

    ``arguments``: passed to torchvision's builder (``dropout: 0.0``). Images must be RGB. Raises ``UserError`` for a
    name that torchvision does not have, for grey images, and for a network that cannot be laid out (its vision
    transformers: use vit_b16; DenseNet, GoogLeNet, SqueezeNet).
    """
    from torchvision import models  # slow to import, so only where it is used

    if family is None:
        raise UserError("model torchvision must be given a name, got none; write torchvision:NAME")
    name = f"torchvision:{family}"
    shape = check_problem(name, num_classes, input_shape)
    known = models.list_models(module=models)
    if family not in known:
        raise unknown("torchvision", family, known)
    if shape[0] != 3:
        raise UserError(
            f"model {name} must get RGB images (3 channels), got {shape[0]}; use a model that takes any number "
            "(raybench's own, timm:NAME), or load the images as RGB"
        )

    def network() -> nn.Module:
        try:
            built: nn.Module = models.get_model(family, weights=None, num_classes=num_classes, **(arguments or {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"arguments of model {name} must be torchvision's, got {error}; change them") from error
        return built

    check_layout(name, lambda: from_torchvision(network()), num_classes, shape)
    adapted = from_torchvision(network())
    assert adapted is not None
    return adapted
