"""The one training loop: original and retrained models, own trainings, and methods that train.

Data live on the device as uint8, augmentation happens there, and nothing per sample runs in Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.data import Batch, Batches, Split
from raybench.seeding import seeded_globals
from raybench.space import resolve

Loss = Callable[[nn.Module, Batch], Tensor]  # per-sample losses [n]
BatchTransform = Callable[[Tensor, Tensor], Tensor]  # (normalised images, labels) -> images
OPTIMISERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. The same recipe makes the original and the retrained models."""

    epochs: int = 30
    """Passes over the training split."""
    batch_size: int = 64
    """Samples a step; the last batch of an epoch may be short."""
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    """Update rule; sgd uses ``momentum``."""
    lr: float = 0.05
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """L2 penalty (decoupled for adamw)."""
    schedule: Literal["none", "cosine", "linear", "step"] = "cosine"
    """Learning rate over the steps: constant, half a cosine or a straight line to zero, or times ``gamma`` at the
    milestones."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Fractions of the run at which the step schedule drops."""
    gamma: float = 0.1
    """Factor of the step schedule."""
    warmup: float = 0.0
    """Fraction of the run over which the learning rate rises linearly from zero."""
    augment: bool = True
    """Apply the dataset's augmentation."""
    clip_norm: float | None = None
    """Largest gradient norm, or no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the forward pass under autocast; weights stay fp32."""
    channels_last: bool = False
    """Memory format of images and weights; faster for convolutions on CUDA."""

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"recipe {name} must be at least {low}, got {getattr(self, name)}")
        if not self.lr >= 0.0:
            raise ValueError(f"recipe lr must not be negative, got {self.lr}")
        if self.clip_norm is not None and not self.clip_norm > 0.0:  # a negative one would turn the gradient round
            raise ValueError(f"recipe clip_norm must be above 0, got {self.clip_norm}; null means no clipping")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"recipe warmup must be in [0, 1), got {self.warmup}")

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of step ``step`` (from 0) of ``total``."""
        done = step / max(total, 1)
        if done < self.warmup:
            return self.lr * min(1.0, (step + 1) / (self.warmup * total))
        if self.schedule == "cosine":
            share = (done - self.warmup) / (1.0 - self.warmup)
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * share))
        if self.schedule == "linear":
            return self.lr * (1.0 - done) / (1.0 - self.warmup)
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(done >= milestone for milestone in self.milestones)
        return self.lr


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values (a spec's, or JSON's); unknown names and wrong types are a ``UserError``."""
    return resolve(Recipe, values, "recipe")


def own_recipe(recipe: Recipe, hp: Any, **changes: Any) -> Recipe:
    """The recipe of a method's own training: a constant learning rate, plain SGD without momentum, decay or clipping,
    but for what ``hp`` has a field of the same name for (``epochs``, ``lr``, ``momentum`` ...) and then ``changes``.

    How images are treated (augmentation, precision, memory format) stays the problem's, so that all methods see the
    same images unless ``hp`` says otherwise. ``ValueError`` for values out of range, ``TypeError`` for unknown names.
    """
    plain = {"optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    plain |= {"schedule": "none", "warmup": 0.0, "clip_norm": None}
    own = {f.name: getattr(hp, f.name) for f in dataclasses.fields(Recipe) if hasattr(hp, f.name)}
    return dataclasses.replace(recipe, **{**plain, **own, **changes})


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Per-sample cross-entropy [n] in nats: the data loss of classification."""
    images, labels = batch
    return F.cross_entropy(model(images), labels, reduction="none")


def make_optimiser(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe (fused on CUDA)."""
    params = list(parameters)
    fused = bool(params) and params[0].is_cuda
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            params, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused or None
        )
    kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.AdamW
    return kind(params, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused or None)


