"""Weight noise: random noise on the weights, then (or not) a repair on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.data import Batch, Split
from raybench.mechanisms.finetuning import train
from raybench.registry import METHODS, RETAIN
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class WeightNoiseHparams:
    """Defaults: the "vision confuser", third of the NeurIPS 2023 challenge, as Deep Unlearn ports it."""

    variant: Literal["vision_confuser", "isotropic", "layer_relative"] = "vision_confuser"
    """Where the noise goes and what its unit is: the kernels of ``convolutions`` in plain numbers, all parameters in
    plain numbers, or all parameters in standard deviations of the own tensor."""
    noise: Annotated[float, scientific(FloatDistribution(1e-4, 1.0, log=True))] = 0.6
    """Standard deviation of the noise, in that unit. 0.6 is meant for one convolution: on all weights of a network
    some 1e-2 are much."""
    convolutions: Literal["first", "all"] = "first"
    """Of vision_confuser: the first convolution, which is what the released code reaches in a ResNet, or all of them,
    as its description says. Two very different methods."""
    final_noise: float = 0.005
    """Standard deviation (same unit, same place) of more noise before the last epoch of the repair, if it has two."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-4, 1e-1, log=True))] = 7e-4
    """Peak learning rate of the repair."""
    epochs: Annotated[int, nuisance(IntDistribution(0, 5))] = 4
    """Passes over D_r; 0 is noise alone, which needs no data."""
    batch_size: int = 64
    """Samples a step."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    schedule: Literal["cosine", "none"] = "cosine"
    """Learning rate over the repair."""
    balanced: bool = True
    """Weigh the losses of the repair so that every class of D_r counts the same."""

    def __post_init__(self) -> None:
        if self.noise < 0.0 or self.final_noise < 0.0:
            raise ValueError(f"noise and final_noise must not be negative, got {self.noise} and {self.final_noise}")


@METHODS.register(
    "weight_noise",
    hparams=WeightNoiseHparams,
    label="Weight noise",
    paper="arXiv:2410.01276",
    needs={RETAIN},
    tiny={"epochs": 2},
    complexity="E N_r",
    batch_norm="move in the repair",
)
def weight_noise(task: UnlearningTask, hp: WeightNoiseHparams) -> nn.Module:
    """w <- w + sigma * N(0, I), then minimise the class-weighted data loss on D_r (Cadet et al. 2024, "KGLTop3").

    sigma is ``noise`` (layer_relative: times the standard deviation of each tensor). Nothing looks at D_f: the noise
    blurs all that is known, the repair brings back what D_r teaches. A network without convolutions gets no noise from
    vision_confuser and is just fine-tuned. Batch norm trains in the repair, so its buffers move; without a repair
    (``epochs: 0``) they stay. Cost: epochs x |D_r| sample passes.

    Deviations:
        - class weights go to the sample losses; the code multiplies the mean loss of a batch by the mean weight of its
          samples, and finds the weight of class c at place c of a list of the classes that are there, which is another
          class, or an error, where one is forgotten.
        - the code picks convolutions by the word "conv" in the names of direct children, which in a ResNet is the
          first one only; ``convolutions: first`` takes the first of any network.
        - the cosine moves the learning rate by step, the code by epoch.
        - augmentation is the recipe's, so that all methods see the same images.
    """
    model = task.model
    add_noise(model, hp, hp.noise, task.generator)
    if hp.epochs == 0:
        return model
    weights = class_weights(task.retain, task.num_classes) if hp.balanced else None
    last = -(-len(task.retain) // hp.batch_size) * (hp.epochs - 1)  # steps before the last epoch
    done = 0

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        if 0 < last == done:  # not at the end of the epoch before, whose model may be the result
            add_noise(network, hp, hp.final_noise, task.generator)
        losses = task.loss(network, batch)
        return losses if weights is None else losses * weights[batch[1]]

    def count(step: int) -> None:
        nonlocal done
        done = step

    return train(task, model, task.retain, hp, loss=loss, after_step=count)


@torch.no_grad()
def add_noise(model: nn.Module, hp: WeightNoiseHparams, sigma: float, generator: torch.Generator) -> None:
    """Add the noise of ``hp.variant`` with standard deviation ``sigma`` to ``model`` in place. Zero is the identity."""
    if hp.variant == "vision_confuser":
        kernels = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
        chosen = kernels[:1] if hp.convolutions == "first" else kernels
    else:
        chosen = list(model.parameters())
    for p in chosen:
        scale = sigma * (p.std(correction=0) if hp.variant == "layer_relative" else 1.0)
        p.add_(scale * torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype))


def class_weights(split: Split, num_classes: int) -> Tensor:
    """float32 [K]: n / (classes that are there * n_c), 0 for a class without samples. Their mean over samples is 1."""
    counts = torch.bincount(split.targets, minlength=num_classes)
    weights = len(split) / (int((counts > 0).sum()) * counts.clamp_min(1))
    return torch.where(counts > 0, weights, 0.0)
