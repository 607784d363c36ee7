"""Task-vector negation: fine-tune on the forget set, and go the opposite way from where that led."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.mechanisms.rewind_loop import check_settings, rewind_by_history
from raybench.mechanisms.rewinding import CONV, HISTORY
from raybench.registry import CLASSIFICATION, DENOISING, FORGET, METHODS
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class TaskVectorHparams:
    """The fine-tuning is that of ``rewind``, whose control this is; one coefficient, or two with ``other``."""

    coefficient: Annotated[float, scientific(FloatDistribution(0.05, 5.0, log=True))] = 1.0
    """How far to step back, in lengths of the task vector; of convolutions only, where ``other`` is given."""
    other: float | None = None
    """Coefficient of all that is not a convolution; None: the same. 1.25 and 0.24 are what the authors' released
    InvWNN predictors come down to at the step sizes of their script."""
    rewinds: Annotated[int, scientific(IntDistribution(1, 10))] = 10
    """Steps back; 1 is task arithmetic as published. A stopping rule of the spec may end the run earlier."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-6, 1e-2, log=True))] = 1e-6
    """Learning rate of the fine-tuning on D_f."""
    warmup_epochs: int = 2
    """Epochs on D_f before the task vector begins."""
    batch_size: int = 256
    """Samples a step of the fine-tuning."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """Update rule of the fine-tuning; sgd has momentum 0.9. Its state lives through the steps back."""
    augment: bool = True
    """Apply the dataset's augmentation to D_f."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Scales, shifts and running statistics of normalisation layers: held still, or trained (scales and shifts then
    step back too). Frozen runs the whole network in evaluation mode."""
    clip: float | None = None
    """Guard: no tensor's step is longer than this share of its own norm; None is off."""

    def __post_init__(self) -> None:
        check_settings(self)


@METHODS.register(
    "task_vector",
    hparams=TaskVectorHparams,
    label="Task vector",
    paper="arXiv:2212.04089",
    needs={FORGET},
    tasks={CLASSIFICATION, DENOISING},
    tiny={"rewinds": 1, "warmup_epochs": 1, "lr": 1e-3},
    complexity="rewinds x (warm-up + 14) x N_f",
    batch_norm="read unless batch_norm: train",
)
def task_vector(task: UnlearningTask, hp: TaskVectorHparams) -> nn.Module:
    """Ilharco et al. 2023, section 3, forgetting by negation: theta <- Phi_0 - lambda (Phi_14 - Phi_0), repeated.

    Phi_14 is Phi_0 fine-tuned on D_f; lambda may differ by operation type.

    Cost: rewinds x (warm-up + 14) x |D_f| sample passes. Batch norm as in ``rewind``.

    Deviations:
        - repeated, with the fine-tuning of ``rewind`` (14 epochs after a warm-up, batch norm frozen) so that the two
          differ in the predictor only; the paper steps back once, over the whole network with one lambda.
        - lambda may exceed 1: the range covers what InvWNN's released predictors do.
    """
    coefficients = {CONV: hp.coefficient}
    other = hp.coefficient if hp.other is None else hp.other

    def predict(kind: str, history: Tensor) -> Tensor:
        return coefficients.get(kind, other) * (history[0] - history[-1])

    return rewind_by_history(task, hp, predict, HISTORY, ends_only=True)
