"""Selective synaptic dampening (SSD): shrink the weights that matter much more to D_f than to all data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from optuna.distributions import FloatDistribution
from torch import nn

from raybench.mechanisms.dampening import check_settings, dampen_forget_set
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class SsdHparams:
    """Defaults: the official code's for ResNet-18 and random samples (alpha 5 and 25 with a ViT, 50 on faces)."""

    alpha: Annotated[float, scientific(FloatDistribution(0.1, 1000.0, log=True))] = 10.0
    """Entries whose importance for D_f is more than this times that for D are selected; higher selects fewer. With
    ``fisher: sample`` nothing is selected from alpha = N / N_f on (reported as ``alpha_bound``): D holds D_f."""
    dampening: Annotated[float, scientific(FloatDistribution(0.01, 10.0, log=True))] = 1.0
    """lambda: a selected entry is multiplied by lambda I_D / I_f, at most by 1; higher forgets less."""
    fisher: Literal["batch", "sample"] = "batch"
    """Importance: the squared mean gradients of batches, averaged, as the official code has it, or the per-sample
    empirical Fisher of the paper's text. ``sample`` makes the default alpha a no-op for one class of ten and for a
    tenth of the samples."""
    batch_size: int = 64
    """Samples a batch with ``fisher: batch``, where it scales the importances (about 1 / batch_size)."""
    order: Literal["shuffled", "by_class"] = "shuffled"
    """Order of D with ``fisher: batch``: shuffled, or class after class, as the official class-forgetting code has
    it. Batches of one class each bring the bound N / N_f back, so that the same alpha forgets far less."""

    def __post_init__(self) -> None:
        check_settings(self)


@METHODS.register(
    "ssd",
    hparams=SsdHparams,
    label="SSD",
    paper="arXiv:2308.07707",
    needs={FORGET, RETAIN},
    complexity="N + N_f",
    batch_norm="read",
)
def ssd(task: UnlearningTask, hp: SsdHparams) -> nn.Module:
    """w_i <- min(lambda I_D,i / I_f,i, 1) w_i where I_f,i > alpha I_D,i (Foster et al. 2024).

    I_f and I_D are importances of the original model for the labels of D_f and of D = D_f with D_r, in evaluation mode
    and without augmentation, shared by all settings of alpha and lambda. No step is trained; scales and shifts of
    batch norm are dampened like other weights, its buffers are read and stay. Reports ``selected``, the selected
    share, and ``alpha_bound``.
    Cost: N + N_f sample passes (N_f where the importance for D is at hand before the request, as in the paper).

    Deviations:
        - importances are squared mean gradients of batches, as in the official code; the paper's text has the
          per-sample Fisher (``fisher: sample``), with which alpha >= N / N_f, such as the default, selects nothing.
        - D is shuffled; the official code takes D_r and then D_f as they come, which to forget a class means class
          by class (``order: by_class``).
        - batches hold 64 samples, of D_f and of D alike; where samples are forgotten at random the official code takes
          128 of D_f, which scales its importance down.
    """
    return dampen_forget_set(task, hp, task.loss, power=2)
