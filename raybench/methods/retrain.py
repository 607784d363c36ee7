"""Retrain from scratch on the retain set: the reference every other method is compared with ("gold" in papers)."""

from __future__ import annotations

from torch import nn

from raybench.registry import CLASSIFICATION, DENOISING, METHODS, RETAIN, NoParameters
from raybench.task import UnlearningTask
from raybench.training import fit


@METHODS.register(
    "retrain",
    label="Retrain",
    needs={RETAIN},
    tasks={CLASSIFICATION, DENOISING},
    reference=True,
    fresh=True,
    complexity="E N_r",
    batch_norm="fresh (a new model)",
)
def retrain(task: UnlearningTask, hp: NoParameters) -> nn.Module:
    """Train a new model on D_r by the recipe of the original (Bourtoule et al. 2021, arXiv:1912.03817, section 3).

    Same epochs, so fewer steps than the original where D_r is smaller; same K-way head in class scenarios; new
    initial weights from the task's generator; batch norm starts anew and trains. Cost: recipe epochs x |D_r| sample
    passes.

    Deviations: none.
    """
    model = task.new_model()
    fit(model, task.retain, task.recipe, loss=task.loss, after_epoch=lambda epoch: task.checkpoint(model, epoch))
    return model
