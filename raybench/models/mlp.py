"""Multi-layer perceptron on flattened images."""

from __future__ import annotations

import math

from torch import nn

from raybench.contract import Classifier, check_problem, check_width
from raybench.errors import UserError
from raybench.options import checked_options
from raybench.registry import MODELS

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


@MODELS.register("mlp", label="MLP")
@checked_options
def mlp(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    hidden: int | list[int] | tuple[int, ...] = (256,),
    activation: str = "relu",
) -> Classifier:
    """Dense layers of the widths ``hidden``, each followed by ``activation`` (relu or sigmoid), then the head.

    One stage per hidden layer, [n, width]. ``hidden: []`` is softmax regression, a convex problem.
    ``hidden: [1000], activation: sigmoid`` is the 784-1000-10 network that the mnemonic-code paper uses on MNIST.
    Raises ``UserError`` for a width below 1 or an unknown activation.
    """
    shape = check_problem("mlp", num_classes, input_shape)
    if activation not in list(ACTIVATIONS):
        raise UserError(f"activation of model mlp must be {' or '.join(ACTIVATIONS)}, got {activation!r}; change it")
    given = hidden if isinstance(hidden, list | tuple) else [hidden]
    widths = [check_width("mlp", "hidden", width) for width in given]

    stages: list[nn.Module] = []
    size = math.prod(shape)
    for width in widths:
        flatten = [] if stages else [nn.Flatten()]
        stages.append(nn.Sequential(*flatten, nn.Linear(size, width), ACTIVATIONS[activation]()))
        size = width
    return Classifier(stages, nn.Flatten(), nn.Linear(size, num_classes))
