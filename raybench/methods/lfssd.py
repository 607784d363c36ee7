"""Loss-free selective synaptic dampening (LFSSD): importances from the length of the output, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from raybench.data import Batch
from raybench.mechanisms.dampening import check_settings, dampen_forget_set
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class LfssdHparams:
    """Defaults: SSD's, since the official notes change the importance only."""

    alpha: Annotated[float, scientific(FloatDistribution(0.3, 100.0, log=True))] = 10.0
    """Entries whose importance for D_f is more than this times that for D are selected; higher selects fewer. Of one
    class of digits 1 to 8 forgets, 10 hardly. With ``fisher: sample`` nothing is selected from alpha = N / N_f on
    (reported as ``alpha_bound``): D holds D_f."""
    dampening: Annotated[float, scientific(FloatDistribution(0.01, 10.0, log=True))] = 1.0
    """lambda: a selected entry is multiplied by lambda I_D / I_f, at most by 1; higher forgets less."""
    fisher: Literal["batch", "sample"] = "batch"
    """Importance: magnitudes of the mean gradients of batches, as the official code has it, or of single samples."""
    batch_size: int = 64
    """Samples a batch with ``fisher: batch``."""
    order: Literal["shuffled", "by_class"] = "shuffled"
    """Order of D with ``fisher: batch``: shuffled, or class after class, as the official class-forgetting code has
    it."""

    def __post_init__(self) -> None:
        check_settings(self)


@METHODS.register(
    "lfssd",
    hparams=LfssdHparams,
    label="LFSSD",
    paper="arXiv:2402.19308",
    needs={FORGET, RETAIN},
    complexity="N + N_f",
    batch_norm="read",
)
def lfssd(task: UnlearningTask, hp: LfssdHparams) -> nn.Module:
    """w_i <- min(lambda I_D,i / I_f,i, 1) w_i where I_f,i > alpha I_D,i, with I_i = E |d |z(x)|^2 / d w_i|.

    Foster et al. 2024 ("Loss-Free Machine Unlearning"): as ``ssd``, but the importance is the mean magnitude of the
    gradient of the squared length of the logits z, so no label is looked at. In evaluation mode, without augmentation;
    the buffers of batch norm are read and stay. Reports ``selected``, the selected share, and ``alpha_bound``.
    Cost: N + N_f sample passes.

    Deviations:
        - D is shuffled; the official code takes D_r and then D_f as they come (``order: by_class`` for classes).
        - magnitudes are those of mean gradients of batches, as the official notes have it, not of single samples
          (``fisher: sample``).
    """
    return dampen_forget_set(task, hp, _squared_length, power=1)


def _squared_length(model: nn.Module, batch: Batch) -> Tensor:
    """|z(x)|^2 per sample [n]: not a data loss, so not the task's to give."""
    logits: Tensor = model(batch[0])
    return logits.square().sum(1)
