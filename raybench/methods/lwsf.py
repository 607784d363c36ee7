"""Learning with selective forgetting, in one shot: rehearse the codes of the classes that stay, nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.data import Batch
from raybench.mechanisms.codes import cosine_importance, split_of_codes
from raybench.mechanisms.cosine import low_resolution_codes, margin_softmax, with_cosine_head
from raybench.mechanisms.finetuning import train
from raybench.registry import CLASS, METHODS
from raybench.space import above, at_least, nuisance, scientific
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob


@dataclass(frozen=True)
class LwsfTraining:
    """Own training of the original model; the official values."""

    scale: float = 30.0
    """Factor s of the cosine logits."""
    margin: float = 0.35
    """What the label's cosine is short of in the loss."""
    clip_norm: float | None = 1.0
    """Largest gradient norm. The official 10 000 never binds; a network without batch norm stays at chance there."""

    def __post_init__(self) -> None:
        above(self, 0, "scale", "clip_norm")
        at_least(self, 0, "margin")


def make_network(build: Callable[[], nn.Module], hp: LwsfTraining) -> nn.Module:
    """The problem's network with a cosine head."""
    return with_cosine_head(build(), hp.scale)


@METHODS.training("lwsf", hparams=LwsfTraining, network=make_network, label="LwSF", paper="Shibata et al., IJCAI 2021")
def train_with_mixed_codes(job: TrainingJob) -> Trained:
    """Shibata et al. 2021, section 3: L_C + L_M, additive-margin softmax on images and on u x + (1 - u) code_y.

    u is uniform on [0, 1] per sample; both terms have a pass of their own, so this costs two standard trainings. The
    rate rises over the first epoch, as in the official code; the rest of the recipe is the problem's. Artefacts
    ``codes`` [K, C, H, W], normalised as the images are, and ``scale`` and ``margin``.
    """
    hp: LwsfTraining = job.hparams
    codes = low_resolution_codes(job.num_classes, job.input_shape, job.generator)
    codes = job.train.pixels.normalise(codes)
    model = dataclasses.replace(job, build=lambda: make_network(job.build, hp)).new_model()

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        u = torch.rand((len(labels), 1, 1, 1), generator=job.generator, device=job.device)
        mixed = u * images + (1.0 - u) * codes[labels]
        return sum(margin_softmax(network(x), labels, hp.scale, hp.margin) for x in (images, mixed))  # type: ignore

    warmup = min(1.0 / max(job.recipe.epochs, 1), 0.5)
    job.fit(model, dataclasses.replace(job.recipe, warmup=warmup, clip_norm=hp.clip_norm), loss=loss)
    return Trained(model, {"codes": codes, "scale": torch.tensor(hp.scale), "margin": torch.tensor(hp.margin)})


@dataclass(frozen=True)
class LwsfHparams:
    """Defaults of the official code for CIFAR-100, where it has the field."""

    lambda_ewc: Annotated[float, scientific(FloatDistribution(1e-2, 1e4, log=True))] = 100.0
    """Weight of the penalty that holds what the remaining classes need."""
    lambda_delete: Annotated[float, scientific(CategoricalDistribution([0.0, 0.1, 1.0, 10.0, 100.0]))] = 0.0
    """Weight of mean_c -log p_c at the codes of the forgotten classes: towards a uniform answer. The official code has
    the term, switched off; without it only drift forgets, which is little where there is no next task."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-4, 0.3, log=True))] = 0.1
    """Learning rate."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 200, log=True))] = 200
    """Passes over the codes of the remaining classes."""
    lambda_keep: float = 10.0
    """Weight of the margin softmax on those codes."""
    w_rev: float = 0.0
    """What the forgotten classes' Fisher counts beside the remaining ones' in the penalty; below 0 it frees weights."""
    batch_size: int = 128
    """Codes a step; all of them, unless there are more."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    eval_mode: bool = True
    """Keep batch norm and dropout in evaluation mode. In training mode, which the official code uses throughout, batch
    norm would move to the statistics of a handful of codes."""

    def __post_init__(self) -> None:
        at_least(self, 0, "lambda_ewc", "lambda_delete", "lambda_keep")


@METHODS.register(
    "lwsf",
    hparams=LwsfHparams,
    label="LwSF",
    paper="Shibata et al., IJCAI 2021",
    needs=set(),
    scope={CLASS},
    tiny={"epochs": 3},
    training="lwsf",
    complexity="E K",
    batch_norm="read (move unless eval_mode)",
)
def lwsf(task: UnlearningTask, hp: LwsfHparams) -> nn.Module:
    """Shibata et al. 2021, section 3 (Algorithm 1), without a next task: w <- w - lr grad of
    lambda_keep L_keep + lambda_delete L_delete + lambda_ewc / 2 sum_i (F+_i + w_rev F-_i)_+ (w_i - w*_i)^2.

    L_keep is the margin softmax on the codes of the classes that stay; codes of deleted classes get no rehearsal, all
    that makes the published method forget them, unless ``lambda_delete`` is on. F+ and F- are mean squared gradients
    at the codes of the classes that stay and go. No data are used. Evaluation mode unless ``eval_mode`` is off.
    Cost: epochs x (K - deleted) + K sample passes, and epochs x deleted with ``lambda_delete``.

    Deviations:
        - an adaptation: the published method forgets while it learns a next task with a head of its own, new images,
          distillation on them and a penalty over tasks. Without a next task L_C, L_M and the distillation are empty;
          one head holds all classes. The defaults then hardly forget: the searched ``lambda_delete`` is what does.
        - the published Fisher comes from old images, of which none is left here: it comes from the codes, one at a time
          (the official code squares the gradient of a batch).
        - a step takes every code once; the official code draws batches of them with replacement.
        - the learning rate is constant and batch norm stays in evaluation mode; the official code trains for 200 epochs
          of images, with drops of 5 at four of them. The original is trained by the problem's recipe, clipped.
    """
    codes = task.artefacts.get("codes")
    if codes is None or "margin" not in task.artefacts:
        raise ValueError("lwsf must get codes and margin of its own training; train the original with kind lwsf")
    scale, margin = (float(task.artefacts[name]) for name in ("scale", "margin"))
    kept, gone = [c for c in range(task.num_classes) if c not in task.forget_classes], list(task.forget_classes)
    model = task.model.eval()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    held = cosine_importance(model, codes, kept, gone, hp.w_rev, scale)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        pull = sum((held[n] * (p - start[n]).square()).sum() for n, p in network.named_parameters())
        keep = margin_softmax(network(batch[0]), batch[1], scale, margin)
        total = hp.lambda_keep * keep + 0.5 * hp.lambda_ewc * pull
        if hp.lambda_delete > 0.0:
            total = total - hp.lambda_delete * F.log_softmax(network(codes[gone]), dim=1).mean()
        return total

    split = split_of_codes(codes, kept, task.generator)
    return train(task, model, split, hp, loss=loss, changes={"augment": False}, train_mode=not hp.eval_mode)
