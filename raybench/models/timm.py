"""Every timm classifier that is laid out as stages, neck and head: ``timm:<name>`` (needs the extra ``timm``)."""

from __future__ import annotations

from typing import Any

from torch import nn

from raybench.adapted import check_layout, from_timm
from raybench.contract import Classifier, check_problem
from raybench.errors import UserError, unknown
from raybench.options import checked_options
from raybench.registry import MODELS


@MODELS.register("timm", label="timm classifier")
@checked_options
def timm(
    num_classes: int,
    input_shape: tuple[int, int, int],
    family: str | None = None,
    *,
    arguments: dict[str, Any] | None = None,
) -> Classifier:
    """``timm:<name>``, such as timm:resnet26: as timm builds it for these images, without weights.

    ``arguments``: passed to timm's builder (``patch_size: 4``). Takes any number of channels. Raises ``UserError``
    without timm, for a name that it does not have, and for a network that cannot be laid out.
    """
    if family is None:
        raise UserError("model timm must be given a name, got none; write timm:NAME")
    name = f"timm:{family}"
    return built(name, family, num_classes, check_problem(name, num_classes, input_shape), arguments or {})


def built(
    name: str, family: str, num_classes: int, shape: tuple[int, int, int], arguments: dict[str, Any]
) -> Classifier:
    """timm's ``family`` laid out, as model ``name``; see ``timm``."""
    try:
        import timm as library
    except ModuleNotFoundError as error:
        raise UserError(
            f"model {name} must have the package timm, got {error}; install it: python -m pip install 'raybench[timm]'"
        ) from error
    if not library.is_model(family):
        raise unknown("timm", family, library.list_models())

    def network() -> nn.Module:
        options = {"pretrained": False, "num_classes": num_classes, "in_chans": shape[0], **arguments}
        try:
            try:
                made: nn.Module = library.create_model(family, img_size=shape[1:], **options)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                made = library.create_model(family, **options)  # most convolutional networks take any size
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise UserError(f"model {name} must be built for images of {shape}, got {error}; change it") from error
        return made

    check_layout(name, lambda: from_timm(network()), num_classes, shape)
    adapted = from_timm(network())
    assert adapted is not None
    return adapted
