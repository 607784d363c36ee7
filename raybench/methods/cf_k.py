"""CF-k: fine-tune the last k stages and the head on the retain set, and leave the rest alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from raybench.mechanisms.last_stages import train_last_stages
from raybench.registry import METHODS, RETAIN
from raybench.space import at_least, nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class CfKHparams:
    """Defaults: 10 epochs at 0.01, the values of the SCRUB paper's code (arXiv:2302.09880) and of ``finetune``."""

    k: Annotated[int, scientific(IntDistribution(0, 4))] = 1
    """How many stages, counted from the head, train beside neck and head. From the model's number of stages on
    everything trains, and the method is ``finetune``."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-4, 1e-1, log=True))] = 0.01
    """Learning rate."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 10))] = 10
    """Passes over D_r."""
    batch_size: int = 64
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD; the SCRUB paper's code has none."""
    weight_decay: float = 5e-4
    """L2 penalty on what trains."""
    schedule: Literal["none", "cosine"] = "none"
    """Learning rate over the run."""
    pull: float = 0.0
    """Strength of an L2 pull to the original weights; the SCRUB paper's code has 0.1."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode also where it trains, as the SCRUB paper's code does."""

    def __post_init__(self) -> None:
        at_least(self, 0, "k", "pull")


@METHODS.register(
    "cf_k",
    hparams=CfKHparams,
    label="CF-k",
    paper="arXiv:2201.06640",
    needs={RETAIN},
    tiny={"epochs": 2},
    complexity="E N_r",
    batch_norm="move in what trains",
)
def cf_k(task: UnlearningTask, hp: CfKHparams) -> nn.Module:
    """Catastrophic forgetting of the last k layers: fine-tune them on D_r (Goel et al. 2022).

    w <- w - lr * gradient of the mean loss on D_r, for the w of the last k stages, the neck and the head.
    The layers below are a fixed function: weights and batch-norm buffers stay to the bit. What trains has its batch
    norm in training mode, so buffers move there (``eval_mode`` holds them). With k of at least the number of stages
    it is ``finetune``, to the bit. Cost: epochs x |D_r| sample passes, whose backward halves end at the first stage
    that trains.

    Deviations:
        - k counts the model's stages (blocks), and neck and head always train; the paper counts layers.
        - the stages that stay are in evaluation mode; codes that only freeze weights let their batch norm move.
        - the SCRUB paper's code runs wholly in evaluation mode, without momentum and with a pull of 0.1 to the original
          weights instead of weight decay (``eval_mode``, ``momentum``, ``pull``).
    """
    return train_last_stages(task, task.model, hp)