def fit(
    model: nn.Module,
    split: Batches,
    recipe: Recipe,
    *,
    loss: Loss = cross_entropy,
    objective: Callable[[Tensor], Tensor] = torch.mean,
    batch_transform: BatchTransform | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    before_step: Callable[[], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    after_epoch: Callable[[int], None] | None = None,
    train_mode: bool = True,
    optimiser: torch.optim.Optimizer | None = None,
    first_epoch: int = 1,
) -> None:
    """Train ``model`` in place on ``split`` by ``recipe``.

    ``objective`` turns the per-sample losses into the scalar that is minimised (``lambda l: -l.mean()`` ascends).
    ``batch_transform`` changes the normalised images of a batch (codes, noise). ``before_step()`` may change the
    gradients that the optimiser is about to use, after clipping; ``after_step(step)`` runs after each optimiser step,
    ``after_epoch(epoch)`` after each epoch, both counted from 1. ``train_mode=False`` keeps batch norm and dropout in
    evaluation mode. The split's generator gives order and augmentation. A training that was interrupted goes on with
    its ``optimiser`` (default: the recipe's, new) at ``first_epoch``.
    """
    total = recipe.epochs * split.steps(recipe.batch_size)
    chosen = [p for p in (parameters if parameters is not None else model.parameters()) if p.requires_grad]
    if optimiser is None:
        optimiser = make_optimiser(chosen, recipe)
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    model.train(train_mode)
    step = (first_epoch - 1) * split.steps(recipe.batch_size)
    for epoch in range(first_epoch, recipe.epochs + 1):
        for images, labels in split.batches(recipe.batch_size, augment=recipe.augment, shuffle=True):
            if batch_transform is not None:
                images = batch_transform(images, labels)
            if recipe.channels_last:
                images = images.contiguous(memory_format=memory_format)
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr_at(step, total)
            optimiser.zero_grad(set_to_none=True)
            with _precision(recipe, images.device):
                value = objective(loss(model, (images, labels)))
            value.backward()
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(chosen, recipe.clip_norm)
            if before_step is not None:
                before_step()
            optimiser.step()
            step += 1
            if after_step is not None:
                after_step(step)
        if after_epoch is not None:
            after_epoch(epoch)
    model.eval()


def _precision(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if recipe.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Trained:
    """What an own training gives: the original model, and tensors the method will need (its artefacts)."""

    model: nn.Module
    artefacts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def artefact_bytes(self) -> int:
        """Storage of the artefacts in bytes."""
        return sum(t.numel() * t.element_size() for t in self.artefacts.values())


@dataclass
class TrainingJob:
    """All that an own training may see. It does not know what will be forgotten.

    Attributes:
        train: the training split (drawing from ``generator``).
        recipe: the standard recipe of the experiment.
        hparams: the training's own hyperparameters, fixed by the spec.
        seed: of the weights; ``generator`` is for everything else that is random.
        observer: called after every step of ``fit``, off the record of the training itself.
        loss: the data loss per sample [n].
    """

    train: Split
    recipe: Recipe
    hparams: Any
    seed: int
    build: Callable[[], nn.Module]
    num_classes: int
    input_shape: tuple[int, int, int]
    generator: torch.Generator
    device: torch.device
    observer: Callable[[int], None] | None = None
    loss: Loss = cross_entropy

    def new_model(self, seed: int | None = None) -> nn.Module:
        """A freshly initialised network on the device, from ``seed`` (default: the job's)."""
        with seeded_globals(self.seed if seed is None else seed):
            return self.build().to(self.device)

    def fit(self, model: nn.Module, recipe: Recipe | None = None, **options: Any) -> None:
        """The common loop over the training split; options as in ``raybench.training.fit``."""
        own = options.pop("after_step", None)
        observers = [call for call in (own, self.observer) if call is not None]

        def after_step(step: int) -> None:
            for call in observers:
                call(step)

        with seeded_globals(self.seed + 1):  # dropout draws from the global state
            fit(model, self.train, recipe or self.recipe, after_step=after_step, **{"loss": self.loss, **options})


def train_standard(job: TrainingJob) -> Trained:
    """The standard training: the recipe on the data loss. Makes original and retrained models alike."""
    model = job.new_model()
    job.fit(model)
    return Trained(model)
