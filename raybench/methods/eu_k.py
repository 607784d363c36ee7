"""EU-k: re-initialise the last k stages and the head, and train them anew on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from raybench.mechanisms.last_stages import split_stages, train_last_stages
from raybench.registry import METHODS, RETAIN
from raybench.space import at_least, nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class EuKHparams:
    """Defaults: the original training's number of epochs and, as in CF-k, a rate of 0.01."""

    k: Annotated[int, scientific(IntDistribution(0, 4))] = 1
    """How many stages, counted from the head, are made anew beside neck and head. From the model's number of stages
    on everything is, and the method is a retraining."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-3, 1e-1, log=True))] = 0.01
    """Peak learning rate."""
    epochs: int | None = None
    """Passes over D_r; null takes as many as the original training had."""
    batch_size: int = 64
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD; the SCRUB paper's code has none."""
    weight_decay: float = 5e-4
    """L2 penalty on what trains."""
    schedule: Literal["none", "cosine"] = "cosine"
    """Learning rate over the run."""
    pull: float = 0.0
    """Strength of an L2 pull to the new initial weights; the SCRUB paper's code has 0.1."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode also where it trains, as the SCRUB paper's code does. The new
    stages then normalise by means 0 and variances 1, that is not at all."""

    def __post_init__(self) -> None:
        at_least(self, 0, "k", "pull")
        if self.epochs is not None and self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}; null means the original's number")


@METHODS.register(
    "eu_k",
    hparams=EuKHparams,
    label="EU-k",
    paper="arXiv:2201.06640",
    needs={RETAIN},
    tiny={"epochs": 2},
    complexity="E N_r",
    batch_norm="move in what trains",
)
def eu_k(task: UnlearningTask, hp: EuKHparams) -> nn.Module:
    """Exact unlearning of the last k layers: re-initialise them, train them on D_r (Goel et al. 2022).

    w <- a fresh draw of the initialiser, then w <- w - lr * gradient of the mean loss on D_r, for the w of the last k
    stages, the neck and the head.
    The layers below are the original's, weights and batch-norm buffers to the bit: what they know of D_f stays. The
    others start anew, buffers too, and train with batch norm in training mode. Cost:
    epochs x |D_r| sample passes, whose backward halves end at the first stage that trains; the epochs are the original
    training's, so it is no cheap method.

    Deviations:
        - k counts the model's stages (blocks), and neck and head are always made anew; the paper counts layers.
        - a fresh initialisation; the original one is not kept in a standard training.
        - rate and schedule are ours (0.01 with a cosine) and searched; the paper repeats the original recipe.
        - the SCRUB paper's code runs 10 epochs wholly in evaluation mode, without momentum and with a pull of 0.1
          to the new initial weights (``epochs``, ``eval_mode``, ``momentum``, ``pull``).
    """
    model, fresh = task.model, task.new_model()
    with torch.no_grad():
        for module, new in zip(split_stages(model, hp.k)[1], split_stages(fresh, hp.k)[1], strict=True):
            module.load_state_dict(new.state_dict())
    return train_last_stages(task, model, hp, epochs=task.recipe.epochs if hp.epochs is None else hp.epochs)
