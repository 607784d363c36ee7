"""Stopping rules of a spec: where along its run a method is cut off, the same for every method.

``stop: {unlearning_accuracy: 0.08}`` ends a trial at the first checkpoint whose unlearning accuracy (1 - accuracy on
D_f, with the labels the original was trained on) reaches the value; ``retrained`` is the retrained model's own.
The protocol of Jang, Kim and Youn 2025 (doi:10.1609/aaai.v39i25.34822), who stop every method there and compare the
rest. The evaluation that the rule needs is charged to the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raybench.data import Split
from raybench.errors import UserError, unknown
from raybench.evaluation import BATCH_SIZE
from raybench.outputs import SplitOutputs

UNLEARNING_ACCURACY = "unlearning_accuracy"
RETRAINED = "retrained"
TARGET, MAX_STEPS = "target", "max_steps"  # stop reasons


def check_stop(given: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The rule as plain values; anything else is a ``UserError``."""
    rule = f"stop of {method} must be {{{UNLEARNING_ACCURACY}: a fraction or {RETRAINED}}}"
    if len(given) != 1:
        raise UserError(f"{rule}, got {dict(given)!r}; give that one key")
    (name, value), *_ = given.items()
    if name != UNLEARNING_ACCURACY:
        raise unknown("stop", name, (UNLEARNING_ACCURACY,))
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value <= 1.0
    if value != RETRAINED and not number:
        raise UserError(f"{rule}, got {value!r}; write a number in (0, 1] or {RETRAINED}")
    return {name: value if value == RETRAINED else float(value)}


def stopping_rule(
    stop: Mapping[str, Any], forget: Split, retrained: Callable[[], SplitOutputs]
) -> Callable[[nn.Module], bool]:
    """Whether a model has reached the target on ``forget``; ``retrained()`` gives the retrained model's outputs there.

    Uses the model in evaluation mode and without augmentation, whatever the method trains with.
    """
    value = stop[UNLEARNING_ACCURACY]
    labels = forget.targets
    wanted = _errors(retrained().correct) if value == RETRAINED else float(value) * len(labels)

    @torch.no_grad()
    def met(model: nn.Module) -> bool:
        model.eval()
        wrong = 0.0
        for images, targets in forget.batches(BATCH_SIZE):
            wrong += _errors(model(images).argmax(dim=1) == targets)
        return wrong >= wanted - 1e-9  # 0.07 * 100 is above 7

    return met


def _errors(correct: Tensor) -> float:
    return float((~correct).sum())
