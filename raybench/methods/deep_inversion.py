"""Images of the remaining classes are inverted from the original, and a new student is trained on them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

from raybench.mechanisms.inversion import Inversion, has_batch_norm, no_statistics
from raybench.mechanisms.inversion_lessons import compete, learn, make_images
from raybench.registry import CLASS, METHODS
from raybench.space import nuisance, scientific
from raybench.task import Facts, UnlearningTask

BETAS = (0.5, 0.9)  # of Adam on the pixels, with warm-up and cosine: DeepInversion's ImageNet script
WARMUP_SHARE = 20  # a twentieth of the steps, as 100 are of 2000
SHOWN = 64


@dataclass(frozen=True)
class DeepInversionHparams:
    """Defaults: the MNIST notebook of the source, which took DeepInversion's ImageNet settings."""

    student: Annotated[Literal["hard", "distilled"], scientific(CategoricalDistribution(["hard", "distilled"]))] = (
        "hard"
    )
    """Learn the labels the images were made for, or the teacher's softmax over the remaining classes."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-4, 1e-2, log=True))] = 1e-3
    """Adam step size of the student."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 50))] = 50
    """Passes of the student over the images."""
    batch_size: int = 256
    """Samples a step of the student."""
    weight_decay: float = 1e-4
    """L2 penalty of the student."""
    clip_value: float = 0.1
    """Largest entry of the student's gradient."""
    images_per_class: int = 6000
    """Images made for every remaining class."""
    inversion_batch: int = 1000
    """Images made together; the variation term and the batch statistics are over all of them."""
    inversion_steps: int = 2000
    """Adam steps on the pixels."""
    inversion_lr: float = 0.2
    """Largest step size on normalised pixels."""
    statistics: float = 0.05
    """Weight alpha_f of the distance of batch statistics; needs batch norm, 0 does without."""
    first_multiplier: float = 10.0
    """Factor of the first batch norm in it."""
    total_variation: float = 1e-4
    """Weight alpha_tv2."""
    total_variation_l1: float = 0.0
    """Weight alpha_tv1."""
    l2: float = 1e-5
    """Weight alpha_l2."""
    jitter: int = 0
    """Largest roll of a batch in pixels (ImageNet script: 30, CIFAR script: 2)."""
    flip: bool = False
    """Mirror the batch at random; not for digits."""
    clip: bool = False
    """Keep pixels between black and white."""
    adaptive: float = 0.0
    """Weight alpha_c of the competition with the student (paper: 0.2 on ImageNet); 0 is off."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "images_per_class", "inversion_batch", "inversion_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def inversion(self) -> Inversion:
        """The settings of the images."""
        return Inversion(
            steps=self.inversion_steps,
            lr=self.inversion_lr,
            betas=BETAS,
            warmup=self.inversion_steps // WARMUP_SHARE,
            cosine=True,
            total_variation=self.total_variation,
            total_variation_l1=self.total_variation_l1,
            l2=self.l2,
            statistics=self.statistics,
            first_multiplier=self.first_multiplier,
            jitter=self.jitter,
            flip=self.flip,
            keep_best=True,
        )


def needs_statistics(facts: Facts, hp: DeepInversionHparams) -> str | None:
    """Why this setting cannot run here, or None."""
    reason = no_statistics(facts) if hp.statistics else None
    return reason and f"{reason}; set statistics: 0"


@METHODS.register(
    "deep_inversion",
    hparams=DeepInversionHparams,
    label="DeepInversion",
    paper="arXiv:1912.08795",
    needs=set(),
    scope={CLASS},
    tiny={"epochs": 2, "images_per_class": 3, "inversion_batch": 9, "inversion_steps": 3, "statistics": 0.0},
    fresh=True,
    skip=needs_statistics,
    complexity="images x (inversion steps + E)",
    batch_norm="fresh (a new student)",
)
def deep_inversion(task: UnlearningTask, hp: DeepInversionHparams) -> nn.Module:
    """A student learns from images x inverted from the original, of the remaining classes only.

    Yin et al. 2020, arXiv:1912.08795, equations 1 to 4: x minimises CE(T(x), y) + alpha_tv R_tv + alpha_l2 R_l2 +
    alpha_f R_f, R_f the distance of batch statistics to those that the batch norms of T keep. With ``adaptive``,
    + alpha_c (1 - JS(T, S)), JS at temperature 3 (equations 6 and 7). A student from scratch then learns, ``hard``,
    the labels, or, ``distilled``, T's softmax over C_r, KL(T_r || S). Used for unlearning by the second attempt of
    the entropy-gate document. Images are raw tensors, made once per problem unless ``adaptive``. The student's batch
    norm trains, the original's stays. The images go to the report as grid ``inverted``.
    Cost: images x (inversion_steps + epochs) sample passes.

    Deviations:
        - the source kept images as grey JPEG, each stretched to the full range, which destroys the scale that the
          statistics were matched at, and chose the student's epoch on the real test set; here raw tensors, last epoch.
        - the distilled student is ours; the source has hard labels only.
        - ``adaptive``: the paper does not say how student and images take turns. Here the student learns one epoch
          from all images so far after every batch of images, and ``epochs`` more in the end.
        - JS is computed exactly; the released code clips probabilities to [0.01, 0.99] and the result to [0, 1].
        - the best images of a run are copied when they are met; the released CIFAR script keeps an alias of the last.
    """
    if hp.statistics and not has_batch_norm(task.model):
        raise ValueError("statistics must be 0 for a model without batch norm, got a positive weight; set it to 0")
    kept = [c for c in range(task.num_classes) if c not in task.forget_classes]
    labels = torch.tensor(kept, device=task.device).repeat(hp.images_per_class)
    student = task.new_model()
    if hp.adaptive:
        images = compete(task, hp, student, labels)
    else:
        settings = dataclasses.asdict(hp.inversion())
        made = {"per_class": hp.images_per_class, "batch": hp.inversion_batch, "clip": hp.clip}
        images = task.once("images", lambda g: make_images(task, hp, labels, g), **made, **settings)["value"]
    task.report(images={"inverted": task.to_pixels(images[:SHOWN]).clamp(0.0, 1.0)})
    learn(task, hp, student, images, labels, hp.epochs, lambda epoch: task.checkpoint(student, epoch))
    return student
