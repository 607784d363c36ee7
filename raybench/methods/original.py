"""The original model, unchanged: the reference point of a method that does nothing."""

from __future__ import annotations

from torch import nn

from raybench.registry import CLASSIFICATION, DENOISING, METHODS, NoParameters
from raybench.task import UnlearningTask


@METHODS.register(
    "original",
    label="Original",
    needs=set(),
    tasks={CLASSIFICATION, DENOISING},
    identity=True,
    reference=True,
    complexity="0",
    batch_norm="read",
)
def original(task: UnlearningTask, hp: NoParameters) -> nn.Module:
    """Return the original model as it is. Cost: nothing; batch-norm buffers stay. No paper: a trivial baseline.

    Deviations: none.
    """
    return task.model
