"""UNSIR (FastMU): noise that a class is wrong about, learned as that class, then repair; no image of D_f is used."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.data import Split
from raybench.mechanisms.finetuning import train
from raybench.registry import CLASS, METHODS, RETAIN
from raybench.space import at_least, nuisance, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class UnsirHparams:
    """Defaults: the official notebook (ResNet-18, CIFAR-10). The harness of Bad Teacher has 25 noise steps, 80 copies
    of 32, 500 images a class and Adam at 1e-4 throughout."""

    penalty: Annotated[float, scientific(FloatDistribution(1e-3, 1.0, log=True))] = 0.1
    """Weight lambda of the squared norm of the noise: without it the loss has no lower bound."""
    noise_steps: Annotated[int, scientific(IntDistribution(10, 400, log=True))] = 40
    """Adam steps on the noise; the first ones only shrink it."""
    copies: Annotated[int, scientific(IntDistribution(1, 80, log=True))] = 20
    """How often every noise image stands in the impair set."""
    impair_lr: Annotated[float, nuisance(FloatDistribution(1e-4, 5e-2, log=True))] = 0.02
    """Adam step size of the impair pass."""
    repair_lr: Annotated[float, nuisance(FloatDistribution(1e-4, 2e-2, log=True))] = 0.01
    """Adam step size of the repair pass."""
    retain_per_class: Annotated[int, nuisance(IntDistribution(50, 2000, log=True))] = 1000
    """Retain images of each class (or all it has) in both passes."""
    noise_batch: int = 256
    """Noise images of each forget class."""
    noise_used: int | None = None
    """How many of them are learned, or all. The released loops take the first 3 (they count channels, not images), so
    that 60 of the 5,120 noise images a class that they mean to use are seen."""
    noise_lr: float = 0.1
    """Adam step size on the noise, in units of normalised pixels."""
    batch_size: int = 256
    """Samples a step of both passes."""
    impair_epochs: int = 1
    """Passes over noise and retain images."""
    repair_epochs: int = 1
    """Passes over the retain images."""
    noise_in_train_mode: bool = False
    """Optimise the noise with the network in training mode as the notebook does: its batch norm statistics then drift
    to those of the noise before anything is learned."""

    def __post_init__(self) -> None:
        at_least(self, 0, "penalty", "noise_lr", "impair_lr", "repair_lr", "impair_epochs", "repair_epochs")
        at_least(self, 1, "noise_steps", "copies", "retain_per_class", "noise_used")
        at_least(self, 2, "noise_batch")


@METHODS.register(
    "unsir",
    hparams=UnsirHparams,
    label="UNSIR",
    paper="arXiv:2111.08947",
    needs={RETAIN},
    scope={CLASS},
    tiny={"noise_steps": 5, "noise_batch": 8, "copies": 2, "retain_per_class": 10, "batch_size": 32},
    complexity="noise steps x B per class + copies x B per class + 2 N_sub",
    batch_norm="move",
)
def unsir(task: UnlearningTask, hp: UnsirHparams) -> nn.Module:
    """Make noise that is as far from a class as can be, learn it as that class (impair), then learn D_r (repair).

    Tarun, Chundawat, Mandal and Kankanhalli 2023 (arXiv:2111.08947): for each forget class c, noise from N(0, 1)
    becomes  n = argmin -loss(n, c) + lambda mean |n|^2  by Adam, with the weights as they are; then one pass over
    copies of n labelled c and a subset of D_r, and one over the subset alone. Needs the label of what is to be
    forgotten, no image of it. Batch norm trains in both passes, so its buffers move. Reports ``noise_loss``, the loss
    of the noise at its last step (mean over forget classes): where it stays small the noise has only shrunk.
    Cost: noise_steps x noise_batch x classes passes to the input, then impair_epochs x (copies x noise_batch x
    classes + N_sub) + repair_epochs x N_sub sample passes.

    Deviations:
        - the noise is optimised with the network in evaluation mode; the notebook's is in training mode
          (``noise_in_train_mode``).
        - every noise image carries the class it was made for; the notebook labels those of all classes with class 0.
        - all of the noise is learned; the released loops take its first 3 images (``noise_used``).
        - retain images are drawn at random per class; the notebook takes the first ones.
        - no augmentation in either pass, as in the notebook, whatever the recipe says: it means nothing for noise.
        - the noise is made once and repeated, as in the notebook; the paper can be read as making it anew each time.
    """
    model = task.model
    subset = some_per_class(task.retain, hp.retain_per_class, task.generator)
    impair, losses = subset, []
    for label in task.forget_classes:
        noise, loss = make_noise(task, hp, label)
        losses.append(loss)
        noise = noise[: hp.noise_used]
        images, labels = task.to_pixels(noise), torch.full((len(noise),), label, device=task.device)
        index = torch.arange(len(noise), device=task.device).repeat(hp.copies)
        impair = impair.joined(dataclasses.replace(subset, images=images, labels=labels, index=index))
    task.report({"noise_loss": sum(losses) / len(losses)})
    plain = {"optimiser": "adam", "augment": False}
    train(task, model, impair, hp, changes={**plain, "lr": hp.impair_lr, "epochs": hp.impair_epochs})
    repair = {**plain, "lr": hp.repair_lr, "epochs": hp.repair_epochs}
    return train(task, model, subset, hp, changes=repair, offset=hp.impair_epochs)


def make_noise(task: UnlearningTask, hp: UnsirHparams, label: int) -> tuple[Tensor, float]:
    """Normalised images [noise_batch, C, H, W] that the task's model is far from calling ``label``, and their mean
    loss before the last step. The model keeps its weights; in training mode its batch norm statistics move."""
    model = task.model.train(hp.noise_in_train_mode).requires_grad_(False)
    shape = (hp.noise_batch, *task.input_shape)
    noise = torch.randn(shape, generator=task.generator, device=task.device).requires_grad_()
    labels = torch.full((hp.noise_batch,), label, device=task.device)
    optimiser = torch.optim.Adam([noise], lr=hp.noise_lr)
    data = torch.zeros(())
    for _ in range(hp.noise_steps):
        optimiser.zero_grad()
        data = task.loss(model, (noise, labels)).mean()
        (hp.penalty * noise.square().flatten(1).sum(1).mean() - data).backward()
        optimiser.step()
    model.requires_grad_(True).eval()
    return noise.detach(), float(data.detach())


def some_per_class(split: Split, count: int, generator: torch.Generator) -> Split:
    """At most ``count`` samples of each class of ``split``, drawn from ``generator``."""
    order = torch.randperm(len(split), generator=generator, device=generator.device)
    targets = split.targets[order.to(split.targets.device)]
    chosen = [order[(targets == label).nonzero().squeeze(1).to(order.device)][:count] for label in targets.unique()]
    return split.subset(torch.cat(chosen))
