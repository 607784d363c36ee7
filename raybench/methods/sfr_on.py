"""SFR-on: masked ascent on the forget set, weighted towards what is still known, between steps on the retain set."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.fisher import fisher_of_split
from raybench.mechanisms.masking import selected_share
from raybench.mechanisms.mixing import endless
from raybench.mechanisms.stepping import Stepper
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import above, at_least, nuisance, scientific
from raybench.task import UnlearningTask
from raybench.training import own_recipe

FLOOR = 1e-15  # added to both Fisher diagonals, and to the power of a loss that is divided by


@dataclass(frozen=True)
class SfrOnHparams:
    """Defaults: the official code for CIFAR-10, ResNet-18, 10 % random samples."""

    ascent: Annotated[float, scientific(FloatDistribution(1e-2, 1e3, log=True))] = 25.0
    """Weight a_0 of the first ascent step; half a cosine takes it to zero. Clipping bounds what large values do."""
    adaptivity: Annotated[float, scientific(CategoricalDistribution([0.0, 0.25, 0.5, 1.0, 2.0]))] = 0.5
    """Power lambda: forget samples weigh as loss^-lambda, so that those that are already unknown count less."""
    loss_floor: Annotated[float, nuisance(CategoricalDistribution([0.0, 1e-4, 1e-2]))] = 0.0
    """Losses count as at least this in the weights; 0 is the code. A model that fits D_f perfectly has samples of loss
    zero in fp32: they then take all the weight, have no gradient, and ascent stands still for every lambda > 0."""
    threshold: Annotated[float, scientific(FloatDistribution(0.1, 10.0, log=True))] = 1.0
    """gamma: ascent moves the weights whose Fisher ratio I_f / I_r is at least this."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-4, 1e-1, log=True))] = 0.01
    """Learning rate of both kinds of steps; half a cosine takes it to zero."""
    steps: Annotated[int, nuisance(IntDistribution(50, 2000, log=True))] = 1500
    """Steps on D_r."""
    forget_every: Annotated[int, nuisance(IntDistribution(1, 10))] = 5
    """An ascent step before every so many steps on D_r."""
    batch_size: int = 128
    """Samples a step, on either set and in the Fisher diagonals."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """Update rule; its state is shared by both kinds of steps."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """L2 penalty (decoupled for adamw)."""
    clip_norm: float | None = 7.0
    """Largest gradient norm of an ascent step, or no clipping."""
    fisher: Literal["per_batch", "per_sample"] = "per_batch"
    """Squared gradients of batch means, as in the code, or of samples, as Fisher information is defined."""
    eval_mode: bool = False
    """Keep batch norm and dropout in evaluation mode in ascent steps; the official code trains there too."""

    def __post_init__(self) -> None:
        at_least(self, 0, "ascent", "adaptivity", "loss_floor", "threshold")
        above(self, 0, "clip_norm")
        at_least(self, 1, "steps", "forget_every", "batch_size")


@METHODS.register(
    "sfr_on",
    hparams=SfrOnHparams,
    label="SFR-on",
    paper="arXiv:2409.19732",
    needs={FORGET, RETAIN},
    tiny={"steps": 6, "forget_every": 2, "batch_size": 32},
    complexity="N_f + N_r + steps x B (1 + 1 / forget_every)",
    batch_norm="move",
)
def sfr_on(task: UnlearningTask, hp: SfrOnHparams) -> nn.Module:
    """Ascend  a_t mean(w_j l_j),  w_j = c l_j^-lambda,  on D_f where I_f / I_r >= gamma; descend on D_r.

    Huang et al., NeurIPS 2024, arXiv:2409.19732: the mask and the sample weights approximate an ascent in the geometry
    of the remaining data, the steps on D_r repair. Fisher diagonals are those of the original model and shared by all
    settings. The mask acts on the gradient of ascent steps alone: momentum and the steps on D_r move every weight.
    Batch norm trains, so its buffers move (on D_r alone with ``eval_mode``). Reports ``masked``, the share of weights
    that ascent moves. Cost: |D_f| + |D_r| + steps x batch_size x (1 + 1 / forget_every) sample passes.

    Deviations:
        - the fast-slow average of the paper is left out: the released runs set its factor to 1, which makes it the
          identity.
        - ``loss_floor`` is ours (off by default): without it nothing is forgotten where the original fits perfectly.
        - the Fisher diagonals see the images without augmentation, in a fixed order.
        - training images are augmented as the recipe says.
    """
    model, every = task.model, hp.forget_every
    mask = fisher_mask(task, hp)
    task.report({"masked": selected_share(mask)})
    recipe = own_recipe(task.recipe, hp, schedule="cosine")
    stepper = Stepper(model, recipe)
    forgotten, kept = (endless(part, hp.batch_size, augment=recipe.augment) for part in (task.forget, task.retain))
    round_length = math.ceil(len(task.retain) / hp.batch_size)  # a checkpoint after every pass over D_r

    def keep_selected() -> None:
        for name, p in model.named_parameters():
            if p.grad is not None:
                p.grad.mul_(mask[name])

    def climb(weight: float, losses: Tensor) -> Tensor:
        return weight * adaptive_mean(losses, hp.adaptivity, hp.loss_floor)

    for step in range(hp.steps):
        lr = recipe.lr_at(step, hp.steps)
        if step % every == 0:
            objective = functools.partial(climb, -hp.ascent * 0.5 * (1.0 + math.cos(math.pi * step / hp.steps)))
            model.train(not hp.eval_mode)
            stepper.step(
                next(forgotten),
                task.loss,
                lr=lr,
                objective=objective,
                after_backward=keep_selected,
                clip_norm=hp.clip_norm,
            )
        model.train()
        stepper.step(next(kept), task.loss, lr=lr)
        if (step + 1) % round_length == 0 or step + 1 == hp.steps:
            model.eval()
            task.checkpoint(model, -(-(step + 1) // round_length))
    return model


def adaptive_mean(losses: Tensor, adaptivity: float, floor: float = 0.0) -> Tensor:
    """mean(w l) of losses [n] with w = n l^-lambda / sum l^-lambda, not differentiated and with l at
    least ``floor`` in them; zero dimensional."""
    with torch.no_grad():
        weights = 1.0 / (losses.clamp(min=floor).pow(adaptivity) + FLOOR)
        weights = weights / weights.sum() * len(losses)
    return (weights * losses).mean()


def fisher_mask(task: UnlearningTask, hp: SfrOnHparams) -> dict[str, Tensor]:
    """Parameter name -> bool: entries whose Fisher ratio of D_f to D_r is at least ``threshold``."""

    def diagonal(part: str) -> dict[str, Tensor]:
        split = task.forget if part == FORGET else task.retain

        def compute(_: torch.Generator) -> dict[str, Tensor]:
            return fisher_of_split(task.model, split, mode=hp.fisher, batch_size=hp.batch_size, loss=task.loss)

        return task.once(f"fisher_{part}", compute, mode=hp.fisher, batch_size=hp.batch_size)

    forget, retain = diagonal(FORGET), diagonal(RETAIN)
    return {name: (forget[name] + FLOOR) / (retain[name] + FLOOR) >= hp.threshold for name in forget}
